"""The worker process: follows the definitions, serves the partitions the group assigns to it, until told to stop.

Importing this imports Faust: only in the worker process.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import signal
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from streams.definitions.udf_states import StateWriter
from streams.kafka.admin import Admin, wait_for_broker
from streams.kafka.changelog_writer import TransactionalWriter, WriterOptions
from streams.kafka.link import Link
from streams.kafka.run import TP, Run
from streams.model.clock import wall_ms
from streams.model.errors import StreamsError
from streams.model.fold_table import FoldTable
from streams.model.keyspace import Keyspace
from streams.processing.catalog import Catalog, RulesCache
from streams.processing.faust_app import FaustGroup, GroupOptions, Handlers
from streams.processing.kafka_ports import ChangelogWriter, InputPartition
from streams.processing.map_ports import MapFold, Puts
from streams.processing.meter_reports import MeterReporter
from streams.processing.metrics import MetricsServer, MinuteLine, WorkerCollector
from streams.processing.options import WorkerOptions
from streams.processing.partition_runner import PartitionRunner
from streams.processing.partition_task import PartitionTask, TaskIdentity
from streams.processing.pieces import COMPACT_EXPANSION, FRAME_EXPANSION, offer_pieces
from streams.processing.ports import FoldPort, TaskPorts
from streams.processing.position import lost_are_expired
from streams.processing.restore import ChangelogRestorer, RestoreOptions
from streams.processing.shared_input import SharedInput
from streams.processing.table_use import CountedChangelog
from streams.processing.topics import RECORD_BYTES_MAX, ensure_keyspace_topics, ensure_table_topics
from streams.processing.udf_ports import DecoderPool, RunDecoder, UdfFold, builtin_fold, check_tables, deployed_fold
from streams.processing.udf_runs import UdfRun, UdfRuns, UdfUse
from streams.processing.unit_encoder import UnitEncoder
from streams.processing.watchdog import LagWatchdog, Verdict
from streams.wasm.decoder import DecoderConfig
from streams.wasm.engine import ModuleCache
from streams.wasm.fold_host import FoldHost
from streams.wasm.map_host import MapHost

log = logging.getLogger(__name__)

_BROKER_WAIT_S = 60.0
_LINGER_S = 0.003  # so long one partition's unit waits for those of the others that were fetched with it
_WRITER = WriterOptions(timeout_s=20.0, transaction_timeout_s=30.0, batch_bytes=RECORD_BYTES_MAX - 1024, in_flight=1)
_LINE_S = 60.0
_AILING_S = 5.0


class CatalogSchemas:
    """Waits for schema ids to turn up in the definitions (the task's SchemasPort)."""

    def __init__(self, catalog: Catalog, keyspace: str) -> None:
        self._catalog, self._keyspace = catalog, keyspace

    async def wait_for(self, schema_ids: frozenset[int], timeout_s: float) -> bool:
        """True when all ids are known for the keyspace within the time."""
        deadline = time.monotonic() + timeout_s
        while not schema_ids <= self._catalog.put_schemas(self._keyspace).keys():
            if time.monotonic() >= deadline:
                return False
            await asyncio.sleep(0.05)
        return True


class PartitionFactory:
    """Makes the task of an assigned input partition, with everything it works on."""

    def __init__(self, options: WorkerOptions, admin: Admin, link: Link, catalog: Catalog) -> None:
        self.options, self.admin, self.link, self.catalog = options, admin, link, catalog
        self.threads = ThreadPoolExecutor(options.threads, thread_name_prefix="fold")
        self.modules = ModuleCache()
        self.decoders = DecoderPool(self.modules)
        self.encoder = UnitEncoder(self.modules, _WRITER.batch_bytes)
        self.rules = RulesCache(catalog)
        self.udfs = UdfRuns()
        self.compact: set[str] = set()  # tables whose module takes compact batches
        self.owner = f"{socket.gethostname()}/{os.getpid()}/{int(time.time())}"

    def tables_of(self, topic: str) -> list[FoldTable]:
        """The tables that are folded from the events on `topic`."""
        return [each for each in self.catalog.tables() if each.keyspace.events_topic == topic]

    async def task(self, table: FoldTable, tp: TP, shared: SharedInput) -> PartitionTask:
        """A new task for a table and an input partition."""
        options, keyspace = self.options, table.keyspace
        changelog = TP(table.topic, table.first + tp.partition)
        deployed = self.catalog.deployed
        udf = self.udfs.of(table, deployed)
        fold: MapHost | FoldHost
        if deployed is not None and deployed.puts:
            fold = MapHost(
                deployed.wasm, self.modules, deployed.kind, len(deployed.puts), deployed.limits, meter=udf.meter
            )
        elif deployed is not None:
            fold = deployed_fold(table, deployed, self.modules, udf.meter)
        else:
            fold = builtin_fold(table, self.modules, udf.meter)
            if fold.takes_compact:  # the platform's own alone: `udf test` would not show what users' modules do
                self.compact.add(table.name)
        identity = TaskIdentity(
            table.name,
            tp.partition,
            tp.topic,
            keyspace.dead_letter_topic,
            fold.sha256,
            self.owner,
            options.region,
            table.outputs,
            lost_are_expired(table, deployed=deployed is not None),
        )
        writer = TransactionalWriter(self.link, f"{table.name}/{changelog.partition}", _WRITER)
        path = options.directory / table.name / str(changelog.partition)

        async def seek(_: TP, offset: int) -> None:
            await shared.seek(table.name, offset)

        restoring = RestoreOptions(store=options.store)
        restorer = ChangelogRestorer(options.bootstrap_servers, self.admin, changelog, path, restoring, self.threads)
        counted = CountedChangelog(restorer, udf.use, str(changelog.partition), udf.too_large)
        ports = TaskPorts(
            ChangelogWriter(writer, changelog),
            counted if udf.use.limited else restorer,
            InputPartition(self.admin, seek, tp, deployed.from_ms if deployed else 0),
            RunDecoder(self.decoders, self.rules, table, compact=table.name in self.compact),
            self._folding(fold, udf, tp),
            CatalogSchemas(self.catalog, keyspace.name),
            self.threads,
            udf.containment,
            encode=self.encoder,
        )
        return PartitionTask(identity, ports, options.task)

    def _folding(self, host: MapHost | FoldHost, udf: UdfRun, tp: TP) -> FoldPort:
        if isinstance(host, FoldHost):
            return UdfFold(host, udf.containment, udf.info)
        deployed = self.catalog.deployed

        def config_of(keyspace: Keyspace) -> DecoderConfig:
            return self.rules.rules(FoldTable(keyspace.name, keyspace, keyspace.merge)).config

        puts = Puts(deployed.puts if deployed else (), config_of, self.decoders, self.options.region)
        return MapFold(host, puts, f"{tp.topic}/{tp.partition}", udf.containment, udf.info)

    def close(self) -> None:
        """End the threads; all tasks must be released."""
        self.threads.shutdown()
        self.decoders.close()
        self.encoder.close()


class Worker:
    """One worker process' services. `run` returns the exit status: 0 when it was asked to stop."""

    def __init__(self, options: WorkerOptions, catalog: Catalog, states: StateWriter | None = None) -> None:
        """`states`: where what the UDFs use is reported."""
        self.options, self._catalog, self._states = options, catalog, states
        self._admin = Admin(options.bootstrap_servers)
        self._link = Link(options.bootstrap_servers, f"worker-{options.region}", linger_s=_LINGER_S)
        self._factory = PartitionFactory(options, self._admin, self._link, catalog)
        self._inputs: dict[TP, SharedInput] = {}
        self._watchdog = LagWatchdog(options.watchdog)
        self._failure = ""
        self._code = catalog.deployed
        self._well_s = time.monotonic()
        self._stop = asyncio.Event()
        self._closing = False
        handlers = Handlers(self._dispatch, self._assign, self._revoke, self._cut)
        group = GroupOptions(
            options.group, options.bootstrap_servers, options.session_s, max(0.3, options.session_s / 3)
        )
        options.directory.mkdir(parents=True, exist_ok=True)
        self._group = FaustGroup(group, handlers, str(options.directory / "faust"))

    def stop(self) -> None:
        """Make `run` end."""
        self._stop.set()

    @property
    def udfs(self) -> UdfRuns:
        """The UDFs that run here."""
        return self._factory.udfs

    def uses(self) -> list[UdfUse]:
        """What they have used. From any thread."""
        return self._factory.udfs.uses(self.runners)

    @property
    def runners(self) -> list[PartitionRunner]:
        """Those of the partitions that are assigned now."""
        return list(self._by_name().values())

    # ---- called by the group, on the event loop

    def _dispatch(self, run: Run, done: Callable[[], object]) -> None:
        shared = self._inputs.get(run.tp)
        if shared is None:
            done()
        else:
            is_compact = self._factory.compact.issuperset(shared.runners)
            offer_pieces(run, shared.offer, done, COMPACT_EXPANSION if is_compact else FRAME_EXPANSION)

    def _assign(self, assigned: frozenset[TP]) -> None:
        if self._closing:  # a rebalance was under way when the stop came: what began now would outlive its threads
            return
        log.info("assigned: %s", ", ".join(f"{tp.topic}/{tp.partition}" for tp in sorted(assigned)) or "nothing")
        for tp in sorted(assigned - self._inputs.keys()):
            self._inputs[tp] = SharedInput(functools.partial(self._group.seek, tp))
            for table in self._factory.tables_of(tp.topic):
                self._start(table, tp)

    def _start(self, table: FoldTable, tp: TP) -> None:
        shared = self._inputs[tp]

        async def make() -> PartitionTask:
            now = [each for each in self._factory.tables_of(tp.topic) if each.name == table.name]
            return await self._factory.task(now[0] if now else table, tp, shared)

        runner = PartitionRunner(f"{table.name}/{table.first + tp.partition}", make, self.options.runner)
        shared.runners[table.name] = runner
        runner.start()

    async def _revoke(self, revoked: frozenset[TP]) -> None:
        """Let go of partitions, all at once, within one deadline."""
        inputs = [self._inputs.pop(tp) for tp in revoked if tp in self._inputs]
        leaving = [runner for shared in inputs for runner in shared.runners.values()]
        for runner in leaving:
            self._watchdog.forget(runner.name)
        await asyncio.gather(*(runner.close(self.options.close_s) for runner in leaving))
        log.info("revoked: %s", ", ".join(sorted(runner.name for runner in leaving)) or "nothing")

    def _cut(self, tps: frozenset[TP]) -> None:
        """Retention has overtaken the reading of these: their tasks look at the log anew, and go on or say why not."""
        for tp in tps & self._inputs.keys():
            log.error("%s/%d: retention has removed what was to be read next", tp.topic, tp.partition)
            for runner in list(self._inputs[tp].runners.values()):
                runner.restart()

    # ---- the process

    async def run(self) -> int:
        """Serve until a signal or an irrecoverable failure."""
        loop = asyncio.get_running_loop()
        for each in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(each, self._stop.set)
        check_tables(self._catalog.tables())
        await wait_for_broker(self.options.bootstrap_servers, _BROKER_WAIT_S)
        await self._admin.start()
        metrics: MetricsServer | None = None
        if self.options.metrics_port:
            collector = WorkerCollector(self._by_name, lambda: self._watchdog.restarts, self.uses)
            metrics = MetricsServer(collector, self.options.metrics_port)
        helpers: list[asyncio.Task[None]] = []
        try:
            await self._follow_keyspaces()
            await self._group.start()
            meters = [] if self._states is None else [MeterReporter(self._states, self.uses).run]
            helpers = [asyncio.create_task(each()) for each in (self._watch, self._follow, self._lines, *meters)]
            stopping = asyncio.create_task(self._stop.wait())
            await asyncio.wait({*helpers, stopping}, return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
            for helper in helpers:
                if helper.done() and helper.exception() is not None:
                    self._failure = f"{helper.exception()!r}"
        finally:
            await self._shut_down(helpers)
            if metrics is not None:
                metrics.stop()
        if self._failure:
            log.error("giving up: %s", self._failure)
        return 1 if self._failure else 0

    async def _shut_down(self, helpers: list[asyncio.Task[None]]) -> None:
        self._closing = True
        for helper in helpers:
            helper.cancel()
        await asyncio.gather(*helpers, return_exceptions=True)
        await self._revoke(frozenset(self._inputs))
        await self._group.stop(self.options.close_s)
        self._factory.close()
        await self._link.stop()
        await self._admin.stop()

    def _by_name(self) -> dict[str, PartitionRunner]:
        inputs = list(self._inputs.values())
        return {runner.name: runner for shared in inputs for runner in list(shared.runners.values())}

    async def _follow_keyspaces(self) -> None:
        keyspaces = [each for each in self._catalog.keyspaces() if each.consistency != "strong"]
        deployed = self._catalog.deployed
        written = [put.keyspace for put in deployed.puts] if deployed else []
        await ensure_keyspace_topics(self._admin, [*keyspaces, *written], self.options.logs)
        if deployed is not None:
            await ensure_table_topics(self._admin, self._catalog.tables(), self.options.logs)
        await self._group.subscribe({each.events_topic for each in keyspaces})

    async def _follow(self) -> None:
        """Serve keyspaces that appear later."""
        while True:
            await self._catalog.changed.wait()
            self._catalog.changed.clear()
            try:
                await self._follow_keyspaces()
                self._follow_code()
            except StreamsError as error:
                log.error("a new keyspace cannot be served yet: %s", error)
                self._catalog.changed.set()
                await asyncio.sleep(5.0)

    def _follow_code(self) -> None:
        """A deployed UDF has another module: every task starts again from what is committed, with that one."""
        if self._catalog.deployed != self._code:
            self._code = self._catalog.deployed
            for runner in self._by_name().values():
                runner.restart()

    async def _watch(self) -> None:
        """Tell tasks their inputs' ends, restart those that stand still, leave when that does not help."""
        while not self._failure:
            await asyncio.sleep(self.options.probe_s)
            self._failure = self._lasting(self._group.failure)
            self._group.resubscribe()
            tps = list(self._inputs)
            if not tps:
                continue
            asked_at_ms = wall_ms()
            try:
                ends = await self._admin.end_offsets(tps)
            except StreamsError as error:
                log.warning("the inputs' ends are unknown: %s", error)
                continue
            for tp, end in ends.items():
                if (shared := self._inputs.get(tp)) is not None:
                    for runner in list(shared.runners.values()):
                        self._judge(runner, asked_at_ms, end, rewound=shared.rewound(runner))

    def _lasting(self, ailment: str) -> str:
        """`ailment` once it has lasted: agents are replaced during a rebalance, and that looks like death."""
        now_s = time.monotonic()
        self._well_s = self._well_s if ailment else now_s
        return ailment if now_s - self._well_s > _AILING_S else ""

    def _judge(self, runner: PartitionRunner, asked_at_ms: int, end: int, *, rewound: bool) -> None:
        task = runner.task
        committed = task.committed_position if task is not None else -1
        if task is not None:
            task.observe_end(asked_at_ms, end)
        excused = runner.state != "running" or rewound or (task is not None and bool(task.working or task.resting))
        verdict = self._watchdog.judge(runner.name, committed, end, time.monotonic(), excused=excused)
        if verdict is Verdict.RESTART:
            log.error("watchdog: %s stands at %d of %d, restarting it", runner.name, committed, end)
            runner.restart()
        elif verdict is Verdict.GIVE_UP:
            self._failure = f"{runner.name} stands at {committed} of {end} after restarts"

    async def _lines(self) -> None:
        minute = MinuteLine(time.monotonic())
        while True:
            await asyncio.sleep(_LINE_S)
            log.info(minute.line(self._by_name(), time.monotonic()))
