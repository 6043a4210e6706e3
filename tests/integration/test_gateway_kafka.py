"""A real gateway, a real broker, a real worker: what is put is read, followed, ranked, and survives restarts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from streams.client import AsyncClient, Event, connect
from streams.gateway.server import GatewayServer, ServerOptions
from streams.model.errors import Conflict, StreamsError
from streams.model.token import Input, Token
from streams.region.kafka_server import KafkaServer
from tests.support.gateway import free_port
from tests.support.polling import eventually
from tests.support.worker_process import WorkerProcess, fresh_topics

pytestmark = pytest.mark.kafka


@asynccontextmanager
async def gateway(data: Path, bootstrap_servers: str, port: int) -> AsyncIterator[AsyncClient]:
    """A gateway of us-east, ready, and a session with it."""
    server = GatewayServer(ServerOptions("us-east", data, bootstrap_servers, port=port))
    stop = asyncio.Event()
    running = asyncio.create_task(server.run(stop))
    try:
        async with connect(f"http://127.0.0.1:{port}") as edge:
            await eventually(lambda: ready(edge, running), 60)
            yield edge
    finally:
        stop.set()
        await asyncio.wait_for(running, 20)


async def ready(edge: AsyncClient, running: asyncio.Task[None]) -> bool:
    if running.done():
        running.result()
    try:
        await edge._transport.json("GET", "/readyz", {})
    except StreamsError:
        return False
    return True


async def first(edge: AsyncClient, keyspace: str, count: int, **options: str) -> list[Event]:
    found: list[Event] = []
    async for event in edge.subscribe(keyspace, **options):  # type: ignore[arg-type]
        found.append(event)
        if len(found) == count:
            break
    return found


async def test_the_whole_path(kafka: KafkaServer, tmp_path: Path) -> None:
    await fresh_topics(kafka.bootstrap_servers)
    worker = WorkerProcess(tmp_path, kafka.bootstrap_servers)
    worker._command.remove("--only-builtin")
    worker.start()
    port = free_port()
    try:
        async with gateway(tmp_path / "gateway", kafka.bootstrap_servers, port) as edge:
            await keys_read_their_own_writes(edge)
            await batches_settle_exactly(edge)
            await events_are_followed_and_resumed(edge)
            await big_values_travel(edge)
            made = await edge.put_keyspace("fresh", merge="counter")
            assert made["schema"] == "streams.CounterAdd"
            assert (await edge.put("fresh:a", {"add": 1})).topic == "events.fresh"
            await edge.wait_for(timeout_s=60)
            row = await edge.get("fresh:a")
            assert row is not None and row.value == 1
            digest = await edge.digest("score")
            rows = [row async for row in edge.scan("score")]
        async with gateway(tmp_path / "gateway", kafka.bootstrap_servers, port) as edge:
            await eventually(lambda: same(edge, digest.digest), 20)
            assert [row async for row in edge.scan("score")] == rows
            assert "fresh" in {each["name"] for each in await edge.keyspaces()}
    finally:
        worker.kill()


async def same(edge: AsyncClient, digest: str) -> bool:
    return (await edge.digest("score")).digest == digest


async def keys_read_their_own_writes(edge: AsyncClient) -> None:
    for turn in range(1, 6):
        await edge.put("score:alice", {"add": 2})
        row = await edge.get("score:alice")
        assert row is not None and row.value == 2 * turn and row.region == "us-east"
    await edge.delete("score:alice")
    assert await edge.get("score:alice") is None
    receipt = await edge.put("score:alice", {"add": 3}, ttl="1h")
    row = await edge.get("score:alice")
    assert row is not None and row.value == 3 and row.expires_at == receipt.timestamp + 3_600_000
    await edge.put("kv:a/b: ü", {"x": [1, None]})
    row = await edge.get("kv:a/b: ü")
    assert row is not None and row.value == {"x": [1, None]}


async def batches_settle_exactly(edge: AsyncClient) -> None:
    receipt = await edge.put_many("score", {"key": [f"p{i % 500}" for i in range(5_000)], "add": list(range(5_000))})
    assert receipt.accepted == 5_000 and not receipt.rejected
    await edge.wait_for()
    found = {row.key: row.value async for row in edge.scan("score", prefix="score:p")}
    assert found == {f"score:p{k}": sum(range(k, 5_000, 500)) for k in range(500)}
    top = await edge.get_top_n_players(3)
    assert [(row.rank, row.key) for row in top] == [(1, "score:p499"), (2, "score:p498"), (3, "score:p497")]
    rank = await edge.rank("score", "score:p0")
    assert rank is not None and rank.rank == 500
    assert len(await edge.around("score", "score:p250", 2)) == 5


async def events_are_followed_and_resumed(edge: AsyncClient) -> None:
    before = await edge.put("best:a", 1)
    await edge.put("best:a", 2)
    await edge.delete("best:a")
    seen = await first(edge, "best", 3, since="start")
    assert [(event.op, event.value) for event in seen] == [("put", 1), ("put", 2), ("delete", None)]
    assert seen[0].offset == before.offset and seen[0].timestamp == before.timestamp
    rest = await first(edge, "best", 2, since=seen[0].position.encode())
    assert [event.offset for event in rest] == [event.offset for event in seen[1:]]
    following = asyncio.create_task(first(edge, "best", 1, prefix="best:b"))
    await eventually(lambda: put_until(edge, following), 20)
    assert (await following)[0].key == "best:b"
    with pytest.raises(StreamsError, match="past its end"):
        await first(edge, "best", 1, since=Token({Input("us-east", "events.best", 0): 10**9}).encode())


async def put_until(edge: AsyncClient, following: asyncio.Task[list[Event]]) -> bool:
    await edge.put("best:b", 7)
    return following.done()


async def big_values_travel(edge: AsyncClient) -> None:
    text = "x" * ((16 << 20) - 2)
    await edge.put("kv:big", text)
    row = await edge.get("kv:big")
    assert row is not None and row.value == text
    with pytest.raises(StreamsError, match="over the limit"):
        await edge.put("kv:big", text + "yyy")
    with pytest.raises(Conflict):
        await edge.put_keyspace("kv", consistency="strong")
