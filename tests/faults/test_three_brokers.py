"""Regions of three brokers (replication 3, min.insync.replicas 2): leaders are killed, nothing acknowledged is lost."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from streams.client import connect
from streams.kafka.admin import Admin
from streams.kafka.link import Deadline, Link
from streams.model.errors import Timeout, Unavailable
from tests.support.certificate import OK, check_faults, check_not_empty, verify
from tests.support.nemesis import PROGRESS, Nemesis
from tests.support.polling import eventually
from tests.support.strong_load import StrongLoad, recorded
from tests.support.whole_system import FAR, HOME, Ledger, WholeSystem, hammering

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(400)]

LOG = "sequenced.strong"


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WholeSystem]:
    """One region of three brokers."""
    whole = WholeSystem(tmp_path_factory.mktemp("three") / "data", regions=(HOME,), brokers=3)
    try:
        whole.wait_ready()
        yield whole
    finally:
        assert whole.stop() == 0


async def leader(system: WholeSystem, topic: str, region: str = HOME) -> str:
    """The process that leads a topic's first partition."""
    link = Link(system.kafka(region), "streams-test")
    await link.start()
    try:
        await link.refresh([topic])
        return f"kafka-{region}-{await link.leader(topic, 0, Deadline(10))}"
    finally:
        await link.stop()


async def test_topics_outlive_a_broker(system: WholeSystem) -> None:
    async with Admin(system.kafka(HOME)) as admin:
        names = [LOG, "events.score", "table.score", "definitions", "gateways", "udfs"]
        configs = await admin.configs(names)
        for name in names:
            assert await admin.replication(name) == 3, name
            assert configs[name]["min.insync.replicas"] == "2", name


async def test_a_linearizable_read_appends_its_barrier(system: WholeSystem) -> None:
    """A deposed leader may not know that it is one; it cannot get a record acknowledged."""
    async with connect(system.url(HOME)) as edge, Admin(system.kafka(HOME)) as admin:
        await edge.put_strong("strong:barrier", 1)
        before = (await admin.end_offsets([(LOG, 0)], committed=False))[LOG, 0]  # type: ignore[index]
        for _ in range(5):
            assert await edge.get("strong:barrier") is not None
        after = (await admin.end_offsets([(LOG, 0)], committed=False))[LOG, 0]  # type: ignore[index]
        assert after >= before + 5
        await edge.get("strong:barrier", consistency="eventual")
        assert (await admin.end_offsets([(LOG, 0)], committed=False))[LOG, 0] == after  # type: ignore[index]


async def _exact(url: str, ledger: Ledger) -> bool:
    async with connect(url) as edge:
        for key in ledger.acked.keys() | ledger.unknown.keys():
            row = await edge.get(key)
            value, acked = (row.value if row is not None else 0), ledger.acked[key]
            assert acked <= value <= acked + ledger.unknown[key], (key, value, acked, ledger.unknown[key])
    return True


async def fallen_leader(system: WholeSystem, load: StrongLoad, topic: str) -> None:
    """SIGKILL to the broker that leads a topic, in the middle of work; another leads, and the killed one comes back."""
    name = await leader(system, topic)
    pid = await asyncio.to_thread(system.kill, name)
    print(f"killed {name}, which led {topic}")
    await load.more(2 * PROGRESS)
    await system.back(name, pid, 90)
    load.generation += 1


async def torment(system: WholeSystem, history: Path, regions: tuple[str, ...], clients: int = 8) -> None:
    """Strong and eventual writes while the leaders of their logs are killed: linearizable, and none lost."""
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")
    rng, ledger = random.Random(seed), Ledger()
    urls = [system.url(region) for region in regions]
    keys = [f"score:three-{seed}-{number}" for number in range(4)]
    several = len(regions) > 1
    nemesis = Nemesis(system.kill, [f"gateway-{each}" for each in regions] if several else [], system.link)
    async with (
        hammering(urls[0], ledger, keys, rng, writers=2),
        recorded(history, lambda recorder: StrongLoad(urls, recorder, seed, clients=clients)) as load,
    ):
        await load.more(PROGRESS)
        for topic in (LOG, "events.score"):
            await fallen_leader(system, load, topic)
        if several:
            await nemesis.torment(load, rng)
            await nemesis.recovered(system.back)
        await load.more(PROGRESS)
    check_not_empty(load.tally, 0.5)
    if several:
        check_faults(nemesis.evidence, {"gateway"}, link=True)
    assert ledger.puts > 30, "hardly an eventual put was acknowledged"
    status, report = await verify(history)
    assert status == OK, report
    assert report["operations"] >= load.tally.answered
    for url in urls:
        await eventually(lambda u=url: _exact(u, ledger), 60, every_s=0.2)


async def test_nothing_acknowledged_is_lost_with_the_leader(system: WholeSystem, tmp_path: Path) -> None:
    await torment(system, tmp_path / "history.ndjson", (HOME,))


@pytest.mark.slow
@pytest.mark.timeout(7200)
async def test_soak_of_two_regions(tmp_path: Path) -> None:
    """Six brokers, a mirror, cuts and delays between the regions; STREAMS_SOAK_S seconds (default 600)."""
    system = WholeSystem(tmp_path / "data", brokers=3)
    try:
        await asyncio.to_thread(system.wait_ready, 400.0)
        ends_s, number = time.monotonic() + float(os.environ.get("STREAMS_SOAK_S", "600")), 0
        while time.monotonic() < ends_s:
            number += 1
            await torment(system, tmp_path / f"history-{number}.ndjson", (HOME, FAR), clients=12)
    finally:
        assert system.stop() == 0


@pytest.mark.slow
async def test_without_a_majority_nothing_is_promised(system: WholeSystem) -> None:
    """Two of three brokers are gone: writes and linearizable reads fail, never falsely; then all is as it was."""
    async with connect(system.url(HOME)) as edge:
        await edge.put_strong("strong:quorum", "before")
        with system.unsupervised():
            killed = {name: system.kill(name) for name in (f"kafka-{HOME}-1", f"kafka-{HOME}-2")}
            with pytest.raises((Unavailable, Timeout)) as refused:
                while True:
                    await edge.put_strong("strong:quorum", "lost?", idempotency_key="quorum")
            with pytest.raises((Unavailable, Timeout)):
                await edge.get("strong:quorum")
            here = await edge.get("strong:quorum", consistency="eventual")
            assert here is not None and here.value in ("before", "lost?")
        print(f"refused: {refused.value}")
        for name, pid in killed.items():
            await system.back(name, pid, 90)

        async def resolved() -> str:
            try:
                return (await edge.resolve("quorum")).outcome
            except (Unavailable, Timeout):
                return ""

        outcome = await eventually(resolved, 60, every_s=0.2)
        row = await edge.get("strong:quorum")
        assert row is not None and row.value == ("lost?" if outcome == "applied" else "before")
