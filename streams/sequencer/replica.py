"""`Replica`: follows a group's log at its home cluster, applies it, and appends to it."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar

from streams.kafka.admin import Admin
from streams.kafka.link import Deadline
from streams.kafka.producer import EventProducer, ProducerOptions
from streams.kafka.raw_fetch import RawConsumer
from streams.kafka.records import records_of
from streams.kafka.run import Run
from streams.model.clock import wall_ms
from streams.model.errors import Conflict, StreamsError, Timeout, TooManyRequests, Unavailable
from streams.sequencer.barrier import SharedBarrier
from streams.sequencer.commands import barrier
from streams.sequencer.options import RECORD_BYTES_MAX, SequencerOptions, topic_of, topic_spec
from streams.wasm.machine_host import LogCommand

log = logging.getLogger(__name__)


class Told(Protocol):
    """A command's result."""

    @property
    def size_bytes(self) -> int:
        """About how much memory it takes."""


R = TypeVar("R", bound=Told)


class LogState(Protocol):
    """What is applied of a log (`SequencedState`, `OrdersStore`). `apply` answers a step with a result a command."""

    @property
    def next(self) -> int:
        """The position up to which everything is applied."""

    @property
    def machine_state(self) -> Any:
        """Where the machine stands; `time_ms` is the time of the log."""

    def belongs_to(self, topic_id: str) -> bool:
        """Whether it was made from this topic, by this machine."""

    def begin(self, topic_id: str) -> None:
        """Note what it is made from."""

    def reset(self) -> None:
        """Forget everything."""

    def apply(self, commands: Sequence[LogCommand], following: int) -> Any:
        """Apply commands, all or none."""


OnStep = Callable[[Any, int], None]
"""Told by the event loop when something was applied: what changed (None: only the time passed), the marker's time."""
_MARGIN_BYTES = 64 << 10


class OutcomeUnknown(Unavailable):
    """A command was handed to Kafka, and whether and how it was executed is not known (yet)."""

    title = "outcome unknown"


