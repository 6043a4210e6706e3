"""One deployed UDF as a worker process: checked, run, replaced by its next version, and its state reported.

Importing this imports Faust: only in the worker process.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from streams.definitions.chains import put_rules
from streams.definitions.deployment import Deployment, check_inputs, deployed_tables, parse_label
from streams.definitions.registry import Definitions
from streams.definitions.udf_states import StateWriter, UdfState, last_states
from streams.definitions.udfs import Udfs
from streams.model.clock import wall_ms
from streams.model.errors import NotFound, StreamsError
from streams.model.fold_table import FoldTable
from streams.model.keyspace import Keyspace
from streams.model.topology import Topology
from streams.processing.catalog import DefinitionsCatalog, DeployedModule
from streams.processing.options import WorkerOptions
from streams.processing.partition_runner import PartitionRunner
from streams.processing.udf_runs import Inherited
from streams.processing.worker import Worker
from streams.serde import AvroSchema
from streams.wasm.abi import validate_module
from streams.wasm.caps import DEFAULT_CAPS, capped
from streams.wasm.engine import Limits, ModuleCache

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

    def __init__(
        self, definitions: Definitions, udfs: Udfs, name: str, modules: ModuleCache, caps: Limits = DEFAULT_CAPS
    ) -> None:
        """`caps`: what this region's operator lets a UDF use at most."""
        self._inner, self._caps = DefinitionsCatalog(definitions), caps
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
        """The version that this worker's generation of rows is folded with now."""
        return self._udfs.running(self._name)

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
            limits = capped(manifest, self._caps)
            puts = put_rules(manifest, self._definitions.keyspaces, self._inner.put_schemas)
            validate_module(wanted.module, self._modules, limits, is_map=manifest.is_map)
        except StreamsError as error:
            self.refusal = str(error)
            return
        self.refusal = ""
        self._running = wanted
        self._module = DeployedModule(
            manifest.version,
            wanted.sha256,
            wanted.module,
            limits,
            manifest.name,
            manifest.policy,
            from_ms=wanted.from_ms,
            kind=manifest.kind,
            puts=puts,
        )

    @property
    def resumes(self) -> int:
        """How often the UDF was resumed, as far as is known here."""
        return self._udfs.resumes.get(parse_label(self._name)[0], 0)

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
    """Tells all regions how the UDF does here, whenever that changes.

    A pause is the last word on a module until somebody resumes it: what is reported is also what the next process
    pauses by, so trouble of another kind is logged meanwhile and reported once it is resumed. `resumes`: how often that
    has happened by now.
    """

    def __init__(self, writer: StateWriter, region: str, resumes: Callable[[], int]) -> None:
        self._writer, self._region, self._resumes = writer, region, resumes
        self._last: tuple[str, str, str, int] | None = None
        self._pause: UdfState | None = None
        self._unsaid = ("", "")

    def begin(self, last: UdfState | None) -> None:
        """Take over what the process before reported last."""
        self._pause = last if last is not None and last.state == "paused" else None

    def _holds(self, of: Deployment, state: str) -> UdfState | None:
        """The pause that is to be shown in place of this state."""
        pause = self._pause
        if pause is None or state not in ("refused", "failing", "starting"):
            return None
        same = (pause.sha256, pause.version) == (of.sha256, of.manifest.version)
        return pause if same and self._resumes() <= pause.resumes else None

    async def tell(self, of: Deployment, state: str, reason: str = "", resumes: int = 0) -> None:
        """Report, unless it is what was reported last."""
        if (pause := self._holds(of, state)) is not None:
            if state != "starting" and (state, reason) != self._unsaid:
                log.warning("%s is %s besides being paused: %s", of.name, state, reason)
                self._unsaid = (state, reason)
            state, reason, resumes = pause.state, pause.reason, pause.resumes
        said = (of.sha256 + of.manifest.version, state, reason, resumes)
        if said != self._last:
            self._last = said
            name, version = of.name, of.manifest.version
            at = (wall_ms(), of.generation, resumes)
            report = UdfState(name, self._region, version, of.sha256, state, reason, *at)
            self._pause = report if state == "paused" else None
            await self._writer.report(report)


def folding(runners: Sequence[PartitionRunner], sha256: str) -> str | None:
    """The state of these partitions: active with the module of this hash, failing, None while they are on their way."""
    if any(runner.error for runner in runners):
        return "failing"
    there = [
        runner.state in ("running", "paused") and runner.task is not None and runner.task.identity.udf_hash == sha256
        for runner in runners
    ]
    return "active" if there and all(there) else None


