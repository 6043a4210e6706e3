"""A Faust transport whose messages are Runs. Importing this imports Faust: only in a worker process.

    app = faust.App("score", broker="kafka://host:9092", topic_disable_leader=True)
    attach(app, TransportOptions(on_assigned=claim_and_restore))      # before any topic or agent is declared
    @app.agent(run_topic(app, "events.score"))
    async def fold(runs): async for run in runs: ...

What it guarantees to an agent: the Runs of a partition come in order and without a gap, the first one from the
position that `on_assigned` gave, whatever Faust or a rebalance did in between. Faust's committed offsets are written
(they show the lag in Kafka's tools) and never read.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import faust
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.errors import OffsetOutOfRangeError
from faust.transport.drivers import aiokafka as driver
from faust.types import ConsumerMessage

from streams.kafka.flow import Flow
from streams.kafka.raw_fetch import FetchOptions, Pace, RawKafkaConsumer
from streams.kafka.run import TP, Run
from streams.model.errors import Conflict

#: Given the assigned partitions, claims and restores them and says where reading them starts. Must bear cancellation:
#: another rebalance may begin meanwhile, and the hook is then called again with the new assignment.
AssignedHook = Callable[[frozenset[TP]], Awaitable[Mapping[TP, int]]]

_RETRY_S = 0.05


@dataclass(frozen=True)
class TransportOptions:
    """`budget_bytes` and `budget_runs` bound what one partition's agent was given and has not yet acknowledged."""

    on_assigned: AssignedHook
    budget_bytes: int = 32 * 1024 * 1024
    budget_runs: int = 1000
    fetch: FetchOptions = FetchOptions(client_id="streams-worker", pace=Pace(0.02, 0.04))  # noqa: RUF009 (frozen)


class RunMessage(ConsumerMessage):  # type: ignore[misc]
    """A Faust message that tells when it is acknowledged.

    Faust's compiled stream iterator does the work of `Consumer.ack` inline and never calls it: what both ways have in
    common is that they set `acked`.
    """

    def __init__(self, flow: Flow, run: Run, generation_id: int, tp: Any) -> None:
        self._flow, self._acked = flow, False
        super().__init__(
            run.topic,
            run.partition,
            run.next - 1,
            run.fetched_at_ms / 1000.0,
            1,
            [],
            None,
            run,
            None,
            0,
            run.size_bytes,
            tp,
            generation_id=generation_id,
        )

    @property
    def acked(self) -> bool:
        """Whether the agent is done with the Run."""
        return self._acked

    @acked.setter
    def acked(self, value: bool) -> None:
        """Faust sets it; the flow then knows."""
        self._acked = value
        if value:
            self._flow.acknowledge(TP(self.topic, self.partition), self.offset)


class RunConsumerThread(driver.AIOKafkaConsumerThread):  # type: ignore[misc]
    """Faust's consumer thread around a consumer of Runs."""

    def _create_worker_consumer(self, transport: RunTransport) -> Any:
        conf = self.app.conf
        self._assignor = RoundRobinPartitionAssignor
        settings = transport.options.fetch.consumer_settings()
        return RawKafkaConsumer(
            **settings,
            **driver.credentials_to_aiokafka_auth(conf.broker_credentials, conf.ssl_context),
            bootstrap_servers=driver.server_list(transport.url, transport.default_port),
            group_id=conf.id,
            group_instance_id=conf.consumer_group_instance_id,
            partition_assignment_strategy=[self._assignor],
            max_poll_interval_ms=int((conf.broker_max_poll_interval or 0) * 1000),
            session_timeout_ms=int(conf.broker_session_timeout * 1000),
            rebalance_timeout_ms=int(conf.broker_rebalance_timeout * 1000),
            heartbeat_interval_ms=int(conf.broker_heartbeat_interval * 1000),
            metadata_max_age_ms=conf.consumer_metadata_max_age_ms,
        )

    async def seek_all(self, positions: Mapping[TP, int]) -> None:
        """Continue these partitions from these positions (in the consumer's thread)."""
        await self.call_thread(self._seek_all, dict(positions))

    async def _seek_all(self, positions: dict[TP, int]) -> None:
        consumer = self._ensure_consumer()
        assigned = consumer.assignment()
        for tp, offset in positions.items():
            if tp not in assigned:
                continue  # revoked meanwhile: another assignment, and another perform_seek, follow
            consumer.seek(driver.ensure_aiokafka_TP(tp), offset)


