"""The embedded broker and the mirror, for real."""

from __future__ import annotations

import statistics
import time
import uuid

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from streams.region.kafka_server import KafkaServer
from tests.support.kafka import TwoRegions
from tests.support.polling import eventually

pytestmark = pytest.mark.kafka


async def _create(bootstrap: str, topic: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(topic, 1, 1, topic_configs={"cleanup.policy": "compact"})])
    finally:
        await admin.close()


async def test_broker_takes_large_records(kafka: KafkaServer) -> None:
    topic = f"t{uuid.uuid4().hex[:8]}"
    await _create(kafka.bootstrap_servers, topic)
    size = 16 * 1024 * 1024
    async with AIOKafkaProducer(
        bootstrap_servers=kafka.bootstrap_servers, acks="all", max_request_size=size + 10_000
    ) as p:
        meta = await p.send_and_wait(topic, bytes(size), key=b"k")
    assert meta.offset == 0


async def test_mirror_copies_committed_only_and_soon(two_regions: TwoRegions) -> None:
    topic = f"table.t{uuid.uuid4().hex[:8]}"
    await _create(two_regions.bootstrap_servers("us-east"), topic)
    mirrored = f"us-east.{topic}"
    producer = AIOKafkaProducer(
        bootstrap_servers=two_regions.bootstrap_servers("us-east"), transactional_id=f"{topic}/0", linger_ms=0
    )
    consumer = AIOKafkaConsumer(
        bootstrap_servers=two_regions.bootstrap_servers("eu-west"),
        isolation_level="read_committed",
        auto_offset_reset="earliest",
        fetch_max_wait_ms=10,
    )
    async with producer, consumer:
        async with producer.transaction():
            await producer.send(topic, b"first", key=b"k")

        async def is_mirrored() -> bool:
            return mirrored in await consumer.topics()

        await eventually(is_mirrored, 30)
        consumer.assign([TopicPartition(mirrored, 0)])
        await consumer.seek_to_beginning()
        assert (await consumer.getone()).value == b"first"

        await producer.begin_transaction()
        await producer.send_and_wait(topic, b"aborted", key=b"k")
        await producer.abort_transaction()

        delays_ms = []
        for number in range(30):
            start = time.perf_counter()
            async with producer.transaction():
                await producer.send(topic, b"%d" % number, key=b"k")
            assert (await consumer.getone()).value == b"%d" % number, "aborted, lost or out of order"
            delays_ms.append((time.perf_counter() - start) * 1000)
    print(f"transaction begin to readable in the other region: p50 {statistics.median(delays_ms):.1f} ms,"
          f" max {max(delays_ms):.1f} ms")  # fmt: skip
