"""Deployed machines as a gateway has them: a replica of each one's log, which carries commands and modules alike.

A version takes over where its module stands in the log, so at one offset on all replicas. A gateway of the home region
writes it there once the deploy has reached it; several may, only the first counts (`Installed.serial`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from streams.definitions.deployment import Deployment
from streams.definitions.releases import Release
from streams.model.errors import BadInput, NotFound, StreamsError, Unavailable
from streams.model.topology import Topology
from streams.sequencer.machine_log import Installed, MachineResult
from streams.sequencer.machine_state import DeployedState, MachineStep
from streams.sequencer.options import SequencerOptions, home_servers, topic_of
from streams.sequencer.threaded import ThreadedReplica
from streams.wasm.admission import DeployCaps, admit_manifest
from streams.wasm.engine import ModuleCache
from streams.wasm.limits import Limits
from streams.wasm.machine_run import check_machine

log = logging.getLogger(__name__)

FIND_S = 3.0
"""How long a request waits for a machine that is being installed."""
_POLL_S = 0.25
Report = Callable[[Deployment, str, str], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is deployed: a version, under which limits, by which decision; or why it does not run."""

    deployment: Deployment
    serial: int
    limits: Limits | None
    refusal: str = ""


def _record(wanted: Wanted, limits: Limits) -> bytes:
    of, manifest = wanted.deployment, wanted.deployment.manifest
    return Installed(of.name, wanted.serial, manifest.version, of.sha256, manifest.layout, limits, of.module).encode()


