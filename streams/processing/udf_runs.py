"""The UDFs that a worker process runs, one a table: what each may do, what keeps it contained, what it uses."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from streams.model.fold_table import FoldTable
from streams.processing.black_box import UdfInfo
from streams.processing.catalog import DeployedModule
from streams.processing.containment import Containment
from streams.processing.partition_runner import PartitionRunner
from streams.processing.table_use import TableUse
from streams.processing.udf_ports import builtin_of
from streams.wasm.builtin import builtin_module
from streams.wasm.engine import module_hash
from streams.wasm.meter import MeterReading, UdfMeter


@dataclass(frozen=True, slots=True)
class UdfRun:
    """One UDF in this process, shared by the tasks of its table's partitions."""

    info: UdfInfo
    containment: Containment
    meter: UdfMeter
    use: TableUse

    def too_large(self, reason: str) -> None:
        """The table is over its limit: pause."""
        self.containment.pause(reason)


@dataclass(frozen=True, slots=True)
class UdfUse:
    """What a UDF has used since the process began, over the partitions that are assigned now."""

    info: UdfInfo
    partitions: tuple[int, ...]
    reading: MeterReading
    events: int
    dead_letters: int
    lag_events: int
    paused: str


@dataclass(frozen=True, slots=True)
class Inherited:
    """A pause that began in an earlier process; `resumed`: and ended while none ran."""

    module: DeployedModule
    reason: str
    resumed: bool


class UdfRuns:
    """The runs by table. Another version of a module is another run: its pause, window and meter begin anew.

    `inherited`: a module whose run begins paused, or resumed.
    """

    def __init__(self) -> None:
        self._runs: dict[str, UdfRun] = {}
        self.inherited: Inherited | None = None

    @property
    def held(self) -> bool:
        """Whether a pause is in force, also one that was inherited and whose run has not begun."""
        inherited = self.inherited is not None and not self.inherited.resumed
        return inherited or any(run.containment.paused for run in self._runs.values())

    def of(self, table: FoldTable, deployed: DeployedModule | None) -> UdfRun:
        """The run of a table's UDF as it is now."""
        run = self._runs.get(table.name)
        if run is not None and (deployed is None or _is(run, deployed)):
            return run
        if deployed is not None:
            name, version, sha256 = deployed.name or table.name, deployed.version, deployed.sha256
            limits, policy, outputs = deployed.limits, deployed.policy, len(deployed.puts or table.outputs)
            kind = deployed.kind
        else:
            name, manifest = builtin_of(table)
            version, sha256 = manifest.version, module_hash(builtin_module(name))
            limits, policy, outputs = manifest.limits, manifest.policy, len(manifest.outputs)
            kind = manifest.kind
        info = UdfInfo(name, version, table.name, sha256, int(table.merge), outputs, limits, kind=kind)
        run = UdfRun(info, Containment(limits, policy), UdfMeter(), TableUse(limits))
        if self.inherited is not None and self.inherited.module == deployed:
            run.containment.pause(self.inherited.reason)
            if self.inherited.resumed:
                run.containment.resume()
        self._runs[table.name] = run
        return run

    def find(self, version: str, sha256: str) -> UdfRun | None:
        """The run of a module's version; None while it has not begun."""
        wanted = (version, sha256)
        return next((run for run in self._runs.values() if (run.info.version, run.info.sha256) == wanted), None)

    def resume(self) -> None:
        """Resume those that are paused."""
        self.inherited = None
        for run in self._runs.values():
            if run.containment.paused:
                run.containment.resume()

    def uses(self, runners: Iterable[PartitionRunner]) -> list[UdfUse]:
        """What each has used; `runners`: those of the assigned partitions."""
        by_table: dict[str, list[PartitionRunner]] = {}
        for runner in runners:
            by_table.setdefault(runner.name.rpartition("/")[0], []).append(runner)
        found = []
        for name, run in self._runs.items():
            here = by_table.get(name, [])
            stats = [runner.stats for runner in here]
            found.append(
                UdfUse(
                    run.info,
                    tuple(sorted(int(runner.name.rpartition("/")[2]) for runner in here)),
                    run.meter.reading(),
                    sum(each.events for each in stats),
                    sum(each.dead_letters for each in stats),
                    sum(runner.task.lag for runner in here if runner.task is not None),
                    run.containment.paused,
                )
            )
        return found


def _is(run: UdfRun, deployed: DeployedModule) -> bool:
    info, policy = run.info, run.containment.policy
    wanted = (deployed.sha256, deployed.version, deployed.limits, deployed.policy)
    return (info.sha256, info.version, info.limits, policy) == wanted
