"""MirrorMaker 2 through a cut link and a SIGKILL: nothing lost, nothing twice, nothing out of order."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from streams.kafka.link import Link
from streams.kafka.transaction_requests import ListedRequest, TransactionsRequest
from tests.support.kafka import TwoRegions, start_two_regions
from tests.support.polling import eventually

pytestmark = pytest.mark.kafka


@pytest.fixture(scope="module")
def own_regions(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoRegions]:
    """Regions of this module's own, because their mirror is killed."""
    yield from start_two_regions(Path(tmp_path_factory.mktemp("mirror")))


async def mirrored_table(regions: TwoRegions) -> str:
    """A new table topic of us-east whose mirror in eu-west exists; returns its name."""
    topic = f"table.t{uuid.uuid4().hex[:8]}"
    admin = AIOKafkaAdminClient(bootstrap_servers=regions.bootstrap_servers("us-east"))
    await admin.start()
    try:
        await admin.create_topics([NewTopic(topic, 1, 1)])
    finally:
        await admin.close()
    async with AIOKafkaConsumer(bootstrap_servers=regions.bootstrap_servers("eu-west")) as consumer:

        async def exists() -> bool:
            return f"us-east.{topic}" in await consumer.topics()

        await eventually(exists, 60, every_s=0.1)
    return topic


async def put(producer: AIOKafkaProducer, topic: str, numbers: range) -> None:
    """One transaction of these numbers."""
    async with producer.transaction():
        for number in numbers:
            await producer.send(topic, b"%d" % number, partition=0)


async def read(consumer: AIOKafkaConsumer, count: int, timeout_s: float) -> list[int]:
    """The next `count` numbers."""
    found: list[int] = []
    async with asyncio.timeout(timeout_s):
        while len(found) < count:
            for records in (await consumer.getmany(timeout_ms=200)).values():
                found += [int(record.value) for record in records]
    return found


async def test_no_transaction_of_a_killed_mirror_holds_up_the_next_one_for_long(own_regions: TwoRegions) -> None:
    """Its leader writes its configuration in transactions, which a new one waits for: a minute by default."""
    await mirrored_table(own_regions)
    for region in ("us-east", "eu-west"):
        link = Link(own_regions.bootstrap_servers(region))
        await link.start()
        try:
            listed = await link.any_node(ListedRequest([]))
            names = [name for name, *_ in listed.transactions if "mm2" in name]
            found = (await link.any_node(TransactionsRequest(names))).transactions
        finally:
            await link.stop()
        timeouts_ms = {name: timeout_ms for _, name, _, timeout_ms, *_ in found}
        assert any("cluster" in name for name in timeouts_ms), timeouts_ms
        assert all(timeout_ms <= 10_000 for timeout_ms in timeouts_ms.values()), timeouts_ms


async def test_cut_and_killed_the_mirror_stays_exact(own_regions: TwoRegions) -> None:
    topic = await mirrored_table(own_regions)
    producer = AIOKafkaProducer(
        bootstrap_servers=own_regions.bootstrap_servers("us-east"), transactional_id=topic, linger_ms=0
    )
    consumer = AIOKafkaConsumer(
        bootstrap_servers=own_regions.bootstrap_servers("eu-west"),
        isolation_level="read_committed",
        auto_offset_reset="earliest",
    )
    async with producer, consumer:
        consumer.assign([TopicPartition(f"us-east.{topic}", 0)])
        await put(producer, topic, range(100))
        assert await read(consumer, 100, 30) == list(range(100))

        own_regions.cut("us-east")
        await put(producer, topic, range(100, 200))
        assert not await consumer.getmany(timeout_ms=1500), "the link is not cut"
        own_regions.heal()
        assert await read(consumer, 100, 30) == list(range(100, 200))

        loop = asyncio.get_running_loop()
        for start in range(200, 4200, 200):
            await put(producer, topic, range(start, start + 200))
            if start == 2200:
                own_regions.mirror.kill()
                killed_s = loop.time()
                own_regions.mirror.start()
        assert await read(consumer, 4000, 60) == list(range(200, 4200))
        print(f"SIGKILL of the mirror to the last record behind it: {loop.time() - killed_s:.1f} s")
        assert not await consumer.getmany(timeout_ms=500)
