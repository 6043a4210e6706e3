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

Longs = npt.NDArray[np.int64]
Row = tuple[bytes, bytes | None]


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


def slices(data: bytes, ends: npt.NDArray[Any], at: int) -> list[bytes]:
    """The parts of `data` that lie one after the other from `at` on, by where they end (counted from there)."""
    bounds = [at, *(ends.astype(np.int64) + at).tolist()]
    return [data[a:b] for a, b in pairwise(bounds)]


class PackedRows(Collection[Row]):
    """(key, row) of each key once, None for a removed row, in chunks. Objects are made when they are asked for.

    `skip`: by chunk which of its rows are not counted, since a later chunk has their keys; None: all are.
    """

    def __init__(self, chunks: Sequence[RowChunk], skip: Sequence[npt.NDArray[np.bool_]] | None = None) -> None:
        self.chunks, self.skip = tuple(chunks), skip
        self._length = sum(map(len, chunks)) - (sum(int(each.sum()) for each in skip) if skip is not None else 0)
        self._places: dict[bytes, int] | None = None
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
        if self._places is None:
            self._places = dict(zip(chain.from_iterable(each.keys() for each in self.chunks), range(1 << 62)))  # noqa: B905
        places = self._places
        for key in keys:
            if (place := places.get(key)) is not None:
                number = bisect_right(self._firsts, place) - 1
                into[key] = self.chunks[number].row(place - self._firsts[number])


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
        total = sum(map(len, chunks))
        latest = dict(zip(chain.from_iterable(each.keys() for each in chunks), range(total), strict=True))
        if len(latest) == total:
            return PackedRows(chunks)
        skip = np.ones(total, np.bool_)
        skip[np.fromiter(latest.values(), np.int64, len(latest))] = False
        return PackedRows(chunks, np.split(skip, np.cumsum([len(each) for each in chunks])[:-1]))
