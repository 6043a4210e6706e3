"""Definitions on real Kafka: fencing, atomicity, restart, and the mirror between two regions."""

from __future__ import annotations

import asyncio
import os
import signal
import uuid
from collections.abc import AsyncIterator

import pytest

from streams.definitions import Definitions, DefinitionsOptions, Incompatible, KafkaDefinitionsLog, KafkaLogOptions
from streams.definitions.entries import schema_entry, version_entry
from streams.kafka.errors import Fenced
from streams.model.errors import Timeout, Unavailable
from streams.model.keyspace import BUILTIN, Keyspace
from streams.model.row import MergeType
from streams.model.topology import Region, Topology
from streams.region.kafka_server import KafkaServer
from streams.serde import AvroSchema, load_builtin, parse_schema
from tests.support.kafka import TwoRegions
from tests.support.polling import eventually

pytestmark = pytest.mark.kafka


def options(topic: str = "definitions") -> DefinitionsOptions:
    return DefinitionsOptions(start_s=40.0, kafka=KafkaLogOptions(topic=topic))


def record(name: str, *extra: str) -> AvroSchema:
    fields = [{"name": "v", "type": "long"}, *({"name": f, "type": "string", "default": ""} for f in extra)]
    return parse_schema({"type": "record", "name": name, "fields": fields})


@pytest.fixture
def one_region(kafka: KafkaServer) -> Topology:
    """Only us-east, on the session's broker."""
    return Topology((Region("us-east", kafka.bootstrap_servers),))


@pytest.fixture
async def store(one_region: Topology) -> AsyncIterator[Definitions]:
    """Definitions on a topic of their own."""
    async with Definitions(one_region, "us-east", options(f"definitions-{uuid.uuid4().hex[:8]}")) as made:
        yield made


async def test_it_seeds_and_reads_all_of_it_again_after_a_restart(one_region: Topology) -> None:
    topic = f"definitions-{uuid.uuid4().hex[:8]}"
    async with Definitions(one_region, "us-east", options(topic)) as first:
        assert dict(first.keyspaces) == {keyspace.name: keyspace for keyspace in BUILTIN}
        made = await first.register_schema("s", record("R"))
        await first.put_keyspace(Keyspace("likes", MergeType.COUNTER))
        await first.set_level("FULL", "s")
    async with Definitions(one_region, "us-east", options(topic)) as again:
        assert again.keyspace("likes").schema == "streams.CounterAdd"
        assert again.level("s") == "FULL"
        assert await again.register_schema("s", record("R")) == made == (record("R").id, 1)
        with pytest.raises(Incompatible):
            await again.register_schema("s", parse_schema('"string"'))


async def test_an_older_claim_is_fenced_and_nothing_of_it_is_seen(one_region: Topology) -> None:
    kafka = KafkaLogOptions(topic=f"definitions-{uuid.uuid4().hex[:8]}")
    older, newer = (KafkaDefinitionsLog(one_region, "us-east", kafka) for _ in range(2))
    try:
        await older.start(20)
        await newer.start(20)
        assert await older.claim(20) == []
        assert await newer.claim(20) == []
        with pytest.raises(Fenced):
            await older.append([schema_entry(record("Old")), version_entry("s", 1, record("Old").id)])
        wanted = [schema_entry(record("New")), version_entry("s", 1, record("New").id)]
        await newer.append(wanted)
        assert list(await older.claim(20)) == wanted
    finally:
        await older.stop()
        await newer.stop()


async def test_processes_that_register_at_once_get_one_sequence(one_region: Topology) -> None:
    topic = f"definitions-{uuid.uuid4().hex[:8]}"
    stores = [Definitions(one_region, "us-east", options(topic)) for _ in range(3)]
    await asyncio.gather(*(store.start() for store in stores))
    try:
        names = [f"f{i}" for i in range(6)]
        made = await asyncio.gather(
            *(stores[i % 3].register_schema("s", record("R", *names[: i + 1])) for i in range(6))
        )
        assert sorted(version for _, version in made) == [1, 2, 3, 4, 5, 6]
        for store in stores:
            await eventually(lambda store=store: len(store.versions("s")) == 6)
        assert len({tuple(found.schema.id for found in store.versions("s")) for store in stores}) == 1
    finally:
        for store in stores:
            await store.stop()


async def test_both_regions_see_and_write_the_same_definitions(two_regions: TwoRegions) -> None:
    topology = two_regions.topology
    regions = [Definitions(topology, region, options()) for region in ("us-east", "eu-west")]
    async with regions[0] as here, regions[1] as there:
        assert there.subjects() == here.subjects()
        made = await there.register_schema("both", record("Both"))
        assert await here.register_schema("both", record("Both")) == made
        keyspace = await here.put_keyspace(Keyspace("both", MergeType.MAX))
        await eventually(lambda: there.keyspaces.get("both") == keyspace, 20)
        assert there.from_avro(here.to_avro("score", {"add": 3})) == {"add": 3}


async def test_what_the_mirror_has_not_brought_yet_is_waited_for_and_said(two_regions: TwoRegions) -> None:
    topology = two_regions.topology
    slow = DefinitionsOptions(start_s=40.0, visible_s=1.0)
    async with Definitions(topology, "us-east", options()), Definitions(topology, "eu-west", slow) as there:
        os.kill(two_regions.mirror.pid, signal.SIGSTOP)
        try:
            with pytest.raises(Timeout, match="not yet mirrored"):
                await there.register_schema("cut", record("Cut"))
        finally:
            os.kill(two_regions.mirror.pid, signal.SIGCONT)
        await eventually(lambda: there.lookup("cut", record("Cut")) is not None, 40)


async def test_an_unreachable_home_is_unavailable(two_regions: TwoRegions) -> None:
    gone = Region("us-east", "127.0.0.1:1")
    topology = Topology((gone, two_regions.topology.region("eu-west")))
    seeder = Definitions(two_regions.topology, "us-east", options())
    async with seeder, Definitions(topology, "eu-west", options()) as there:
        assert load_builtin()["streams.Json"].id in there.schemas
        with pytest.raises(Unavailable):
            await there.register_schema("s", record("R"))
