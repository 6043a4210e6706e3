"""What may be purged of a row, and when it is worth looking. Pure; README.md says why nothing comes back to life."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from streams.edge.raw_merge import cells_of, deleted_of, first_expiry_of
from streams.edge.row_facts import Longs, RowFacts
from streams.model.clock import NEVER_MS, ms_of
from streams.model.merge import Replica, deleted_at
from streams.model.row import HEADER_BYTES, Cell, MergeType, Row, decode_row

_ONE_CELL, _NEVER, _NO_DELETE = (1).to_bytes(2, "little"), NEVER_MS.to_bytes(8, "little"), bytes(8)
_TIMES = struct.Struct("<QQ")
_DELETED_AT = 16
_CELL = struct.Struct("<QQq")


@dataclass(frozen=True, slots=True)
class Purge:
    """The event that makes a row's dead parts go (schema streams.Purge; wasm_udfs/ABI.md says how it is folded).

    `table`: whose row it is, when it is not the keyspace's own table's (schema streams.TablePurge).
    """

    generation: int
    before_ms: int
    last_hlc: int
    remove: bool
    table: str = ""


@dataclass(frozen=True, slots=True)
class PurgeOptions:
    """`grace_ms`: how long a delete is remembered at least after every origin has passed it; longer than any mirror
    is expected to be cut. `margin_ms`: distance kept from markers' times, for clocks that differ. `retry_ms`: when a
    candidate that is not due yet is looked at again.

    How fast: `batch_min` keys at a time, twice as many each time while more is due, up to `batch_max`; the next batch
    when the worker has folded the last one's purges, so that their rate is that of the slowest part; `time_share` of
    the event loop's time at most is spent on looking. `interval_s`: between batches when nothing more is due.
    `confirm_s`: how long a batch is waited for; a partition that has not folded it then gets no further purges until it
    has, or until `give_up_s` have passed.

    `candidates_max`: keys remembered. Those due later than in `horizon_s`, and those beyond `candidates_max`, are found
    by scans of their tables, which purge what is due as they go: after `rescan_s`, and sooner when what was remembered
    has been worked off, but with nine times as long between scans as they take.
    """

    grace_ms: int = 600_000
    margin_ms: int = 2_000
    retry_ms: int = 15_000
    interval_s: float = 1.0
    batch_min: int = 1_024
    batch_max: int = 32_768
    time_share: float = 0.2
    confirm_s: float = 30.0
    give_up_s: float = 600.0
    candidates_max: int = 100_000
    rescan_s: float = 3600.0
    horizon_s: float = 7200.0

    @classmethod
    def remembering(cls, grace_s: float) -> PurgeOptions:
        """Options that remember deletes for `grace_s` seconds, and look again often enough to keep to it."""
        grace_ms = int(grace_s * 1000)
        return cls(grace_ms=grace_ms, retry_ms=min(cls().retry_ms, max(500, grace_ms // 4)))


def decide(
    merge: MergeType,
    own: Row,
    others: Mapping[Replica, Row],
    passed_ms: int,
    options: PurgeOptions,
) -> Purge | None:
    """What may be purged of `own`, one replica's row, beside all `others` of its key; None for nothing yet.

    `passed_ms`: the least marker time of all replicas of the table: everything accepted before it is in.
    """
    every = [own, *others.values()]
    generation = deleted_at(every)

    def killed(cell: Cell) -> bool:
        return (cell.last_hlc if merge in (MergeType.LWW, MergeType.OPAQUE) else cell.start_hlc) <= generation

    ends = [cell.expires_ms for row in every for cell in row.cells if not killed(cell)]
    death_ms = max(ends, default=0)
    before_ms = death_ms if death_ms + options.margin_ms < passed_ms else 0
    left = [cell for cell in own.cells if not killed(cell) and cell.expires_ms > before_ms]
    forgettable = (
        not left
        and not any(killed(cell) for row in others.values() for cell in row.cells)
        and ms_of(max(generation, own.last_hlc)) + options.margin_ms < passed_ms
        and (generation == 0 or ms_of(generation) + options.grace_ms + options.margin_ms < passed_ms)
    )
    if forgettable:
        return Purge(generation, before_ms, own.last_hlc, True)
    if len(left) < len(own.cells):
        return Purge(generation, before_ms, own.last_hlc, False)
    return None


def decide_alone(merge: MergeType, data: bytes, passed_ms: int, options: PurgeOptions) -> Purge | None:
    """As `decide` of the encoded row, when no other replica has one of its key. One cell without a delete, as nearly
    all that expires is, is judged without decoding: 1 µs instead of 10."""
    if data[2:4] == _ONE_CELL:
        deleted, last_hlc = _TIMES.unpack_from(data, _DELETED_AT)
        start_hlc, cell_hlc, expires_ms = _CELL.unpack_from(data, HEADER_BYTES)
        if not deleted and start_hlc and cell_hlc and expires_ms > 0:
            if expires_ms + options.margin_ms >= passed_ms:
                return None
            return Purge(0, expires_ms, last_hlc, ms_of(last_hlc) + options.margin_ms < passed_ms)
    return decide(merge, decode_row(data), {}, passed_ms, options)


def due_ms(row: bytes) -> int | None:
    """When an encoded row may have something to purge: now (0), at an expiry, or never (None)."""
    if row[2:4] == _ONE_CELL and row[48:56] == _NEVER and row[16:24] == _NO_DELETE:
        return None
    cells = cells_of(row)
    if deleted_of(row) or not cells:
        return 0
    expires_ms = first_expiry_of(row)
    if cells > 1:
        expires_ms = min(cell.expires_ms for cell in decode_row(row).cells)
    return None if expires_ms is None or expires_ms == NEVER_MS else expires_ms


def all_due_ms(facts: RowFacts) -> Longs:
    """`due_ms` of each row; NEVER_MS for never."""
    at_ms = np.where(facts.is_plain & (facts.deleted == 0), facts.expires_ms, 0)
    for at in np.flatnonzero((facts.deleted == 0) & (facts.cells > 0) & ~facts.is_plain).tolist():
        found = due_ms(facts.rows[at])
        at_ms[at] = NEVER_MS if found is None else found
    return at_ms