class RunConsumer(driver.Consumer):  # type: ignore[misc]
    """Faust's consumer with one message per Run, whose positions come from the hook."""

    _thread: RunConsumerThread

    def __init__(self, transport: RunTransport, *args: Any, **kwargs: Any) -> None:
        self.flow = Flow(transport.options.budget_bytes, transport.options.budget_runs)
        self._lost: set[TP] = set()
        super().__init__(transport, *args, **kwargs)

    def verify_event_path(self, now: float, tp: TP) -> None:
        """Nothing: Faust would guess from the time since the process began, and call a partition that was assigned a
        moment ago an error. The worker's watchdog judges by positions."""

    def _new_consumer_thread(self) -> RunConsumerThread:
        return RunConsumerThread(self, loop=self.loop, beacon=self.beacon)

    def _to_message(self, tp: Any, record: Run) -> RunMessage:
        return RunMessage(self.flow, record, self.app.consumer_generation_id, tp)

    async def perform_seek(self) -> None:
        """Ask the hook where the assigned partitions start, and start there. Runs fetched before are void."""
        assigned = frozenset(TP(tp.topic, tp.partition) for tp in self.assignment())
        positions = {TP(*tp): offset for tp, offset in (await self.transport.options.on_assigned(assigned)).items()}
        if missing := assigned - positions.keys():
            raise Conflict(f"on_assigned gave no position for {sorted(missing)}")
        positions = {tp: offset for tp, offset in positions.items() if tp in assigned}
        for tp, offset in positions.items():
            self._forget_acks(tp)
            self._read_offset[driver.TP(*tp)] = offset or None
            self._committed_offset[driver.TP(*tp)] = None
        self.flow.restart(positions)
        await self._thread.seek_all(positions)

    async def on_partitions_revoked(self, revoked: set[Any]) -> None:
        """Faust lets agents finish their Runs, commits, and tells the app; then the partitions are not ours."""
        await super().on_partitions_revoked(revoked)
        self.flow.drop(TP(tp.topic, tp.partition) for tp in revoked)

    async def getmany(self, timeout: float) -> AsyncIterator[tuple[Any, ConsumerMessage]]:
        """Fetched Runs, each exactly where the last one ended. Strays (of before a seek) are dropped and re-read."""
        got = await self._next_runs(timeout)
        for tp, runs in got.items():
            for run in runs:
                if self.should_stop or not self.flow_active:
                    # A rebalance. These may have been fetched before its perform_seek or after: read them again.
                    self._lost.update(TP(*each) for each in got)
                    return
                expected = self.flow.expected(run.tp)
                if expected is None:
                    break
                if run.base != expected or tp not in self._get_active_partitions():
                    await self._thread.seek_all({run.tp: expected})
                    break
                self.app.monitor.track_tp_end_offset(tp, run.high_watermark)
                self.flow.deliver(run)
                yield tp, self._to_message(tp, run)

    async def _next_runs(self, timeout: float) -> Mapping[Any, list[Run]]:
        if not self.flow_active:
            await self.wait(self.can_resume_flow)
        if self._lost:
            again = {tp: at for tp in self._lost if (at := self.flow.expected(tp)) is not None}
            self._lost.clear()
            await self._thread.seek_all(again)
        active = {tp for tp in self._get_active_partitions() if TP(tp.topic, tp.partition) not in self.flow.void}
        wanted = {tp for tp in active if self.flow.has_room(TP(tp.topic, tp.partition))}
        if not wanted:
            self.flow.freed.clear()
            await self.wait_first(self.flow.freed.wait(), timeout=_RETRY_S)
            return {}
        # A partition without room is left out of this wait, so the wait must be short.
        try:
            got: Mapping[Any, list[Run]] = await self._getmany(wanted, timeout if wanted == active else _RETRY_S)
        except OffsetOutOfRangeError as error:
            gone = frozenset(TP(tp.topic, tp.partition) for tp in error.args[0])
            if not self.positions_gone(gone):
                raise
            self.flow.void |= gone
            return {}
        return {driver.TP(*tp): runs for tp, runs in got.items()}

    def positions_gone(self, tps: frozenset[TP]) -> bool:
        """Retention has removed what was to be read next of these. Whether somebody will seek: they are not fetched
        until then. Here nobody does, and the error ends the consumer."""
        return False

    async def _add_gap(self, tp: Any, offset_from: int, offset_to: int) -> None:
        """Nothing: Faust would hold every offset inside a Run in a list. `_new_offset` needs none of them."""

    def _new_offset(self, tp: Any) -> int | None:
        """The position up to which every Run is acknowledged, or None."""
        acked, before = self._acked[tp], self.flow.done_before(TP(tp.topic, tp.partition))
        done = [offset for offset in acked if before is None or offset < before]
        if not done:
            return None
        self._acked[tp] = [offset for offset in acked if before is not None and offset >= before]
        self._acked_index[tp].difference_update(done)
        return int(max(done)) + 1

    def _forget_acks(self, tp: TP) -> None:
        self._acked.pop(driver.TP(*tp), None)
        self._acked_index.pop(driver.TP(*tp), None)


class RunTransport(driver.Transport):  # type: ignore[misc]
    """Faust's Kafka transport with `RunConsumer`."""

    Consumer: ClassVar[Any] = RunConsumer

    def __init__(self, url: Any, app: Any, options: TransportOptions) -> None:
        super().__init__(url, app)
        self.options = options


class RunSchema(faust.Schema):  # type: ignore[misc]
    """Decodes nothing: the event's value is the Run, its key None."""

    def loads_key(self, app: Any, message: Any, **_: Any) -> None:
        """No key: a Run has many."""

    def loads_value(self, app: Any, message: Any, **_: Any) -> Run:
        """The Run."""
        run: Run = message.value
        return run


def attach(app: Any, options: TransportOptions) -> RunTransport:
    """Make a Faust app consume Runs. Call it before the app's first topic or agent: they bind to the transport."""
    if app._transport is not None:
        raise Conflict("the Faust app already has a transport: attach before topics and agents are declared")
    if app.conf.stream_buffer_maxsize <= options.budget_runs:
        raise Conflict("stream_buffer_maxsize must be above budget_runs, or Faust pauses partitions on its own")
    app.transport = transport = RunTransport(app.conf.broker_consumer, app, options)
    return transport


def run_topic(app: Any, *names: str) -> Any:
    """A Faust topic of these Kafka topics whose events are Runs."""
    return app.topic(*names, schema=RunSchema())
