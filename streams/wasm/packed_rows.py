"""`PackedRows`: the rows of a take as the module gave them, without an object for each of them.

A unit of many keys has a hundred thousand rows: as tuples of bytes they cost more to make and to free than to fold.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from streams.wasm.key_index import Hashes, KeyIndex, hashes_of, repeated

Longs = npt.NDArray[np.int64]
Row = tuple[bytes, bytes | None]

INDEXED_FROM = 1_000
"""Of fewer rows a dictionary is made sooner, and found in without numpy, whose calls cost more than a few lookups."""


@dataclass(frozen=True, slots=True)
class RowChunk:
    """Rows in one answer of a module (ABI.md, `rows`), which has been checked. Keys lie one after the other from
    `keys_at` on, rows from `rows_at` on; the ends count from there. `present`: 0 where a row is removed.
    """

    data: bytes
    keys_at: int
    key_ends: Longs
    rows_at: int
    row_ends: Longs
    present: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.key_ends)

    def keys(self) -> list[bytes]:
        """All keys."""
        return slices(self.data, self.key_ends, self.keys_at)

    def rows(self) -> list[bytes | None]:
        """All rows."""
        found: list[bytes | None] = list(slices(self.data, self.row_ends, self.rows_at))
        if not bool(self.present.all()):
            for at in np.flatnonzero(~self.present).tolist():
                found[at] = None
        return found

    def row(self, at: int) -> bytes | None:
        """One row."""
        if not self.present[at]:
            return None
        start = int(self.row_ends[at - 1]) if at else 0
        return self.data[self.rows_at + start : self.rows_at + int(self.row_ends[at])]

    def some_keys(self, at: Longs) -> list[bytes]:
        """The keys at some places."""
        return _parts(self.data, self.key_ends, self.keys_at, at)

    def some_rows(self, at: Longs) -> list[bytes | None]:
        """The rows at some places."""
        found: list[bytes | None] = list(_parts(self.data, self.row_ends, self.rows_at, at))
        for number in np.flatnonzero(~self.present[at]).tolist():
            found[number] = None
        return found

    def hashes(self) -> Hashes:
        """The hashes of all keys."""
        return hashes_of(self.data, self.key_ends, self.keys_at)


def slices(data: bytes, ends: npt.NDArray[Any], at: int) -> list[bytes]:
    """The parts of `data` that lie one after the other from `at` on, by where they end (counted from there)."""
    bounds = [at, *(ends.astype(np.int64) + at).tolist()]
    return [data[a:b] for a, b in pairwise(bounds)]


def _parts(data: bytes, ends: Longs, base: int, at: Longs) -> list[bytes]:
    """As `slices`, of those at some places alone."""
    begins = np.where(at > 0, ends[at - 1], 0) + base
    return [data[a:b] for a, b in zip(begins.tolist(), (ends[at] + base).tolist(), strict=True)]


class PackedRows(Collection[Row]):
    """(key, row) of each key once, None for a removed row, in chunks. Objects are made when they are asked for.

    `skip`: by chunk which of its rows are not counted, since a later chunk has their keys; None: all are.
    """

    def __init__(self, chunks: Sequence[RowChunk], skip: Sequence[npt.NDArray[np.bool_]] | None = None) -> None:
        self.chunks, self.skip = tuple(chunks), skip
        self._length = sum(map(len, chunks)) - (sum(int(each.sum()) for each in skip) if skip is not None else 0)
        self._index: KeyIndex | dict[bytes, int] | None = None
        self._firsts = [0, *accumulate(map(len, self.chunks))]

    def __len__(self) -> int:
        return self._length

    def __contains__(self, row: object) -> bool:
        return any(each == row for each in self)

    def __iter__(self) -> Iterator[Row]:
        for number, chunk in enumerate(self.chunks):
            rows = zip(chunk.keys(), chunk.rows(), strict=True)
            if self.skip is None:
                yield from rows
            else:
                yield from (row for row, left in zip(rows, self.skip[number].tolist(), strict=True) if not left)

    def __eq__(self, other: object) -> bool:
        return list(self) == (list(other) if isinstance(other, PackedRows) else other)

    __hash__ = None  # type: ignore[assignment]

    @property
    def size_bytes(self) -> int:
        """What the answers take that hold the rows."""
        return sum(len(chunk.data) for chunk in self.chunks)

    def find(self, keys: Sequence[bytes], into: dict[bytes, bytes | None]) -> None:
        """Puts the rows of those `keys` that are here into a dictionary."""
        if not self.chunks or not keys:
            return
        if self._index is None:
            self._index = self._make_index()
        if isinstance(self._index, dict):
            for key in keys:
                if (place := self._index.get(key)) is not None:
                    number = bisect_right(self._firsts, place) - 1
                    into[key] = self.chunks[number].row(place - self._firsts[number])
            return
        whiches: list[Longs] = []
        places: list[Longs] = []
        for which, at in self._index.candidates(keys):
            whiches.append(which)
            places.append(at)
        if whiches:
            self._put(keys, np.concatenate(whiches), np.concatenate(places), into)

    def _make_index(self) -> KeyIndex | dict[bytes, int]:
        if self._firsts[-1] >= INDEXED_FROM:
            index = KeyIndex(np.concatenate([chunk.hashes() for chunk in self.chunks]))
            if index.is_even:
                return index
        return dict(zip(chain.from_iterable(each.keys() for each in self.chunks), range(1 << 62)))  # noqa: B905

    def _put(self, keys: Sequence[bytes], which: Longs, places: Longs, into: dict[bytes, bytes | None]) -> None:
        """The rows at `places`, in their order, so that of a key's rows the latest stays; unless it is another key."""
        order = np.argsort(places)
        which, places = which[order], places[order]
        cuts = np.searchsorted(places, self._firsts).tolist()
        for number, chunk in enumerate(self.chunks):
            begin, end = cuts[number], cuts[number + 1]
            if begin == end:
                continue
            at = places[begin:end] - self._firsts[number]
            whose = [keys[each] for each in which[begin:end].tolist()]
            for key, found, row in zip(whose, chunk.some_keys(at), chunk.some_rows(at), strict=True):
                if key == found:
                    into[key] = row


