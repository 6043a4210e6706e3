"""Faust's group on a real broker: topics that are added while it rebalances are followed too."""

from __future__ import annotations

import asyncio
import uuid
from pathlib import Path

import pytest

from streams.kafka.admin import Admin, TopicSpec
from streams.kafka.run import TP
from streams.processing.faust_app import FaustGroup, GroupOptions, Handlers
from streams.region.kafka_server import KafkaServer
from tests.support.polling import eventually

pytestmark = pytest.mark.kafka


async def test_a_topic_that_is_added_in_the_midst_of_a_rebalance_is_subscribed_to(
    kafka: KafkaServer, tmp_path: Path
) -> None:
    first, second, third = (f"it.{uuid.uuid4().hex[:8]}" for _ in range(3))
    async with Admin(kafka.bootstrap_servers) as admin:
        await admin.ensure_topics([TopicSpec(name, 1, {}) for name in (first, second, third)])
    assigned: set[str] = set()
    adding: list[asyncio.Task[None]] = []

    def assign(tps: frozenset[TP]) -> None:
        assigned.clear()
        assigned.update(tp.topic for tp in tps)

    async def revoke(_: frozenset[TP]) -> None:
        if {first} == assigned and not adding:
            adding.append(asyncio.create_task(group.subscribe({third})))
            await asyncio.wait(adding)
            await eventually(lambda: not group.app.topics._subscription_changed.is_set())  # the conductor has seen it

    handlers = Handlers(lambda run, done: done(), assign, revoke, lambda _: None)
    options = GroupOptions(f"g{uuid.uuid4().hex[:8]}", kafka.bootstrap_servers, resubscribe_s=0.05)
    group = FaustGroup(options, handlers, str(tmp_path))
    await group.subscribe({first})
    await group.start()
    try:
        await eventually(lambda: assigned == {first}, 30)
        await group.subscribe({second})
        await eventually(lambda: assigned == {first, second}, 30)
        assert adding and third not in group.app.consumer.subscribed, "Faust forgets nothing any more: no need to ask"

        def asked_again() -> bool:
            group.resubscribe()
            return assigned == {first, second, third}

        await eventually(asked_again, 30)
    finally:
        await group.stop(20.0)
        async with Admin(kafka.bootstrap_servers) as admin:
            await admin.delete_topics([first, second, third])
