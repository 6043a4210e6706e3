"""The gateway's part in UDFs: judging what is deployed, knowing where it runs, telling supervisor and tables."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from streams.definitions.chains import PutSchemas, put_rules
from streams.definitions.deployment import Deployment, check_function, check_inputs, deployed_tables
from streams.definitions.udf_states import StateReader
from streams.definitions.udfs import Udfs
from streams.edge.options import TableSpec
from streams.model.clock import wall_ms
from streams.model.errors import Conflict
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
DIRECTORY = "udfs"
PENDING = {"state": "pending", "reason": "the region is not heard from", "version": None, "at": None}


@dataclass(slots=True)
class UdfService:
    """Deployed UDFs as one region's gateway sees them.

    `heard_ms`: how old a region's newest word is; `table_ms`: the same of a table's; `keyspaces`: those defined;
    `table_names`: the tables served here.
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

    def check_free(self, name: str) -> None:
        """Conflict when a UDF, deployed or removed, has a table of this name."""
        for each in self.udfs.every.values():
            if each.manifest.table == name:
                raise Conflict(f"{name} is the table of UDF {each.name}", field="name", fix="choose another name")

    async def deploy(self, manifest: Manifest, text: str, module: bytes, who: str) -> Deployment:
        """Admit a UDF and write it, for all regions. BadInput, Conflict: why it is refused. Timeout: look again."""
        if manifest.function is not None:
            check_function(manifest, self.keyspaces(), self.table_names())
        else:
            check_inputs(manifest, self.keyspaces())
            put_rules(manifest, self.keyspaces(), self.put_schemas)
        await asyncio.to_thread(admit_module, module, manifest, self.caps, ModuleCache())
        await asyncio.to_thread(packed, module)  # it is remembered for the record; the event loop goes on meanwhile
        await self.udfs.deploy(Deployment.make(text, module, wall_ms(), who, self.region), self.caps.udfs)
        return self.udfs.get(manifest.name)

    def tables(self) -> dict[str, list[FoldTable]]:
        """The tables that UDFs make, by name, one FoldTable for each input; but for names that are keyspaces'."""
        keyspaces = self.keyspaces()
        found = [deployed_tables(each, keyspaces) for each in self.udfs.live.values()]
        return {tables[0].name: tables for tables in found if tables and tables[0].name not in keyspaces}

    def specs(self) -> list[TableSpec]:
        """The same for the edge."""
        return [TableSpec.deployed(tables) for tables in self.tables().values()]

    def is_map(self, table: str) -> bool:
        """Whether a table is a map's, which has no rows: not shown."""
        return any(each.manifest.table == table and each.manifest.is_map for each in self.udfs.live.values())

    def described(self, of: Deployment) -> dict[str, Any]:
        """A deployment and how it does in each region."""
        return {**of.to_json(), "regions": {region: self._state(of, region) for region in self.topology.names}}

    def _state(self, of: Deployment, region: str) -> dict[str, Any]:
        found = self.states.get(region, of.name)
        if self.heard_ms(region) > HEARD_MS:
            return dict(PENDING)
        known = found is not None and (found.sha256, found.version) == (of.sha256, of.manifest.version)
        if found is None or not known or found.state == "stopped" or found.at_ms + _CLOCKS_MS < of.deployed_ms:
            # Not reported yet; a report of what came before, or from before it was removed, says nothing.
            return {"state": "starting", "reason": "", "version": None, "at": None}
        state = found.state
        quiet_ms = min(wall_ms() - found.at_ms, self.table_ms(of.manifest.table, region))
        if state == "active" and of.manifest.function is None and quiet_ms > HEARD_MS:
            state = "starting"  # it was active, and its worker has not written since: it is down, or coming up again
        return {"state": state, "reason": found.reason, "version": found.version, "at": found.at_ms}

    async def settled(self, of: Deployment, wait_s: float) -> dict[str, Any]:
        """`described`, once no region that is heard from is still starting it, or after `wait_s`."""
        deadline = time.monotonic() + wait_s
        while True:
            self._changed.clear()
            found = self.described(of)
            left_s = deadline - time.monotonic()
            if left_s <= 0 or all(each["state"] != "starting" for each in found["regions"].values()):
                return found
            try:
                await asyncio.wait_for(self._changed.wait(), min(left_s, 0.5))
            except TimeoutError:
                continue


def tell_supervisor(data: Path, region: str, names: list[str]) -> None:
    """Say which UDFs the region runs: a supervisor on this machine keeps a worker for each (region/deployed.py)."""
    path = data / DIRECTORY / f"{region}.json"
    body = json.dumps({"udfs": sorted(names)}) + "\n"
    try:
        if path.exists() and path.read_text() == body:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(body)
        temporary.replace(path)
    except OSError as error:
        log.error("%s cannot be written, so no worker is started or stopped: %s", path, error)
