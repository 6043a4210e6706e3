"""The whole system as `streams up` runs it, with mirror links that can be cut, and what it is held to."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition

from streams.client import AsyncClient, connect
from streams.kafka.admin import Admin
from streams.model.errors import Timeout, Unavailable
from streams.model.topology import Region, Topology
from streams.region import status
from streams.region.plan import MIRROR_PORT
from streams.serde import SchemaSet, load_builtin
from tests.support.kafka import REGION_NAMES, ProxyThread
from tests.support.polling import eventually, eventually_sync
from tests.support.small_system import SmallSystem
from tests.support.tcp_proxy import TcpProxy

HOME, FAR = REGION_NAMES
PACE_S = 0.1  # between a writer's puts, and before a refused request is tried again
WATCH_PACE_S = 0.005
BATCH = 25


class WholeSystem(SmallSystem):
    """Two regions of real processes under a real supervisor. `cut()` and `heal()` are for both mirror links."""

    module = "streams.region.up"

    def __init__(
        self,
        data: Path,
        env: Mapping[str, str] | None = None,
        *,
        regions: tuple[str, ...] = REGION_NAMES,
        brokers: int = 1,
    ) -> None:
        self._links = ProxyThread()
        self._opened = {name: [self._links.open() for _ in range(brokers)] for name in regions}
        data.mkdir(parents=True)
        Topology(
            tuple(
                Region(name, "", mirror_bootstrap_servers=",".join(f"127.0.0.1:{proxy.port}" for proxy in proxies))
                for name, proxies in self._opened.items()
            )
        ).save(data)
        super().__init__(data, *(["--brokers", str(brokers)] if brokers > 1 else []), env=env)

    def wait_ready(self, timeout_s: float = 240.0) -> None:
        """Aim the proxies at the brokers' mirror listeners, then wait for `ready`."""
        eventually_sync(self._aim, timeout_s)
        super().wait_ready(timeout_s)

    def _aim(self) -> bool:
        for region in self.topology.regions:
            ports = [int(each) for each in region.extra.get(MIRROR_PORT, "").split(",") if each]
            for proxy, port in zip(self._opened[region.name], ports, strict=False):
                proxy.target_port = port
        return self.process.poll() is not None or all(proxy.target_port for proxy in self.links)

    @property
    def links(self) -> list[TcpProxy]:
        """The proxies of all brokers of all regions."""
        return [proxy for proxies in self._opened.values() for proxy in proxies]

    @property
    def link(self) -> tuple[list[TcpProxy], Callable[[], None], Callable[[], None]]:
        """The proxies, and how to cut and heal them."""
        return self.links, self.cut, self.heal

    @property
    def topology(self) -> Topology:
        """As kept in the data directory now."""
        return Topology.load(self.data)

    def url(self, region: str) -> str:
        """The region's gateway."""
        return self.topology.region(region).gateway_url

    @property
    def gateways(self) -> dict[str, str]:
        """Region → the URL of its gateway."""
        return {region: self.url(region) for region in self._opened}

    def kafka(self, region: str) -> str:
        """The region's brokers."""
        return self.topology.region(region).bootstrap_servers

    def cut(self) -> None:
        """Cut the mirror in both directions."""
        self._links.cut(*self.links)

    def heal(self) -> None:
        """Let the mirror through again."""
        self._links.heal(*self.links)

    def process_of(self, name: str) -> dict[str, object]:
        """Pid, state and restarts of a process."""
        regions = status.status(self.data)["regions"].values()
        return next(row for region in regions for row in region["processes"] if row["name"] == name)

    def kill(self, name: str) -> int:
        """SIGKILL exactly this process; returns its pid."""
        pid = int(str(self.process_of(name)["pid"]))
        os.kill(pid, signal.SIGKILL)
        return pid

    async def back(self, name: str, killed_pid: int, timeout_s: float = 60.0) -> None:
        """Wait until another process with this name runs and both gateways are ready."""

        async def is_back() -> bool:
            now = self.process_of(name)
            return now["state"] == "running" and now["pid"] not in (killed_pid, None)

        await eventually(is_back, timeout_s, every_s=0.1)
        async with aiohttp.ClientSession() as http:
            await eventually(lambda: self._ready(http), timeout_s, every_s=0.1)

    async def _ready(self, http: aiohttp.ClientSession) -> bool:
        for region in self._opened:
            try:
                async with http.get(f"{self.url(region)}/readyz", timeout=aiohttp.ClientTimeout(5)) as answer:
                    if answer.status != 200:
                        return False
            except (aiohttp.ClientError, TimeoutError):
                return False
        return True

    @contextlib.contextmanager
    def unsupervised(self) -> Iterator[None]:
        """Nothing that dies meanwhile is restarted: the supervisor is stopped (SIGSTOP)."""
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    @contextlib.asynccontextmanager
    async def sessions(self) -> AsyncIterator[tuple[AsyncClient, AsyncClient]]:
        """New client sessions with both gateways, home first."""
        async with connect(self.url(HOME)) as home, connect(self.url(FAR)) as far:
            yield home, far

    def stop(self) -> int:
        """Ctrl-C; then the proxies."""
        self.process.send_signal(signal.SIGCONT)
        try:
            return super().stop()
        finally:
            self._links.close()


