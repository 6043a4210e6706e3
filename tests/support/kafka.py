"""Pytest fixtures with real brokers; imported by tests/conftest.py.

`kafka`: one broker for the session. `two_regions`: us-east and eu-west with MirrorMaker 2 between them and a proxy in
front of each region's mirror listener. All die with pytest, even when it is killed.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from streams.model.topology import Region, Topology
from streams.region.kafka_server import KafkaServer
from streams.region.mirror_maker import MirrorMaker
from tests.support.tcp_proxy import TcpProxy

REGION_NAMES = ("us-east", "eu-west")


class ProxyThread:
    """TcpProxies on an event loop of their own, so that session fixtures and any test's loop can use them."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxies", daemon=True)
        self._thread.start()
        self._proxies: list[TcpProxy] = []

    def open(self, target_port: int = 0, *, delay_s: float = 0.0) -> TcpProxy:
        """A started proxy; use `cut`, `heal` and `set_delay` of this object, not of the proxy."""
        proxy = TcpProxy(target_port, delay_s=delay_s)
        asyncio.run_coroutine_threadsafe(proxy.start(), self._loop).result(10)
        self._proxies.append(proxy)
        return proxy

    def cut(self, *proxies: TcpProxy) -> None:
        """Cut these proxies' links."""
        for proxy in proxies:
            self._call(proxy.cut)

    def heal(self, *proxies: TcpProxy) -> None:
        """Heal these proxies' links."""
        for proxy in proxies:
            self._call(proxy.heal)

    def close(self) -> None:
        """Stop all proxies and the thread."""
        for proxy in self._proxies:
            asyncio.run_coroutine_threadsafe(proxy.stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _call(self, action: object) -> None:
        async def run() -> None:
            action()  # type: ignore[operator]

        asyncio.run_coroutine_threadsafe(run(), self._loop).result(10)


@dataclass(frozen=True)
class TwoRegions:
    """Two regions, mirrored. `cut(name)` stops others from reading that region; `heal(name)` ends it."""

    topology: Topology
    servers: dict[str, KafkaServer]
    mirror: MirrorMaker
    proxies: dict[str, TcpProxy]
    proxy_thread: ProxyThread

    def bootstrap_servers(self, name: str) -> str:
        """Where clients of region `name` connect."""
        return self.servers[name].bootstrap_servers

    def cut(self, *names: str) -> None:
        """Cut the mirrors of these regions (default: all)."""
        self.proxy_thread.cut(*(self.proxies[name] for name in names or self.proxies))

    def heal(self, *names: str) -> None:
        """Heal the mirrors of these regions (default: all)."""
        self.proxy_thread.heal(*(self.proxies[name] for name in names or self.proxies))


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaServer]:
    """A real single-node broker: `.bootstrap_servers`, `.kill()`, `.start()`, `.wait_ready()`. Name your own topics."""
    with KafkaServer.on_free_ports("us-east", tmp_path_factory.mktemp("kafka")) as server:
        yield server


@pytest.fixture(scope="session")
def two_regions(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoRegions]:
    """Two real brokers and MirrorMaker 2 between them, through proxies that can be cut."""
    yield from start_two_regions(tmp_path_factory.mktemp("regions"))


def start_two_regions(directory: Path) -> Iterator[TwoRegions]:
    """The body of `two_regions`, for tests that need regions of their own."""
    proxy_thread = ProxyThread()
    servers: dict[str, KafkaServer] = {}
    mirror: MirrorMaker | None = None
    try:
        proxies = {name: proxy_thread.open() for name in REGION_NAMES}
        for name in REGION_NAMES:
            place = directory / name
            servers[name] = KafkaServer.on_free_ports(name, place, mirror_advertised_port=proxies[name].port)
            proxies[name].target_port = servers[name].options.mirror_port
            servers[name].start()
        for server in servers.values():
            server.wait_ready()
        topology = Topology(
            tuple(
                Region(name, server.bootstrap_servers, mirror_bootstrap_servers=server.options.mirror_bootstrap_servers)
                for name, server in servers.items()
            )
        )
        mirror = MirrorMaker.between(topology, directory / "mirror")
        mirror.start()
        mirror.wait_ready()
        yield TwoRegions(topology, servers, mirror, proxies, proxy_thread)
    finally:
        if mirror is not None:
            mirror.kill()
        for server in servers.values():
            server.stop()
        proxy_thread.close()
