"""The broker is killed under a worker's feet: the worker goes on when it is back, every counter exact."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from streams.region.kafka_server import KafkaServer
from tests.support.polling import eventually
from tests.support.worker_process import WorkerProcess, all_committed, fresh_topics, produce_adds

pytestmark = pytest.mark.kafka


@pytest.mark.timeout(240)
async def test_a_killed_broker_costs_nothing(tmp_path: Path) -> None:
    adds = [(f"score:k{i % 300}", i % 5) for i in range(40_000)]
    expected: Counter[str] = Counter()
    for key, amount in adds:
        expected[key] += amount
    with KafkaServer.on_free_ports("us-east", tmp_path / "kafka") as server:
        await fresh_topics(server.bootstrap_servers)
        worker = WorkerProcess(tmp_path, server.bootstrap_servers).start()
        try:
            await eventually(lambda: "score/1: took over" in worker.log, 60)
            await produce_adds(server.bootstrap_servers, "events.score", adds[:30_000])
            server.kill()
            server.start()
            server.wait_ready()
            await produce_adds(server.bootstrap_servers, "events.score", adds[30_000:])
            state = await eventually(lambda: all_committed(server.bootstrap_servers, "score"), 90)
        finally:
            status = worker.stop()
    assert status == 0, worker.log
    assert state.counters() == dict(expected)
