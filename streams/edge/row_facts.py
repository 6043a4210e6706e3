"""What a publish looks at in each of its encoded rows, read for all of them at once: 0.1 µs a row instead of 3."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streams.model.row import HEADER_BYTES
from streams.model.unit_rows import UnitRows

_COLUMNS_AT = np.array([[2], [8], [16], [24], [HEADER_BYTES + 16]])
"""Where the cells (two bytes of the eight), sequence number, latest delete, latest event and first expiry begin."""

_ONE_CELL_BYTES = HEADER_BYTES + 28
_ROWS_AT_ONCE = 1_000
"""So many rows are put together at a time: that stays in the processor's cache, and in memory that the process has. For
all rows of a large unit it would be fresh memory each time, which costs more than the copying."""

Longs = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class RowFacts:
    """Of the rows that are there, in their order: keys, encoded rows, cells, sequence numbers, hybrid times of the
    latest delete and of the latest event, and the expiry of the first cell in milliseconds (meaningless unless
    `is_plain`).

    `is_plain`: one cell, whole. Rows shorter than a header count as without cells, sequence numbers and times.
    """

    keys: Sequence[bytes]
    rows: Sequence[bytes]
    cells: Longs
    seqs: NDArray[np.uint64]
    deleted: NDArray[np.uint64]
    last: NDArray[np.uint64]
    expires_ms: Longs
    is_plain: NDArray[np.bool_]

    def one_seq(self, removed: Mapping[int, int]) -> int | None:
        """The sequence number that all of them have, and those that were `removed` too; None when they differ."""
        found = set(removed.values())
        if len(self.seqs):
            found.update((int(self.seqs.min()), int(self.seqs.max())))
        return found.pop() if len(found) == 1 else None


def facts_of(rows: Sequence[tuple[bytes, bytes | None]]) -> RowFacts:
    """The facts of (key, row); removed rows (None) are left out."""
    return _facts([key for key, row in rows if row is not None], [row for _, row in rows if row is not None])


def facts_of_unit(rows: UnitRows) -> RowFacts:
    """The facts of a unit's rows, without those that it removes. There are many units without rows: heartbeats."""
    if not rows:
        return _NONE
    return facts_of(rows.pairs()) if rows.removed else _facts(rows.row_keys, rows.rows)  # type: ignore[arg-type]


def _facts(keys: Sequence[bytes], rows: Sequence[bytes]) -> RowFacts:
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    columns = np.empty((len(_COLUMNS_AT), len(rows)), np.uint64)
    for first in range(0, len(rows), _ROWS_AT_ONCE):
        part = slice(first, first + _ROWS_AT_ONCE)
        blob = b"".join((*rows[part], bytes(_ONE_CELL_BYTES)))
        # Every place of the blob as an 8-byte number: an unaligned view, no copy.
        words = np.ndarray((len(blob) - 7,), "<u8", blob, strides=(1,))
        starts = np.cumsum(lengths[part]) - lengths[part]
        columns[:, part] = words[starts + _COLUMNS_AT]
    cells, seqs, deleted, last, expires_ms = columns
    is_short = lengths < HEADER_BYTES
    if is_short.any():
        columns[:4, is_short] = 0
    cells &= np.uint64(0xFFFF)
    is_plain = (cells == 1) & (lengths >= _ONE_CELL_BYTES)
    return RowFacts(keys, rows, cells.view(np.int64), seqs, deleted, last, expires_ms.view(np.int64), is_plain)


_NONE = _facts([], [])