async def serve_udf(options: WorkerOptions, topology: Topology) -> int:
    """Serve a deployed UDF until told to stop, or until it is removed; the exit status. NotFound when it is neither
    deployed nor comes within `FIND_S`. One that this region refuses is reported, and waited for its next version.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for each in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(each, stop.set)
    states = StateWriter(options.bootstrap_servers)
    udfs = Udfs(topology, options.region, keep=parse_label(options.udf)[0])
    definitions = Definitions(topology, options.region)
    try:
        reports, _, _ = await asyncio.gather(_reported(states, options), definitions.start(), udfs.start())
        found = udfs.running(options.udf)
        if found is not None:  # NAME alone is of one generation, while this process lives
            options = replace(options, udf=found.label)
        catalog = DeployedCatalog(definitions, udfs, options.udf, ModuleCache(), options.caps)
        reporter = Reporter(states, options.region, lambda: catalog.resumes)
        last = reports.get(catalog.wanted.generation) if catalog.wanted is not None else None
        reporter.begin(last)
        if not await _admitted(catalog, reporter, stop):
            return 0
        worker = Worker(options, catalog, states)
        quarantine = Quarantine(worker, catalog)
        quarantine.begin(last)
        status = await _work(worker, catalog, reporter, quarantine)
        if catalog.wanted is None:
            await asyncio.to_thread(shutil.rmtree, options.directory, ignore_errors=True)
        return status
    finally:
        await asyncio.gather(definitions.stop(), udfs.stop(), states.stop(), return_exceptions=True)


async def _reported(states: StateWriter, options: WorkerOptions) -> dict[int, UdfState]:
    """What the processes before reported last, by generation of rows."""
    await states.start()
    return await last_states(options.bootstrap_servers, parse_label(options.udf)[0])


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


class Quarantine:
    """A UDF that is paused stays so until it is resumed or replaced, also in the process that follows this one.

    What this region reported last says that it is paused, and how often it had been resumed by then; the `udfs` topic
    says how often it has been resumed now.
    """

    def __init__(self, worker: Worker, catalog: DeployedCatalog) -> None:
        self._udfs, self._catalog = worker.udfs, catalog
        self._seen = catalog.resumes

    def begin(self, last: UdfState | None) -> None:
        """Pause from the start where the process before was paused; if resumed since, try again what it stopped at."""
        running, module = self._catalog.running, self._catalog.deployed
        if last is None or running is None or module is None or last.state != "paused":
            return
        if (last.sha256, last.version) == (running.sha256, running.manifest.version):
            self._udfs.inherited = Inherited(module, last.reason, resumed=self._catalog.resumes > last.resumes)

    def follow(self) -> None:
        """Resume when somebody has asked for it."""
        if self._catalog.resumes > self._seen:
            self._seen = self._catalog.resumes
            self._udfs.resume()


async def _work(worker: Worker, catalog: DeployedCatalog, reporter: Reporter, quarantine: Quarantine) -> int:
    serving = asyncio.create_task(worker.run())
    try:
        while not serving.done():
            wanted = catalog.wanted
            if wanted is None:
                log.info("the UDF was removed: ending")
                worker.stop()
                break
            quarantine.follow()
            state = folding(worker.runners, wanted.sha256)
            await _tell(wanted, state, worker, catalog, reporter)
            await asyncio.wait({serving}, timeout=_STEADY_S if state == "active" else _POLL_S)
        status = await serving
        if catalog.wanted is None and catalog.running is not None:
            await reporter.tell(catalog.running, "stopped")
        return status
    finally:
        serving.cancel()


def _waiting(worker: Worker) -> bool:
    """Whether there is something to fold."""
    return any(runner.task is not None and runner.task.lag for runner in worker.runners)


async def _tell(
    wanted: Deployment, state: str | None, worker: Worker, catalog: DeployedCatalog, reporter: Reporter
) -> None:
    if catalog.refusal:
        await reporter.tell(wanted, "refused", catalog.refusal)
    elif state == "failing":
        errors = [f"{runner.name}: {runner.error}" for runner in worker.runners if runner.error]
        await reporter.tell(wanted, "failing", errors[0][:500])
    elif state == "active":
        run = worker.udfs.find(wanted.manifest.version, wanted.sha256)
        if run is not None and run.containment.paused:
            await reporter.tell(wanted, "paused", run.containment.paused[:500], catalog.resumes)
        elif run is not None and not (run.containment.untried and _waiting(worker)):
            await reporter.tell(wanted, "active", run.containment.throttled)
    elif worker.runners and not worker.udfs.held:  # a pause stays the last word, for the process after this one
        await reporter.tell(wanted, "starting")
