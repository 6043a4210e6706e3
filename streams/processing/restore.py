"""Bringing a partition's store to the end of its changelog, or building it anew when it is not of that log."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from streams.kafka.admin import Admin
from streams.kafka.changelog_reader import ChangelogOptions, Unit, restore
from streams.kafka.raw_fetch import FetchOptions
from streams.kafka.run import TP
from streams.model.clock import wall_ms
from streams.state.errors import StoreCorrupt
from streams.state.options import StoreOptions
from streams.state.partition import TablePartition

log = logging.getLogger(__name__)
T = TypeVar("T")
_TOPIC_ID = "topic_id"


@dataclass(frozen=True, slots=True)
class RestoreOptions:
    """`stall_s`: a restore that gets nothing for so long fails. `local_age_max_s`: a local copy older than this is not
    continued but built anew, because the changelog may have forgotten deletions since (below `delete.retention.ms`).
    """

    stall_s: float = 30.0
    local_age_max_s: float = 20 * 3600.0
    store: StoreOptions = field(default_factory=StoreOptions)
    fetch: FetchOptions = field(
        default_factory=lambda: FetchOptions(client_id="streams-restore", partition_bytes=8 << 20, max_wait_ms=100)
    )


class ChangelogRestorer:
    """Opens the store in `path` and restores one changelog partition into it (the task's ChangelogPort)."""

    def __init__(
        self, bootstrap_servers: str, admin: Admin, tp: TP, path: Path, options: RestoreOptions, blocking: Executor
    ) -> None:
        self._bootstrap, self._admin, self._tp, self._path = bootstrap_servers, admin, tp, path
        self._options, self._blocking = options, blocking

    async def restore(self, end: int | None = None) -> TablePartition:
        """The store, equal to the changelog up to `end` (None: its committed end as of this call).

        Timeout when the changelog does not get there, as while a stranger's transaction is open before `end`;
        StoreLocked when another process has the directory.
        """
        if end is None:
            end = (await self._admin.end_offsets([self._tp]))[self._tp]
        starts, ids = await asyncio.gather(
            self._admin.start_offsets([self._tp]), self._admin.topic_ids([self._tp.topic])
        )
        start, topic_id = starts[self._tp], str(ids[self._tp.topic])
        store = await self._run(lambda: self._open(topic_id, start, end))
        try:
            await self._catch_up(store, start, end)
        except BaseException:
            await self._run(store.close)
            raise
        return store

    def _open(self, topic_id: str, start: int, end: int) -> TablePartition:
        try:
            store = TablePartition(self._path, self._options.store)
            reason = self._unusable(store, topic_id, start, end)
            if not reason:
                return store
            store.close()
        except StoreCorrupt as corrupt:
            reason = str(corrupt)
        log.warning("%s/%d: building the local copy anew: %s", self._tp.topic, self._tp.partition, reason)
        TablePartition.wipe(self._path)
        store = TablePartition(self._path, self._options.store)
        store.set_meta(_TOPIC_ID, topic_id)
        return store

    def _unusable(self, store: TablePartition, topic_id: str, start: int, end: int) -> str:
        """Why the copy cannot be continued; empty when it can."""
        offset, marker, known = store.changelog_offset(), store.marker(), store.meta(_TOPIC_ID)
        if offset is None:
            if known != topic_id:
                store.set_meta(_TOPIC_ID, topic_id)
            return ""
        if known != topic_id:
            return f"it is of topic id {known}, not {topic_id}"
        if not start <= offset <= end:
            return f"it stands at {offset}, the changelog covers {start} to {end}"
        # By when it was applied: while a backlog is folded, markers are as old as their events.
        known_ms = store.applied_ms() or (marker.time_ms if marker is not None else None)
        age_s = (wall_ms() - known_ms) / 1000 if known_ms is not None else 0.0
        # A copy at the log's end has missed nothing, however old it is.
        if end - offset > 2 and age_s > self._options.local_age_max_s:
            return f"it is {age_s:.0f} s old, deletions since may be forgotten"
        return ""

    async def _catch_up(self, store: TablePartition, start: int, end: int) -> None:
        offset = store.changelog_offset()
        position = start if offset is None else offset
        if position >= end and not store.restoring:
            return
        bulk = end - position > 10_000 or store.restoring
        if bulk:
            await self._run(store.begin_restore)
        if position < end:
            await self._read(store, position, end)
        if bulk:
            await self._run(store.end_restore)

    async def _read(self, store: TablePartition, position: int, end: int) -> None:
        options = ChangelogOptions(fetch=self._options.fetch)
        stall_s = self._options.stall_s
        async for units in restore(
            self._bootstrap, self._tp, position, end, options=options, timeout_s=stall_s, eager=True
        ):
            await self._run(_Apply(store, units))

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._blocking, work))


@dataclass(frozen=True, slots=True)
class _Apply:
    """Writes units' rows and their last marker into the store, in one batch."""

    store: TablePartition
    units: list[Unit]

    def __call__(self) -> None:
        rows = {key: row for unit in self.units for key, row, _ in unit.rows}
        markers = [unit.marker for unit in self.units if unit.marker is not None]
        self.store.apply(list(rows.items()), markers[-1] if markers else None, self.units[-1].next_offset)
