"""All tables of a gateway: units of changelogs go in, merged tables come out. Knows nothing of Kafka.

For each table, origin region and partition there is one replica on disk. `publish` applies a unit: one WriteBatch and
the structures in memory, in one step of the event loop, so that a reader sees all of a commit or nothing of it.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from streams.edge.edge_table import EdgeTable
from streams.edge.options import DecodeValue, EdgeOptions, TableSpec
from streams.edge.positions import Positions
from streams.edge.row_facts import RowFacts, facts_of, facts_of_unit
from streams.model.clock import wall_ms
from streams.model.errors import NotFound
from streams.model.marker import Claim, Marker
from streams.model.token import Token
from streams.model.unit_rows import UnitRows
from streams.state.errors import StoreCorrupt
from streams.state.partition import TablePartition
from streams.state.store_set import StoreSet

log = logging.getLogger(__name__)

RowSink = Callable[[str, str, RowFacts], None]
"""Called with (table, origin, rows written) in the step of a publish; not for units that only remove rows."""


class ChangelogUnit(Protocol):
    """What `publish` takes: one atomic unit of a changelog, or a claim (`streams.kafka.changelog_reader.Unit`)."""

    @property
    def topic(self) -> str:
        """The changelog as it is called in this region."""
        ...

    @property
    def partition(self) -> int:
        """Its partition."""
        ...

    @property
    def rows(self) -> UnitRows:
        """Its rows."""
        ...

    @property
    def marker(self) -> Marker | None:
        """What ends the unit."""
        ...

    @property
    def claim(self) -> Claim | None:
        """A new owner, instead of rows and marker."""
        ...

    @property
    def next_offset(self) -> int:
        """Where to read on after this unit."""
        ...


@dataclass(frozen=True, slots=True, order=True)
class ReplicaId:
    """One replica: the rows of `table` that `origin` wrote in `partition`."""

    table: str
    origin: str
    partition: int

    def __str__(self) -> str:
        return f"{self.table}/{self.origin}/{self.partition}"


@dataclass(frozen=True, slots=True)
class Staleness:
    """How far a table may be behind. `ms`: the worst of `by_origin`; an origin never heard from counts as 1970."""

    ms: int
    by_origin: dict[str, int]


@dataclass(slots=True)
class Counts:
    """What the edge has done since it started."""

    units: int = 0
    rows: int = 0
    units_ignored: int = 0


class EdgeTables:
    """The tables of one gateway. For one event loop.

    `observe` is told the largest hybrid time of each unit's rows (a HybridClock's `observe`); `decode` turns an lww
    payload into its JSON value, for ordering by a field; `on_rows` sees what is written (the purger).
    """

    def __init__(
        self,
        options: EdgeOptions,
        *,
        observe: Callable[[int], None] | None = None,
        decode: DecodeValue | None = None,
        clock: Callable[[], int] = wall_ms,
    ) -> None:
        self.options = options
        self.positions = Positions(options.regions)
        self.counts = Counts()
        self.problems: deque[str] = deque(maxlen=options.problems_max)
        self.on_rows: RowSink | None = None
        self._observe, self._decode, self._clock = observe, decode, clock
        self._stores = StoreSet(options.store)
        self._tables: dict[str, EdgeTable] = {}
        self._topics: dict[str, tuple[EdgeTable, str]] = {}
        self._points: dict[str, str] = {}

    def set_tables(self, specs: Iterable[TableSpec]) -> None:
        """Serve these tables too. Tables once served stay until `retire`; a table's spec does not change."""
        for spec in specs:
            if spec.name not in self._tables:
                table = EdgeTable(spec, self.options, self._decode, self._clock)
                self._tables[spec.name] = table
                for origin in () if spec.home else self.options.regions:
                    self._topics[spec.topic(origin, self.options.region)] = (table, origin)
        self.positions.set_tables(table.spec for table in self._tables.values())

    async def retire(self, names: Iterable[str]) -> None:
        """Serve these tables no more. Their replicas stay, open until the end: reads may be under way."""
        for name in names:
            table = self._tables.pop(name, None)
            if table is None:
                continue
            self._topics = {topic: found for topic, found in self._topics.items() if found[0] is not table}
            self.positions.set_tables(each.spec for each in self._tables.values())
            await table.close()

    def point(self, public: str, name: str | None) -> None:
        """From this step on, readers of `public` read the table `name` (None: there is none). Who follows `public` is
        woken, to start over with the other rows."""
        before = self._tables.get(self._points.pop(public, ""))
        if name is not None:
            self._points[public] = name
        if before is not None and before.spec.name != name:
            before.watch.append(())

    def pointed(self, public: str) -> str | None:
        """The table that readers of `public` read now."""
        return self._points.get(public)

    def _name(self, name: str) -> str:
        return self._points.get(name, name)

    @property
    def served(self) -> dict[str, EdgeTable]:
        """What readers see: all tables by the names that they use."""
        found = {name: self._served(name) for name in (*self._tables, *self._points)}
        return {name: table for name, table in found.items() if table is not None}

    def is_served(self, name: str) -> bool:
        """Whether readers see a table of this name."""
        return self._served(name) is not None

    def _served(self, name: str) -> EdgeTable | None:
        pointed = self._tables.get(self._points.get(name, ""))
        if pointed is not None:
            return pointed
        found = self._tables.get(name)
        return found if found is not None and not found.spec.public else None

    async def drop(self, name: str) -> None:
        """Close a retired table's replicas and remove them from the disk. Nobody may be reading it any more."""
        path = self.options.path / name
        if name not in self._tables:
            await asyncio.to_thread(self._stores.close_under, path)
            await asyncio.to_thread(shutil.rmtree, path, ignore_errors=True)

    def serves(self, unit: ChangelogUnit) -> bool:
        """Whether a replica is attached for the unit: its table may have been retired while it was fetched."""
        found = self._topics.get(unit.topic)
        return found is not None and (found[1], unit.partition) in found[0].replicas

    @property
    def tables(self) -> dict[str, EdgeTable]:
        """All tables by name. Not to be changed by the caller."""
        return self._tables

    def table(self, name: str) -> EdgeTable:
        """The table called `name`; NotFound says which there are."""
        found = self._tables.get(self._name(name))
        if found is None:
            names = ", ".join(sorted(self.served)) or "none yet"
            raise NotFound(f"no table {name[:80]!r}", field="table", fix=f"choose one of: {names}")
        return found

    def replica_ids(self) -> list[ReplicaId]:
        """All replicas that there should be, and that changelogs feed."""
        return [
            ReplicaId(name, origin, number)
            for name, table in self._tables.items()
            if not table.spec.home
            for origin in self.options.regions
            for number in range(table.spec.partitions)
        ]

    def path_of(self, replica: ReplicaId) -> Path:
        """The directory of a replica."""
        return self.options.path / replica.table / replica.origin / str(replica.partition)

    def open(self, replica: ReplicaId) -> TablePartition:
        """A replica's store, not served yet. A corrupt one is a visible problem, and starts empty."""
        path = self.path_of(replica)
        try:
            return self._stores.open(path)
        except StoreCorrupt as error:
            self.problem(f"replica {replica}: {error}")
            return self._stores.fresh(path)

    def open_fresh(self, replica: ReplicaId, why: str) -> TablePartition:
        """An empty store for a replica whose stored state cannot be used; the problem is made visible.

        When the replica is being served, the new store stands beside it until `attach` puts it in its place.
        """
        self.problem(f"replica {replica} is read again from the start: {why}")
        path = self.path_of(replica)
        if (replica.origin, replica.partition) in self.table(replica.table).replicas:
            path = path.with_name(path.name + ".fresh")
        return self._stores.fresh(path)

    def attach(self, replica: ReplicaId, partition: TablePartition | None = None) -> TablePartition:
        """Serve a replica (opened by `open` or `open_fresh`, restored by the caller) from now on."""
        path = self.path_of(replica)
        if partition is None:
            partition = self.open(replica)
        elif partition.path != path:
            self._stores.close(path)
            self._stores.close(partition.path)
            TablePartition.wipe(path)
            partition.path.rename(path)
            partition = self._stores.open(path)
        self.table(replica.table).attach((replica.origin, replica.partition), partition)
        marker = partition.marker()
        if marker is not None:
            self.positions.advance(replica.table, replica.origin, marker)
        return partition

    def problem(self, what: str) -> None:
        """Make a problem visible: in the log, and in `problems` for `/readyz` and metrics."""
        log.error("edge %s: %s", self.options.region, what)
        self.problems.append(what)

    async def publish(self, unit: ChangelogUnit) -> bool:
        """Apply a unit to its attached replica; False when it was a claim or not newer than what is applied.

        A claim or an ignored unit only moves the changelog offset. NotFound when nothing is attached for its topic.
        """
        table, _ = self._find(unit)
        await table.settled()
        return self.publish_now(unit)

    def publish_now(self, unit: ChangelogUnit) -> bool:
        """As `publish`, without letting ordered reads that wait go first."""
        table, origin = self._find(unit)
        partition = table.replicas[(origin, unit.partition)]
        if unit.marker is None or self._is_old(table, origin, unit, partition.marker()):
            partition.apply([], None, max(unit.next_offset, partition.changelog_offset() or 0))
            return False
        given = unit.rows
        facts = facts_of_unit(given)
        rows = partition.newer(given, facts.one_seq(given.removed))
        partition.apply(rows, unit.marker, unit.next_offset)
        table.published(rows.row_keys)
        self.counts.units += 1
        self.counts.rows += len(rows)
        self._tell(table.spec.name, origin, facts if rows.row_keys is given.row_keys else facts_of(rows))
        self.positions.advance(table.spec.name, origin, unit.marker)
        return True

    def _tell(self, table: str, origin: str, facts: RowFacts) -> None:
        if facts.rows and self._observe is not None:
            self._observe(int(facts.last.max()))
        if facts.rows and self.on_rows is not None:
            self.on_rows(table, origin, facts)

    def sequenced(self, table: str, keys: Sequence[bytes], marker: Marker) -> None:
        """Rows of `keys` of a sequenced table were just written, in this step; it stands where `marker` says."""
        found = self.table(table)
        found.published(keys)
        self.positions.advance(table, found.spec.home, marker)

    def _find(self, unit: ChangelogUnit) -> tuple[EdgeTable, str]:
        found = self._topics.get(unit.topic)
        if found is None or (found[1], unit.partition) not in found[0].replicas:
            raise NotFound(f"no replica is attached for {unit.topic}/{unit.partition}", field="topic")
        return found

    def _is_old(self, table: EdgeTable, origin: str, unit: ChangelogUnit, applied: Marker | None) -> bool:
        marker = unit.marker
        if applied is None or marker is None:
            return False
        where = f"{table.spec.name}/{origin}/{unit.partition}"
        if marker.seq > applied.seq:
            for name, at in marker.inputs.items():
                before = applied.inputs.get(name)
                if before is not None and at.topic_id != before.topic_id:
                    self.problem(f"{where}: input {name} was recreated ({before.topic_id} is now {at.topic_id})")
            return False
        self.counts.units_ignored += 1
        if marker.time_ms > applied.time_ms:
            self.problem(
                f"{where}: commit {marker.seq} is later in time than the applied {applied.seq}: its changelog was "
                "begun anew in the origin; remove this replica's directory to follow it"
            )
        return True

    @property
    def applied(self) -> Token:
        """Everything that is visible here, as positions in the origins' inputs."""
        return self.positions.token

    def applied_by(self, table: str) -> Token:
        """What is visible of a table's inputs in that table; another table of the same input may be further or less."""
        return self.positions.applied_by(self._name(table))

    async def wait_for(self, token: Token, timeout_s: float, table: str | None = None) -> None:
        """Return when `token` is visible here (in `table`, if given). BadInput for one that cannot be; Timeout."""
        await self.positions.wait_for(token, timeout_s, None if table is None else self._name(table))

    def staleness(self, table: str) -> Staleness:
        """How old the oldest marker is, per origin and at worst, in milliseconds."""
        found = self.table(table)
        now_ms = self._clock()
        by_origin = {}
        for origin in (found.spec.home,) if found.spec.home else self.options.regions:
            times = []
            for number in range(found.spec.partitions):
                partition = found.replicas.get((origin, number))
                marker = partition.marker() if partition is not None else None
                times.append(marker.time_ms if marker is not None else 0)
            by_origin[origin] = max(0, now_ms - min(times))
        return Staleness(max(by_origin.values()), by_origin)

    def staleness_ms(self, table: str) -> int:
        """The worst origin's staleness of a table, milliseconds."""
        return self.staleness(table).ms

    async def close(self) -> None:
        """Stop background work and release all directories."""
        for table in self._tables.values():
            await table.close()
        await asyncio.to_thread(self._stores.close_all)
