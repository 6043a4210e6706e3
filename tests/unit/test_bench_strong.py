"""`streams bench strong` below Kafka: the crowd of clients, the distance between regions, its options."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import time
from pathlib import Path

import pytest

from streams.bench.crowd import crowd
from streams.bench.own_system import OwnSystem, cpu_s
from streams.bench.strong import StrongOptions, measure_placements, measure_reads, measure_visible
from streams.bench.wan import far_apart
from streams.model.errors import BadInput, StreamsError
from streams.model.topology import Topology
from streams.region.plan import MIRROR_PORT
from tests.support.gateway import running_gateway

FEW = StrongOptions(placements=5, reads=5, visibilities=3, warmup=10)


async def test_a_crowd_sends_every_request_once_and_counts_only_successes(tmp_path: Path) -> None:
    async with running_gateway(tmp_path) as edge:
        found = await asyncio.to_thread(
            crowd, edge.url, 8, 100, lambda n: ("PUT", f"/v1/kv/strong:c{n % 10}", b'{"n": %d}' % n)
        )
        assert len(found.seconds) == 100 and all(0 < each <= found.wall_s for each in found.seconds)
        assert found.per_s == 100 / found.wall_s
        assert edge.gateway.strong is not None and edge.gateway.strong.describe()["commands"] == 100
        with pytest.raises(StreamsError, match=r"answered HTTP/1\.1 404"):
            await asyncio.to_thread(crowd, edge.url, 2, 4, lambda n: ("GET", "/v1/kv/strong:none", b""))


async def test_what_is_measured_is_what_was_answered(tmp_path: Path) -> None:
    async with running_gateway(tmp_path) as edge:
        assert len(await asyncio.to_thread(measure_placements, edge.url, FEW)) == 5
        for query in ("", "?consistency=eventual"):
            assert len(await asyncio.to_thread(measure_reads, edge.url, FEW, query)) == 5
        system = OwnSystem(tmp_path, {"a": edge.url, "b": edge.url}, {}, {})
        assert len(await asyncio.to_thread(measure_visible, system, FEW)) == 3


async def test_regions_are_as_far_apart_as_asked(tmp_path: Path) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readexactly(4))
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    with far_apart(tmp_path, ("a", "b"), 30):
        topology = Topology.load(tmp_path)
        assert topology.names == ("a", "b")
        port = int(topology.region("b").mirror_bootstrap_servers.rpartition(":")[2])
        target = {MIRROR_PORT: str(server.sockets[0].getsockname()[1])}
        regions = tuple(dataclasses.replace(each, extra=target) for each in topology.regions)
        Topology(regions).save(tmp_path)  # as `streams up` does, once it knows
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        began_s = time.monotonic()
        writer.write(b"ping")
        assert await reader.readexactly(4) == b"ping"
        assert time.monotonic() - began_s >= 0.06
        writer.close()
    server.close()


def test_options_and_processor_time() -> None:
    with pytest.raises(BadInput, match="nonsense"):
        StrongOptions(parts=("latency", "nonsense"))
    assert cpu_s(os.getpid()) > 0
    assert cpu_s(2**22 + 1) == 0