@pytest.fixture(scope="session")
def whole_system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WholeSystem]:
    """The session's whole system: its start is dear. Name your own keys and UDFs, and kill no broker.

    The last test that uses it may stop it by `streams down`.
    """
    started_s = time.monotonic()
    system = WholeSystem(tmp_path_factory.mktemp("whole") / "data")
    try:
        system.wait_ready()
        print(f"the system was ready after {time.monotonic() - started_s:.1f} s")
        yield system
    finally:
        assert system.stop() == 0, "\n".join(system.lines)


@dataclass
class Ledger:
    """What was put into counters: acknowledged, and with an unknown outcome (503, 504, connection lost)."""

    acked: Counter[str] = field(default_factory=Counter)
    unknown: Counter[str] = field(default_factory=Counter)
    puts: int = 0
    failures: int = 0

    async def put(self, edge: AsyncClient, key: str, add: int) -> bool:
        """Put; False when its outcome is not known."""
        try:
            await edge.put(key, {"add": add})
        except (Timeout, Unavailable):
            self.unknown[key] += add
            self.failures += 1
            return False
        self.acked[key] += add
        self.puts += 1
        return True

    async def put_many(self, edge: AsyncClient, adds: list[tuple[str, int]]) -> None:
        """A batch that must be accepted."""
        columns = {"key": [key for key, _ in adds], "add": [add for _, add in adds]}
        receipt = await edge.put_many("score", columns)
        assert receipt.accepted == len(adds) and not receipt.rejected_count
        for key, add in adds:
            self.acked[key] += add
        self.puts += len(adds)


class CounterWatch:
    """Reads counters at every gateway without any token, over and over: none may ever be smaller than before."""

    def __init__(self, urls: Mapping[str, str], keys: list[str]) -> None:
        self._urls, self._keys = urls, keys
        self._seen: dict[tuple[str, str], int] = {}
        self.reads = self.unanswered = self.grew = 0
        self.backwards: list[str] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> CounterWatch:
        self._tasks = [asyncio.create_task(self._watch(region)) for region in self._urls]
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        results = await asyncio.gather(*self._tasks, return_exceptions=True)
        if kind is None:
            failed = [each for each in results if isinstance(each, Exception)]
            assert not failed, failed
            assert not self.backwards, self.backwards[:10]
            assert self.grew, "the watch saw no counter grow"
        print(f"watch: {self.reads} reads, {self.grew} grew, {len(self.backwards)} back, {self.unanswered} unanswered")

    async def _watch(self, region: str) -> None:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(10)) as http:
            while True:
                for key in self._keys:
                    await self._read(http, region, key)
                    await asyncio.sleep(WATCH_PACE_S)

    async def _read(self, http: aiohttp.ClientSession, region: str, key: str) -> None:
        try:
            async with http.get(f"{self._urls[region]}/v1/kv/{key}") as answer:
                body = await answer.json(content_type=None)
        except (aiohttp.ClientError, TimeoutError):
            self.unanswered += 1
            await asyncio.sleep(PACE_S)
            return
        if answer.status not in (200, 404) or (answer.status == 404 and body.get("field") != "key"):
            self.unanswered += 1
            return
        value = int(body["value"]) if answer.status == 200 else 0
        before = self._seen.get((region, key), 0)
        self.reads += 1
        self.grew += value > before
        if value < before:
            self.backwards.append(f"{region} {key}: {before} then {value}")
        self._seen[region, key] = value


async def counters(edge: AsyncClient, prefix: str) -> dict[str, int]:
    """The counters with this prefix, as this gateway answers them now."""
    return {row.key: row.value async for row in edge.scan("score", prefix=prefix)}


async def equal_digests(system: WholeSystem, tables: tuple[str, ...], timeout_s: float = 60.0) -> None:
    """Both gateways answer equal digests of these tables for the same moment, by the deadline."""

    async def equal() -> bool:
        async with system.sessions() as (home, far):
            now_ms = time.time_ns() // 1_000_000
            for table in tables:
                here, there = await home.digest(table, as_of_ms=now_ms), await far.digest(table, as_of_ms=now_ms)
                assert here.as_of == there.as_of == now_ms
                assert (here.digest, here.rows) == (there.digest, there.rows), (table, here, there)
        return True

    await eventually(equal, timeout_s, every_s=0.1)


