"""Merging the rows that several replicas hold for one key into the one value that readers see.

Merging never looks at the order in which rows arrived: it is a pure function of the set of rows and the time, so every
region that holds the same rows answers the same (state-based CRDTs, Shapiro et al. 2011). A replica is (origin region,
partition) and has a single writer. The merge comes first, expiry and deletion are judged after it:

- A delete at hybrid time G kills what began (for `lww`: was last written) up to G.
- `lww`: the surviving cell with the largest (hybrid time, origin, partition) wins and lives until the latest expiry.
- `counter`, `max`, `min`: each cell lives from its first event to its expiry. Cells whose lives touch, in whatever
  region, form one generation; the generation that contains now is the value; earlier ones are gone, so that an
  expired counter starts at 0 in every region without any of them having to ask another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from streams.model.clock import ms_of
from streams.model.row import Cell, MergeType, Row, counter_sums, number_of

Replica = tuple[str, int]
"""(origin region, partition): the single writer of a row."""


@dataclass(frozen=True, slots=True)
class Merged:
    """What readers see of a key.

    `value`: int for counters, float for max and min, the payload bytes for lww and opaque rows.
    `expires_ms`: when it vanishes (`NEVER_MS`: never). `last_hlc`: its latest write. `origin`: who wrote that.
    """

    value: int | float | bytes
    expires_ms: int
    last_hlc: int
    origin: str


def deleted_at(rows: Iterable[Row]) -> int:
    """The hybrid time of the latest delete that any replica knows; 0 when there is none."""
    return max((row.deleted_hlc for row in rows), default=0)


def merge_rows(rows: Mapping[Replica, Row], now_ms: int) -> Merged | None:
    """The value of a key at `now_ms`, or None when it is absent, deleted or expired."""
    if not rows:
        return None
    kind = next(iter(rows.values())).merge_type
    deleted = deleted_at(rows.values())
    if kind in _FOLDS:
        alive = [(cell, replica) for replica, row in rows.items() for cell in row.cells if cell.start_hlc > deleted]
        return _merge_lives(alive, _FOLDS[kind], now_ms)
    alive = [(cell, replica) for replica, row in rows.items() for cell in row.cells if cell.last_hlc > deleted]
    return _merge_lww(alive, now_ms)


def _merge_lww(alive: list[tuple[Cell, Replica]], now_ms: int) -> Merged | None:
    if not alive:
        return None
    expires = max(cell.expires_ms for cell, _ in alive)
    if expires <= now_ms:
        return None
    cell, replica = max(alive, key=lambda pair: (pair[0].last_hlc, pair[1]))
    return Merged(cell.payload, expires, cell.last_hlc, replica[0])


def _merge_lives(
    alive: list[tuple[Cell, Replica]], combine: Callable[[list[bytes]], int | float], now_ms: int
) -> Merged | None:
    current: list[tuple[Cell, Replica]] = []
    end = -1
    for cell, replica in sorted(alive, key=lambda pair: ms_of(pair[0].start_hlc)):
        if ms_of(cell.start_hlc) >= end:
            if end > now_ms:
                break
            current = []
        current.append((cell, replica))
        end = max(end, cell.expires_ms)
    if not current or end <= now_ms:
        return None
    last, writer = max(current, key=lambda pair: (pair[0].last_hlc, pair[1]))
    value = combine([cell.payload for cell, _ in current])
    return Merged(value, end, last.last_hlc, writer[0])


def _sum(payloads: list[bytes]) -> int:
    total = 0
    for payload in payloads:
        positive, negative = counter_sums(payload)
        total += positive - negative
    return total


_FOLDS: dict[MergeType, Callable[[list[bytes]], int | float]] = {
    MergeType.COUNTER: _sum,
    MergeType.MAX: lambda payloads: max(map(number_of, payloads)),
    MergeType.MIN: lambda payloads: min(map(number_of, payloads)),
}
