"""Workers killed, stopped and outlived: every counter stays exact, and the zombie is refused by the broker."""

from __future__ import annotations

import asyncio
import random
import signal
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

from streams.kafka.admin import Admin
from streams.model.row import decode_row
from streams.region.kafka_server import KafkaServer
from tests.support.polling import eventually
from tests.support.records import records_of
from tests.support.worker_process import (
    TableState,
    WorkerProcess,
    all_committed,
    fresh_topics,
    local_counters,
    produce_adds,
)

pytestmark = pytest.mark.kafka


@pytest.fixture
async def broker(kafka: KafkaServer) -> AsyncIterator[str]:
    """The broker's address, with empty topics for the built-in keyspaces."""
    await fresh_topics(kafka.bootstrap_servers)
    yield kafka.bootstrap_servers


TAKEN = "score/0: took over"


class Load:
    """Puts random counters until told to stop, and remembers the sums."""

    def __init__(self, bootstrap_servers: str, rng: random.Random, burst: int) -> None:
        self.expected: Counter[str] = Counter()
        self._bootstrap, self._rng, self._burst = bootstrap_servers, rng, burst
        self._stop = asyncio.Event()
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while not self._stop.is_set():
            adds = [(f"score:k{self._rng.randrange(500)}", self._rng.randrange(9)) for _ in range(self._burst)]
            await produce_adds(self._bootstrap, "events.score", adds)
            for key, amount in adds:
                self.expected[key] += amount

    async def stop(self) -> dict[str, int]:
        """The sums of everything put."""
        self._stop.set()
        await self._task
        return dict(self.expected)


def assert_exact(state: TableState, expected: dict[str, int]) -> None:
    assert state.counters() == expected
    for partition, markers in state.markers.items():
        seqs = [marker.seq for marker in markers]
        assert seqs == sorted(set(seqs)), f"partition {partition} has two units of one number"
        nexts = [at.next for marker in markers for at in marker.inputs.values()]
        assert nexts == sorted(nexts)


async def kill_at_random(broker: str, tmp_path: Path, kills: int) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    load = Load(broker, rng, 300)
    worker = WorkerProcess(tmp_path, broker)
    for _ in range(kills):
        taken = worker.log.count(TAKEN)
        worker.start()
        if rng.random() < 0.8:  # else somewhere between start and the first commits
            await eventually(lambda taken=taken: worker.log.count(TAKEN) > taken, 60)  # type: ignore[misc]
        await asyncio.sleep(rng.uniform(0.0, 1.5))
        worker.kill()
    worker.start()
    try:
        expected = await load.stop()
        state = await eventually(lambda: all_committed(broker, "score"), 60)
    finally:
        status = worker.stop()
    taken = worker.log.count(TAKEN)
    print(f"{kills} kills, {sum(expected.values())} in {len(expected)} counters, {taken} take-overs")
    assert status == 0, worker.log
    assert_exact(state, expected)
    assert local_counters(worker.data) == expected
    assert taken >= 2, "the kills came too early to mean anything"


@pytest.mark.timeout(240)
async def test_sigkill_at_random_moments_keeps_counters_exact(broker: str, tmp_path: Path) -> None:
    await kill_at_random(broker, tmp_path, 3)


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_sigkill_twenty_times_keeps_counters_exact(broker: str, tmp_path: Path) -> None:
    await kill_at_random(broker, tmp_path, 20)


def force_compaction(bootstrap_servers: str, topic: str) -> None:
    """Make the cleaner take everything but the newest segment, soon."""
    admin = AdminClient({"bootstrap.servers": bootstrap_servers})
    settings = {
        "segment.ms": "500",
        "min.compaction.lag.ms": "0",
        "max.compaction.lag.ms": "1000",
        "min.cleanable.dirty.ratio": "0.001",
    }
    entries = [
        ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET) for name, value in settings.items()
    ]
    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=entries)
    for future in admin.incremental_alter_configs([resource]).values():
        future.result(30)


async def compacted(bootstrap_servers: str, topic: str) -> bool:
    """Whether most of every partition's offsets are gone."""
    for partition in (0, 1):
        async with Admin(bootstrap_servers) as admin:
            end = (await admin.end_offsets([(topic, partition)]))[topic, partition]  # type: ignore[index]
        left = len(await records_of(bootstrap_servers, topic, partition))
        if left > end * 0.6:
            return False
    return True


@pytest.mark.timeout(240)
async def test_a_stopped_worker_that_comes_back_is_refused_and_nothing_is_lost(broker: str, tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    load = Load(broker, rng, 200)
    zombie = WorkerProcess(tmp_path, broker, "zombie").start()
    owner = WorkerProcess(tmp_path, broker, "owner")
    try:
        await eventually(lambda: "score/1: took over" in zombie.log, 40)
        await asyncio.sleep(rng.uniform(0.3, 0.8))
        zombie.send(signal.SIGSTOP)
        owner.start()
        await eventually(lambda: "score/0: took over" in owner.log and "score/1: took over" in owner.log, 60)
        await asyncio.sleep(rng.uniform(0.3, 0.8))
        zombie.send(signal.SIGCONT)
        await eventually(lambda: "Fenced" in zombie.log, 40)
        expected = await load.stop()
        force_compaction(broker, "table.score")
        state = await eventually(lambda: all_committed(broker, "score"), 60)
        assert_exact(state, expected)
        await eventually(lambda: compacted(broker, "table.score"), 90, every_s=1.0)
    finally:
        zombie.stop()
        owner.stop()
    fresh = WorkerProcess(tmp_path, broker, "fresh").start()
    try:
        await eventually(lambda: "score/0: took over" in fresh.log and "score/1: took over" in fresh.log, 60)
    finally:
        assert fresh.stop() == 0, fresh.log
    assert local_counters(fresh.data) == expected
    for rows in (await all_committed(broker, "score") or TableState()).rows.values():
        assert all(decode_row(row).seq > 0 for row in rows.values())
