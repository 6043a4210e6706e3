"""A worker follows the definitions: keyspaces and schema versions that appear while it runs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from streams.definitions.registry import Definitions
from streams.kafka.admin import Admin
from streams.kafka.producer import EventProducer
from streams.model.keyspace import Keyspace
from streams.model.row import MergeType
from streams.model.topology import Region, Topology
from streams.processing.topics import keyspace_topics
from streams.region.kafka_server import KafkaServer
from streams.serde import encode, parse_schema
from tests.support.polling import eventually
from tests.support.worker_process import WorkerProcess, all_committed, fresh_topics, produce_adds

pytestmark = pytest.mark.kafka
VISITS = Keyspace("visits", MergeType.COUNTER, "streams.CounterAdd", partitions=3)
NOTED = {
    "type": "record",
    "name": "CounterAdd",
    "namespace": "streams",
    "fields": [{"name": "note", "type": "string", "default": ""}, {"name": "add", "type": "long"}],
}


@pytest.fixture
async def broker(kafka: KafkaServer) -> AsyncIterator[str]:
    """The broker's address, without definitions and with empty topics for the built-in keyspaces."""
    async with Admin(kafka.bootstrap_servers) as admin:
        extra = ["definitions", *(spec.name for spec in keyspace_topics(VISITS))]
        await admin.delete_topics(extra)
    await fresh_topics(kafka.bootstrap_servers)
    yield kafka.bootstrap_servers
    async with Admin(kafka.bootstrap_servers) as admin:
        await admin.delete_topics(extra)


async def test_a_new_keyspace_and_a_new_schema_version_are_served(broker: str, tmp_path: Path) -> None:
    worker = WorkerProcess(tmp_path, broker, definitions=True).start()
    producer = EventProducer(broker)
    await producer.start()
    try:
        async with Definitions(Topology((Region("us-east", broker),)), "us-east") as definitions:
            await eventually(lambda: "score/1: took over" in worker.log, 60)
            await produce_adds(broker, "events.score", [("score:a", 1), ("score:b", 2)])
            await eventually(lambda: all_committed(broker, "score"), 60)
            await definitions.put_keyspace(VISITS)
            await eventually(lambda: "visits/2: took over" in worker.log, 60)
            await produce_adds(broker, "events.visits", [(f"visits:k{i % 10}", 1) for i in range(100)])
            await produce_adds(broker, "events.score", [("score:a", 10)])
            noted = parse_schema(NOTED)
            await definitions.register_schema("events.score-value", noted)
            await producer.put("events.score", b"score:a", encode(noted, {"note": "hi", "add": 100}))
            visits = await eventually(lambda: all_committed(broker, "visits", 3), 60)
            scores = await eventually(lambda: all_committed(broker, "score"), 60)
    finally:
        await producer.stop()
        status = worker.stop()
    assert status == 0, worker.log
    assert visits.counters() == {f"visits:k{i}": 10 for i in range(10)}
    assert scores.counters() == {"score:a": 111, "score:b": 2}
