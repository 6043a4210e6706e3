"""The Faust app of a worker process: consumer group, subscriptions, rebalances. Importing this imports Faust.

Faust does what it is good at (group membership, rebalances, delivering fetched runs to agents). Positions, commits and
state are the partition tasks'; so Faust's own commits, tables and transactions are not used.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from streams.kafka.run import TP, Run


@contextlib.contextmanager
def _no_arguments() -> Any:
    """Importing Faust reads sys.argv and sets environment variables from it."""
    saved = sys.argv
    sys.argv = saved[:1]
    try:
        yield
    finally:
        sys.argv = saved


with _no_arguments():
    import faust
    import faust.app.base
    import faust.assignor.partition_assignor
    import faust.fixups.django
    import faust.sensors.monitor
    import faust.tables.objects
    import faust.web.views
    import faust.worker  # these too: Faust loads itself when it is used, and a warm worker has it all loaded before
    from faust.tables import TableManager
    from faust.transport.drivers import aiokafka as driver

    from streams.kafka.transport import RunConsumer, RunTransport, TransportOptions, run_topic

log = logging.getLogger(__name__)

Dispatch = Callable[[Run, Callable[[], object]], None]
Assign = Callable[[frozenset[TP]], None]
Revoke = Callable[[frozenset[TP]], Awaitable[None]]
Cut = Callable[[frozenset[TP]], None]


@dataclass(frozen=True, slots=True)
class GroupOptions:
    """The consumer group. Times in seconds; `session_s` is how long a dead worker keeps its partitions."""

    group: str
    bootstrap_servers: str
    session_s: float = 6.0
    heartbeat_s: float = 2.0
    commit_s: float = 5.0
    resubscribe_s: float = 0.5
    budget_bytes: int = 48 << 20


@dataclass(frozen=True, slots=True)
class Handlers:
    """What the worker does with runs and assignments. `dispatch` never blocks; `revoke` returns in bounded time. `cut`
    is told of partitions whose next events are gone from the log; nothing is read of them until a seek."""

    dispatch: Dispatch
    assign: Assign
    revoke: Revoke
    cut: Cut


class SteeredConsumer(RunConsumer):
    """A RunConsumer whose partitions each start when their task says so, instead of all together.

    A partition that restores for minutes, or stands in an error, so holds up no other; and a task that takes over
    again seeks its partition alone. `subscribed`: the topics it was last told to follow.
    """

    subscribed: frozenset[str] = frozenset()

    async def subscribe(self, topics: Iterable[str]) -> None:
        """As Faust's, and remembered."""
        self.subscribed = frozenset(topics)
        await super().subscribe(self.subscribed)

    async def perform_seek(self) -> None:
        """After a rebalance: nothing is read until the tasks seek."""
        assigned = frozenset(TP(tp.topic, tp.partition) for tp in self.assignment())
        for tp in assigned:
            self._forget_acks(tp)
            self._read_offset[driver.TP(*tp)] = None
            self._committed_offset[driver.TP(*tp)] = None
        self.flow.restart({})
        self.transport.assign(assigned)

    def positions_gone(self, tps: frozenset[TP]) -> bool:
        """Tell the worker, whose tasks seek again or stay in an error."""
        self.transport.cut(tps)
        return True

    async def continue_at(self, tp: TP, offset: int) -> None:
        """Read a partition from `offset` on; runs of it that are on their way are dropped."""
        if driver.TP(*tp) not in self.assignment():
            return
        self._forget_acks(tp)
        self._read_offset[driver.TP(*tp)] = None
        self._committed_offset[driver.TP(*tp)] = None
        self.flow.void.discard(tp)
        self.flow._next[tp] = offset
        self.flow._held[tp] = {}
        self.flow.freed.set()
        await self._thread.seek_all({tp: offset})


class SteeredTransport(RunTransport):
    """A RunTransport with `SteeredConsumer`."""

    Consumer = SteeredConsumer

    def __init__(self, url: Any, app: Any, options: TransportOptions, assign: Assign, cut: Cut) -> None:
        super().__init__(url, app, options)
        self.assign, self.cut = assign, cut


