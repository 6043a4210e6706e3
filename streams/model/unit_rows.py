"""Rows of a changelog in columns: there are very many, and a tuple for each costs as much as what is done with it."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import overload

Row = tuple[bytes, bytes | None, int]
"""(key, row bytes or None when the row was removed, sequence number of the unit that wrote it)"""

SEQ_ENDS = 16
"""A row has its sequence number in the eight bytes before here; a shorter one has none."""

_SEQ = struct.Struct("<8xQ")


class RowPairs(Sequence[tuple[bytes, bytes | None]]):
    """(key, row) of two columns, each made when it is asked for."""

    __slots__ = ("row_keys", "rows")

    def __init__(self, row_keys: Sequence[bytes], rows: Sequence[bytes | None]) -> None:
        self.row_keys, self.rows = row_keys, rows

    def __len__(self) -> int:
        return len(self.row_keys)

    def __iter__(self) -> Iterator[tuple[bytes, bytes | None]]:
        return zip(self.row_keys, self.rows, strict=True)

    @overload
    def __getitem__(self, at: int) -> tuple[bytes, bytes | None]: ...
    @overload
    def __getitem__(self, at: slice) -> RowPairs: ...
    def __getitem__(self, at: int | slice) -> tuple[bytes, bytes | None] | RowPairs:
        if isinstance(at, slice):
            return RowPairs(self.row_keys[at], self.rows[at])
        return self.row_keys[at], self.rows[at]


class UnitRows(Sequence[Row]):
    """Rows of a unit, in the log's order: as a sequence of `Row`, or by their columns.

    `row_keys` (what has `keys` is a mapping to `dict`); `rows` (None: removed); `removed`: by its place, the sequence
    number of each that was removed. That of every other is in the row itself, which is at least `SEQ_ENDS` long. Not to
    be changed once it is in a unit.
    """

    __slots__ = ("removed", "row_keys", "rows")

    def __init__(self, row_keys: Sequence[bytes], rows: Sequence[bytes | None], removed: Mapping[int, int]) -> None:
        self.row_keys, self.rows, self.removed = row_keys, rows, removed

    def pairs(self) -> RowPairs:
        """(key, row) of all."""
        return RowPairs(self.row_keys, self.rows)

    def seqs(self) -> Iterator[int]:
        """The sequence numbers of all."""
        whole: Sequence[bytes | None] = self.rows
        if self.removed:
            whole = list(whole)
            for at, seq in self.removed.items():
                whole[at] = _SEQ.pack(seq)
        return chain.from_iterable(map(_SEQ.unpack_from, whole))  # type: ignore[arg-type]  # none is None

    def _seq(self, at: int) -> int:
        row = self.rows[at]
        return self.removed[at] if row is None else int(_SEQ.unpack_from(row)[0])

    def __len__(self) -> int:
        return len(self.row_keys)

    def __iter__(self) -> Iterator[Row]:
        return zip(self.row_keys, self.rows, self.seqs(), strict=True)

    @overload
    def __getitem__(self, at: int) -> Row: ...
    @overload
    def __getitem__(self, at: slice) -> UnitRows: ...
    def __getitem__(self, at: int | slice) -> Row | UnitRows:
        if not isinstance(at, slice):
            at = range(len(self))[at]
            return self.row_keys[at], self.rows[at], self._seq(at)
        chosen = range(len(self))[at]
        removed = {}
        if self.removed:
            removed = {new: self.removed[old] for new, old in enumerate(chosen) if old in self.removed}
        return UnitRows(self.row_keys[at], self.rows[at], removed)
