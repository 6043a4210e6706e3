"""Replicas of a sequenced log on a real broker: both kinds of barrier, a log that was begun anew."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from streams.kafka.admin import Admin
from streams.kafka.run import Run
from streams.model.errors import Unavailable
from streams.region.kafka_server import KafkaServer
from streams.sequencer.commands import Change, Code, command_id, transaction
from streams.sequencer.options import BarrierMode, SequencerOptions, topic_of
from streams.sequencer.replica import Replica
from streams.sequencer.state import SequencedState
from streams.wasm.builtin import builtin_module
from streams.wasm.engine import ModuleCache
from streams.wasm.machine_host import MachineHost
from tests.support.polling import eventually

pytestmark = pytest.mark.kafka


@asynccontextmanager
async def following(
    servers: str, group: str, path: Path, barrier: BarrierMode = "auto", *, wait: bool = True
) -> AsyncIterator[Replica]:
    state = SequencedState(path, topic_of(group), MachineHost(builtin_module("strong_kv"), ModuleCache()))
    options = replace(SequencerOptions(), barrier=barrier)
    replica = Replica(group, servers, state, lambda _step, _time_ms: None, options)
    await replica.start()
    try:
        if wait:
            await asyncio.wait_for(replica.caught_up.wait(), 30)
        yield replica
    finally:
        await replica.stop()
        state.close()


def put(name: str, value: bytes) -> bytes:
    return transaction(command_id("", name.encode()), [], [Change(b"strong:k", value)])


@pytest.mark.parametrize("barrier", ["index", "append"])
async def test_reads_see_what_another_replica_acknowledged(
    kafka: KafkaServer, tmp_path: Path, barrier: BarrierMode
) -> None:
    group, servers = f"t{uuid.uuid4().hex[:8]}", kafka.bootstrap_servers
    async with (
        following(servers, group, tmp_path / "a", barrier) as a,
        following(servers, group, tmp_path / "b", barrier) as b,
    ):
        for number in range(40):
            writer, reader = (a, b) if number % 2 else (b, a)
            result, offset = await writer.execute(put(f"c{number}", b"v%d" % number))
            assert (result.code, result.offset) == (Code.APPLIED, offset)
            await reader.linearize()
            row = reader.state.store.get(b"strong:k")
            assert row is not None and row.endswith(b"v%d" % number)
        before, probes = a.state.next, a._barrier.probes
        await asyncio.gather(*(a.linearize() for _ in range(200)))
        assert a._barrier.probes - probes <= 3
        assert (a.state.next > before) == (barrier == "append")
        again, told_at = await b.execute(put("c5", b"v5"))
        assert again.again and again.offset < told_at
        await a.linearize()
        await b.linearize()
        assert a.state.machine_state == b.state.machine_state or barrier == "append"


async def test_a_log_begun_anew_makes_the_state_anew(kafka: KafkaServer, tmp_path: Path) -> None:
    group, servers = f"t{uuid.uuid4().hex[:8]}", kafka.bootstrap_servers
    async with following(servers, group, tmp_path / "a") as a:
        await a.execute(put("one", b"old"))
    async with following(servers, group, tmp_path / "a") as a:
        assert a.state.next == 1, "a restart goes on at its offset"
    async with Admin(servers) as admin:
        await admin.delete_topics([topic_of(group)])
    async with following(servers, group, tmp_path / "a") as a:
        assert a.state.next == 0 and a.state.store.get(b"strong:k") is None
        assert (await a.execute(put("one", b"new")))[0].version == 1


async def test_without_its_home_nothing_is_sent_and_all_is_said(tmp_path: Path) -> None:
    async with following("127.0.0.1:1", "nowhere", tmp_path / "a", wait=False) as a:
        started = time.monotonic()
        for ask in (a.execute(put("x", b"1")), a.linearize()):
            with pytest.raises(Unavailable, match="cannot be reached"):
                await ask
        assert time.monotonic() - started < 2


@pytest.mark.parametrize("barrier", ["index", "append"])
async def test_a_replica_that_is_behind_lets_its_reader_wait(
    kafka: KafkaServer, tmp_path: Path, barrier: BarrierMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    group, servers = f"t{uuid.uuid4().hex[:8]}", kafka.bootstrap_servers
    async with (
        following(servers, group, tmp_path / "a", barrier) as a,
        following(servers, group, tmp_path / "b", barrier) as b,
    ):
        gate, take, held = asyncio.Event(), b._take, asyncio.Event()

        async def behind(run: Run) -> None:
            held.set()
            await gate.wait()
            await take(run)

        monkeypatch.setattr(b, "_take", behind)
        _, offset = await a.execute(put("x", b"new"))
        await asyncio.wait_for(held.wait(), 10)
        reading = asyncio.create_task(b.linearize())
        await eventually(lambda: b._waiting and max(b._waiting)[0] > offset)
        assert not reading.done() and b.state.store.get(b"strong:k") is None
        gate.set()
        await reading
        row = b.state.store.get(b"strong:k")
        assert row is not None and row.endswith(b"new")