class NoTables(TableManager):  # type: ignore[misc]  # untyped in Faust
    """Faust's tables, which this app has none of: it would wait a second for some to be registered before it joins the
    group."""

    async def on_start(self) -> None:
        """As Faust's, without the wait."""
        await self._update_channels()
        await self.recovery.start()


async def _unused(_: frozenset[TP]) -> Mapping[TP, int]:
    raise AssertionError("SteeredConsumer asks nobody for positions")


class FaustGroup:
    """One Faust app: subscribes to topics, hands runs to `dispatch`, tells of assignments."""

    def __init__(self, options: GroupOptions, handlers: Handlers, directory: str) -> None:
        self._handlers = handlers
        self._topics: set[str] = set()
        self._agents: list[Any] = []
        os.environ["F_DATADIR"] = directory
        broker = ";".join(f"kafka://{server}" for server in options.bootstrap_servers.split(","))
        self.app = app = faust.App(
            options.group,
            broker=broker,
            datadir=directory,
            web_enabled=False,
            topic_disable_leader=True,
            topic_allow_declare=False,
            broker_session_timeout=options.session_s,
            broker_heartbeat_interval=options.heartbeat_s,
            broker_commit_interval=options.commit_s,
            broker_rebalance_timeout=30.0,
            stream_wait_empty=False,
            stream_buffer_maxsize=100_000,
            autodiscover=False,
            TableManager=NoTables,
        )
        transport = TransportOptions(_unused, budget_bytes=options.budget_bytes, budget_runs=10_000)
        app.transport = SteeredTransport(app.conf.broker_consumer, app, transport, handlers.assign, handlers.cut)
        app.topics._resubscribe_sleep_lock_seconds = options.resubscribe_s
        app.on_partitions_revoked.connect(self._revoked)

    async def _revoked(self, _app: Any, revoked: set[Any], **_: Any) -> None:
        await self._handlers.revoke(frozenset(TP(tp.topic, tp.partition) for tp in revoked))

    def _agent(self, topic: str) -> Any:
        dispatch = self._handlers.dispatch

        async def fold(stream: Any) -> None:
            events: AsyncIterator[Any] = stream.noack().events()
            async for event in events:
                dispatch(event.value, event.ack)

        return self.app.agent(run_topic(self.app, topic), name=f"fold-{topic}", concurrency=1)(fold)

    async def subscribe(self, topics: set[str]) -> None:
        """Follow these topics too. While the app runs, this makes the group rebalance."""
        for topic in sorted(topics - self._topics):
            agent = self._agent(topic)
            self._agents.append(agent)
            self._topics.add(topic)
            if self.app.started:
                self.app.agents.update_topic_index()
                await agent.start()

    def resubscribe(self) -> None:
        """Ask again for what is not subscribed to. Call it now and then: Faust's conductor forgets what it is told
        while the group rebalances (`Conductor._subscriber`), and nobody would read a topic that was added then.
        """
        changed = self.app.topics._subscription_changed
        if changed is None or changed.is_set() or self.app.rebalancing:
            return
        if missing := self._topics - self.app.consumer.subscribed:
            log.info("not subscribed to yet, asking again: %s", ", ".join(sorted(missing)))
            changed.set()

    async def start(self) -> None:
        """Join the group."""
        self.app.finalize()
        await self.app.start()

    async def stop(self, timeout_s: float) -> None:
        """Leave the group; gives up waiting for Faust after `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                await self.app.stop()
        except TimeoutError:
            log.warning("Faust did not stop within %.1f s", timeout_s)

    async def seek(self, tp: TP, offset: int) -> None:
        """Continue one partition at an offset."""
        await self.app.consumer.continue_at(tp, offset)

    @property
    def failure(self) -> str:
        """Why the app must be considered dead; empty while it lives."""
        if self.app.crashed:
            return f"Faust crashed: {self.app.crash_reason!r}"
        if self.app.started and self.app.should_stop:
            return "Faust stopped by itself"
        dead = [agent.name for agent in self._agents if agent.started and not _alive(agent)]
        return f"agents died: {', '.join(dead)}" if dead else ""


def _alive(agent: Any) -> bool:
    tasks = [actor.actor_task for actor in agent._actors if actor.actor_task is not None]
    return any(not task.done() for task in tasks)
