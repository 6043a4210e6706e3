"""What expires leaves reads, stores, raw log and changelog; their disk use stays flat. Real broker, worker, gateway."""

from __future__ import annotations

import asyncio
import dataclasses
import random
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from streams.client import AsyncClient, connect
from streams.edge.purger import PurgeOptions
from streams.gateway.server import GatewayServer, ServerOptions
from streams.kafka.admin import Admin
from streams.model.errors import StreamsError
from streams.model.keyspace import BUILTIN, Keyspace
from streams.processing.topics import LogOptions, ensure_keyspace_topics
from streams.region.kafka_server import KafkaServer
from tests.integration.small_store_worker import SMALL
from tests.support.gateway import free_port
from tests.support.polling import eventually
from tests.support.retention import raw_keys, used_bytes
from tests.support.whole_system import read_log
from tests.support.worker_process import WorkerProcess, read_table

pytestmark = pytest.mark.kafka
BROKER = {
    "log.initial.task.delay.ms": "500",
    "log.retention.check.interval.ms": "500",
    "log.segment.delete.delay.ms": "300",
    "log.cleaner.backoff.ms": "500",
    "log.cleaner.min.cleanable.ratio": "0.05",
}
LOGS = LogOptions(
    margin_ms=6_000,
    compaction_lag_ms=0,
    compaction_lag_max_ms=2_000,
    delete_retention_ms=1_000,
    table_segment_ms=1_000,
    table_segment_bytes=1 << 20,
)
PURGE = PurgeOptions(grace_ms=500, margin_ms=200, retry_ms=300, interval_s=0.1, time_share=0.5)
BRIEF, KV = Keyspace("brief", partitions=1, ttl_ms=2_000), next(each for each in BUILTIN if each.name == "kv")
OLD = "device:old:telemetry"
ROWS, VALUE_BYTES, CYCLES = 800, 1_000, 3
COMPACTED_BYTES = ROWS * VALUE_BYTES // 4
"""A changelog with less than this has forgotten a cycle's rows: they take four times as much."""


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaServer]:
    """A broker that looks for what to delete and compact every half second."""
    made = KafkaServer.on_free_ports("us-east", tmp_path_factory.mktemp("kafka"))
    with KafkaServer(dataclasses.replace(made.options, settings=BROKER)) as server:
        yield server


@dataclasses.dataclass
class System:
    """One region; `edge` is a session with its gateway."""

    broker: KafkaServer
    server: GatewayServer
    edge: AsyncClient
    url: str
    worker: Path
    gateway: Path

    def stores(self, table: str) -> list[Path]:
        """The directories of a table: the worker's and the gateway's."""
        return [self.worker / "worker/us-east/builtin" / table, self.gateway / "gateway/us-east" / table / "us-east"]

    def disk_bytes(self, keyspace: str) -> int:
        """What a keyspace's raw log and stores take, in all files."""
        logs = self.broker.options.directory / "log"
        return sum(used_bytes(place) for place in (*logs.glob(f"events.{keyspace}-*"), *self.stores(keyspace)))

    def changelog_bytes(self, keyspace: str) -> int:
        """What its changelog takes, in all files: the segments that the broker has not compacted yet too."""
        logs = self.broker.options.directory / "log"
        return sum(used_bytes(place) for place in logs.glob(f"table.{keyspace}-*"))


@asynccontextmanager
async def system(broker: KafkaServer, path: Path) -> AsyncIterator[System]:
    async with Admin(broker.bootstrap_servers) as admin:
        await ensure_keyspace_topics(admin, [BRIEF, KV], LOGS)
        # Kafka's one cleaner takes the log with the largest share of new bytes next: a dozen tables that are all but
        # empty, whose heartbeats close a segment a second, would keep it from the one with rows for good.
        calm = dataclasses.replace(LOGS, table_segment_ms=3_600_000, compaction_lag_max_ms=3_600_000)
        await ensure_keyspace_topics(admin, [each for each in BUILTIN if each is not KV], calm)
    worker = WorkerProcess(path, broker.bootstrap_servers, definitions=True)
    module = "tests.integration.small_store_worker"
    worker._command = [sys.executable, "-m", module, broker.bootstrap_servers, str(worker.data)]
    worker.start()
    port = free_port()
    options = ServerOptions(
        "us-east", path / "gateway", broker.bootstrap_servers, port=port, purge=PURGE, logs=LOGS, store=SMALL
    )
    server, stop = GatewayServer(options), asyncio.Event()
    running = asyncio.create_task(server.run(stop))
    url = f"http://127.0.0.1:{port}"
    try:
        async with connect(url) as edge:
            await eventually(lambda: ready(edge, running), 90, every_s=0.2)
            await edge.put_keyspace("brief", partitions=1, ttl=2)
            # Its raw log forgets within seconds here: nothing is put before the worker stands at its end.
            await eventually(lambda: "brief/0: took over" in worker.log, 60)
            yield System(broker, server, edge, url, worker.data, path / "gateway")
    finally:
        stop.set()
        await asyncio.wait_for(running, 30)
        worker.kill()


