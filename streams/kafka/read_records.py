"""Reads a stretch of one partition, committed records only."""

from __future__ import annotations

from streams.kafka.admin import Admin
from streams.kafka.link import Deadline
from streams.kafka.raw_fetch import FetchOptions, RawConsumer
from streams.kafka.records import EventRecord, records_of
from streams.kafka.run import TP
from streams.model.errors import NotFound


async def bounds_of(bootstrap_servers: str, topic: str) -> dict[int, tuple[int, int]]:
    """Start and end offset of each partition of a topic. NotFound; Unavailable."""
    async with Admin(bootstrap_servers) as admin:
        found = await admin.topics([topic])
        if topic not in found:
            raise NotFound(f"there is no topic {topic[:120]!r} in this region", field="topic")
        tps = [TP(topic, partition) for partition in range(found[topic].partitions)]
        starts, ends = await admin.start_offsets(tps), await admin.end_offsets(tps)
    return {tp.partition: (starts[tp], ends[tp]) for tp in ends}


async def read_records(
    bootstrap_servers: str, topic: str, partition: int, start: int, end: int, timeout_s: float = 20.0
) -> list[EventRecord]:
    """The records with offsets in [start, end), which the log must hold. Timeout when that takes longer."""
    consumer, deadline = RawConsumer(bootstrap_servers, FetchOptions(client_id="streams-read")), Deadline(timeout_s)
    found: list[EventRecord] = []
    position = start
    await consumer.start()
    try:
        consumer.assign({(topic, partition): start})
        while position < end:
            runs = await consumer.get_runs(min(1.0, max(0.01, deadline.remaining_s)))
            for run in runs:
                found += [each for each in records_of(run) if start <= each.offset < end]
                position = run.next
            if not runs:
                await deadline.pause(f"{topic}/{partition} was not read to {end}")
    finally:
        await consumer.stop()
    return found
