"""Merging encoded rows, with a short cut for the common case of one replica with one cell."""

from __future__ import annotations

import itertools
import operator
import struct
from bisect import bisect_right
from collections.abc import Iterator, Mapping

from streams.model.merge import Merged, Replica, merge_rows
from streams.model.row import HEADER_BYTES, ROW_VERSION, MergeType, decode_row

_CELL = struct.Struct("<QQqI")
_PAYLOAD = HEADER_BYTES + _CELL.size
_COUNTER = struct.Struct("<qq")
_NUMBER = struct.Struct("<d")
_DELETED = slice(16, 24)
_LAST = slice(24, 32)


def deleted_of(data: bytes) -> int:
    """The hybrid time of the latest delete in an encoded row."""
    return int.from_bytes(data[_DELETED], "little")


def last_of(data: bytes) -> int:
    """The hybrid time of the latest event in an encoded row."""
    return int.from_bytes(data[_LAST], "little")


def cells_of(data: bytes) -> int:
    """How many cells an encoded row has."""
    return int.from_bytes(data[2:4], "little")


def first_expiry_of(data: bytes) -> int | None:
    """The expiry of an encoded row's first cell in milliseconds; None without cells."""
    return _CELL.unpack_from(data, HEADER_BYTES)[2] if cells_of(data) else None


def merge_encoded(rows: Mapping[Replica, bytes], now_ms: int) -> Merged | None:
    """As `merge_rows` of the decoded rows."""
    if len(rows) == 1:
        ((replica, data),) = rows.items()
        cells = cells_of(data)
        if cells == 0:
            return None
        if cells == 1 and data[0] == ROW_VERSION and len(data) >= _PAYLOAD:
            return _merge_single(replica, data, now_ms)
    return merge_rows({replica: decode_row(data) for replica, data in rows.items()}, now_ms)


def _merge_single(replica: Replica, data: bytes, now_ms: int) -> Merged | None:
    kind = data[1]
    start, last, expires, length = _CELL.unpack_from(data, HEADER_BYTES)
    if length != len(data) - _PAYLOAD:
        raise ValueError(f"row has {len(data)} bytes, its cell needs {_PAYLOAD + length}")
    value: int | float | bytes
    if kind == MergeType.COUNTER:
        positive, negative = _COUNTER.unpack_from(data, _PAYLOAD)
        value, born = positive - negative, start
    elif kind == MergeType.MAX or kind == MergeType.MIN:
        (value,) = _NUMBER.unpack_from(data, _PAYLOAD)
        born = start
    else:
        value, born = data[_PAYLOAD:], last
    if expires <= now_ms or born <= deleted_of(data):
        return None
    return Merged(value, expires, last, replica[0])


def group_chunks(
    iterators: Mapping[Replica, Iterator[tuple[bytes, bytes]]], size: int
) -> Iterator[list[tuple[bytes, dict[Replica, bytes]]]]:
    """The rows of several replicas, each in key order, grouped by key, in key order, in chunks.

    Takes about `size` rows of each replica at a time, and gives out what no replica can add to any more.
    """
    buffers: dict[Replica, list[tuple[bytes, bytes]]] = {replica: [] for replica in iterators}
    open_ended = set(iterators)
    while True:
        for replica in list(open_ended):
            if not buffers[replica]:
                buffers[replica] = list(itertools.islice(iterators[replica], size))
                if len(buffers[replica]) < size:
                    open_ended.discard(replica)
        boundary = min((buffers[replica][-1][0] for replica in open_ended), default=None)
        group: dict[bytes, dict[Replica, bytes]] = {}
        for replica, rows in buffers.items():
            count = len(rows)
            if boundary is not None and rows and rows[-1][0] > boundary:
                count = bisect_right(rows, boundary, key=_key_of)
            for key, data in rows[:count]:
                found = group.get(key)
                if found is None:
                    group[key] = {replica: data}
                else:
                    found[replica] = data
            buffers[replica] = rows[count:]
        yield sorted(group.items(), key=_key_of)
        if not open_ended and not any(buffers.values()):
            return


_key_of = operator.itemgetter(0)
