"""A gateway over HTTP with real tables and definitions, whose log is a model: puts fold in Python, at once.

The HTTP server, routes, definitions, edge tables and RocksDB are the real ones. Kafka and the worker are not: tests
of the whole path are in tests/integration.
"""

from __future__ import annotations

import socket
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import aiohttp
import numpy as np
from numpy.typing import NDArray

from streams.definitions import Definitions
from streams.edge.edge_store import EdgeTables
from streams.edge.options import EdgeOptions, TableSpec
from streams.gateway.app import GatewayApp
from streams.gateway.context import Gateway, GatewayOptions
from streams.gateway.http_server import HttpServer
from streams.gateway.routes_schemas import schema_routes
from streams.gateway.strong import StrongWrites
from streams.gateway.trading import Trading
from streams.kafka.batches import Headers, Record
from streams.kafka.producer import BatchMeta, RecordMeta
from streams.model.clock import NEVER_MS
from streams.model.errors import StreamsError
from streams.model.keys import partition_for
from streams.model.keyspace import BUILTIN
from streams.model.row import MergeType
from streams.model.topology import Region, Topology
from streams.sequencer.commands import Result, barrier
from streams.sequencer.order_commands import OrdersResult
from streams.sequencer.replica import OutcomeUnknown
from streams.serde import DELETE, decode_frame, load_builtin
from streams.wasm.machine_host import LogCommand
from tests.support.definitions import MemoryHome, MemoryLog
from tests.support.edge_units import STORE, Writer

REGIONS = ("us-east", "eu-west")


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@dataclass
class ModelLog:
    """Where events go: folded by a model, published to the tables at once. `refuse` is raised instead, once."""

    tables: EdgeTables
    definitions: Definitions
    writers: dict[tuple[str, int], Writer] = field(default_factory=dict)
    offsets: dict[tuple[str, int], int] = field(default_factory=dict)
    refuse: StreamsError | None = None
    hold: bool = False

    async def put(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        headers: Headers = (),
        partition: int | None = None,
        timestamp_ms: int | None = None,
    ) -> RecordMeta:
        """Accept and fold one event."""
        refuse, self.refuse = self.refuse, None
        if refuse is not None:
            raise refuse
        assert key is not None and value is not None
        keyspace = self.definitions.keyspace(topic.removeprefix("events."))
        number = partition_for(key, keyspace.partitions)
        writer = self._writer(keyspace.name, number)
        now_ms = time.time_ns() // 1_000_000
        given = dict(headers)
        ttl = given.get("ttl_ms")
        generation = int(given.get("generation") or 0)
        if int.from_bytes(value[1:5], "big") == load_builtin()[DELETE].id:
            writer.delete(key, at_ms=now_ms, generation=generation)
        else:
            body = self.definitions.from_avro(value)
            kind = keyspace.merge
            folded = body["add"] if kind is MergeType.COUNTER else float(body) if kind is MergeType.MAX else value
            expires = NEVER_MS if ttl is None else now_ms + int(ttl)
            writer.put(key, folded, at_ms=now_ms, expires_ms=expires, generation=generation)
        offset = self.offsets.get((topic, number), 0)
        self.offsets[topic, number] = offset + 1
        if not self.hold:
            self.publish()
        return RecordMeta(topic, number, offset, now_ms)

    async def put_batch(
        self, topic: str, records: Sequence[Record], partitions: NDArray[np.int32] | None = None
    ) -> BatchMeta:
        """Accept and fold many, those in frames too."""
        done, hold = [], self.hold
        self.hold = True
        try:
            for key, value, headers in records:
                if key is not None:
                    done.append(await self.put(topic, key, value, headers))
                    continue
                assert value is not None
                frame = decode_frame(value)
                for index, (each, body) in enumerate(zip(frame.keys(), frame.values(), strict=True)):
                    ttl = frame.ttl_of(index)
                    given = [*headers, ("ttl_ms", None if ttl is None else b"%d" % ttl)]
                    meta = await self.put(topic, each, body, given)
                done.append(meta)
        finally:
            self.hold = hold
        if not hold:
            self.publish()
        return BatchMeta(
            topic,
            np.array([meta.partition for meta in done], np.int32),
            np.array([meta.offset for meta in done], np.int64),
            np.array([meta.timestamp_ms for meta in done], np.int64),
        )

    def publish(self) -> None:
        """Make what was folded visible; also brings every table's markers up to now."""
        now_ms = time.time_ns() // 1_000_000
        for writer in self.writers.values():
            self.tables.publish_now(writer.commit(REGIONS[0], time_ms=now_ms))

    def _writer(self, name: str, number: int) -> Writer:
        if (name, number) not in self.writers:
            spec = self.tables.table(name).spec
            self.writers[name, number] = Writer(REGIONS[0], spec, number)
        return self.writers[name, number]


