"""What the edge is told: which tables there are, and its limits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from streams.model.fold_table import FoldTable
from streams.model.keyspace import Keyspace
from streams.model.row import MergeType
from streams.state.options import StoreOptions

STORE = StoreOptions(
    compressed_from=2,
    wal=False,  # the changelogs have everything, and are read on from what is stored
)
"""A row is written as often as its origin commits it; of what is new, a gateway that is killed reads the last again."""

DecodeValue = Callable[[str, bytes], object]
"""(table, payload of a row) → its JSON value; ValueError or BadInput when it cannot be decoded."""


@dataclass(frozen=True, slots=True)
class TableSpec:
    """A table as the edge sees it.

    `inputs`: the events topics whose positions its markers carry. `partitions`: as many as its input has.
    `purge`: whether dead rows may be purged by events on `events.<keyspace>` (true for built-in tables). `apart`: equal
    keys in several replicas are different rows, each read and purged alone, not parts of one value.
    `home`: of a sequenced table the region that its one replica comes from; the sequencer feeds it, not a changelog.
    `sources`: of a deployed UDF's table its inputs, (keyspace, partitions), as their partitions follow one another.
    `public`: of such a table the name that readers use; `EdgeTables.point` says which generation that means.
    """

    name: str
    keyspace: str
    merge: MergeType
    partitions: int
    inputs: tuple[str, ...]
    purge: bool = True
    apart: bool = False
    home: str = ""
    sources: tuple[tuple[str, int], ...] = ()
    public: str = ""

    @classmethod
    def of(cls, keyspace: Keyspace) -> TableSpec:
        """The table that every keyspace has."""
        return cls.folded(FoldTable(keyspace.name, keyspace, keyspace.merge))

    @classmethod
    def folded(cls, table: FoldTable) -> TableSpec:
        """A table that is folded from a keyspace's events."""
        keyspace = table.keyspace
        apart = table.merge is MergeType.OPAQUE and not table.is_own
        return cls(table.name, keyspace.name, table.merge, table.partitions, (keyspace.events_topic,), apart=apart)

    @classmethod
    def sequenced(cls, keyspace: Keyspace, topic: str, home: str) -> TableSpec:
        """The table of a strong keyspace."""
        return cls(keyspace.name, keyspace.name, keyspace.merge, 1, (topic,), purge=False, home=home)

    @classmethod
    def deployed(cls, tables: Sequence[FoldTable], public: str = "") -> TableSpec:
        """The table of a deployed UDF, from its FoldTables, one for each input."""
        first = tables[0]
        inputs = tuple(each.keyspace.events_topic for each in tables)
        sources = tuple((each.keyspace.name, each.keyspace.partitions) for each in tables)
        keyspace = first.keyspace.name
        return cls(first.name, keyspace, first.merge, first.partitions, inputs, sources=sources, public=public)

    @property
    def keyspaces(self) -> tuple[str, ...]:
        """The keyspaces whose events it is made of: whoever reads it reads something of all."""
        return tuple(name for name, _ in self.sources) or (self.keyspace,)

    def source_of(self, partition: int) -> tuple[str, int]:
        """The keyspace, and its partition, that a partition of the changelog is folded from."""
        for name, count in self.sources:
            if partition < count:
                return name, partition
            partition -= count
        return self.keyspace, partition

    def partitions_of(self, topic: str) -> int:
        """How many partitions an input has."""
        return next((count for name, count in self.sources if f"events.{name}" == topic), self.partitions)

    def topic(self, origin: str, region: str) -> str:
        """The changelog of rows written in `origin`, as it is called in `region`."""
        return f"table.{self.name}" if origin == region else f"{origin}.table.{self.name}"


@dataclass(frozen=True, slots=True)
class EdgeOptions:
    """Limits of one gateway's tables.

    `path`: DIR/gateway/<region>. `regions`: all of the topology, this one included. `cache_bytes`: decoded rows, per
    table. `indices_max`: ordered indices, per table. `step_s`: how long background work may hold the event loop.
    """

    path: Path
    region: str
    regions: tuple[str, ...]
    cache_bytes: int = 32 << 20
    indices_max: int = 4
    step_s: float = 0.001
    scan_examined_max: int = 20_000
    watch_changes_max: int = 50_000
    problems_max: int = 100
    store: StoreOptions = STORE
