"""Kafka's default partitioner (murmur2), vectorised over many keys."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

_SEED = 0x9747B28C
_M = np.uint32(0x5BD1E995)
_R = np.uint32(24)


def murmur2_many(keys: Sequence[bytes]) -> NDArray[np.uint32]:
    """The murmur2 hash (as of Kafka's Java client) of every key."""
    if not keys:
        return np.empty(0, np.uint32)
    lengths = np.fromiter(map(len, keys), np.int64, len(keys))
    # One byte string with 4 zero bytes at the end, so that a tail may be read as a whole word.
    data = np.frombuffer(b"".join(keys) + b"\0\0\0\0", np.uint8)
    starts = np.zeros(len(keys), np.int64)
    np.cumsum(lengths[:-1], out=starts[1:])
    return murmur2_columns(data, starts, lengths)


def murmur2_columns(
    data: NDArray[np.uint8], starts: NDArray[np.int64], lengths: NDArray[np.int64]
) -> NDArray[np.uint32]:
    """The murmur2 hash of slices of `data` (which must go on for at least 4 bytes after the last slice)."""
    order = np.argsort(-lengths, kind="stable")
    start, length = starts[order], lengths[order]
    words = length >> 2
    h = np.uint32(_SEED) ^ length.astype(np.uint32)
    rounds = int(words[0]) if len(words) else 0
    # Keys are sorted by length, longest first: those with a word in this round are a prefix.
    for i in range(rounds):
        alive = int(np.searchsorted(-words, -i, side="left"))
        k = _word(data, start[:alive] + 4 * i)
        k *= _M
        k ^= k >> _R
        k *= _M
        h[:alive] *= _M
        h[:alive] ^= k
    tail = (length & 3).astype(np.uint32)
    mask = ((np.uint64(1) << (tail.astype(np.uint64) * np.uint64(8))) - np.uint64(1)).astype(np.uint32)
    mixed = (h ^ (_word(data, start + (words << 2)) & mask)) * _M
    h = np.where(tail > 0, mixed, h)
    h ^= h >> np.uint32(13)
    h *= _M
    h ^= h >> np.uint32(15)
    result = np.empty_like(h)
    result[order] = h
    return result


def _word(data: NDArray[np.uint8], at: NDArray[np.int64]) -> NDArray[np.uint32]:
    word = data[at].astype(np.uint32)
    for byte in (1, 2, 3):
        word |= data[at + byte].astype(np.uint32) << np.uint32(8 * byte)
    return word


def partitions_for(keys: Sequence[bytes], partitions: int) -> NDArray[np.int32]:
    """The partition of every key, equal to `streams.model.keys.partition_for` of each."""
    return ((murmur2_many(keys) & np.uint32(0x7FFFFFFF)) % np.uint32(partitions)).astype(np.int32)


def slice_partitions(
    partitions: int,
) -> Callable[[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]], NDArray[np.int32]]:
    """`partitions_for` over slices (buffer, starts, lengths) that go on for 4 bytes: what `encode_frames` takes."""

    def of(data: NDArray[np.uint8], starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int32]:
        hashes = murmur2_columns(data, starts, lengths) & np.uint32(0x7FFFFFFF)
        return (hashes % np.uint32(partitions)).astype(np.int32)

    return of
