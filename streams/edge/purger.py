"""Takes dead rows out of this region's tables, by events on the log. README.md says why nothing comes back to life.

Candidates come from publishes and from scans; what is due is looked at in batches, and the purges of a batch go to each
partition together. The next batch follows when the worker has folded them: so purges never pile up on the log, and are
as fast as the worker.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from streams.edge.edge_store import EdgeTables
from streams.edge.edge_table import EdgeTable
from streams.edge.purge_candidates import Candidates
from streams.edge.purge_rules import Purge, PurgeOptions, all_due_ms, decide, decide_alone, due_ms
from streams.edge.row_facts import RowFacts, facts_of
from streams.model.clock import NEVER_MS
from streams.model.errors import StreamsError
from streams.model.merge import Replica, deleted_at, merge_rows
from streams.model.row import decode_row
from streams.model.token import Input, Token
from streams.state.partition import TablePartition

__all__ = ["Emit", "Keyed", "Purge", "PurgeOptions", "Purger", "decide"]

log = logging.getLogger(__name__)

_KEYS_AT_ONCE = 64
_ROWS_AT_ONCE = 500

Keyed = tuple[bytes, Purge]
Source = tuple[str, int]
"""(keyspace, partition): where a row's events come from."""

Rows = Sequence[tuple[bytes, bytes | None]]

Emit = Callable[[str, int, Sequence[Keyed]], Awaitable[int]]
"""(keyspace, partition, purges): appends purges, all of rows of one table, to that partition of `events.<keyspace>`;
answers the position after them."""


