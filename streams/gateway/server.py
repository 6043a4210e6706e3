"""A gateway process: brings the region's tables, log and definitions up, serves until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import uvloop

from streams.definitions import Definitions
from streams.definitions.chains import put_schemas
from streams.definitions.deployment import Deployment
from streams.definitions.udf_states import StateReader, StateWriter, UdfState, topic_spec
from streams.definitions.udfs import Udfs
from streams.edge.edge_store import EdgeTables
from streams.edge.options import STORE, EdgeOptions, TableSpec
from streams.edge.purger import Purge, PurgeOptions, Purger
from streams.edge.tail import ChangelogTail
from streams.gateway.app import GatewayApp
from streams.gateway.auth import Authority
from streams.gateway.context import Gateway, GatewayOptions
from streams.gateway.functions import FunctionService
from streams.gateway.http_server import HttpServer
from streams.gateway.log_watch import watch_log
from streams.gateway.machines import MachineService
from streams.gateway.peers import Announcer
from streams.gateway.routes_schemas import schema_routes
from streams.gateway.strong import StrongWrites
from streams.gateway.supervised import tell_mirror, tell_workers
from streams.gateway.trading import Trading
from streams.gateway.udf_versions import VersionKeeper
from streams.gateway.udfs import UdfService
from streams.kafka.admin import Admin
from streams.kafka.producer import EventProducer, ProducerOptions
from streams.model.clock import wall_ms
from streams.model.errors import NotFound, StreamsError
from streams.model.fold_table import FoldTable, fold_tables
from streams.model.keyspace import BUILTIN, Keyspace
from streams.model.memory import bound_malloc, calm_collector
from streams.model.peer import Announcement, check_location, check_node, check_url
from streams.model.place import Place
from streams.model.topology import Region, Topology
from streams.processing.topics import (
    RECORD_BYTES_MAX,
    LogOptions,
    ensure_keyspace_topics,
    ensure_table_topics,
    follow_ttls,
)
from streams.sequencer.options import SequencerOptions
from streams.serde import purge_frames
from streams.state.options import StoreOptions
from streams.use_cases.routing.geoip import GeoIp
from streams.wasm.admission import DeployCaps
from streams.wasm.function_manifest import caps_within

log = logging.getLogger(__name__)

TOKENS_FILE = "tokens.json"
_RETRY_S = 0.5
_PROBE_S = 2.0
_PROBE_EVERY_S = 1.0
_RECORD_MARGIN_BYTES = 64 << 10
_BEGUN_MS = 20 * 365 * 86_400_000
"""Older than any commit: the age of a table that has none counts from 1970."""


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """One gateway process. `port` 0: the topology's. `tokens`: who may do what; a missing file leaves all open.

    `advertised_url`: where other gateways reach this one, `node`: its name among them; both default by the topology.
    `location`: latitude and longitude in degrees; default: where regions of this name usually are. `geoip`: a database
    in MaxMind's format.
    `logs`: how long the topics that it creates keep what; the worker of its region has the same. `store`:
    limits of its tables on disk.
    """

    region: str
    data: Path
    bootstrap_servers: str | None = None
    host: str = "127.0.0.1"
    port: int = 0
    tokens: Path | None = None
    limits: GatewayOptions = field(default_factory=GatewayOptions)
    purge: PurgeOptions = field(default_factory=PurgeOptions)
    advertised_url: str | None = None
    node: str | None = None
    location: tuple[float, float] | None = None
    geoip: Path | None = None
    logs: LogOptions = field(default_factory=LogOptions)
    store: StoreOptions = STORE
    sequencer: SequencerOptions = field(default_factory=SequencerOptions)
    udfs: DeployCaps = field(default_factory=DeployCaps)


class GatewayServer:
    """Everything of one gateway, on one event loop."""

    def __init__(self, options: ServerOptions) -> None:
        self._options = options
        topology = topology_of(options)
        region = topology.region(options.region)
        self.definitions = Definitions(topology, region.name)
        self.producer = EventProducer(
            region.bootstrap_servers,
            ProducerOptions(max_record_bytes=RECORD_BYTES_MAX - _RECORD_MARGIN_BYTES, client_id="streams-gateway"),
        )
        self.tables = EdgeTables(
            EdgeOptions(options.data / "gateway" / region.name, region.name, topology.names, store=options.store),
            observe=lambda hlc: self.gateway.clock.observe(hlc),
            decode=lambda _table, payload: self.definitions.from_avro(payload),
        )
        self.tail = ChangelogTail(self.tables, region.bootstrap_servers)
        place = options.data / "gateway" / region.name
        self.strong = StrongWrites(topology, region.name, place, self.tables, options.sequencer)
        self.trading = Trading(topology, region.name, place, options.sequencer)
        self.purger = Purger(self.tables, self._emit_purges, options.purge)
        self._admin = Admin(region.bootstrap_servers, timeout_s=15.0)
        tokens = options.tokens or options.data / TOKENS_FILE
        self.udfs = UdfService(
            topology,
            region.name,
            Udfs(topology, region.name, functions=True),
            StateReader(topology, region.name),
            lambda: self.definitions.keyspaces,
            self._heard_ms,
            self._table_ms,
            lambda: self.tables.served,
            options.udfs,
            self.tables.pointed,
            lambda keyspace: put_schemas(self.definitions, keyspace),
        )
        self.versions = VersionKeeper(self.udfs, self.tables, self._admin)
        self.versions.moved = self._follow_definitions
        self.gateway = Gateway(
            topology,
            region,
            self.tables,
            self.producer,
            self.definitions,
            options.limits,
            authority=Authority.load(tokens),
            unready=self._unready,
            create_topics=self._create_topics,
            copied_ms=self._copied_ms,
            log_bytes=self._admin.log_bytes,
            purges=lambda: self.purger.emitted,
            udfs=self.udfs,
        )
        self.gateway.started = False
        self.gateway.geoip = None if options.geoip is None else GeoIp(options.geoip)
        self.gateway.strong, self.gateway.trading = self.strong, self.trading
        self._run_udfs(topology, place)
        self.http = HttpServer(
            GatewayApp(self.gateway, schema_routes(self.definitions, lambda: self.gateway.authority)),
            options.port or region.gateway_port,
            options.host,
        )
        own = announcement_of(options, region)
        self.gateway.probes.node = own.node
        if own.latitude is not None and own.longitude is not None:
            self.gateway.probes.place = Place(own.latitude, own.longitude)
        self.announcer = Announcer(region.bootstrap_servers, self.producer, self.gateway.peers, own)
        self._background: set[asyncio.Task[None]] = set()
        self._starting = "the gateway is starting"
        self._probed_s = 0.0
        self._probed: str | None = None
        self._ttls: dict[str, int | None] = {}

    def _run_udfs(self, topology: Topology, place: Path) -> None:
        """What gateways themselves run of what is deployed: functions and machines."""
        options = self._options
        caps = caps_within(options.udfs.functions, options.udfs.limits)
        self.functions = self.gateway.functions = FunctionService(self.gateway, report=self._report, caps=caps)
        self.machines = self.gateway.machines = MachineService(
            topology, options.region, place, self._report, options.udfs, options.sequencer
        )

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set, then close everything in order."""
        await self.http.start()
        log.info("gateway of %s on http://%s:%s", self.gateway.region.name, self._options.host, self.http.port)
        bring_up = asyncio.create_task(self._bring_up())
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({bring_up, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if bring_up.done():
                bring_up.result()
                await stopping
        finally:
            for task in (bring_up, stopping):
                task.cancel()
            await asyncio.gather(bring_up, stopping, return_exceptions=True)
            await self._close()

    async def _bring_up(self) -> None:
        await self._until("the region's Kafka", self._start_admin)
        self._spawn(watch_log(self._admin, self.gateway.topology, self.gateway.metrics), "log watch")
        await self._until("topics", lambda: self._topics(BUILTIN))
        await self._until("the producer", self.producer.start)
        self._spawn(self.announcer.run(), "announcements")
        self._spawn(self.gateway.probes.run(), "probes")
        await self._until("definitions", self.definitions.start)
        await self._until("topics", lambda: self._topics(self.definitions.keyspaces.values()))
        await self._until("retention", self._follow_ttls)
        await self._until("the topic of UDFs' states", lambda: self._admin.ensure_topics([topic_spec()]))
        await self._until("deployed UDFs", self.udfs.start)
        deployed = [each for tables in self.udfs.tables().values() for each in tables]
        await self._until("topics", lambda: ensure_table_topics(self._admin, deployed, self._options.logs))
        self._follow_definitions()
        self.udfs.udfs.on_change(lambda _entries: self._follow_definitions())
        self.definitions.on_change(lambda _entries: self._follow_definitions())
        await self.strong.replica.start()
        await self.trading.replica.start()
        await self.tail.start()
        await self._until("tables", lambda: self.tail.wait_ready(30.0))
        with contextlib.suppress(TimeoutError):  # a home region that is cut off stops no other region's start
            await asyncio.wait_for(self.strong.replica.caught_up.wait(), self._options.sequencer.wait_s)
            await asyncio.wait_for(self.trading.replica.caught_up.wait(), self._options.sequencer.wait_s)
        self.gateway.started = True
        self._spawn(self.purger.run(), "purger")
        self._spawn(self.versions.run(), "versions of UDFs")
        log.info("tables are caught up; serving")

    async def _start_admin(self) -> None:
        await self._admin.start()

    async def _until(self, what: str, start: Callable[[], Awaitable[object]]) -> None:
        """Do it, again and again while what it needs is not there; `/readyz` says what is waited for."""
        self._starting = f"waiting for {what}"
        while True:
            try:
                await start()
                return
            except StreamsError as error:
                if not error.retriable:
                    raise
                self._starting = f"waiting for {what}: {error}"
                log.warning("%s", self._starting)
            await asyncio.sleep(_RETRY_S)

    def _follow_definitions(self) -> None:
        keyspaces = list(self.definitions.keyspaces.values())
        ttls = {keyspace.name: keyspace.ttl_ms for keyspace in keyspaces}
        if ttls != self._ttls and self.gateway.started:
            self._spawn(self._until_ruled(), "retention")
        missing = [keyspace for keyspace in keyspaces if keyspace.name not in self.tables.tables]
        deployed = self.udfs.tables()
        new = [each for name, tables in deployed.items() if name not in self.tables.tables for each in tables]
        folded = [TableSpec.folded(each) for each in fold_tables(keyspaces)]
        self.tables.set_tables([*folded, *self.udfs.specs()])
        self.versions.follow()
        every = {name for name, each in self.tables.tables.items() if each.spec.sources}
        if gone := every - deployed.keys() - self.versions.held:
            self._spawn(self.tables.retire(gone), "retired tables")
        tell_workers(self._options.data, self.gateway.region.name, self.udfs.labels())
        tell_mirror(self._options.data, self.gateway.region.name, keyspaces)
        self.functions.follow(self.udfs.udfs.live)
        self.machines.follow(self.udfs.udfs.live, self.udfs.udfs.releases)
        if new and self.gateway.started:
            self._spawn(self._ensure_tables(new), "topics")
        self.strong.set_keyspaces(keyspaces)
        if missing and self.gateway.started:
            self._spawn(self._ensure(missing), "topics")

    async def _topics(self, keyspaces: Iterable[Keyspace]) -> None:
        await ensure_keyspace_topics(self._admin, keyspaces, self._options.logs)

    async def _follow_ttls(self) -> None:
        keyspaces = list(self.definitions.keyspaces.values())
        changed = await follow_ttls(self._admin, keyspaces, self._options.logs)
        self._ttls = {keyspace.name: keyspace.ttl_ms for keyspace in keyspaces}
        if changed:
            log.info("retention follows the keyspaces' TTLs: %s", ", ".join(changed))

    async def _until_ruled(self) -> None:
        while True:
            try:
                return await self._follow_ttls()
            except StreamsError as error:
                log.warning("the logs' retention does not follow yet: %s", error)
            await asyncio.sleep(_RETRY_S)

    async def _ensure(self, keyspaces: Iterable[Keyspace]) -> None:
        try:
            await self._topics(keyspaces)
        except StreamsError as error:
            log.error("topics of new keyspaces: %s", error)

    def _heard_ms(self, region: str) -> int:
        """How old the newest word from a region is: of the tables that every region's worker writes."""
        return min(self._table_ms(each.name, region) for each in BUILTIN if not each.is_strong)

    def _copied_ms(self) -> dict[str, int | None]:
        """By region: the age of the oldest partition that came from there, of the tables that every worker writes."""
        tables = [each.name for each in BUILTIN if not each.is_strong]
        others = (name for name in self.gateway.topology.names if name != self.gateway.region.name)
        ages = {name: max(self._table_ms(table, name) for table in tables) for name in others}
        return {name: age if age < _BEGUN_MS else None for name, age in ages.items()}

    def _table_ms(self, table: str, region: str) -> int:
        known = table in self.tables.tables
        return self.tables.staleness(table).by_origin[region] if known else wall_ms()

    async def _report(self, of: Deployment, state: str, reason: str) -> None:
        """Tell all regions how a function or machine does here."""
        region = self.gateway.region
        said = UdfState(
            of.name, region.name, of.manifest.version, of.sha256, state, reason[:500], wall_ms(), of.generation
        )
        await StateWriter(region.bootstrap_servers, self.producer).report(said)

    async def _ensure_tables(self, tables: Iterable[FoldTable]) -> None:
        try:
            await ensure_table_topics(self._admin, tables, self._options.logs)
        except StreamsError as error:
            log.error("topics of deployed UDFs: %s", error)

    async def _create_topics(self, keyspace: Keyspace) -> None:
        await self._topics([keyspace])
        await self._follow_ttls()
        self._follow_definitions()

    async def _emit_purges(self, keyspace: str, partition: int, purges: Sequence[tuple[bytes, Purge]]) -> int:
        gateway, table = self.gateway, purges[0][1].table
        given = [(key, each.generation, each.before_ms, each.last_hlc, each.remove) for key, each in purges]
        frames = await asyncio.to_thread(purge_frames, given, table)
        headers = [("hlc", b"%d" % gateway.clock.tick()), ("origin", gateway.region.name.encode())]
        topic = self.definitions.keyspace(keyspace).events_topic
        partitions = np.full(len(frames), partition, np.int32)
        sent = await self.producer.put_batch(topic, [(None, frame, headers) for frame in frames], partitions)
        return sent.next_offsets()[partition]

    async def _unready(self) -> str | None:
        if not self.gateway.started:
            return self._starting
        own = self.gateway.region.name
        limit_ms = self._options.limits.ready_staleness_ms
        for table in fold_tables(BUILTIN):
            age_ms = self.tables.staleness(table.name).by_origin[own]
            # A further table that is behind is no reason to send all other readers away: its readers see how old it
            # is. But it must have begun: without any commit, empty answers would look like answers.
            if age_ms > (limit_ms if table.is_own else _BEGUN_MS):
                return f"the worker's last commit of table {table.name} is {age_ms} ms old"
        return await self._probe()

    async def _probe(self) -> str | None:
        if time.monotonic() - self._probed_s > _PROBE_EVERY_S:
            try:
                async with asyncio.timeout(_PROBE_S):
                    await self._admin.topics([BUILTIN[0].events_topic])
                self._probed = None
            except (StreamsError, TimeoutError) as error:
                self._probed = f"the region's Kafka does not answer: {error}"
            self._probed_s = time.monotonic()
        return self._probed

    def _spawn(self, work: Awaitable[None], name: str) -> None:
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(lambda done: self._ended(done, name))

    def _ended(self, task: asyncio.Task[None], name: str) -> None:
        self._background.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("%s ended", name, exc_info=task.exception())

    async def _close(self) -> None:
        self.gateway.closing.set()
        await asyncio.gather(self.http.stop(), self.announcer.goodbye())
        for task in list(self._background):
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        await self.gateway.telemetry.close()
        await asyncio.gather(self.functions.close(), self.machines.close())
        await asyncio.gather(self.strong.stop(), self.trading.stop())
        parts = (self.tail.stop, self.udfs.stop, self.producer.stop, self.definitions.stop, self._admin.stop)
        for part in (*parts, self.tables.close):
            with contextlib.suppress(StreamsError):
                await part()
        self.strong.close()
        self.trading.close()


def topology_of(options: ServerOptions) -> Topology:
    """The data directory's topology, this region's bootstrap servers replaced if given; without one, this region."""
    try:
        found = Topology.load(options.data)
        region = found.region(options.region)
    except NotFound:
        if options.bootstrap_servers is None:
            raise
        return Topology((Region(options.region, options.bootstrap_servers, gateway_port=options.port or 8101),))
    if options.bootstrap_servers is None:
        return found
    here = replace(region, bootstrap_servers=options.bootstrap_servers)
    return Topology(tuple(here if each.name == here.name else each for each in found.regions))


def announcement_of(options: ServerOptions, region: Region) -> Announcement:
    """What a gateway says of itself: the URL given, else the topology's if it is the topology's gateway, else where it
    listens; named after the region, and the address where that is not the topology's. BadInput."""
    port = options.port or region.gateway_port
    host = options.host if options.host not in ("0.0.0.0", "::", "") else socket.gethostname()
    local = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    default = region.gateway_url if region.gateway_url and port == region.gateway_port else local
    url = check_url(options.advertised_url or default, "--advertised-url")
    first = url == check_url(region.gateway_url or url)
    node = options.node or (f"gateway-{region.name}" if first else f"gateway-{region.name}-{urlsplit(url).netloc}")
    latitude, longitude = check_location(*(options.location or (None, None)))
    return Announcement(check_node(node), region.name, url, 0, latitude=latitude, longitude=longitude)


def run_gateway(options: ServerOptions) -> int:
    """Serve until SIGTERM or SIGINT; the exit status: 0 when asked to stop, 1 when it cannot go on."""
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True
    )
    logging.getLogger("aiokafka").setLevel(logging.WARNING)
    # To it, it is an error every few seconds that topics of a UDF's old version are gone. Who needs a topic says so.
    logging.getLogger("aiokafka.cluster").setLevel(logging.CRITICAL)
    bound_malloc()
    calm_collector()
    sys.setswitchinterval(0.001)
    try:
        return uvloop.run(_serve(options))
    except StreamsError as error:
        log.error("%s", error)
        return 1


async def _serve(options: ServerOptions) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await GatewayServer(options).run(stop)
    return 0
