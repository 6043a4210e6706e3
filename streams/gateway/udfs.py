"""The gateway's part in UDFs: judging what is deployed, knowing where it runs, telling supervisor and tables."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from streams.definitions import releases
from streams.definitions.chains import PutSchemas, put_rules
from streams.definitions.deployment import (
    Deployment,
    check_function,
    check_group,
    check_inputs,
    deployed_tables,
    parse_label,
)
from streams.definitions.releases import Release, Wish
from streams.definitions.udf_states import StateReader
from streams.definitions.udfs import Udfs
from streams.edge.options import TableSpec
from streams.gateway.udf_logs import reaches
from streams.model.clock import wall_ms
from streams.model.errors import BadInput, Conflict
from streams.model.fold_table import FoldTable
from streams.model.keyspace import Keyspace
from streams.model.topology import Topology
from streams.wasm.admission import DeployCaps, admit_module
from streams.wasm.engine import ModuleCache
from streams.wasm.manifest import Manifest
from streams.wasm.packing import packed

log = logging.getLogger(__name__)

HEARD_MS = 10_000
"""A region whose tables' markers are older is not heard from."""
_CLOCKS_MS = 2_000
"""How much regions' clocks may differ."""
CAUGHT_UP_MS = 2_000
"""A version has caught up in a region once its markers are no more than this behind what else is heard from there."""
_POLL_S = 0.1
PENDING = {"state": "pending", "reason": "the region is not heard from", "version": None, "at": None}


@dataclass(frozen=True, slots=True)
class Order:
    """How a deploy is asked for. `from_ms`: fold what was accepted then or later; 0: all of the log, and `beginning`:
    refuse if that has lost its beginning. `keep_ms`: how long what is replaced is kept; None: as the operator says.
    """

    how: str = releases.AUTO
    from_ms: int = 0
    beginning: bool = True
    keep_ms: int | None = None