class Purger:
    """Purges this region's rows. `run` it as a task; cancel it to stop."""

    def __init__(
        self,
        tables: EdgeTables,
        emit: Emit,
        options: PurgeOptions | None = None,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tables, self._emit = tables, emit
        self._options = options or PurgeOptions()
        self._now_s = now_s
        self._candidates = Candidates(self._options)
        self._scan_at_s: float | None = now_s()
        self._scan_took_s = 0.0
        self._scan_ended_s = now_s()
        self._scanned_all = False
        self._unfolded: dict[tuple[str, Input], tuple[int, float]] = {}
        self._busy_s = 0.0
        self._batch = self._options.batch_min
        self.emitted = 0
        tables.on_rows = self.note

    def __len__(self) -> int:
        return len(self._candidates)

    def note(self, table: str, origin: str, facts: RowFacts) -> None:
        """Rows were published: remember those that are dead or will be, and whose deletes kill what is here."""
        now_ms = self._now_ms()
        if origin != self._tables.options.region:
            dead = np.flatnonzero(facts.deleted).tolist()
            self._candidates.remember_all(np.zeros(len(dead), np.int64), table, [facts.keys[at] for at in dead], now_ms)
            return
        self._candidates.remember_all(all_due_ms(facts), table, facts.keys, now_ms)

    def _now_ms(self) -> int:
        return max((table.now_ms() for table in self._tables.tables.values()), default=0)

    async def run(self) -> None:
        """Purge until cancelled. A refused emit is retried later; other errors end the task."""
        options = self._options
        while True:
            self._busy_s = 0.0
            try:
                if self._scan_is_due():
                    await self.scan()
                await self.step(self._batch)
            except StreamsError as error:
                log.warning("purges wait: %s", error)
            more = self._candidates.is_due(self._now_ms())
            # A round trip to the worker's commit takes as long for many as for few: what is behind goes in fewer.
            self._batch = min(2 * self._batch, options.batch_max) if more else options.batch_min
            await asyncio.sleep(self._rest_s() if more else options.interval_s)

    def _rest_s(self) -> float:
        """How long to rest after being busy, to keep to the share of time."""
        busy_s, self._busy_s = self._busy_s, 0.0
        return busy_s * (1 / self._options.time_share - 1)

    def _scan_is_due(self) -> bool:
        now_s, candidates = self._now_s(), self._candidates
        if self._scan_at_s is None and (candidates.far or candidates.overflowed):
            self._scan_at_s = now_s + self._options.rescan_s
        rested = now_s - self._scan_ended_s >= 9 * self._scan_took_s
        worked_off = bool(candidates.overflowed) and len(candidates) < self._options.candidates_max // 2
        timely = self._scan_at_s is not None and now_s >= self._scan_at_s
        return rested and (worked_off or timely)

    async def scan(self) -> None:
        """Look through all rows of the tables that need it, and purge what is due on the way."""
        candidates, began_s = self._candidates, self._now_s()
        wanted = candidates.far | candidates.overflowed
        candidates.far, candidates.overflowed, self._scan_at_s = set(), set(), None
        try:
            for name, table in list(self._tables.tables.items()):
                if table.spec.purge and (not self._scanned_all or name in wanted):
                    await self._scan(name, table)
        except StreamsError:
            candidates.far |= wanted
            self._scan_at_s = self._now_s() + self._options.retry_ms / 1000
            raise
        self._scanned_all = True
        self._scan_ended_s = self._now_s()
        self._scan_took_s = self._scan_ended_s - began_s

    async def _scan(self, name: str, table: EdgeTable) -> None:
        chunks, options = _chunks(table, self._tables.options.region), self._options
        while True:
            started_s = time.perf_counter()
            chunk = next(chunks, None)
            if chunk is None:
                return
            self.note(name, chunk[0], facts_of(chunk[1]))
            self._busy_s += time.perf_counter() - started_s
            await asyncio.sleep(self._rest_s())
            if len(self._candidates) >= self._batch and self._candidates.is_due(self._now_ms()):
                await self.step(self._batch)
                self._batch = min(2 * self._batch, options.batch_max)

    async def step(self, limit: int) -> int:
        """Look at up to `limit` keys that are due; returns how many purges were emitted."""
        now_ms = self._now_ms()
        emitted = 0
        due = self._candidates.take(now_ms, limit)
        while due:
            name, keys = due.popitem()
            table = self._tables.tables.get(name)
            if table is None or not table.spec.purge:
                continue
            try:
                emitted += await self._purge(table, keys, now_ms)
            except StreamsError:
                for each, left in {name: keys, **due}.items():
                    self._again(each, left, now_ms)
                raise
        return emitted

    def _again(self, table: str, keys: Iterable[bytes], now_ms: int) -> None:
        for key in keys:
            self._candidates.remember(now_ms + self._options.retry_ms, table, key, now_ms)

    async def _purge(self, table: EdgeTable, keys: Sequence[bytes], now_ms: int) -> int:
        found: dict[Source, list[Keyed]] = {}
        examine = self._examine_apart if table.spec.apart else self._examine
        for first in range(0, len(keys), _KEYS_AT_ONCE):
            started_s = time.perf_counter()
            examine(table, list(keys[first : first + _KEYS_AT_ONCE]), now_ms, found)
            self._busy_s += time.perf_counter() - started_s
            await asyncio.sleep(0)
        return await self._send(table, found, now_ms)

    def _examine(self, table: EdgeTable, keys: list[bytes], now_ms: int, found: dict[Source, list[Keyed]]) -> None:
        region, merge, options = self._tables.options.region, table.spec.merge, self._options
        passed_ms = now_ms - self._tables.staleness_ms(table.spec.name)
        for key, held in zip(keys, _rows_of(table.replicas, keys), strict=True):
            mine = [replica for replica in held if replica[0] == region]
            if not mine:
                continue
            if len(held) == 1:
                purge = decide_alone(merge, held[mine[0]], passed_ms, options)
                if purge is not None and purge.remove:
                    _add(found, table, mine[0], key, purge)
                    continue
            rows = {replica: decode_row(row) for replica, row in held.items()}
            for replica in mine:
                others = {other: row for other, row in rows.items() if other != replica}
                purge = decide(merge, rows[replica], others, passed_ms, options)
                if purge is not None:
                    _add(found, table, replica, key, purge)
            merged = merge_rows(rows, now_ms)
            deleted = deleted_at(rows.values()) > 0
            if merged is None or deleted or merged.expires_ms != NEVER_MS:
                later = now_ms + options.retry_ms
                if merged is not None and not deleted:
                    later = max(later, min(merged.expires_ms, NEVER_MS - 1))
                self._candidates.remember(later, table.spec.name, key, now_ms)

    def _examine_apart(
        self, table: EdgeTable, keys: list[bytes], now_ms: int, found: dict[Source, list[Keyed]]
    ) -> None:
        """Each row by itself: what other replicas hold under this key are other rows, which need not have passed."""
        region, options = self._tables.options.region, self._options
        mine = {replica: part for replica, part in table.replicas.items() if replica[0] == region}
        markers = table.markers()
        passed = {at: 0 if (marker := markers[at]) is None else min(now_ms, marker.time_ms) for at in mine}
        for key, held in zip(keys, _rows_of(mine, keys), strict=True):
            for replica, row in held.items():
                purge = decide_alone(table.spec.merge, row, passed[replica], options)
                if purge is not None:
                    _add(found, table, replica, key, purge)
                if purge is None or not purge.remove:
                    at_ms = due_ms(row)
                    if at_ms is not None:
                        at_ms = max(at_ms, now_ms + options.retry_ms)
                        self._candidates.remember(at_ms, table.spec.name, key, now_ms)

    async def _send(self, table: EdgeTable, found: Mapping[Source, list[Keyed]], now_ms: int) -> int:
        """Emit what may be emitted, and wait until it is folded; what is not, is looked at again."""
        name, region, sent = table.spec.name, self._tables.options.region, 0
        ends: dict[Input, int] = {}
        for (keyspace, partition), purges in found.items():
            where = Input(region, f"events.{keyspace}", partition)
            if self._is_behind(name, where):
                self._again(name, (key for key, _ in purges), now_ms)
                continue
            ends[where] = await self._emit(keyspace, partition, purges)
            self._unfolded[name, where] = (ends[where], self._now_s())
            self.emitted += len(purges)
            sent += len(purges)
        if not ends:
            return 0
        try:
            await self._tables.wait_for(Token(ends), self._options.confirm_s, name)
        except StreamsError as late:
            log.info("purges of %s are not folded yet: %s", name, late)
        for where in ends:
            if self._is_behind(name, where):
                self._again(
                    name, (key for key, _ in found[where.topic.removeprefix("events."), where.partition]), now_ms
                )
        return sent

    def _is_behind(self, table: str, where: Input) -> bool:
        """Whether purges of `table` that were sent there are not folded yet."""
        sent = self._unfolded.get((table, where))
        if sent is None:
            return False
        end, at_s = sent
        folded = self._tables.positions.position(where, table) >= end
        if folded or self._now_s() - at_s > self._options.give_up_s:
            del self._unfolded[table, where]
            return False
        return True


def _rows_of(replicas: Mapping[Replica, TablePartition], keys: list[bytes]) -> list[dict[Replica, bytes]]:
    """The encoded rows of each key; one call into each store."""
    found: list[dict[Replica, bytes]] = [{} for _ in keys]
    for replica, partition in replicas.items():
        for rows, row in zip(found, partition.multi_get(keys), strict=True):
            if row is not None:
                rows[replica] = row
    return found


def _add(found: dict[Source, list[Keyed]], table: EdgeTable, replica: Replica, key: bytes, purge: Purge) -> None:
    """A purge of one replica's row goes to that replica's own partition."""
    source = table.spec.source_of(replica[1])
    if table.spec.name != source[0]:
        purge = replace(purge, table=table.spec.name)
    found.setdefault(source, []).append((key, purge))


def _chunks(table: EdgeTable, region: str) -> Iterator[tuple[str, Rows]]:
    """(origin, rows): all that a purge could be due for, some at a time, each as of when it is taken."""
    for replica in list(table.replicas):
        if replica[0] != region and table.spec.apart:
            continue
        after: bytes | None = None
        while (partition := table.replicas.get(replica)) is not None:
            rows = partition.scan(after=after, limit=_ROWS_AT_ONCE)
            if not rows:
                break
            yield replica[0], rows
            after = rows[-1][0]
