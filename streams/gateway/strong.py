"""`StrongWrites`: the group of strong keyspaces as a gateway has it: its replica, and the tables made of it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from streams.edge.edge_store import EdgeTables
from streams.edge.options import TableSpec
from streams.model.keyspace import Keyspace
from streams.model.topology import Topology
from streams.sequencer.commands import Result
from streams.sequencer.options import GROUP, SequencerOptions, home_servers, topic_of
from streams.sequencer.replica import Replica
from streams.sequencer.state import SequencedState, Step
from streams.state.prefix_view import PrefixView
from streams.wasm.builtin import builtin_module
from streams.wasm.engine import ModuleCache
from streams.wasm.machine_host import MachineHost


class StrongWrites:
    """One gateway's replica of the group, which also feeds the strong keyspaces' tables."""

    def __init__(
        self,
        topology: Topology,
        region: str,
        path: Path,
        tables: EdgeTables,
        options: SequencerOptions | None = None,
    ) -> None:
        self.home, self.topic = topology.home.name, topic_of(GROUP)
        self._tables = tables
        self._views: set[bytes] = set()
        self._time_ms = 0
        machine = MachineHost(builtin_module("strong_kv"), ModuleCache())
        self.state = SequencedState(path / self.topic, self.topic, machine)
        self.replica: Replica[Result] = Replica(
            GROUP, home_servers(topology, region), self.state, self._stepped, options
        )

    def set_keyspaces(self, keyspaces: Iterable[Keyspace]) -> None:
        """Serve the tables of the strong ones among these."""
        strong = [each for each in keyspaces if each.is_strong and each.name.encode() not in self._views]
        self._tables.set_tables(TableSpec.sequenced(each, self.topic, self.home) for each in strong)
        for each in strong:
            view = PrefixView(self.state.store, f"{each.name}:".encode(), lambda: self.state.marker(self._time_ms))
            self._tables.table(each.name).attach((self.home, 0), view)
            self._views.add(each.name.encode())
            self._tables.sequenced(each.name, [], self.state.marker(self._time_ms))

    def _stepped(self, step: Step | None, time_ms: int) -> None:
        self._time_ms = max(self._time_ms, time_ms)
        marker = self.state.marker(self._time_ms)
        keys: dict[bytes, list[bytes]] = {name: [] for name in self._views}
        for key in step.keys if step is not None else ():
            keys.get(key.partition(b":")[0], []).append(key)
        for name, changed in keys.items():
            self._tables.sequenced(name.decode(), changed, marker)

    # ---- what routes use

    async def execute(self, command: bytes) -> tuple[Result, int]:
        """See Replica.execute."""
        return await self.replica.execute(command)

    async def linearize(self) -> None:
        """See Replica.linearize."""
        await self.replica.linearize()

    async def tick(self) -> None:
        """See Replica.tick."""
        await self.replica.tick()

    @property
    def time_ms(self) -> int:
        """The time of the log, as far as it is applied here."""
        return self.state.machine_state.time_ms

    def row(self, key: bytes) -> bytes | None:
        """The row of a key as this replica has it."""
        return self.state.store.get(key)

    def describe(self) -> dict[str, object]:
        """Where this replica stands: `state` is equal wherever `offset` is."""
        stands = self.state.machine_state
        return {"offset": stands.next, "state": f"{stands.chain:016x}", "commands": stands.commands}

    async def stop(self) -> None:
        """Stop following."""
        await self.replica.stop()

    def close(self) -> None:
        """Release the state's directory."""
        self.state.close()
