"""Workers killed, stopped and outlived: every counter stays exact, and the zombie is refused by the broker."""

from __future__ import annotations

import asyncio
import random
import signal
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

from streams.kafka.admin import Admin
from streams.kafka.run import TP
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
    # One kill in five, one at least, falls somewhere between start and the first commits.
    early = set(rng.sample(range(kills), max(1, kills // 5)))
    for kill in range(kills):
        taken = worker.log.count(TAKEN)
        worker.start()
        if kill not in early:
            await eventually(lambda taken=taken: worker.log.count(TAKEN) > taken, 60)  # type: ignore[misc]
        await asyncio.sleep(rng.uniform(0.0, 1.5))
        worker.kill()
    taken = worker.log.count(TAKEN)
    worker.start()
    try:
        expected = await load.stop()
        # All may be committed already, and it is not asked to stop before it can hear that.
        await eventually(lambda: worker.log.count(TAKEN) > taken, 60)
        state = await eventually(lambda: all_committed(broker, "score"), 60)
    finally:
        status = worker.stop()
    taken = worker.log.count(TAKEN)
    print(f"{kills} kills, {sum(expected.values())} in {len(expected)} counters, {taken} take-overs")
    assert status == 0, worker.log
    assert_exact(state, expected)
    assert local_counters(worker.data) == expected
    assert taken >= kills - len(early), "the kills came too early to mean anything"


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


async def last_offsets(bootstrap_servers: str, *, committed: bool) -> dict[TP, int]:
    """Where the changelog's partitions end; `committed`: as far as a read_committed reader gets."""
    async with Admin(bootstrap_servers) as admin:
        return await admin.end_offsets([TP("table.score", 0), TP("table.score", 1)], committed=committed)


@pytest.mark.timeout(180)
async def test_take_over_restores_past_a_strangers_open_transaction(broker: str, tmp_path: Path) -> None:
    """The committed end stands still at it, and the predecessor's commits come after it: none may be overlooked."""
    adds = [(f"score:k{number % 50}", 1) for number in range(500)]
    expected: Counter[str] = Counter()
    first, second = (WorkerProcess(tmp_path, broker, name) for name in ("first", "second"))
    stranger = Producer({"bootstrap.servers": broker, "transactional.id": "stranger"})
    stranger.init_transactions(30)
    first.start()
    try:
        await eventually(lambda: first.log.count("took over") >= 2 and TAKEN in first.log, 40)
        stranger.begin_transaction()
        for partition in (0, 1):
            stranger.produce("table.score", key=b"score:never", value=b"x", partition=partition)
        assert stranger.flush(30) == 0
        stuck = await last_offsets(broker, committed=True)
        for _ in range(3):
            before = await last_offsets(broker, committed=False)
            await produce_adds(broker, "events.score", adds)
            expected.update(dict.fromkeys((key for key, _ in adds), 10))
            await eventually(lambda before=before: commits_since(broker, before), 30)  # type: ignore[misc]
        first.kill()
        assert await last_offsets(broker, committed=True) == stuck, "the transaction does not hold up readers"
        second.start()
        await eventually(lambda: "assigned: " in second.log and "score/0" in second.log, 40)
        stranger.abort_transaction(30)
        state = await eventually(lambda: all_committed(broker, "score"), 60)
    finally:
        first.stop()
        status = second.stop()
    assert status == 0, second.log
    assert_exact(state, dict(expected))
    assert local_counters(second.data) == dict(expected)


async def commits_since(bootstrap_servers: str, before: dict[TP, int]) -> bool:
    """Whether both partitions have grown by more than heartbeats would in that time: rows were committed."""
    now = await last_offsets(bootstrap_servers, committed=False)
    return all(now[tp] >= before[tp] + 15 for tp in before)