@dataclass(slots=True)
class UdfService:
    """Deployed UDFs as one region's gateway sees them.

    `heard_ms`: how old a region's newest word is; `table_ms`: the same of a table's; `keyspaces`: those defined;
    `table_names`: the tables served here; `pointed`: the table that readers of a name are served from here.
    """

    topology: Topology
    region: str
    udfs: Udfs
    states: StateReader
    keyspaces: Callable[[], Mapping[str, Keyspace]]
    heard_ms: Callable[[str], int]
    table_ms: Callable[[str, str], int]
    table_names: Callable[[], Collection[str]] = tuple
    caps: DeployCaps = field(default_factory=DeployCaps)
    pointed: Callable[[str], str | None] = lambda _: None
    put_schemas: PutSchemas = lambda _keyspace: {}
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def start(self) -> None:
        """Read what is deployed, then follow it and the regions' reports."""
        await self.udfs.start()
        self.udfs.on_change(lambda _: self._changed.set())
        self.states.on_change = self._changed.set
        self.states.start()

    async def stop(self) -> None:
        """Stop following."""
        await self.states.stop()
        await self.udfs.stop()

    def touched(self, name: str) -> tuple[str, ...]:
        """`touched` by any version that is there of one that is deployed, for each may take over. NotFound."""
        release = self.udfs.release(name)
        versions = [self.udfs.version(name, number) for number in release.kept]
        names = (each for version in versions if version is not None for each in touched(version.manifest))
        return tuple(dict.fromkeys(names))

    def check_free(self, name: str) -> None:
        """Conflict when a UDF, deployed or removed, has a table of this name."""
        for each in self.udfs.every.values():
            if each.manifest.table == name:
                raise Conflict(f"{name} is the table of UDF {each.name}", field="name", fix="choose another name")

    @property
    def at_home(self) -> bool:
        """Whether this is a gateway of the region that decides."""
        return self.region == self.topology.home.name

    async def deploy(
        self,
        manifest: Manifest,
        text: str,
        module: bytes,
        who: str,
        order: Order = Order(),
    ) -> Deployment:
        """Admit a UDF and write it, for all regions. BadInput, Conflict: why it is refused. Timeout: look again."""
        keyspaces = self.keyspaces()
        if manifest.function is not None:
            check_function(manifest, keyspaces, self.table_names())
        elif manifest.is_machine:
            check_group(manifest.name, manifest.group, keyspaces)
        else:
            check_inputs(manifest, keyspaces)
            put_rules(manifest, keyspaces, self.put_schemas)
        inputs = [keyspaces[name] for name in manifest.inputs]
        began, _, _ = await asyncio.gather(
            reaches(self.topology.regions, inputs, order.from_ms),
            asyncio.to_thread(admit_module, module, manifest, self.caps, ModuleCache()),
            asyncio.to_thread(packed, module),  # it is remembered for the record; the event loop goes on meanwhile
        )
        made = Deployment.make(text, module, wall_ms(), who, self.region)
        wish = Wish(order.how, order.beginning, self.keep_ms(order.keep_ms))
        return await self.udfs.deploy(replace(made, from_ms=order.from_ms, began=began), self.caps.udfs, wish)

    def keep_ms(self, asked_ms: int | None) -> int:
        """How long a replaced version is kept. BadInput for longer than the operator allows."""
        most = int(self.caps.keep_s * 1000)
        if asked_ms is not None and asked_ms > most:
            raise BadInput(f"{asked_ms / 1000:g} s is over the operator's {most / 1000:g} s", field="keep")
        return most if asked_ms is None else asked_ms

    async def promote(self, name: str, who: str, *, force: bool, wait_s: float) -> int:
        """Serve the candidate, in all regions; the number of what is served then.

        Waits up to `wait_s` until it has caught up everywhere, then Conflict; `force` waits for nothing.
        """
        number, deadline = self.udfs.release(name).candidate, time.monotonic() + wait_s
        while number and not force:
            caught_up = self.caught_up(name, number)
            if all(caught_up.values()):
                break
            if time.monotonic() >= deadline:
                late = ", ".join(region for region, done in caught_up.items() if not done)
                raise Conflict(f"it has not caught up in {late}", field="name", fix="wait longer, or use force")
            await asyncio.sleep(_POLL_S)
            release = self.udfs.release(name)
            if release.candidate != number:
                return release.active  # it took over by itself, or somebody else decided
        release = await self.udfs.promote(name, number, wall_ms(), who, at_once=force)
        return release.active

    def caught_up(self, name: str, number: int) -> dict[str, bool]:
        """By region: whether a version's table has everything that was accepted there up to a moment ago.

        Its markers say so, and a marker is exact: of each partition, everything accepted before its time is in.
        """
        version = self.udfs.version(name, number)
        if version is None:
            return dict.fromkeys(self.topology.names, False)
        return {region: self._caught_up(version.table, region) for region in self.topology.names}

    def _caught_up(self, table: str, region: str) -> bool:
        heard_ms = self.heard_ms(region)
        return heard_ms <= HEARD_MS and self.table_ms(table, region) - heard_ms <= CAUGHT_UP_MS

    def labels(self) -> list[str]:
        """The workers that a region runs: one for each generation of each UDF."""
        return [each.label for name in self.udfs.folds for each in self.udfs.generations(name).values()]

    def tables(self) -> dict[str, list[FoldTable]]:
        """The tables that UDFs make, all generations, by name, one FoldTable for each input; but for names that are
        keyspaces'."""
        return {tables[0].name: tables for _, tables in self._folded()}

    def specs(self) -> list[TableSpec]:
        """The same for the edge."""
        return [TableSpec.deployed(tables, of.manifest.table) for of, tables in self._folded()]

    def _folded(self) -> list[tuple[Deployment, list[FoldTable]]]:
        keyspaces = self.keyspaces()
        every = [each for name in self.udfs.folds for each in self.udfs.generations(name).values()]
        found = [(each, deployed_tables(each, keyspaces)) for each in every if each.manifest.table not in keyspaces]
        return [(each, tables) for each, tables in found if tables]

    def is_map(self, table: str) -> bool:
        """Whether a table is a map's, which has no rows: not shown."""
        return any(each.manifest.table == table and each.manifest.is_map for each in self.udfs.live.values())

    def described(self, of: Deployment) -> dict[str, Any]:
        """A deployment, how it does in each region, what it uses there, and its other versions. `served_here`: the
        generation whose rows this gateway answers with."""
        release = self.udfs.releases[of.name]
        pointed = self.pointed(of.manifest.table)
        versions = [self.udfs.version(of.name, number) for number in release.kept]
        served = (each.generation for each in versions if each is not None and each.table == pointed)
        return {
            **of.to_json(),
            "regions": self._states(of),
            "served_here": next(served, None),
            "candidate": self._candidate(release),
            "previous": self._previous(release),
            "versions": release.versions(),
        }

    def _states(self, of: Deployment) -> dict[str, Any]:
        return {
            region: {**self._state(of, region), "meter": self.meter(region, of.table)} for region in self.topology.names
        }

    def _candidate(self, release: Release) -> dict[str, Any] | None:
        found = self.udfs.version(release.name, release.candidate)
        if found is None:
            return None
        caught_up = self.caught_up(release.name, release.candidate)
        regions = {region: {**state, "caught_up": caught_up[region]} for region, state in self._states(found).items()}
        takes_over = "when it has caught up" if release.swap == releases.CAUGHT_UP else "when it is promoted"
        return {**found.to_json(), "takes_over": takes_over, "regions": regions}

    def _previous(self, release: Release) -> dict[str, Any] | None:
        found = self.udfs.version(release.name, release.previous)
        if found is None:
            return None
        kept = {"kept_until": release.until_ms, "rolled_back": release.rolled_back}
        return {**found.to_json(), **kept, "regions": self._states(found)}

    def meter(self, region: str, table: str) -> dict[str, Any] | None:
        """What the UDF of a table uses in a region; None: not reported yet."""
        return self.states.meters.region(region, table, wall_ms())

    def metered(self, region: str) -> list[tuple[str, dict[str, Any], str]]:
        """(table, what its UDF uses, its state) of all UDFs that run in a region, by generation of rows; built-in ones
        are always `active`."""
        running = {of.table: of for of, _ in self._folded()}
        found = []
        for table in self.states.meters.tables():
            meter, of = self.meter(region, table), running.get(table)
            if meter is not None and (of is not None or self._is_builtin(table)):
                state = "active" if of is None else self._state(of, region)["state"]
                found.append((table, meter, str(state)))
        return found

    def builtin(self) -> list[dict[str, Any]]:
        """What the built-in UDFs use in each region, by table."""
        found = []
        for table in filter(self._is_builtin, self.states.meters.tables()):
            regions = {region: {"meter": self.meter(region, table)} for region in self.topology.names}
            known = [each["meter"] for each in regions.values() if each["meter"] is not None]
            if known:
                found.append({"name": known[0]["udf"], "table": table, "regions": regions})
        return found

    @staticmethod
    def _is_builtin(table: str) -> bool:
        return not parse_label(table)[1]  # a deployed UDF's rows are a generation's: NAME.gN

    def _state(self, of: Deployment, region: str) -> dict[str, Any]:
        found = self.states.get(region, of.name, of.generation)
        if self.heard_ms(region) > HEARD_MS:
            return dict(PENDING)
        known = found is not None and (found.sha256, found.version) == (of.sha256, of.manifest.version)
        if found is None or not known or found.state == "stopped" or found.at_ms + _CLOCKS_MS < of.deployed_ms:
            # Not reported yet; a report of what came before, or from before it was removed, says nothing.
            return {"state": "starting", "reason": "", "version": None, "at": None}
        state = found.state
        quiet_ms = min(wall_ms() - found.at_ms, self.table_ms(of.table, region))
        if state == "active" and not of.manifest.at_gateways and quiet_ms > HEARD_MS:
            state = "starting"  # it was active, and its worker has not written since: it is down, or coming up again
        return {"state": state, "reason": found.reason, "version": found.version, "at": found.at_ms}

    async def settled(self, name: str, number: int, wait_s: float) -> dict[str, Any]:
        """`described`, once what was decided of a version is so here and in the regions that are heard from, or after
        `wait_s`."""
        return await self._when(name, wait_s, lambda: self._is_settled(name, number))

    async def resumed(self, of: Deployment, wait_s: float) -> dict[str, Any]:
        """`described`, once no region that is heard from reports a pause from before it was resumed, or after `wait_s`.

        One that is paused again, for what comes next, says so.
        """
        count = self.udfs.resumes.get(of.name, 0)

        def over() -> bool:
            for region in self.topology.names:
                state, found = self._state(of, region)["state"], self.states.get(region, of.name, of.generation)
                again = found is not None and found.resumes >= count
                if state == "starting" or (state == "paused" and not again):
                    return False
            return True

        return await self._when(of.name, wait_s, over)

    async def _when(self, name: str, wait_s: float, done: Callable[[], bool]) -> dict[str, Any]:
        deadline = time.monotonic() + wait_s
        while True:
            self._changed.clear()
            left_s = deadline - time.monotonic()
            if left_s <= 0 or done():
                return self.described(self.udfs.get(name))
            try:
                await asyncio.wait_for(self._changed.wait(), min(left_s, _POLL_S))
            except TimeoutError:
                continue

    def _is_settled(self, name: str, number: int) -> bool:
        found, release = self.udfs.version(name, number), self.udfs.release(name)
        if found is None or number not in (release.active, release.candidate):
            return True
        states = {each["state"] for each in self._states(found).values()}
        if number == release.active:
            return "starting" not in states and self.pointed(found.manifest.table) in (found.table, None)
        if states & {"refused", "failing", "paused"}:
            return True
        return release.swap == releases.HOLD and all(self.caught_up(name, number).values())


def touched(manifest: Manifest) -> tuple[str, ...]:
    """The keyspaces and tables that a UDF reads or puts to: who deploys or sees it must be allowed to."""
    function = manifest.function
    if manifest.is_machine:
        return (manifest.group,)
    names = (*manifest.inputs, *manifest.puts) if function is None else (*function.tables, *function.puts)
    return tuple(dict.fromkeys(names))