class Replica(Generic[R]):
    """One gateway's replica of a group. For one event loop.

    `execute` answers from this replica, once it has applied the command: what is answered is in the log for good.
    """

    def __init__(
        self,
        group: str,
        home_servers: str,
        state: LogState,
        on_step: OnStep,
        options: SequencerOptions | None = None,
    ) -> None:
        options = options or SequencerOptions()
        self.topic, self.state = topic_of(group), state
        self._group, self._servers, self._on_step, self._options = group, home_servers, on_step, options
        self._admin = Admin(home_servers, options.wait_s)
        self._producer = EventProducer(
            home_servers,
            ProducerOptions(
                timeout_s=options.wait_s,
                max_record_bytes=RECORD_BYTES_MAX - _MARGIN_BYTES,
                client_id="streams-sequencer",
            ),
        )
        self._barrier = SharedBarrier(self._probe)
        self._appends = options.barrier == "append"
        self._results: OrderedDict[int, R] = OrderedDict()
        self._results_bytes = 0
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._tickets = itertools.count()
        self._tasks: list[asyncio.Task[None]] = []
        self._connected, self._contact_s = False, float("-inf")
        self._producing = False
        self.trouble: str | None = "it has not been reached yet"
        self.caught_up = asyncio.Event()

    async def start(self) -> None:
        """Begin to follow, in the background. That the home region cannot be reached is no error here."""
        loop = asyncio.get_running_loop()
        self._tasks = [
            loop.create_task(self._run(), name="sequenced"),
            loop.create_task(self._keep_contact(), name="contact"),
        ]

    async def stop(self) -> None:
        """Stop following and disconnect; whoever waits gets Unavailable or OutcomeUnknown. Idempotent."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._barrier.close()
        for _, _, waiter in self._waiting:
            if not waiter.done():
                waiter.set_exception(OutcomeUnknown("the gateway is stopping"))
        for part in (self._producer, self._admin):
            with contextlib.suppress(StreamsError):
                await part.stop()

    @property
    def reachable(self) -> bool:
        """Whether the home region has answered lately."""
        return self._connected and time.monotonic() - self._contact_s < self._options.unreachable_s

    async def execute(self, command: bytes, appended: Callable[[], None] | None = None) -> tuple[R, int]:
        """Append a command; its result and offset once it is applied here. `appended` is called when it has its place
        in the log.

        Unavailable: nothing was written. OutcomeUnknown: it may have been, or may be yet.
        """
        self._check_reachable("this attempt sent nothing")
        try:
            async with asyncio.timeout(self._options.wait_s):
                try:
                    meta = await self._producer.put(self.topic, None, command, partition=0)
                except TooManyRequests:
                    raise
                except StreamsError as error:
                    if not error.retriable:
                        raise
                    raise OutcomeUnknown(f"the home region did not acknowledge the command: {error.detail}") from error
                if appended is not None:
                    appended()
                await self._until(meta.next_offset)
        except TimeoutError:
            raise OutcomeUnknown(f"the command was not answered within {self._options.wait_s:g} s") from None
        result = self._results.get(meta.offset)
        if result is None:
            raise OutcomeUnknown("the command was executed, but its result is not at hand any more")
        return result, meta.offset

    async def linearize(self) -> None:
        """Return once everything that was acknowledged anywhere before this call is applied here; Unavailable."""
        self._check_reachable("eventual reads go on (?consistency=eventual)")
        try:
            async with asyncio.timeout(self._options.wait_s):
                await self._until(await self._barrier.position())
        except TimeoutError:
            raise Unavailable(
                f"this replica could not be brought up to date with the home region in {self._options.wait_s:g} s",
                fix="try again, or read with ?consistency=eventual",
            ) from None

    async def tick(self) -> None:
        """Append a barrier and apply it: the time of the log is now. Unavailable."""
        try:
            await self.execute(barrier())
        except OutcomeUnknown as error:
            raise Unavailable(f"the time of the log could not be learnt: {error.detail}") from error

    def _check_reachable(self, consequence: str) -> None:
        if not self.reachable:
            raise Unavailable(
                f"the home region of strong writes cannot be reached ({self.trouble or 'no answer'}); {consequence}",
                fix="try again once it can be reached",
            )

    async def _probe(self) -> int:
        if self._appends:
            meta = await self._producer.put(self.topic, None, barrier(), partition=0)
            return meta.next_offset
        return await self._end()

    async def _until(self, position: int) -> None:
        if self.state.next < position:
            await self._turn_of(position)

    async def _turn_of(self, position: int) -> None:
        """Wait until the results up to a position are known here."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (position, next(self._tickets), waiter))
        await waiter

    def _wake(self) -> None:
        while self._waiting and self._waiting[0][0] <= self.state.next:
            waiter = heapq.heappop(self._waiting)[2]
            if not waiter.done():
                waiter.set_result(None)

    # ---- following

    async def _run(self) -> None:
        while True:
            consumer = RawConsumer(self._servers, self._options.fetch)
            try:
                await self._connect(consumer)
                while True:
                    for run in await consumer.get_runs(self._options.probe_every_s, self._options.batch_bytes):
                        await self._take(run)
            except StreamsError as error:
                self._troubled(error)
            finally:
                await asyncio.gather(consumer.stop(), return_exceptions=True)
            await asyncio.sleep(self._options.retry_s)

    def _troubled(self, error: StreamsError) -> None:
        if self.trouble != str(error):
            log.warning("sequenced log %s: %s", self.topic, error)
        self.trouble, self._connected = str(error), False

    async def _connect(self, consumer: RawConsumer) -> None:
        await self._admin.start()
        found = await self._admin.topics([self.topic])
        if self.topic not in found:
            found = await self._admin.ensure_topics([topic_spec(self._group)])
        topic_id, tp = str(found[self.topic].topic_id), (self.topic, 0)
        start = (await self._admin.start_offsets([tp]))[tp]  # type: ignore[index]
        same = self.state.belongs_to(topic_id)
        if same and self.state.next > await self._end():
            await self._await_end(self.state.next)
        if not same or self.state.next > await self._end():
            log.error("sequenced log %s: another log or another machine; the state is made anew from it", self.topic)
            self.state.reset()
            self._results.clear()  # of offsets that may be other commands' now
            self._results_bytes = 0
        if self.state.next < start:
            raise Conflict(
                f"{self.topic} begins at {start}, this replica needs it from {self.state.next}",
                field="topic",
                fix="its records must be kept for ever, or copy DIR/gateway/REGION/sequenced from another gateway",
            )
        self.state.begin(topic_id)
        if self._options.barrier == "auto":
            self._appends = await self._admin.replication(self.topic) > 1
        await consumer.start()
        consumer.assign({tp: self.state.next})
        if not self._producing:
            await self._producer.start()
            self._producing = True
        self._contact_s, self._connected, self.trouble = time.monotonic(), True, None

    async def _end(self) -> int:
        tp = (self.topic, 0)
        return (await self._admin.end_offsets([tp], committed=False))[tp]  # type: ignore[index]

    async def _await_end(self, position: int) -> None:
        """Give a leader that has just been elected the time to learn how far its log is committed."""
        deadline = Deadline(self._options.wait_s, 0.05, self._options.retry_s)
        with contextlib.suppress(Timeout):
            while await self._end() < position:
                await deadline.pause("the log is shorter than what was applied of it")

    async def _take(self, run: Run) -> None:
        commands = [LogCommand(each.offset, each.timestamp_ms, each.value or b"") for each in records_of(run)]
        if not commands:
            self._apply([], run.next)
        for piece in pieces_of(commands, self._options.batch_commands, self._options.batch_bytes):
            last = piece[-1] is commands[-1]
            self._apply(piece, run.next if last else piece[-1].offset + 1)
            await asyncio.sleep(0)

    def _apply(self, commands: Sequence[LogCommand], following: int) -> None:
        self._publish(commands, self.state.apply(commands, following))

    def _publish(self, commands: Sequence[LogCommand], step: Any) -> None:
        """Tell whoever waits what became of the commands."""
        for command, result in zip(commands, step.results, strict=True):
            self._results[command.offset] = result
            self._results_bytes += result.size_bytes
        while self._results_bytes > self._options.results_bytes and len(self._results) > len(commands):
            self._results_bytes -= self._results.popitem(last=False)[1].size_bytes
        self._on_step(step, max(self.state.machine_state.time_ms, 0))
        self._wake()

    async def _keep_contact(self) -> None:
        """Ask for the log's end now and then: says whether home answers, and how old what is applied here is."""
        while True:
            every_s = self._options.probe_every_s if self.caught_up.is_set() else self._options.retry_s
            await asyncio.sleep(every_s)
            if not self._connected:
                continue
            asked_ms = wall_ms()
            try:
                async with asyncio.timeout(self._options.wait_s):
                    end = await self._end()
            except (StreamsError, TimeoutError) as error:
                self.trouble = str(error) or "no answer in time"
                continue
            self._contact_s, self.trouble = time.monotonic(), None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(every_s):
                    await self._until(end)
                    self.caught_up.set()
                    self._on_step(None, asked_ms)


def pieces_of(commands: Sequence[LogCommand], count: int, size: int) -> list[Sequence[LogCommand]]:
    """The commands cut into pieces of at most `count`, and about `size` bytes."""
    found, first, held = [], 0, 0
    for index, command in enumerate(commands):
        held += len(command.value)
        if index + 1 - first >= count or held >= size:
            found.append(commands[first : index + 1])
            first, held = index + 1, 0
    if first < len(commands):
        found.append(commands[first:])
    return found
