"""Transactions that hang are found and ended; those that are honestly open are left alone."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator

import pytest
from aiokafka import AIOKafkaProducer

from streams.kafka.admin import Admin, TopicSpec
from streams.kafka.hanging import Hanging, HangingTransactions
from streams.kafka.run import TP
from streams.region.kafka_server import KafkaServer
from tests.support.hanging import hang, verified
from tests.support.polling import eventually

pytestmark = pytest.mark.kafka


@pytest.fixture
async def admin(kafka: KafkaServer) -> AsyncIterator[Admin]:
    async with Admin(kafka.bootstrap_servers) as made:
        yield made


async def found_in(watch: HangingTransactions, topic: str, looks: int = 3) -> list[Hanging]:
    """What so many looks in a row find in one topic; other tests use the same broker."""
    found: list[Hanging] = []
    for _ in range(looks):
        found = [each for each in await watch.look() if each.open.tp.topic == topic]
    return found


@pytest.mark.parametrize("commit", [False, True])
async def test_a_transaction_without_its_marker_is_ended_as_is_safe(admin: Admin, commit: bool) -> None:
    topic = f"hanging.{uuid.uuid4().hex[:8]}"
    await admin.ensure_topics([TopicSpec(topic, 2)])
    await hang(admin, topic, 1, [(None, b"lost", []), (b"key", b"lost too", [])])
    assert await admin.end_offsets([(topic, 1)]) == {TP(topic, 1): 0}
    watch = HangingTransactions(admin, lambda name: commit if name == topic else None)
    assert await found_in(watch, topic, looks=2) == []  # one look could have met it on its way
    (hanging,) = await found_in(watch, topic, looks=1)
    assert (hanging.open.tp, hanging.open.start_offset, hanging.commit) == (TP(topic, 1), 0, commit)
    await watch.end(hanging)
    assert await admin.end_offsets([(topic, 1)]) == {TP(topic, 1): 3}  # two records and the marker
    assert await found_in(watch, topic) == []


async def test_where_nobody_knows_the_outcome_it_is_left_and_said(
    admin: Admin, caplog: pytest.LogCaptureFixture
) -> None:
    topic = f"hanging.{uuid.uuid4().hex[:8]}"
    await admin.ensure_topics([TopicSpec(topic, 1)])
    await hang(admin, topic, 0, [(None, b"lost", [])])
    watch = HangingTransactions(admin)
    (hanging,) = await found_in(watch, topic)
    watching, looks = asyncio.create_task(watch.run(0.01)), []
    look = watch.look

    async def counted() -> list[Hanging]:
        looks.append(await look())
        return looks[-1]

    watch.look = counted  # type: ignore[method-assign]
    await eventually(lambda: sum(hanging in found for found in looks) > 3)
    watching.cancel()
    assert caplog.text.count(f"{topic}/0") == 1, "said once, not in every look"
    assert "kafka-transactions.sh" in caplog.text
    assert await admin.end_offsets([(topic, 0)]) == {TP(topic, 0): 0}
    await watch.end(Hanging(hanging.open, False))  # the session's broker is left readable


async def test_an_open_transaction_is_left_alone_for_as_long_as_it_takes(admin: Admin, kafka: KafkaServer) -> None:
    topic = f"open.{uuid.uuid4().hex[:8]}"
    await admin.ensure_topics([TopicSpec(topic, 1)])
    watch = HangingTransactions(admin, lambda name: False if name == topic else None)
    producer = AIOKafkaProducer(bootstrap_servers=kafka.bootstrap_servers, transactional_id=topic)
    await producer.start()
    try:
        async with producer.transaction():
            await producer.send_and_wait(topic, b"open")
            assert await found_in(watch, topic, looks=5) == []
    finally:
        await producer.stop()

    async def committed() -> bool:  # EndTxn is answered before the marker is there
        return await admin.end_offsets([(topic, 0)]) == {TP(topic, 0): 2}

    await eventually(committed)


async def test_the_broker_would_not_let_one_in_by_itself(admin: Admin) -> None:
    """What `hang` switches off is on by default: the test's way in is not a user's."""
    assert await verified(admin)