class Machine:
    """One machine's replica in this gateway. For one event loop."""

    def __init__(self, service: MachineService, wanted: Wanted) -> None:
        self._service, self.wanted = service, wanted
        self.name, self.group = wanted.deployment.name, wanted.deployment.manifest.group
        self.topic = topic_of(self.group)
        self.state = DeployedState(service.path / self.topic, self.topic, service.cache)
        servers = home_servers(service.topology, service.region)
        self.replica: ThreadedReplica[MachineResult] = ThreadedReplica(
            self.group, servers, self.state, self._stepped, service.options
        )
        self.changed = asyncio.Event()
        self._said = ("", "", "")
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Follow the log, and install what is deployed, in the background."""
        self._tasks = {asyncio.ensure_future(self.replica.start()), asyncio.ensure_future(self._keep())}

    def _stepped(self, step: MachineStep | None, _time_ms: int) -> None:
        if step is None or step.swapped:
            self.wake()

    def wake(self) -> None:
        """Something changed: whoever waits looks."""
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()

    @property
    def runs_wanted(self) -> bool:
        """Whether the version that is deployed is the one that executes."""
        of, installed = self.wanted.deployment, self.state.installed
        return installed is not None and (installed.version, installed.sha256) == (of.manifest.version, of.sha256)

    async def _keep(self) -> None:
        """Install what is wanted, and tell how it does here, whenever either changes."""
        while True:
            changed = self.changed
            try:
                await self._once()
            except StreamsError as error:
                log.warning("machine %s: %s", self.name, error)
            except Exception:  # a defect must not leave the region silent about it
                log.exception("machine %s cannot be kept", self.name)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), _POLL_S if not self.runs_wanted else None)

    async def _once(self) -> None:
        wanted = self.wanted
        if wanted.refusal:
            await self._tell("refused", wanted.refusal)
            return
        if not self.replica.reachable or not self.replica.caught_up.is_set():
            return
        of, installed = wanted.deployment, self.state.installed
        if installed is not None and (why := installed.unfit(of.name, of.manifest.layout)):
            await self._tell("refused", why)
            return
        if self._service.at_home and wanted.limits is not None:
            # A decision that is older than the module's is what this gateway has not heard more of yet.
            newer = installed is None or wanted.serial > installed.serial
            if newer and not (self.runs_wanted and installed is not None and installed.limits == wanted.limits):
                await self.replica.execute(_record(wanted, wanted.limits))
        if self.runs_wanted and wanted is self.wanted:
            await self._tell("active", "")

    async def _tell(self, state: str, reason: str) -> None:
        of = self.wanted.deployment
        said = (f"{of.sha256} {of.manifest.version} {self.wanted.serial}", state, reason)
        if said != self._said:
            self._said = said
            await self._service.report(of, state, reason)

    async def ready(self) -> Machine:
        """This, once a module executes here. Unavailable."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FIND_S):
                while self.state.installed is None:
                    await self.changed.wait()
        if self.state.installed is None:
            why = self.wanted.refusal or self.replica.trouble or "it is being installed"
            raise Unavailable(f"machine {self.name} does not run here yet: {why}", fix="try again in a moment")
        return self

    async def ask(self, body: bytes) -> tuple[bytes, int, str]:
        """See DeployedState.query; in a thread, for it is a stranger's code."""
        return await asyncio.to_thread(self.state.query, body)

    def describe(self) -> dict[str, object]:
        """Where this replica stands: `state` is equal wherever `offset` is."""
        stands, installed = self.state.machine_state, self.state.installed
        return {
            "name": self.name,
            "group": self.group,
            "topic": self.topic,
            "version": None if installed is None else installed.version,
            "sha256": None if installed is None else installed.sha256,
            "layout": None if installed is None else installed.layout,
            "offset": stands.next,
            "state": stands.chain,
            "commands": stands.commands,
            "traps": stands.traps,
            "rows": stands.rows,
            "bytes": stands.bytes,
            "time": stands.time_ms,
            "region": self._service.region,
            "home": self._service.topology.home.name,
            "trouble": self.replica.trouble,
        }

    async def stop(self) -> None:
        """Stop following and release the state's directory, once what runs has ended."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.replica.stop()
        await asyncio.to_thread(self.state.close)


class MachineService:
    """The machines of one gateway, as they are deployed. For one event loop."""

    def __init__(
        self,
        topology: Topology,
        region: str,
        path: Path,
        report: Report,
        caps: DeployCaps,
        options: SequencerOptions | None = None,
    ) -> None:
        self.topology, self.region, self.path, self.report = topology, region, path, report
        self.options, self.cache, self._caps = options, ModuleCache(), caps
        self._machines: dict[str, Machine] = {}
        self._deployed: dict[str, tuple[Deployment, int]] = {}
        self._turn = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def at_home(self) -> bool:
        """Whether this is a gateway of the region whose Kafka has the logs."""
        return self.region == self.topology.home.name

    @property
    def machines(self) -> Mapping[str, Machine]:
        """By name."""
        return self._machines

    def follow(self, live: Mapping[str, Deployment], releases: Mapping[str, Release]) -> None:
        """Run these machines, and no others."""
        wanted = {name: (each, releases[name].serial) for name, each in live.items() if each.manifest.is_machine}
        if wanted != self._deployed:
            self._deployed = wanted
            task = asyncio.ensure_future(self._settle())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _settle(self) -> None:
        async with self._turn:
            deployed = self._deployed
            for name in [each for each in self._machines if each not in deployed]:
                await self._machines.pop(name).stop()
            for name, (of, serial) in deployed.items():
                wanted = await asyncio.to_thread(self._judged, of, serial)
                machine = self._machines.get(name)
                if machine is not None and machine.group != of.manifest.group:
                    await self._machines.pop(name).stop()
                    machine = None
                if machine is None:
                    self._machines[name] = machine = Machine(self, wanted)
                    machine.start()
                else:
                    machine.wanted = wanted
                    machine.wake()

    def _judged(self, of: Deployment, serial: int) -> Wanted:
        try:
            limits = admit_manifest(of.manifest_text, self._caps).limits
            check_machine(of.module, self.cache, limits)
        except BadInput as error:
            return Wanted(of, serial, None, str(error))
        return Wanted(of, serial, limits)

    async def find(self, name: str) -> Machine:
        """A machine that runs here, waiting a little for one that is on its way. NotFound; Unavailable."""
        machine = self._machines.get(name)
        if machine is None and name in self._deployed:
            async with self._turn:
                machine = self._machines.get(name)
        if machine is None:
            raise NotFound(f"no machine {name[:80]!r} is deployed", field="name", fix="see `streams udf list`")
        return await machine.ready()

    async def close(self) -> None:
        """Stop all."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(each.stop() for each in self._machines.values()))
