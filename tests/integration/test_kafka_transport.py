"""A real Faust worker over the Runs transport: positions, contiguity, rebalance, kill, backpressure, latency."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from streams.kafka.admin import Admin, TopicSpec
from streams.kafka.producer import EventProducer
from streams.region.kafka_server import KafkaServer
from streams.region.processes import die_with_parent
from tests.support.polling import eventually

pytestmark = pytest.mark.kafka
SCRIPT = Path(__file__).with_name("kafka_worker.py")
ROOT = SCRIPT.parents[2]


class Workers:
    """Worker processes of one group, and the lines they write."""

    def __init__(self, kafka: KafkaServer, directory: Path, topic: str) -> None:
        self.out = directory / "out.jsonl"
        self.out.touch()
        self.topic, self._kafka, self._group = topic, kafka, f"it-{uuid.uuid4().hex[:8]}"
        self._running: list[subprocess.Popen[bytes]] = []

    def start(self, **environment: str) -> subprocess.Popen[bytes]:
        """Start one more worker."""
        command = [sys.executable, str(SCRIPT), str(self.out), self._kafka.bootstrap_servers, self._group, self.topic]
        log = (self.out.parent / f"worker{len(self._running)}.log").open("wb")
        with log:
            process = subprocess.Popen(
                [*command, "worker", "--without-web", "-l", "info"],
                env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
                stdout=log,
                preexec_fn=die_with_parent(),
                stderr=log,
                cwd=self.out.parent,
            )
        self._running.append(process)
        return process

    def lines(self, kind: str = "next") -> list[dict[str, Any]]:
        """The lines that have this field."""
        whole, _, _being_written = self.out.read_text().rpartition("\n")
        found = [json.loads(line) for line in whole.splitlines()]
        return [line for line in found if kind in line]

    def events(self) -> int:
        """How many events the agents were given."""
        return sum(line["count"] for line in self.lines())

    def stop(self) -> None:
        """End all of them."""
        for process in self._running:
            process.kill()
            process.wait(10)


@pytest.fixture
async def producer(kafka: KafkaServer) -> AsyncIterator[EventProducer]:
    made = EventProducer(kafka.bootstrap_servers)
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
async def workers(kafka: KafkaServer, tmp_path: Path) -> AsyncIterator[Workers]:
    topic = f"events.t{uuid.uuid4().hex[:8]}"
    async with Admin(kafka.bootstrap_servers) as admin:
        await admin.ensure_topics([TopicSpec(topic, 4)])
    made = Workers(kafka, tmp_path, topic)
    yield made
    made.stop()


def put_rows(count: int) -> list[tuple[bytes, bytes, list[Any]]]:
    return [(b"score:k%d" % i, b"value%d" % i, []) for i in range(count)]


def check_contiguous(lines: list[dict[str, Any]], start: int = 0) -> None:
    """Every partition's Runs lie end to end: nothing twice, nothing left out."""
    at: dict[int, int] = {}
    for line in lines:
        assert line["base"] == at.get(line["partition"], start), line
        at[line["partition"]] = line["next"]


def assigned_now(workers: Workers) -> Iterator[tuple[int, list[int]]]:
    return iter({line["pid"]: line["assigned"] for line in workers.lines("assigned")}.items())


async def test_an_agent_gets_runs_from_the_hooks_positions(workers: Workers, producer: EventProducer) -> None:
    await producer.put_batch(workers.topic, put_rows(4000))
    workers.start(START="10")
    await eventually(lambda: workers.events() >= 4000 - 4 * 10, 40)
    check_contiguous(workers.lines(), 10)
    assert len(workers.lines()) < 100, "Runs, not records"
    await producer.put_batch(workers.topic, put_rows(1000))
    await eventually(lambda: sum(line["next"] - line["base"] for line in workers.lines()) == 5000 - 40, 10)


async def test_latency_of_a_put_to_the_agent(workers: Workers, producer: EventProducer) -> None:
    workers.start()
    await eventually(lambda: workers.lines("assigned"), 40)
    await producer.put(workers.topic, b"score:first", b"x")
    await eventually(lambda: workers.events() == 1, 10)
    took = []
    for i in range(200):
        meta = await producer.put(workers.topic, b"score:%d" % i, b"x")
        acked_ms = time.time() * 1000
        await eventually(lambda want=2 + i: workers.events() >= want, 5, every_s=0.003)
        line = workers.lines()[-1]
        assert line["next"] == meta.next_offset
        took.append(line["at_ms"] - acked_ms)
    took.sort()
    print(f"acknowledged put → agent: p50 {took[100]:.2f} ms, p99 {took[197]:.2f} ms")
    assert took[100] < 50


async def test_two_workers_share_and_take_over(workers: Workers, producer: EventProducer) -> None:
    sent = 0

    async def send_until(check: Any) -> None:
        nonlocal sent
        deadline = time.monotonic() + 60
        while not check():
            assert time.monotonic() < deadline, dict(assigned_now(workers))
            await producer.put_batch(workers.topic, put_rows(200))
            sent += 200

    first = workers.start()
    await send_until(lambda: workers.events() > 0)
    second = workers.start()
    await send_until(lambda: sorted(map(len, dict(assigned_now(workers)).values())) == [2, 2])
    shared = len(workers.lines())
    await send_until(lambda: {line["pid"] for line in workers.lines()[shared:]} == {first.pid, second.pid})
    first.kill()
    await send_until(lambda: dict(assigned_now(workers))[second.pid] == [0, 1, 2, 3])

    def all_in() -> bool:
        check_contiguous(sorted(workers.lines(), key=lambda line: (line["partition"], line["base"])))
        assert workers.events() == sent, (workers.events(), sent, workers.lines("assigned"))
        return True

    await eventually(all_in, 60)
    second.send_signal(signal.SIGTERM)
    assert second.wait(20) == 0


async def test_what_an_agent_holds_is_bounded(workers: Workers, producer: EventProducer, tmp_path: Path) -> None:
    hold = tmp_path / "hold"
    hold.touch()
    workers.start(HOLD=str(hold), BUDGET_BYTES="100000")
    await eventually(lambda: workers.lines("assigned"), 40)
    big = [(b"score:k%d" % i, b"x" * 1000, []) for i in range(200)]
    sent = 0
    while sent < 40 * len(big):
        await producer.put_batch(workers.topic, big)
        sent += len(big)
    await eventually(lambda: len(workers.lines()) == 1, 10)
    hold.unlink()
    await eventually(lambda: workers.events() == sent, 30)
    check_contiguous(workers.lines())
    largest = max(line["size"] for line in workers.lines())
    assert max(line["held_bytes"] for line in workers.lines()) <= 100_000 + largest