async def converged(system: WholeSystem, truth: Mapping[str, int], prefix: str, timeout_s: float = 60.0) -> float:
    """Both gateways answer exactly these counters, and equal digests, by the deadline; seconds that it took."""
    started_s = time.monotonic()

    async def exact() -> bool:
        async with system.sessions() as sessions:
            for region, edge in zip(REGION_NAMES, sessions, strict=True):
                found = await counters(edge, prefix)
                wrong = {key: (found.get(key), value) for key, value in truth.items() if found.get(key) != value}
                assert not wrong and found.keys() == truth.keys(), (region, dict(list(wrong.items())[:5]))
        return True

    await eventually(exact, timeout_s, every_s=0.1)
    await equal_digests(system, ("score",), timeout_s)
    return time.monotonic() - started_s


async def read_log(bootstrap_servers: str, topic: str, *, committed: bool = True) -> list[ConsumerRecord[bytes, bytes]]:
    """Every record of a topic up to its present end, partition by partition."""
    found = []
    isolation = "read_committed" if committed else "read_uncommitted"
    async with Admin(bootstrap_servers) as admin:
        tps = [TopicPartition(topic, number) for number in range((await admin.topics([topic]))[topic].partitions)]
    async with AIOKafkaConsumer(
        bootstrap_servers=bootstrap_servers,
        isolation_level=isolation,
        auto_offset_reset="earliest",
        enable_auto_commit=False,
    ) as consumer:
        consumer.assign(tps)
        ends = await consumer.end_offsets(tps)
        while any([await consumer.position(tp) < end for tp, end in ends.items()]):
            for tp, records in (await consumer.getmany(timeout_ms=500)).items():
                found += [record for record in records if record.offset < ends[tp]]
    found.sort(key=lambda record: (record.partition, record.offset))
    return found


async def log_truth(bootstrap_servers: str, prefix: str) -> Counter[str]:
    """The sums of all counter puts in a region's log, each idempotency key once at most (asserted)."""
    schemas = SchemaSet(load_builtin().values())
    totals: Counter[str] = Counter()
    identities: set[bytes] = set()
    for record in await read_log(bootstrap_servers, "events.score"):
        if record.key is None:
            continue  # a frame: these tests put one by one, purges go in frames
        key = record.key.decode()
        if not key.startswith(prefix):
            continue
        identity = dict(record.headers).get("idempotency_key")
        assert identity is None or identity not in identities, f"{key} was put twice"
        if identity is not None:
            identities.add(identity)
        _, body = schemas.decode_value(record.value)
        totals[key] += body.get("add", 0)
    return totals


class Load:
    """Puts of positive adds to `keys` in the given regions until it is left: single ones and small batches."""

    def __init__(self, system: WholeSystem, ledger: Ledger, keys: list[str], seeded: random.Random) -> None:
        self._urls, self._ledger, self._keys = system.gateways, ledger, keys
        self._random = seeded
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Load:
        self._tasks = [asyncio.create_task(self._write(url)) for url in self._urls.values()]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stop.set()
        await asyncio.gather(*self._tasks)

    async def _write(self, url: str) -> None:
        async with connect(url) as edge:
            while not self._stop.is_set():
                adds = [(self._random.choice(self._keys), self._random.randint(1, 100)) for _ in range(BATCH)]
                await self._ledger.put_many(edge, adds)
                await self._ledger.put(edge, *adds[0])
                await asyncio.sleep(PACE_S)


@contextlib.asynccontextmanager
async def hammering(
    url: str, ledger: Ledger, keys: list[str], seeded: random.Random, writers: int = 4
) -> AsyncIterator[None]:
    """Single puts of 1 by some writers, whatever the answers, while inside."""
    stop = asyncio.Event()

    async def write() -> None:
        async with connect(url) as edge:
            while not stop.is_set():
                if not await ledger.put(edge, seeded.choice(keys), 1):
                    await asyncio.sleep(PACE_S)
                await asyncio.sleep(WATCH_PACE_S)

    tasks = [asyncio.create_task(write()) for _ in range(writers)]
    try:
        yield
    finally:
        stop.set()
        await asyncio.gather(*tasks)


async def lasts(seconds: float) -> None:
    """Let load run for a while."""
    started_s = time.monotonic()
    await eventually(lambda: time.monotonic() - started_s >= seconds, seconds + 5, every_s=0.05)


async def staleness_ms(url: str, table: str = "score") -> int:
    """What this gateway says of a table's age."""
    async with aiohttp.ClientSession() as http, http.get(f"{url}/v1/tables/{table}?limit=1") as answer:
        return int(answer.headers["Staleness-Ms"])
