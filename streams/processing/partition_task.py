"""One partition of one table: take over, fold, commit. The rules of the commit live here (see README.md).

A task serves one ownership: from fencing the predecessor to the first doubt about what is committed. After an error it
is dropped as a whole and a new task takes over from the changelog.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, TypeVar

from streams.model.marker import CLAIM_KEY, Claim, InputPosition, Marker
from streams.processing.commit import Action, CommitOptions, CommitPolicy, row_bytes_of
from streams.processing.dead_letter import dead_letter
from streams.processing.outputs import output_headers, outputs_of
from streams.processing.ports import (
    Decoded,
    Made,
    Output,
    Rejected,
    Rows,
    RunPort,
    StoppedAt,
    StorePort,
    TaskPorts,
    UnitRecords,
)
from streams.processing.position import after, start_of
from streams.processing.run_part import part_of
from streams.processing.task_stats import TaskStats

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class TaskIdentity:
    """What the task works on. `udf_hash`: SHA-256 of the module, hex. `owner`: this process, for claims and markers.

    `output_topics`: where the UDF's outputs go, by their index; `region`: the origin that their headers name.
    `lost_are_expired`: events that the input's retention has removed have expired in this table.
    """

    table: str
    partition: int
    input_topic: str
    dead_letter_topic: str
    udf_hash: str
    owner: str
    region: str = ""
    output_topics: tuple[str, ...] = ()
    lost_are_expired: bool = False

    @property
    def input_key(self) -> str:
        """The input's name in markers and tokens."""
        return f"{self.input_topic}/{self.partition}"

    def __str__(self) -> str:
        """Short form for logs."""
        return f"{self.table}/{self.partition}"


@dataclass(frozen=True, slots=True)
class TaskOptions:
    """`schema_wait_s`: how long an unknown schema id may take to arrive before its events become dead letters.
    `seek_again_s`: after seeking back over a gap, how long to wait for the right run before seeking again.
    `schema_forget_s`: after waiting in vain for a schema id, how long it is not waited for again.
    `refetch_s`: when the input is known to go on but nothing is fetched for so long, seek to the position again.
    `work_s`: how long folding one run, or one commit, may take before it counts as standing still.
    """

    commit: CommitOptions = field(default_factory=CommitOptions)
    schema_wait_s: float = 5.0
    seek_again_s: float = 1.0
    schema_forget_s: float = 60.0
    refetch_s: float = 2.0
    work_s: float = 60.0


class TaskState(Enum):
    """Where a task stands; shown in metrics."""

    NEW = "new"
    RESTORING = "restoring"
    RUNNING = "running"
    CLOSED = "closed"


@dataclass(slots=True)
class _Unit:
    """What one commit carries."""

    rows: Rows
    records: UnitRecords
    outputs: Sequence[Output]
    marker: Marker
    row_bytes: int


