"""Two tables of one input on a real broker: the worker is killed, one table's state lost, and both stay exact."""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from streams.kafka.admin import Admin
from streams.processing.topics import keyspace_topics
from streams.region.kafka_server import KafkaServer
from tests.support.polling import eventually
from tests.support.two_tables import KEYSPACES
from tests.support.worker_process import TableState, WorkerProcess, fresh_topics, produce_adds, read_table

pytestmark = pytest.mark.kafka
AGAIN = "score-again"


async def table_up_to(broker: str, table: str) -> TableState | None:
    """The state of a table of `events.score`, once its markers have reached the input's ends."""
    async with Admin(broker) as admin:
        ends = await admin.end_offsets([("events.score", 0), ("events.score", 1)])
    state = await read_table(broker, table)
    reached = all(state.next_of(number, f"{topic}/{number}") >= end for (topic, number), end in ends.items())
    return state if reached else None


async def test_two_tables_of_one_input_stay_exact_over_a_kill(kafka: KafkaServer, tmp_path: Path) -> None:
    broker = kafka.bootstrap_servers
    await fresh_topics(broker)
    own = next(spec for spec in keyspace_topics(KEYSPACES[0]) if spec.name == "table.score")
    async with Admin(broker) as admin:
        await admin.delete_topics([f"table.{AGAIN}"])
        await admin.ensure_topics([replace(own, name=f"table.{AGAIN}")])
    worker = WorkerProcess(tmp_path, broker)
    script = Path(__file__).with_name("two_tables_worker.py")
    worker._command = [sys.executable, "-m", f"tests.integration.{script.stem}", broker, str(worker.data)]
    adds = [(f"score:k{i % 300}", i % 7) for i in range(20_000)]
    worker.start()
    try:
        await produce_adds(broker, "events.score", adds[:10_000])
        await eventually(lambda: table_up_to(broker, AGAIN), 40)
        await produce_adds(broker, "events.score", adds[10_000:15_000])
        worker.kill()
        shutil.rmtree(worker.data / "worker" / "us-east" / "builtin" / AGAIN)
        worker.start()
        await produce_adds(broker, "events.score", adds[15_000:])
        states = [await eventually(lambda name=name: table_up_to(broker, name), 40) for name in ("score", AGAIN)]
    finally:
        status = worker.stop()
    assert status == 0, worker.log
    expected: Counter[str] = Counter()
    for key, amount in adds:
        expected[key] += amount
    for state in states:
        assert state.counters() == dict(expected)
