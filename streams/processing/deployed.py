"""One deployed UDF as a worker process: checked, run, replaced by its next version, and its state reported.

Importing this imports Faust: only in the worker process.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Mapping, Sequence

from streams.definitions.chains import put_rules
from streams.definitions.deployment import Deployment, check_inputs, deployed_tables
from streams.definitions.registry import Definitions
from streams.definitions.udf_states import StateWriter, UdfState
from streams.definitions.udfs import Udfs
from streams.model.clock import wall_ms
from streams.model.errors import NotFound, StreamsError
from streams.model.fold_table import FoldTable
from streams.model.keyspace import Keyspace
from streams.model.topology import Topology
from streams.processing.catalog import DefinitionsCatalog, DeployedModule
from streams.processing.options import WorkerOptions
from streams.processing.partition_runner import PartitionRunner
from streams.processing.worker import Worker
from streams.serde import AvroSchema
from streams.wasm.abi import validate_module
from streams.wasm.engine import ModuleCache

log = logging.getLogger(__name__)

FIND_S = 10.0
"""How long a UDF that is not deployed here is waited for: the mirror may be late."""
_POLL_S = 0.02
_STEADY_S = 0.1


class DeployedCatalog:
    """What the worker of one deployed UDF follows (a Catalog): its input keyspaces, its table, its module.

    A later version takes the place of the running one only when this region can run it; what speaks against it is
    `refusal`. `wanted` is what is deployed, None once it is removed.
    """

    def __init__(self, definitions: Definitions, udfs: Udfs, name: str, modules: ModuleCache) -> None:
        self._inner = DefinitionsCatalog(definitions)
        self._definitions, self._udfs, self._name, self._modules = definitions, udfs, name, modules
        self._changed = asyncio.Event()
        self._running: Deployment | None = None
        self._module: DeployedModule | None = None
        self._judged: Deployment | None = None
        self.refusal = ""
        udfs.on_change(lambda _: self._refresh())
        definitions.on_change(lambda _: self._refresh())
        self._refresh()

    @property
    def wanted(self) -> Deployment | None:
        """What is deployed under the name now."""
        return self._udfs.live.get(self._name)

    @property
    def running(self) -> Deployment | None:
        """What this process folds with; None: nothing yet."""
        return self._running

    def _refresh(self) -> None:
        wanted = self.wanted
        self._changed.set()
        if wanted is None or (wanted is self._judged and not self.refusal):
            return
        self._judged = wanted
        manifest = wanted.manifest
        try:
            check_inputs(manifest, self._definitions.keyspaces)
            puts = put_rules(manifest, self._definitions.keyspaces, self._inner.put_schemas)
            validate_module(wanted.module, self._modules, manifest.limits, is_map=manifest.is_map)
        except StreamsError as error:
            self.refusal = str(error)
            return
        self.refusal = ""
        self._running = wanted
        self._module = DeployedModule(
            manifest.version, wanted.sha256, wanted.module, manifest.limits, manifest.kind, puts
        )

    @property
    def deployed(self) -> DeployedModule | None:
        """The module."""
        return self._module

    @property
    def changed(self) -> asyncio.Event:
        """Set after every change."""
        return self._changed

    def keyspaces(self) -> Sequence[Keyspace]:
        """Those whose events are folded."""
        known = self._definitions.keyspaces
        return [known[name] for name in (self._running.manifest.inputs if self._running else ()) if name in known]

    def tables(self) -> Sequence[FoldTable]:
        """The table, once for each input."""
        return deployed_tables(self._running, self._definitions.keyspaces) if self._running else ()

    def put_schemas(self, keyspace: str) -> Mapping[int, AvroSchema]:
        """As defined."""
        return self._inner.put_schemas(keyspace)


class Reporter:
    """Tells all regions how the UDF does here, whenever that changes."""

    def __init__(self, writer: StateWriter, region: str) -> None:
        self._writer, self._region = writer, region
        self._last: tuple[str, str, str] | None = None

    async def tell(self, of: Deployment, state: str, reason: str = "") -> None:
        """Report, unless it is what was reported last."""
        said = (of.sha256 + of.manifest.version, state, reason)
        if said != self._last:
            self._last = said
            name, version = of.name, of.manifest.version
            await self._writer.report(UdfState(name, self._region, version, of.sha256, state, reason, wall_ms()))


def folding(runners: Sequence[PartitionRunner], sha256: str) -> str | None:
    """The state of these partitions: active with the module of this hash, failing, None while they are on their way."""
    if any(runner.error for runner in runners):
        return "failing"
    there = [
        runner.state == "running" and runner.task is not None and runner.task.identity.udf_hash == sha256
        for runner in runners
    ]
    return "active" if there and all(there) else None


async def serve_udf(options: WorkerOptions, topology: Topology, definitions: Definitions) -> int:
    """Serve a deployed UDF until told to stop, or until it is removed; the exit status. NotFound when it is neither
    deployed nor comes within `FIND_S`. One that this region refuses is reported, and waited for its next version.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for each in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(each, stop.set)
    states = StateWriter(options.bootstrap_servers)
    udfs = Udfs(topology, options.region, keep=options.udf)
    try:
        await asyncio.gather(udfs.start(), states.start())
        catalog = DeployedCatalog(definitions, udfs, options.udf, ModuleCache())
        reporter = Reporter(states, options.region)
        if not await _admitted(catalog, reporter, stop):
            return 0
        return await _work(Worker(options, catalog), catalog, reporter)
    finally:
        await udfs.stop()
        await states.stop()


async def _admitted(catalog: DeployedCatalog, reporter: Reporter, stop: asyncio.Event) -> bool:
    """Wait until there is a version that this region can run; False when told to stop, or once it is removed."""
    began_s, seen = time.monotonic(), False
    while catalog.running is None and not stop.is_set():
        wanted = catalog.wanted
        if wanted is not None:
            seen = True
            await reporter.tell(wanted, "refused", catalog.refusal)
        elif seen:
            return False
        elif time.monotonic() - began_s > FIND_S:
            raise NotFound("no such UDF is deployed", field="--udf", fix="see `streams udf list`")
        await asyncio.sleep(_POLL_S)
    return not stop.is_set()


async def _work(worker: Worker, catalog: DeployedCatalog, reporter: Reporter) -> int:
    serving = asyncio.create_task(worker.run())
    try:
        while not serving.done():
            wanted = catalog.wanted
            if wanted is None:
                log.info("the UDF was removed: ending")
                worker.stop()
                break
            state = folding(worker.runners, wanted.sha256)
            await _tell(wanted, state, worker, catalog, reporter)
            await asyncio.wait({serving}, timeout=_STEADY_S if state == "active" else _POLL_S)
        status = await serving
        if catalog.wanted is None and catalog.running is not None:
            await reporter.tell(catalog.running, "stopped")
        return status
    finally:
        serving.cancel()


async def _tell(
    wanted: Deployment, state: str | None, worker: Worker, catalog: DeployedCatalog, reporter: Reporter
) -> None:
    if catalog.refusal:
        await reporter.tell(wanted, "refused", catalog.refusal)
    elif state == "failing":
        errors = [f"{runner.name}: {runner.error}" for runner in worker.runners if runner.error]
        await reporter.tell(wanted, "failing", errors[0][:500])
    elif state == "active":
        await reporter.tell(wanted, "active")
    elif worker.runners:
        await reporter.tell(wanted, "starting")