class PartitionTask:
    """Folds one input partition into one table partition.

    `take_over`, then `run` until `close`; `offer` gives it runs. Events are counted exactly once in the changelog and
    the store, whatever dies when. `run` raises what ended the ownership: `Fenced`, `UnknownOutcome`, or a store's or
    broker's error; the caller drops the task then.
    """

    def __init__(self, identity: TaskIdentity, ports: TaskPorts, options: TaskOptions) -> None:
        self.identity = identity
        self.options = options
        self.state = TaskState.NEW
        self.stats = TaskStats()
        self.position = -1
        self.committed_position = -1
        self.input_end = -1
        self._ports = ports
        self._policy = CommitPolicy(options.commit, ports.now_s())
        self._store: StorePort | None = None
        self._topic_id = ""
        self._seq = 0
        self._time_ms = 0
        self._inbox: deque[tuple[RunPort, Callable[[], object]]] = deque()
        self._closing = False
        self._wake = asyncio.Event()
        self._outputs: list[Output] = []
        self._commit: asyncio.Task[None] | None = None
        self._sought_s = -1e9
        self._fetched_s = ports.now_s()
        self._refetch = False
        self._jobs: set[asyncio.Future[Any]] = set()
        self._unknown_until_s: dict[int, float] = {}
        contained = ports.containment
        self._unsubscribe = contained.on_resume(self._wake.set) if contained is not None else lambda: None
        self._folding_s: float | None = None
        self._committing_s: float | None = None

    @property
    def working(self) -> bool:
        """Whether it folds a run, or commits what was folded: a busy machine is slow, which no restart mends."""
        since = (each for each in (self._folding_s, self._committing_s) if each is not None)
        return any(self._ports.now_s() - each < self.options.work_s for each in since)

    @property
    def lag(self) -> int:
        """Offsets between what is committed and the input's end as last seen; 0 when unknown."""
        return max(0, self.input_end - self.committed_position) if self.committed_position >= 0 else 0

    @property
    def wanted(self) -> int | None:
        """From where on the input is still to be fetched for this task; None while it takes nothing."""
        if self.state is not TaskState.RUNNING or self._closing:
            return None
        return max(self.position, self._inbox[-1][0].next) if self._inbox else self.position

    @property
    def paused(self) -> str:
        """Why its UDF folds nothing until somebody resumes it; empty: it is not paused."""
        return self._ports.containment.paused if self._ports.containment is not None else ""

    @property
    def resting(self) -> str:
        """Why it makes no progress though nothing is wrong with the task; empty: it should."""
        if self._ports.fold.searching:
            return "looking for what stops the UDF"
        return self._ports.containment.resting if self._ports.containment is not None else ""

    @property
    def policy(self) -> CommitPolicy:
        """When this task commits."""
        return self._policy

    async def take_over(self) -> int:
        """Become the owner: fence, claim, restore, find the position and seek there. Returns the position.

        PositionError when the marker does not fit the input's log.
        """
        self.state = TaskState.RESTORING
        ports, began_s = self._ports, self._ports.now_s()
        await ports.writer.start()
        claim = Claim(self.identity.owner, ports.wall_ms())
        # Up to the claim itself, not to the committed end as told now: that one stands still at anybody's open
        # transaction while the predecessor's commits come after it, and a state without them would repeat their seqs.
        end = await ports.writer.commit([(CLAIM_KEY, claim.encode(), ())], [])
        self._store = await ports.changelog.restore(end)
        marker = await self._blocking(self._store.marker)
        self.stats.restore_s = ports.now_s() - began_s
        self.position = self.committed_position = await self._start_position(marker)
        if marker is not None:
            self._seq, self._time_ms = marker.seq, marker.time_ms
        self._policy = CommitPolicy(self.options.commit, ports.now_s())
        # Running before the seek: the input's other tables must not seek past this position meanwhile, and the first
        # runs may come before it returns. Those that are of before it are a gap that needs no second seek.
        self.state, self._sought_s = TaskState.RUNNING, ports.now_s()
        await ports.input.seek(self.position)
        log.info(
            "%s: took over at %s next=%d seq=%d after %.2f s",
            self.identity,
            self.identity.input_key,
            self.position,
            self._seq,
            self.stats.restore_s,
        )
        return self.position

    async def _start_position(self, marker: Marker | None) -> int:
        bounds = await self._ports.input.bounds()
        self._topic_id, self.input_end = bounds.topic_id, bounds.end
        at = marker.inputs.get(self.identity.input_key) if marker is not None else None
        identity = self.identity
        found = start_of(str(identity), identity.input_key, at, bounds, expired=identity.lost_are_expired)
        if at is not None:
            self.stats.skipped += found - at.next
        return found

    def offer(self, run: RunPort, done: Callable[[], object]) -> None:
        """Hand over a fetched run; never blocks. `done` is called when its bytes are no longer held: folded, or not
        wanted (then it is fetched again).
        """
        if self.state is not TaskState.RUNNING or self._closing:
            done()
            return
        self._fetched_s = self._ports.now_s()
        self._inbox.append((run, done))
        self.input_end = max(self.input_end, run.high_watermark)
        self._wake.set()

    def _empty_inbox(self) -> None:
        while self._inbox:
            self._inbox.popleft()[1]()

    def observe_end(self, asked_at_ms: int, end: int) -> None:
        """The input's end offset was `end` at or after `asked_at_ms` (wall clock, before asking)."""
        self.input_end = max(self.input_end, end)
        if self.state is not TaskState.RUNNING:
            return
        now_s = self._ports.now_s()
        if end <= self.position:
            self._time_ms = max(self._time_ms, asked_at_ms)
            self._fetched_s = now_s
        elif not self._inbox and now_s - self._fetched_s > self.options.refetch_s:
            self._fetched_s = now_s
            self._refetch = True
            self._wake.set()

    async def run(self) -> None:
        """Fold and commit until closed; raises what ended the ownership."""
        while not self._closing:
            self._wake.clear()
            if self._refetch:
                self._refetch = False
                await self._seek_back("nothing was fetched")
            if self._wait_s() <= 0:
                await self._fold_next()
            self._check_commit()  # nothing awaits from here to the take: what the policy knows, the fold must know
            decision = self._policy.decide(self._ports.now_s())
            if decision.action is not Action.WAIT:
                await self._begin_commit(decision.action)
            elif (wait_s := self._wait_s()) > 0:
                at_s = self._ports.now_s() + wait_s
                await self._sleep_until(at_s if decision.at_s is None else min(at_s, decision.at_s))
        await self._finish()

    def _wait_s(self) -> float:
        """How long until the next run may be folded; infinity: until something happens."""
        if not self._inbox or not self._policy.may_fold:
            return math.inf
        return 0.0 if self._ports.containment is None else self._ports.containment.wait_s()

    async def _sleep_until(self, at_s: float) -> None:
        timeout = None if at_s == math.inf else max(0.0, at_s - self._ports.now_s())
        try:
            async with asyncio.timeout(timeout):
                await self._wake.wait()
        except TimeoutError:
            return

    async def _fold_next(self) -> None:
        run, done = self._inbox.popleft()
        more = False
        try:
            if run.base > self.position:
                await self._seek_back(f"got {run.base}..{run.next}")
            elif run.next > self.position:
                contained = self._ports.containment
                most = None if contained is None else contained.slice_events
                await self._fold(run if most is None else part_of(run, self.position, most))
                more = run.next > self.position and not self._closing
        finally:
            if more:
                self._inbox.appendleft((run, done))
            else:
                done()

    async def _fold(self, run: RunPort) -> None:
        self._folding_s = self._ports.now_s()
        try:
            await self._fold_run(run)
        finally:
            self._folding_s = None

    async def _fold_run(self, run: RunPort) -> None:
        """Fold a run, or as much of it as its UDF's traps allow."""
        decoded, rejected = await self._blocking(lambda: self._decode_and_fold(run, wait_for_schemas=True))
        if rejected is None:
            await self._wait_for_schemas(decoded.unknown_schemas)
            decoded, rejected = await self._blocking(lambda: self._decode_and_fold(run, wait_for_schemas=False))
        stopped = self._ports.fold.stopped if decoded.events else None
        done = stopped or StoppedAt(run.next, decoded.events, decoded.last_append_ms)
        self._reject([*(each for each in decoded.rejected if each.offset < done.next), *(rejected or ())])
        if done.held is not None:
            self._reject([done.held])
        if self._ports.containment is not None:
            self._ports.containment.folded(done.events)
        if done.next <= self.position:
            return
        self.stats.events += done.events
        self.stats.runs += stopped is None
        self.position = done.next
        self._time_ms = max(self._time_ms, done.append_ms)
        size_bytes = 0 if stopped else run.size_bytes
        late_s = max(0.0, (self._ports.wall_ms() - done.append_ms) / 1000) if done.append_ms else 0.0
        self._policy.folded(
            self._ports.now_s(),
            size_bytes,
            caught_up=done.next >= self.input_end,
            events=done.events,
            rows=self._ports.fold.changed_rows,
            late_s=late_s,
        )

    def _decode_and_fold(self, run: RunPort, *, wait_for_schemas: bool) -> tuple[Decoded, Sequence[Rejected] | None]:
        """The run's events and what the UDF refused; None: not folded, there are schema ids worth waiting for."""
        ports, began_s = self._ports, self._ports.now_s()
        decoded = ports.decoder.decode(run, self.position)
        decoded_s = ports.now_s()
        self.stats.decode_s += decoded_s - began_s
        if wait_for_schemas and any(self._worth_waiting(schema) for schema in decoded.unknown_schemas):
            return decoded, None
        if not decoded.events:
            return decoded, ()
        rejected = ports.fold.fold(decoded, self._load_rows)
        self.stats.fold_s += ports.now_s() - decoded_s
        return decoded, rejected

    def _worth_waiting(self, schema_id: int) -> bool:
        return self._unknown_until_s.get(schema_id, 0.0) <= self._ports.now_s()

    async def _wait_for_schemas(self, schema_ids: frozenset[int]) -> None:
        """A schema registered elsewhere may be mirrored after its first events: wait, once per id and while."""
        log.info("%s: waiting for schemas %s", self.identity, sorted(schema_ids))
        if not await self._ports.schemas.wait_for(schema_ids, self.options.schema_wait_s):
            log.warning("%s: schemas %s stay unknown", self.identity, sorted(schema_ids))
            until_s = self._ports.now_s() + self.options.schema_forget_s
            self._unknown_until_s.update(dict.fromkeys(schema_ids, until_s))

    async def _blocking(self, work: Callable[[], T]) -> T:
        """`work` in the executor; `release` waits for it even when the caller was cancelled."""
        if self._ports.blocking is None:
            return work()
        job = asyncio.get_running_loop().run_in_executor(self._ports.blocking, work)
        self._jobs.add(job)
        job.add_done_callback(self._jobs.discard)
        return await asyncio.shield(job)

    def _load_rows(self, keys: list[bytes]) -> Sequence[bytes | None]:
        """Committed rows; the fold host knows those that were taken but are not committed."""
        assert self._store is not None
        return self._store.multi_get(keys)

    def _reject(self, rejected: Sequence[Rejected]) -> None:
        if not rejected:
            return
        identity, now_ms = self.identity, self._ports.wall_ms()
        source = (identity.input_topic, identity.partition)
        for event in rejected:
            self._outputs.append(dead_letter(identity.dead_letter_topic, source, event, identity.udf_hash, now_ms))
        self.stats.dead_letters += sum(not each.held for each in rejected)
        first, what = rejected[0], "held at" if rejected[0].held else "dead letters, first:"
        at = f"{first.reason} at {identity.input_key} offset {first.offset}"
        log.warning("%s: %d %s %s", identity, len(rejected), what, at)

    async def _seek_back(self, why: str) -> None:
        """What comes at the position was not fetched, or was lost on the way: fetch it again, unless it is gone."""
        now_s = self._ports.now_s()
        if now_s - self._sought_s < self.options.seek_again_s:
            return  # what was sought may stand behind this stray in the inbox
        self._empty_inbox()
        bounds = await self._ports.input.bounds()
        identity, before = self.identity, self.position
        expired = identity.lost_are_expired
        self.position = after(str(identity), identity.input_key, before, bounds.start, expired=expired)
        self.stats.skipped += self.position - before
        self._sought_s = now_s
        self.stats.seeks_back += 1
        log.info("%s: %s, seeking to %d again", self.identity, why, self.position)
        await self._ports.input.seek(self.position)

    def _check_commit(self) -> None:
        if self._commit is not None and self._commit.done():
            done, self._commit, self._committing_s = self._commit, None, None
            done.result()
            self._ports.fold.committed()

    async def _begin_commit(self, action: Action) -> None:
        """Take what changed and commit it in the background, so that folding goes on."""
        if action is Action.HEARTBEAT:
            unit = self._take_unit(action)  # takes nothing: no thread is needed, and all partitions' go out together
            self.stats.heartbeats += 1
        else:
            self._committing_s = self._ports.now_s()
            unit = await self._blocking(lambda: self._take_unit(action))
        self._policy.started(self._ports.now_s(), unit.row_bytes, len(unit.rows))
        self._commit = asyncio.create_task(self._commit_unit(unit))
        self._commit.add_done_callback(lambda _: self._wake.set())

    def _take_unit(self, action: Action) -> _Unit:
        began_s = self._ports.now_s()
        rows: Rows = []
        if action is Action.COMMIT:
            rows, late = self._ports.fold.take()
            self._reject(late)
            self._put_out(self._ports.fold.take_outputs())
        outputs, self._outputs = self._outputs, []
        self._seq += 1
        marker = Marker(
            action.value,
            self._seq,
            self._time_ms,
            {self.identity.input_key: InputPosition(self.position, self._topic_id)},
            self.identity.udf_hash,
            self.identity.owner,
        )
        stamped, records = self._ports.encode(rows, marker)
        self.stats.take_s += self._ports.now_s() - began_s
        return _Unit(stamped, records, outputs, marker, row_bytes_of(stamped))

    def _put_out(self, made: Sequence[Made]) -> None:
        if not made:
            return
        identity = self.identity
        made_by = output_headers(self._time_ms, identity.region, identity.input_key, self.position)
        self._outputs += outputs_of(made, identity.output_topics, made_by)
        self.stats.outputs += len(made)

    async def _commit_unit(self, unit: _Unit) -> None:
        """Changelog first; once that is acknowledged, the store in one batch."""
        ports, store = self._ports, self._store
        assert store is not None
        began_s = ports.now_s()
        offset = await ports.writer.commit(unit.records, unit.outputs)
        acked_s = ports.now_s()
        await self._blocking(lambda: store.apply(unit.rows, unit.marker, offset))
        now_s = ports.now_s()
        self.stats.commit_s += acked_s - began_s
        self.stats.apply_s += now_s - acked_s
        self.stats.commits += 1
        self.stats.rows += len(unit.rows)
        self.committed_position = unit.marker.inputs[self.identity.input_key].next
        self._policy.finished(now_s)

    async def _finish(self) -> None:
        """Commit what is folded, the commit in flight first."""
        if self._commit is not None:
            await asyncio.shield(self._commit)
            self._check_commit()
        if self._policy.has_work:
            await self._begin_commit(Action.COMMIT)
            assert self._commit is not None
            await asyncio.shield(self._commit)
            self._check_commit()

    def request_close(self) -> None:
        """Make `run` commit what is folded and return."""
        self._closing = True
        self._wake.set()

    async def release(self) -> None:
        """Give up everything that is held, whatever state the task is in. Uncommitted folds are dropped."""
        self.state = TaskState.CLOSED
        self._closing = True
        self._unsubscribe()
        self._ports.fold.cancel()
        self._empty_inbox()
        if self._commit is not None:
            self._commit.cancel()
            await asyncio.gather(self._commit, return_exceptions=True)
        await asyncio.gather(*self._jobs, return_exceptions=True)
        await self._ports.writer.close()
        store, self._store = self._store, None
        if store is not None:
            await self._blocking(store.close)
        await self._blocking(self._ports.fold.close)
