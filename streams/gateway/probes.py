"""How the gateways of all regions are, as seen from this one: answering or not, round trip, load."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from streams.gateway.peers import Peers
from streams.model.errors import BadInput, StreamsError
from streams.model.place import Place, place_of_region
from streams.model.topology import Topology
from streams.serde import parse_json
from streams.use_cases.routing import Node

if TYPE_CHECKING:
    import aiohttp

_ANSWER_BYTES_MAX = 16 << 10
_AT_ONCE = 32
_SMOOTH = 0.2


@dataclass(frozen=True, slots=True)
class ProbeOptions:
    """`every_s`: between two looks at a node. `timeout_s`: for one answer. A refused connection or a 503 makes a node
    unhealthy at once, silence after `silences`. The round trip is the least of the last `samples`: what the way takes,
    without the moments when either side was busy.
    """

    every_s: float = 2.0
    timeout_s: float = 2.0
    silences: int = 2
    samples: int = 5
    tick_s: float = 0.25


@dataclass(slots=True)
class _Health:
    healthy: bool = False
    silent: int = 0
    delay_ms: float = 0.0
    rtts_ms: deque[float] = field(default_factory=deque)


@dataclass(frozen=True, slots=True)
class _Target:
    node: str
    region: str
    url: str
    place: Place | None


class Probes:
    """Looks after every known gateway. `unready` says why this one is not ready, None when it is."""

    def __init__(
        self, peers: Peers, topology: Topology, region: str, unready: Callable[[], Awaitable[str | None]]
    ) -> None:
        self._peers, self._topology, self._region, self._unready = peers, topology, region, unready
        self._found: dict[tuple[str, str], _Health] = {}
        self.options = ProbeOptions()
        self.node = f"gateway-{region}"
        self.place: Place | None = place_of_region(region)
        self.delay_ms = 0.0
        self._own_ready: bool | None = None

    async def run(self) -> None:
        """Probe all, again and again, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch_loop())
            group.create_task(self._watch_own())
            group.create_task(self._probe_all())

    async def nodes(self) -> list[Node]:
        """Every known gateway, this one too, as it was last seen."""
        if self._own_ready is None:
            self._own_ready = await self._unready() is None
        found = []
        for target in self._targets():
            if self._is_own(target):
                place = self.place or target.place
                found.append(Node(target.node, target.region, target.url, place, self._own_ready, 0.0, self.delay_ms))
                continue
            health = self._found.get((target.region, target.node), _Health())
            rtt_ms = min(health.rtts_ms, default=None)
            found.append(
                Node(target.node, target.region, target.url, target.place, health.healthy, rtt_ms, health.delay_ms)
            )
        return found

    def load(self) -> dict[str, object]:
        """What other gateways learn of this one's load."""
        return {"delay_ms": round(self.delay_ms, 3)}

    def _is_own(self, target: _Target) -> bool:
        return (target.region, target.node) == (self._region, self.node)

    def _targets(self) -> Iterator[_Target]:
        """The announced gateways, and those that only the topology names."""
        announced: set[str] = set()
        for each in self._peers.announcements:
            announced |= {each.url, f"{each.region}/{each.node}"}
            place = place_of_region(each.region)
            if each.latitude is not None and each.longitude is not None:
                place = Place(each.latitude, each.longitude)
            yield _Target(each.node, each.region, each.url, place)
        for region in self._topology.regions:
            name = f"gateway-{region.name}"
            if region.gateway_url and announced.isdisjoint({region.gateway_url, f"{region.name}/{name}"}):
                yield _Target(name, region.name, region.gateway_url, place_of_region(region.name))

    async def _watch_loop(self) -> None:
        """How late timers are is how long other work waits too."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + self.options.tick_s
            await asyncio.sleep(self.options.tick_s)
            late_ms = max(0.0, (loop.time() - due) * 1e3)
            self.delay_ms += _SMOOTH * (late_ms - self.delay_ms)

    async def _watch_own(self) -> None:
        while True:
            self._own_ready = await self._unready() is None
            await asyncio.sleep(self.options.every_s / 2)

    async def _probe_all(self) -> None:
        while True:
            if self._others():
                break
            await asyncio.sleep(self.options.every_s)
        # In a thread, and only where there are others: it takes a third of a second to load.
        client = await asyncio.to_thread(importlib.import_module, "aiohttp")
        timeout = client.ClientTimeout(total=self.options.timeout_s)
        async with client.ClientSession(timeout=timeout, connector=client.TCPConnector(limit=_AT_ONCE)) as session:
            while True:
                others = self._others()
                for gone in self._found.keys() - {(each.region, each.node) for each in others}:
                    del self._found[gone]
                await asyncio.gather(*(self._probe(session, each) for each in others))
                await asyncio.sleep(self.options.every_s * random.uniform(0.8, 1.0))

    def _others(self) -> list[_Target]:
        return [each for each in self._targets() if not self._is_own(each)]

    async def _probe(self, session: aiohttp.ClientSession, target: _Target) -> None:
        health = self._found.setdefault((target.region, target.node), _Health())
        began = time.perf_counter()
        try:
            async with session.get(f"{target.url}/readyz", allow_redirects=False) as answer:
                rtt_ms = (time.perf_counter() - began) * 1e3
                body = await answer.content.read(_ANSWER_BYTES_MAX)
        except TimeoutError:
            health.silent += 1
            health.healthy = health.healthy and health.silent < self.options.silences
            return
        except (OSError, ValueError, _client_error()):
            health.healthy = False
            return
        health.silent, health.healthy = 0, answer.status == 200
        health.rtts_ms.append(rtt_ms)
        while len(health.rtts_ms) > self.options.samples:
            health.rtts_ms.popleft()
        health.delay_ms = _delay_of(body)


def _client_error() -> type[Exception]:
    import aiohttp  # loaded by then

    return aiohttp.ClientError


def _delay_of(body: bytes) -> float:
    with contextlib.suppress(BadInput, StreamsError, KeyError, TypeError, ValueError):
        delay_ms = float(parse_json(body, field="readiness")["load"]["delay_ms"])
        return min(max(0.0, delay_ms), 60_000.0)
    return 0.0