async def ready(edge: AsyncClient, running: asyncio.Task[None]) -> bool:
    if running.done():
        running.result()
    try:
        await edge._transport.json("GET", "/readyz", {})
    except StreamsError:
        return False
    return True


async def gone(found: System) -> bool:
    """Nothing of `brief` is left: reads, both stores, raw log; its changelog says of every row that it is removed."""
    edge, broker = found.edge, found.broker.bootstrap_servers
    assert not [row async for row in edge.scan("brief")]
    assert (await edge.digest("brief")).rows == 0
    counts = [len(await asyncio.to_thread(raw_keys, [place])) for place in found.stores("brief")]
    assert counts == [0, 0], counts
    async with Admin(broker) as admin:
        starts, ends = await admin.start_offsets([("events.brief", 0)]), await admin.end_offsets([("events.brief", 0)])
    assert starts == ends, (starts, ends)
    state = await read_table(broker, "brief", partitions=1)
    assert state.markers[0] and not any(state.rows.values()), state.rows
    return True


async def test_disk_use_stays_flat_while_rows_are_written_and_expire(broker: KafkaServer, tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    sizes: dict[str, list[int]] = {"brief": [], "kv": [], "changelog of brief": []}
    async with system(broker, tmp_path) as found:
        await ttls_rule_the_raw_log(found)
        await found.edge.put(OLD, {"metric": "t", "value": 1.5, "time": "2014-01-01T00:00:00Z"})
        for cycle in range(CYCLES):
            for name in ("brief", "kv"):
                keys = [f"{name}:{cycle}-{index}" for index in range(ROWS)]
                values = [rng.randbytes(VALUE_BYTES // 2).hex() for _ in keys]
                receipt = await found.edge.put_many(name, {"key": keys, "value": values})
                assert receipt.accepted == ROWS, receipt
            await found.edge.wait_for(timeout_s=60)
            await eventually(lambda: gone(found), 90, every_s=0.5)
            await eventually(lambda: found.changelog_bytes("brief") < COMPACTED_BYTES, 60, every_s=0.2)
            for name in ("brief", "kv"):
                sizes[name].append(found.disk_bytes(name))
            sizes["changelog of brief"].append(found.changelog_bytes("brief"))
            print(f"cycle {cycle}: {sizes}")
        assert (await found.edge.digest("kv")).rows == ROWS * CYCLES, "what has no TTL stays"
        # The broker has looked for expired segments many times: ten years of event time are no age.
        events = await read_log(broker.bootstrap_servers, "events.device")
        assert [record.key for record in events] == [OLD.encode()]
        assert await found.edge.get(OLD) is not None
        metrics = await scrape(found.url)
        assert found.changelog_bytes("kv") > ROWS * CYCLES * VALUE_BYTES, "the measure would show what does not expire"
    brief, kept = sizes["brief"], sizes["kv"]
    assert brief[-1] <= brief[0] * 1.5, sizes
    assert kept[-1] >= kept[0] * 1.8, f"the measure would show what is not purged: {sizes}"
    assert metrics["streams_purges_emitted"] >= ROWS * CYCLES
    assert metrics['streams_log_bytes{topic="table.kv"}'] > ROWS * CYCLES * VALUE_BYTES
    assert metrics['streams_log_bytes{topic="events.brief"}'] < ROWS * VALUE_BYTES
    assert metrics['streams_table_disk_bytes{origin="us-east",table="kv"}'] > ROWS * VALUE_BYTES
    assert metrics["streams_events_log_bytes"] > 0


async def scrape(url: str) -> dict[str, float]:
    async with aiohttp.ClientSession() as http, http.get(f"{url}/metrics") as answer:
        lines = (await answer.text()).splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}


async def ttls_rule_the_raw_log(found: System) -> None:
    async def retention_ms(topic: str) -> int:
        async with Admin(found.broker.bootstrap_servers) as admin:
            return int((await admin.configs([topic]))[topic]["retention.ms"] or 0)

    assert await retention_ms("events.brief") == 8_000
    assert await retention_ms("events.kv") == LOGS.default_ms
    assert await retention_ms("events.device") == 86_400_000 + 6_000
    await found.edge.put_keyspace("kv", ttl=7_200)
    assert await retention_ms("events.kv") == 7_206_000
    await found.edge.put_keyspace("kv")
    assert await retention_ms("events.kv") == LOGS.default_ms
    assert await retention_ms("dead-letter.kv") == LOGS.default_ms