@dataclass
class LocalReplica:
    """Stands for the sequenced log: commands are applied at once by the real machine. `refuse` is raised instead, once;
    `now_ms` is the broker's clock if set."""

    strong: StrongWrites
    refuse: StreamsError | None = None
    now_ms: int | None = None
    ticks: int = 0
    barriers: int = 0

    async def execute(self, command: bytes) -> tuple[Result, int]:
        """Apply one command."""
        refuse, self.refuse = self.refuse, None
        if refuse is not None:
            raise refuse
        state, now_ms = self.strong.state, self.now_ms or time.time_ns() // 1_000_000
        step = state.apply([LogCommand(state.next, now_ms, command)], state.next + 1)
        self.strong._stepped(step, state.machine_state.time_ms)
        return step.results[0], state.next - 1

    async def linearize(self) -> None:
        """Everything is applied here."""
        refuse, self.refuse = self.refuse, None
        self.barriers += 1
        if refuse is not None:
            raise refuse

    async def tick(self) -> None:
        """The log's time is now."""
        self.ticks += 1
        await self.execute(barrier())


@dataclass
class LocalOrders:
    """The same for the order books."""

    trading: Trading
    refuse: StreamsError | None = None
    spared: int = 0
    lose: bool = False

    @property
    def told(self) -> int:
        """The position up to which results are known."""
        return self.trading.state.next

    async def execute(self, command: bytes, appended: Callable[[], None] | None = None) -> tuple[OrdersResult, int]:
        """Apply one command; with `lose` its answer is lost, once. `refuse` comes after `spared` commands."""
        if self.refuse is not None and self.spared:
            self.spared -= 1
        elif self.refuse is not None:
            refuse, self.refuse = self.refuse, None
            raise refuse
        state, now_ms = self.trading.state, time.time_ns() // 1_000_000
        step = state.apply([LogCommand(state.next, now_ms, command)], state.next + 1)
        self.trading.stepped(step, now_ms)
        if appended is not None:
            appended()
        lose, self.lose = self.lose, False
        if lose:
            raise OutcomeUnknown("the answer is lost")
        return step.results[0], state.next - 1

    async def linearize(self) -> None:
        """Everything is applied here."""
        refuse, self.refuse = self.refuse, None
        if refuse is not None:
            raise refuse


@dataclass
class TestGateway:
    """A running gateway. `http` sends to it; `log` is the model behind it."""

    __test__ = False
    url: str
    http: aiohttp.ClientSession
    log: ModelLog
    gateway: Gateway
    app: GatewayApp
    sequencer: LocalReplica
    books: LocalOrders | None

    @property
    def orders(self) -> LocalOrders:
        """The order books' log."""
        assert self.books is not None
        return self.books


@asynccontextmanager
async def running_gateway(
    path: Path, options: GatewayOptions | None = None, *, orders: bool = False
) -> AsyncIterator[TestGateway]:
    """A gateway of us-east on a free port; with `orders`, it has order books."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    topology = Topology((Region(REGIONS[0], "unused", url, port), Region(REGIONS[1], "unused", "http://127.0.0.1:1")))
    tables = EdgeTables(
        EdgeOptions(path, REGIONS[0], REGIONS, store=STORE), decode=lambda _, payload: definitions.from_avro(payload)
    )
    tables.set_tables(TableSpec.of(keyspace) for keyspace in BUILTIN if not keyspace.is_strong)
    for replica in tables.replica_ids():
        tables.attach(replica)
    async with Definitions(topology, REGIONS[0], log=MemoryLog(MemoryHome())) as definitions:
        log = ModelLog(tables, definitions)
        gateway = Gateway(topology, topology.region(REGIONS[0]), tables, log, definitions, options or GatewayOptions())
        strong = StrongWrites(topology, REGIONS[0], path, tables)
        strong.set_keyspaces(definitions.keyspaces.values())
        sequencer = LocalReplica(strong)
        gateway.strong = strong
        strong.replica = sequencer  # type: ignore[assignment]
        trading = Trading(topology, REGIONS[0], path) if orders else None
        books = None if trading is None else LocalOrders(trading)
        if trading is not None:
            gateway.trading = trading
            trading.replica = books  # type: ignore[assignment]
        app = GatewayApp(gateway, schema_routes(definitions, lambda: gateway.authority))
        server = HttpServer(app, port)
        await server.start()
        # There is no Kafka whose positions a load could begin at.
        patched = mock.patch("streams.gateway.routes_loads.start_positions", mock.AsyncMock(return_value={}))
        async with aiohttp.ClientSession(url) as http:
            try:
                with patched:
                    yield TestGateway(url, http, log, gateway, app, sequencer, books)
            finally:
                gateway.closing.set()
                await http.close()
                await server.stop()
                strong.close()
                if trading is not None:
                    trading.close()
                await tables.close()
