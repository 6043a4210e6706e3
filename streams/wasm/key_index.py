"""Where keys stand among very many: by their hashes, computed for all at once, without an object for each of them.

A dictionary of a unit's keys costs several times as much as one of these to make, and some 200 bytes a key to hold.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Longs = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]

_WORD = 8
_SEED = np.uint64(int.from_bytes(os.urandom(_WORD), "little"))
_MIX = np.uint64(0x9E3779B97F4A7C15)
_SHIFT = np.uint64(29)
_BITS = np.uint64(8)
_MASKS = np.array([0, *((1 << 8 * n) - 1 for n in range(1, _WORD + 1))], np.uint64)
"""By how many bytes of a word belong to a key: those bytes of it."""

SAME_MAX = 4
"""With more keys of equal hashes somebody has chosen them so, and a dictionary is used instead."""


def hashes_of(data: bytes, ends: npt.NDArray[np.integer[Any]], at: int = 0) -> Hashes:
    """Of each of the parts of `data` that lie one after the other from `at` on, by where they end (counted from there),
    a number that is equal for equal parts. Others seldom have the same; nothing may rely on that they never do.
    """
    stops = ends.astype(np.int64) + at
    starts = np.concatenate((np.array([at], np.int64), stops[:-1]))[: len(stops)]
    lengths = stops - starts
    found: Hashes = (lengths.astype(np.uint64) * _MIX) ^ _SEED
    if len(data) < _WORD:
        data = data.ljust(_WORD, b"\0")
    # Every place of the data as an 8-byte number: an unaligned view, no copy.
    words = np.ndarray((len(data) - _WORD + 1,), "<u8", data, strides=(1,))
    longest = int(lengths.max()) if len(lengths) else 0
    shortest = int(lengths.min()) if len(lengths) else 0
    chosen: Longs | None = None
    for first in range(0, longest, _WORD):
        if chosen is not None:  # few keys may be much longer than all others
            chosen = chosen[lengths[chosen] > first]
        elif first >= shortest:
            chosen = np.flatnonzero(lengths > first)
        place, left = (starts, lengths - first) if chosen is None else (starts[chosen], lengths[chosen] - first)
        word = _words(words, place + first) & _MASKS[np.minimum(left, _WORD)]
        if chosen is None:
            found = _mixed(found, word)
        else:
            found[chosen] = _mixed(found[chosen], word)
    return found


def _words(words: Hashes, places: Longs) -> Hashes:
    """The numbers that stand there; beyond the last whole one, what there is, and zeros."""
    last = len(words) - 1
    beyond = places - last
    if int(beyond.max()) <= 0:
        return words[places]
    return words[np.minimum(places, last)] >> (_BITS * np.maximum(beyond, 0).astype(np.uint64))


def _mixed(found: Hashes, word: Hashes) -> Hashes:
    mixed = (found ^ word) * _MIX
    mixed ^= mixed >> _SHIFT
    return mixed


def repeated(hashes: Hashes) -> Longs:
    """The places whose hash some other place has, too, in ascending order: no other key can occur twice."""
    order = np.argsort(hashes)
    ordered = hashes[order]
    same = ordered[1:] == ordered[:-1]
    in_run = np.zeros(len(hashes), np.bool_)
    in_run[1:] = same
    in_run[:-1] |= same
    places: Longs = np.sort(order[in_run])
    return places


class KeyIndex:
    """Finds the places of keys by their hashes."""

    def __init__(self, hashes: Hashes) -> None:
        self._order = np.argsort(hashes)
        self._ordered = hashes[self._order]

    @property
    def is_even(self) -> bool:
        """Whether few keys share a hash: else looking for one of these would take long."""
        ordered = self._ordered
        return len(ordered) <= SAME_MAX or not bool((ordered[SAME_MAX:] == ordered[:-SAME_MAX]).any())

    def candidates(self, keys: Sequence[bytes]) -> Iterator[tuple[Longs, Longs]]:
        """(which of `keys`, at which place it may stand), for all pairs of equal hashes: a few times many."""
        ends = np.cumsum(np.fromiter(map(len, keys), np.int64, len(keys)))
        wanted = hashes_of(b"".join(keys), ends)
        order = np.argsort(wanted)
        at = np.searchsorted(self._ordered, wanted[order])
        while len(order):
            inside = at < len(self._ordered)
            order, at = order[inside], at[inside]
            equal = self._ordered[at] == wanted[order]
            order, at = order[equal], at[equal]
            if len(order):
                yield order, self._order[at]
            at = at + 1
