"""Takes dead rows out of this region's tables, by events on the log. README.md says why nothing comes back to life.

Candidates come from publishes and from one scan at the start; they wait in a bounded heap until they may be due.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from streams.edge.edge_store import EdgeTables
from streams.edge.edge_table import EdgeTable
from streams.edge.raw_merge import cells_of, deleted_of, first_expiry_of
from streams.model.clock import NEVER_MS, ms_of
from streams.model.errors import StreamsError
from streams.model.merge import Replica, deleted_at, merge_rows
from streams.model.row import Cell, MergeType, Row, decode_row

log = logging.getLogger(__name__)


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


_ONE_CELL, _NEVER, _NO_DELETE = (1).to_bytes(2, "little"), NEVER_MS.to_bytes(8, "little"), bytes(8)

Emit = Callable[[str, int, bytes, Purge], Awaitable[None]]
"""(keyspace, partition, key, purge): appends the event to that partition of `events.<keyspace>`."""


@dataclass(frozen=True, slots=True)
class PurgeOptions:
    """`grace_ms`: how long a delete is remembered at least after every origin has passed it; longer than any mirror
    is expected to be cut. `margin_ms`: distance kept from markers' times, for clocks that differ. `retry_ms`: when a
    candidate that is not due yet is looked at again. `candidates_max`: keys remembered. Those due later than in
    `horizon_s`, and those beyond `candidates_max`, are found by a scan of the tables: after `rescan_s` at the latest,
    and at once when what was remembered has been worked off."""

    grace_ms: int = 600_000
    margin_ms: int = 2_000
    retry_ms: int = 15_000
    interval_s: float = 1.0
    purges_per_s: float = 500.0
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


class Purger:
    """Purges this region's rows. `run` it as a task; cancel it to stop."""

    def __init__(self, tables: EdgeTables, emit: Emit, options: PurgeOptions | None = None) -> None:
        self._tables, self._emit = tables, emit
        self._options = options or PurgeOptions()
        self._heap: list[tuple[int, str, bytes]] = []
        self._due: dict[tuple[str, bytes], int] = {}
        self._scan_at_ms: int | None = 0
        self._overflowed = False
        self.emitted = 0
        tables.on_rows = self.note

    def __len__(self) -> int:
        return len(self._due)

    def note(self, table: str, rows: Sequence[tuple[bytes, bytes | None]]) -> None:
        """Rows were published: remember those that are dead or will be."""
        now_ms = self._now_ms()
        for key, row in rows:
            if row is not None:
                at = _due_ms(row)
                if at is not None:
                    self._remember(at, table, key, now_ms)

    def _remember(self, at_ms: int, table: str, key: bytes, now_ms: int) -> None:
        known = self._due.get((table, key))
        if known is not None and known <= at_ms:
            return
        if known is None:
            options = self._options
            full = len(self._due) >= options.candidates_max
            if full or at_ms > now_ms + options.horizon_s * 1000:
                # What is due in a day must not keep out what is due now: it is left to the scans.
                self._overflowed = self._overflowed or full
                if self._scan_at_ms is None:
                    self._scan_at_ms = now_ms + int(options.rescan_s * 1000)
                return
        self._due[(table, key)] = at_ms
        heapq.heappush(self._heap, (at_ms, table, key))

    def _now_ms(self) -> int:
        return max((table.now_ms() for table in self._tables.tables.values()), default=0)

    async def run(self) -> None:
        """Purge until cancelled. A refused emit is retried later; other errors end the task."""
        batch = max(1, int(self._options.purges_per_s * self._options.interval_s))
        while True:
            worked_off = self._overflowed and len(self._due) < self._options.candidates_max // 2
            if worked_off or (self._scan_at_ms is not None and self._now_ms() >= self._scan_at_ms):
                self._scan_at_ms, self._overflowed = None, False
                await self.scan()
            try:
                await self.step(batch)
            except StreamsError as error:
                log.warning("purges wait: %s", error)
            await asyncio.sleep(self._options.interval_s)

    async def scan(self) -> None:
        """Look through all rows for candidates, in steps that let others run."""
        for name, table in list(self._tables.tables.items()):
            if not table.spec.purge:
                continue
            for chunk in table.row_chunks():
                for key, rows in chunk:
                    self.note(name, [(key, row) for row in rows.values()])
                await asyncio.sleep(0)

    async def step(self, limit: int) -> int:
        """Emit up to `limit` purges that are due; returns how many."""
        now_ms = self._now_ms()
        emitted = looked = 0
        while self._heap and self._heap[0][0] <= now_ms and emitted < limit:
            at, name, key = heapq.heappop(self._heap)
            if self._due.get((name, key)) != at:
                continue
            del self._due[(name, key)]
            try:
                if (table := self._tables.tables.get(name)) is not None:
                    emitted += await self._examine(table, key, now_ms)
            except StreamsError:
                self._remember(now_ms + self._options.retry_ms, name, key, now_ms)
                raise
            looked += 1
            if looked % 50 == 0:
                await asyncio.sleep(0)
        self.emitted += emitted
        return emitted

    async def _examine(self, table: EdgeTable, key: bytes, now_ms: int) -> int:
        region = self._tables.options.region
        rows = {replica: decode_row(row) for replica, row in table.rows_of(key).items()}
        mine = [replica for replica in rows if replica[0] == region]
        if not mine or not table.spec.purge:
            return 0
        if table.spec.apart:
            return await self._examine_apart(table, key, {replica: rows[replica] for replica in mine}, now_ms)
        passed_ms = now_ms - self._tables.staleness_ms(table.spec.name)
        emitted = 0
        for replica in mine:
            others = {other: row for other, row in rows.items() if other != replica}
            purge = decide(table.spec.merge, rows[replica], others, passed_ms, self._options)
            emitted += await self._send(table, replica, key, purge)
        merged = merge_rows(rows, now_ms)
        deleted = deleted_at(rows.values()) > 0
        if merged is None or deleted or merged.expires_ms != NEVER_MS:
            later = now_ms + self._options.retry_ms
            if merged is not None and not deleted:
                later = max(later, min(merged.expires_ms, NEVER_MS - 1))
            self._remember(later, table.spec.name, key, now_ms)
        return emitted

    async def _examine_apart(self, table: EdgeTable, key: bytes, mine: Mapping[Replica, Row], now_ms: int) -> int:
        """Each row by itself: what other replicas hold under this key are other rows, which need not have passed."""
        markers = table.markers()
        emitted = 0
        for replica, row in mine.items():
            marker = markers[replica]
            passed_ms = 0 if marker is None else min(now_ms, marker.time_ms)
            purge = decide(table.spec.merge, row, {}, passed_ms, self._options)
            emitted += await self._send(table, replica, key, purge)
        due_ms = min((cell.expires_ms for row in mine.values() for cell in row.cells), default=now_ms)
        if due_ms != NEVER_MS:
            self._remember(max(due_ms, now_ms + self._options.retry_ms), table.spec.name, key, now_ms)
        return emitted

    async def _send(self, table: EdgeTable, replica: Replica, key: bytes, purge: Purge | None) -> int:
        """Emit a purge of one replica's row to that replica's own partition; how many that makes."""
        if purge is None:
            return 0
        keyspace, partition = table.spec.source_of(replica[1])
        if table.spec.name != keyspace:
            purge = replace(purge, table=table.spec.name)
        await self._emit(keyspace, partition, key, purge)
        return 1


def _due_ms(row: bytes) -> int | None:
    """When a row may have something to purge: now (0), at an expiry, or never (None)."""
    if row[2:4] == _ONE_CELL and row[48:56] == _NEVER and row[16:24] == _NO_DELETE:
        return None
    cells = cells_of(row)
    if deleted_of(row) or not cells:
        return 0
    expires_ms = first_expiry_of(row)
    if cells > 1:
        expires_ms = min(cell.expires_ms for cell in decode_row(row).cells)
    return None if expires_ms is None or expires_ms == NEVER_MS else expires_ms
