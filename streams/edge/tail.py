"""Feeds EdgeTables from Kafka: finds changelogs, restores replicas, then follows all of them in one task."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from streams.edge.edge_store import EdgeTables, ReplicaId
from streams.kafka.admin import Admin, TopicInfo
from streams.kafka.changelog_reader import ChangelogOptions, ChangelogReader, Unit, restore
from streams.kafka.errors import OffsetOutOfRange
from streams.kafka.raw_fetch import Pace
from streams.kafka.run import TP
from streams.model.clock import wall_ms
from streams.model.errors import StreamsError, Timeout
from streams.state.partition import TablePartition

_TOPIC_ID = "topic_id"


@dataclass(frozen=True)
class TailOptions:
    """`discovery_s`: how often new tables, new mirrored topics and recreated ones are looked for. `bulk_records`: a
    replica that is further behind is restored: marked as one that must not be served yet. `slice_rows`: rows written at
    a time while others are served. `retry_s`: pause after a failure. `pace`: of the fetches when following.
    `local_age_max_s`: what was written longer ago is read anew, for the log may have forgotten removals since."""

    discovery_s: float = 1.0
    poll_s: float = 0.2
    bulk_records: int = 20_000
    local_age_max_s: float = 20 * 3600.0
    slice_rows: int = 2_000
    restores_at_once: int = 4
    retry_s: float = 0.5
    pace: Pace = field(default_factory=lambda: Pace(0.01, 0.01))
    changelog: ChangelogOptions = field(default_factory=ChangelogOptions)

    @property
    def following(self) -> ChangelogOptions:
        """How the changelogs are read once they are restored."""
        return replace(self.changelog, fetch=replace(self.changelog.fetch, pace=self.pace))


class ChangelogTail:
    """Follows the changelogs of `tables` in the region's Kafka. `start`, `wait_ready`, `stop`."""

    def __init__(self, tables: EdgeTables, bootstrap_servers: str, options: TailOptions | None = None) -> None:
        self._tables, self._bootstrap = tables, bootstrap_servers
        self._options = options or TailOptions()
        self._admin = Admin(bootstrap_servers)
        self._attached: dict[ReplicaId, int] = {}
        self._topic_ids: dict[str, str] = {}
        self._preparing: dict[ReplicaId, asyncio.Task[None]] = {}
        self._gate = asyncio.Semaphore(self._options.restores_at_once)
        self._changed = self._refused = False
        self._ready = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._last_problem = ""

    async def start(self) -> None:
        """Begin, in the background. Not being able to reach Kafka is a problem of `tables`, not an error here."""
        self._task = asyncio.get_running_loop().create_task(self._run())
        self._task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            self._ready.clear()
            self._tables.problem(f"following the changelogs ended: {task.exception()!r}")

    async def stop(self) -> None:
        """Stop following; idempotent. The tables stay open."""
        tasks = [task for task in (self._task, *self._preparing.values()) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._task = None
        self._preparing.clear()

    @property
    def ready(self) -> bool:
        """Whether every replica of this region, and every mirrored one that exists, is served and was caught up with
        the end that its log had when it was found."""
        return self._ready.is_set()

    def missing(self) -> list[ReplicaId]:
        """Replicas that are not served yet: their topic does not exist, or they are being restored."""
        return [replica for replica in self._tables.replica_ids() if replica not in self._attached]

    async def wait_ready(self, timeout_s: float) -> None:
        """Return when `ready`; Timeout names what is missing."""
        try:
            await asyncio.wait_for(self._ready.wait(), timeout_s)
        except TimeoutError:
            names = ", ".join(map(str, self.missing()[:5]))
            problem = f"; {self._tables.problems[-1]}" if self._tables.problems else ""
            raise Timeout(f"tables are not restored after {timeout_s:g} s: {names}{problem}") from None

    async def _run(self) -> None:
        while True:
            reader = ChangelogReader(self._bootstrap, self._options.following)
            try:
                await self._admin.start()
                if self._refused:
                    await self._recheck()
                    self._refused = False
                await self._discover()
                await reader.start({})
                self._changed = True
                await self._follow(reader)
            except OffsetOutOfRange as error:
                self._problem(str(error))
                self._refused = True
            except StreamsError as error:
                self._problem(str(error))
            finally:
                await asyncio.gather(reader.stop(), self._admin.stop(), return_exceptions=True)
            await asyncio.sleep(self._options.retry_s)

    def _problem(self, what: str) -> None:
        if what != self._last_problem:
            self._last_problem = what
            self._tables.problem(what)

    async def _follow(self, reader: ChangelogReader) -> None:
        discover_at = time.monotonic() + self._options.discovery_s
        while True:
            self._reap()
            self._forget_retired()
            if self._changed:
                self._changed = False
                reader.assign({self._tp(replica): self._position(replica) for replica in self._attached})
            if self._attached:
                for unit in await reader.units(self._options.poll_s):
                    if self._tables.serves(unit):
                        await self._tables.publish(unit)
                    await asyncio.sleep(0)
                self._last_problem = ""
            else:
                await asyncio.sleep(self._options.poll_s / 10)
            if time.monotonic() >= discover_at or not self._ready.is_set():
                await self._discover()
                discover_at = time.monotonic() + self._options.discovery_s

    def _forget_retired(self) -> None:
        """What is no longer a table of `tables` is not followed."""
        tables = self._tables.tables
        for replica in list(self._attached):
            table = tables.get(replica.table)
            if table is not None and (replica.origin, replica.partition) in table.replicas:
                continue
            del self._attached[replica]
            self._changed = True

    def _tp(self, replica: ReplicaId) -> TP:
        spec = self._tables.table(replica.table).spec
        return TP(spec.topic(replica.origin, self._tables.options.region), replica.partition)

    def _position(self, replica: ReplicaId) -> int:
        served = self._tables.table(replica.table).replicas[(replica.origin, replica.partition)]
        offset = served.changelog_offset()
        return self._attached[replica] if offset is None else offset

    async def _discover(self) -> None:
        """Start preparing what exists and is not served; notice topics that were recreated; judge readiness."""
        wanted = self._tables.replica_ids()
        found = await self._admin.topics(sorted({self._tp(replica).topic for replica in wanted}))
        for replica in wanted:
            if replica.table not in self._tables.tables:
                continue  # retired meanwhile
            info = found.get(self._tp(replica).topic)
            if info is None or replica.partition >= info.partitions or replica in self._preparing:
                continue
            known = self._topic_ids.get(info.name)
            if replica not in self._attached or known != str(info.topic_id):
                task = asyncio.get_running_loop().create_task(self._prepare(replica, info))
                self._preparing[replica] = task
        for info in found.values():
            self._topic_ids[info.name] = str(info.topic_id)
        here = self._tables.options.region
        late = [r for r in self.missing() if r.origin == here or self._tp(r).topic in found]
        if wanted and not late and not self._ready.is_set():
            self._ready.set()

    def _reap(self) -> None:
        """Forget finished preparations; a failed one is a problem, and is tried again by the next discovery."""
        for replica, task in list(self._preparing.items()):
            if task.done():
                del self._preparing[replica]
                error = task.exception()
                if isinstance(error, StreamsError):
                    self._problem(f"replica {replica}: {error}")
                elif error is not None:
                    raise error

    async def _recheck(self) -> None:
        """A position was refused: find whose, and read those replicas again from the start.

        One preparation per replica at a time: discovery may have noticed the same and be at it.
        """
        self._forget_retired()
        found = await self._admin.topics(sorted({self._tp(replica).topic for replica in self._attached}))
        for replica in list(self._attached):
            info = found.get(self._tp(replica).topic)
            if info is not None and replica not in self._preparing:
                self._preparing[replica] = asyncio.get_running_loop().create_task(self._prepare(replica, info))
        if self._preparing:
            await asyncio.wait(self._preparing.values())
        self._reap()

    async def _prepare(self, replica: ReplicaId, info: TopicInfo) -> None:
        """Bring a replica up to its log's present end, then serve it."""
        async with self._gate:
            tp = self._tp(replica)
            start, end = await self._offsets(tp)
            key = (replica.origin, replica.partition)
            served = self._tables.table(replica.table).replicas.get(key)
            partition = served or self._tables.open(replica)
            why = "its restore was interrupted" if partition.restoring else None
            why = why or _unusable(partition, str(info.topic_id), start, end)
            why = why or (_outdated(partition, end, self._options.local_age_max_s) if served is None else None)
            if why is not None:
                partition = self._tables.open_fresh(replica, why)
            elif served is not None:
                return
            partition.set_meta(_TOPIC_ID, str(info.topic_id))
            await self._catch_up(partition, tp, start, end)
            self._tables.attach(replica, partition)
            self._attached[replica] = start
            self._changed = True

    async def _offsets(self, tp: TP) -> tuple[int, int]:
        async with Admin(self._bootstrap) as admin:
            starts, ends = await admin.start_offsets([tp]), await admin.end_offsets([tp])
        return starts[tp], ends[tp]

    async def _catch_up(self, partition: TablePartition, tp: TP, start: int, end: int) -> None:
        position = partition.changelog_offset()
        position = start if position is None else position
        if end - position > self._options.bulk_records and not partition.restoring:
            partition.begin_restore()
        if position < end:
            options, eager = self._options.changelog, partition.restoring
            async for units in restore(self._bootstrap, tp, position, end, options=options, eager=eager):
                await self._apply(partition, units, start)
        if partition.restoring:
            await asyncio.to_thread(partition.end_restore)

    async def _apply(self, partition: TablePartition, units: Iterable[Unit], start: int) -> None:
        """Units into a replica that nobody reads: in slices, the marker with the last (a part of a unit has none)."""
        for unit in units:
            applied = partition.marker()
            if unit.marker is None and unit.claim is None:
                partition.apply(partition.newer(unit.rows), None, unit.next_offset)
                await asyncio.sleep(0)
                continue
            if unit.marker is None or (applied is not None and unit.marker.seq <= applied.seq):
                partition.apply([], None, unit.next_offset)
                continue
            first, size = 0, self._options.slice_rows
            while len(unit.rows) - first > size:
                part = unit.rows[first : first + size]
                partition.apply(partition.newer(part), None, partition.changelog_offset() or start)
                first += size
                await asyncio.sleep(0)
            partition.apply(partition.newer(unit.rows[first:]), unit.marker, unit.next_offset)
            await asyncio.sleep(0)


def _unusable(partition: TablePartition, topic_id: str, start: int, end: int) -> str | None:
    """Why the stored state does not belong to this log, or None."""
    offset = partition.changelog_offset()
    if offset is None:
        return None
    known = partition.meta(_TOPIC_ID)
    if known is not None and known != topic_id:
        return f"its topic was recreated ({known} is now {topic_id})"
    if not start <= offset <= end:
        return f"its position {offset} is outside of the log, [{start}, {end}]"
    return None


def _outdated(partition: TablePartition, end: int, local_age_max_s: float) -> str | None:
    """Why the stored state has been away from its log for too long, or None. One at the log's end has missed nothing,
    however old it is; the records of a claim make 2."""
    offset, applied_ms = partition.changelog_offset(), partition.applied_ms()
    if offset is None or applied_ms is None or end - offset <= 2:
        return None
    age_s = (wall_ms() - applied_ms) / 1000
    return f"it is {age_s:.0f} s old, removals since may be forgotten" if age_s > local_age_max_s else None