def pack(rows: Iterable[Row]) -> PackedRows:
    """Rows of objects, packed; each key once."""
    keys, values = [], []
    for key, row in rows:
        keys.append(key)
        values.append(row)
    if not keys:
        return PackedRows(())
    key_ends = np.cumsum(np.fromiter(map(len, keys), np.int64, len(keys)))
    row_ends = np.cumsum(np.fromiter((0 if row is None else len(row) for row in values), np.int64, len(keys)))
    present = np.fromiter((row is not None for row in values), np.bool_, len(keys))
    ends = key_ends.astype("<u4").tobytes(), row_ends.astype("<u4").tobytes(), present.tobytes()
    head = b"".join((len(keys).to_bytes(4, "little"), *ends))
    data = b"".join((head, *keys, *(row for row in values if row is not None)))
    return PackedRows([RowChunk(data, len(head), key_ends, len(head) + int(key_ends[-1]), row_ends, present)])


class PendingRows:
    """Rows of several takes, the latest of each key: whole takes as they are, small ones (of single events that are
    folded apart) as objects, which the takes after them then become, too."""

    def __init__(self) -> None:
        self._takes: list[PackedRows] = []
        self._apart: dict[bytes, bytes | None] = {}

    def __len__(self) -> int:
        """How many rows there are, at most: one of a key that is in several takes counts for each."""
        return sum(map(len, self._takes)) + len(self._apart)

    @property
    def overlaps(self) -> int:
        """How often a key may count in the length."""
        return len(self._takes) + bool(self._apart)

    def add(self, rows: PackedRows, *, apart: bool = False) -> None:
        """Rows that are newer than all before."""
        if apart or self._apart:
            self._apart.update(rows)
        elif len(rows):
            self._takes.append(rows)

    def find(self, keys: Sequence[bytes], into: dict[bytes, bytes | None]) -> None:
        """Puts the rows of those `keys` that are here into a dictionary."""
        for each in self._takes:
            each.find(keys, into)
        if self._apart:
            into.update((key, self._apart[key]) for key in keys if key in self._apart)

    def copy(self) -> PendingRows:
        """The same rows, to come back to."""
        found = PendingRows()
        found._takes, found._apart = list(self._takes), dict(self._apart)
        return found

    def merged(self) -> PackedRows:
        """All rows, each key once."""
        takes = [*self._takes, pack(self._apart.items())] if self._apart else self._takes
        if len(takes) <= 1:
            return takes[0] if takes else PackedRows(())
        chunks = [chunk for each in takes for chunk in each.chunks]
        firsts = [0, *accumulate(map(len, chunks))]
        doubtful = repeated(np.concatenate([chunk.hashes() for chunk in chunks]))
        latest: dict[bytes, int] = {}
        for number, (begin, end) in enumerate(pairwise(np.searchsorted(doubtful, firsts).tolist())):
            if begin < end:
                places = doubtful[begin:end]
                latest.update(zip(chunks[number].some_keys(places - firsts[number]), places.tolist(), strict=True))
        if len(latest) == len(doubtful):
            return PackedRows(chunks)
        skip = np.zeros(firsts[-1], np.bool_)
        skip[doubtful] = True
        skip[np.fromiter(latest.values(), np.int64, len(latest))] = False
        return PackedRows(chunks, np.split(skip, firsts[1:-1]))
