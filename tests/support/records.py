"""Reading plain records of a topic in tests."""

from __future__ import annotations

from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition


async def records_of(bootstrap_servers: str, topic: str, partition: int) -> list[Any]:
    """All committed records of a partition, as aiokafka gives them (key, value, headers, offset)."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=bootstrap_servers, isolation_level="read_committed", enable_auto_commit=False
    )
    await consumer.start()
    found: list[Any] = []
    try:
        tp = TopicPartition(topic, partition)
        consumer.assign([tp])
        await consumer.seek_to_beginning(tp)
        end = (await consumer.end_offsets([tp]))[tp]
        while await consumer.position(tp) < end:
            for records in (await consumer.getmany(tp, timeout_ms=500)).values():
                found.extend(records)
    finally:
        await consumer.stop()
    return found
