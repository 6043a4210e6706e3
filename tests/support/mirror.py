"""The mirror of a whole system, looked at and meddled with."""

from __future__ import annotations

import asyncio
import json

import aiohttp
from aiokafka import AIOKafkaProducer

from streams.kafka.admin import Admin
from streams.model.marker import MARKER_KEY, Marker
from streams.region import status
from tests.support.whole_system import FAR, HOME, WholeSystem, read_log


async def rewind_mirror(system: WholeSystem, topic: str) -> dict[int, int]:
    """Write the beginning as MirrorMaker's position of `topic`; returns the positions that were there, by partition."""
    offsets_topic = f"mm2-offsets.{HOME}.internal"
    latest: dict[bytes, tuple[int, bytes]] = {}
    for record in await read_log(system.kafka(FAR), offsets_topic):
        if record.value is not None and json.loads(record.key)[1].get("topic") == topic:
            latest[record.key] = record.partition, record.value
    assert len(latest) == 2, f"positions of both partitions of {topic}: {latest}"
    async with Admin(system.kafka(HOME)) as admin:
        starts = await admin.start_offsets([(topic, number) for number in range(2)])
    async with AIOKafkaProducer(bootstrap_servers=system.kafka(FAR)) as producer:
        for key, (place, value) in latest.items():
            number = json.loads(key)[1]["partition"]
            earlier = json.dumps({**json.loads(value), "offset": starts[topic, number]})  # type: ignore[index]
            await producer.send_and_wait(offsets_topic, earlier.encode(), key, partition=place)
    return {json.loads(key)[1]["partition"]: json.loads(value)["offset"] for key, (_, value) in latest.items()}


async def replayed(system: WholeSystem, topic: str) -> int:
    """How many markers of a mirrored changelog are not newer than one before them in their partition."""
    highest: dict[int, int] = {}
    repeated = 0
    for record in await read_log(system.kafka(FAR), topic):
        if record.key == MARKER_KEY:
            seq = Marker.decode(record.value).seq
            repeated += seq <= highest.get(record.partition, 0)
            highest[record.partition] = max(seq, highest.get(record.partition, 0))
    return repeated


async def both_young(system: WholeSystem) -> bool:
    """Whether `streams status` says that both directions of the mirror are young."""
    found = await asyncio.to_thread(lambda: status.with_mirror_ages(status.status(system.data)))
    ages = {name: region["mirrored_age_ms"] for name, region in found["regions"].items()}
    assert ages.keys() == {HOME, FAR}
    assert all(age is not None and len(age) == 1 for age in ages.values()), ages
    return all(ms is not None and ms < 5_000 for age in ages.values() for ms in age.values())


async def ended(url: str) -> float:
    """How many hanging transactions this gateway has ended."""
    async with aiohttp.ClientSession() as http, http.get(f"{url}/metrics") as answer:
        lines = (await answer.text()).splitlines()
    return sum(float(line.split()[1]) for line in lines if line.startswith("streams_hanging_transactions_ended_total"))
