"""Which tables are folded from a keyspace's events: its own, and those that further built-in UDFs make of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from streams.model.keyspace import Keyspace
from streams.model.row import MergeType


@dataclass(frozen=True, slots=True)
class FoldTable:
    """A table and the events it is folded from.

    `udf`: the built-in module; empty for the keyspace's own table, whose merge type says which. `reads`: the Avro
    schema that the UDF reads; empty: by the merge type, or values as they came. `outputs`: the topics that the UDF's
    outputs go to, by their index. The name is also the changelog's, the transactional ids' and the directory's.
    A table of several inputs has one FoldTable for each: its partitions begin at `first` of the changelog's `total`
    (0: as many as the input has). `ttl_ms`: the time to live of rows whose put gives none, instead of the keyspace's
    (0: for ever).
    """

    name: str
    keyspace: Keyspace
    merge: MergeType
    udf: str = ""
    reads: str = ""
    outputs: tuple[str, ...] = ()
    first: int = 0
    total: int = 0
    ttl_ms: int | None = None

    @property
    def is_own(self) -> bool:
        """Whether it is the keyspace's table; that one also reports the events that cannot be decoded."""
        return self.name == self.keyspace.name

    @property
    def topic(self) -> str:
        """Its compacted changelog."""
        return f"table.{self.name}"

    @property
    def partitions(self) -> int:
        """Its changelog's partitions: as many as all its inputs have."""
        return self.total or self.keyspace.partitions


@dataclass(frozen=True, slots=True)
class DerivedFold:
    """A further fold of the events of the keyspace called `keyspace`, by the module `udf`, into the table `name`."""

    name: str
    keyspace: str
    udf: str
    merge: MergeType = MergeType.OPAQUE
    reads: str = ""
    outputs: tuple[str, ...] = ()


DERIVED: tuple[DerivedFold, ...] = (
    DerivedFold("telemetry", "device", "telemetry", MergeType.OPAQUE, "streams.Reading", ("late.device",)),
    DerivedFold("anomaly", "device", "anomaly", MergeType.LWW, "streams.Reading", ("alerts.device",)),
)
"""The built-in ones. A new one: an entry here, its module in `wasm_udfs/<udf>` and in `wasm/builtin.py`."""


def fold_tables(keyspaces: Iterable[Keyspace], derived: Iterable[DerivedFold] = DERIVED) -> list[FoldTable]:
    """Every table that is folded from the events of these keyspaces, a keyspace's own first; strong ones have none."""
    found = []
    folds = list(derived)
    for keyspace in keyspaces:
        if keyspace.is_strong:
            continue
        found.append(FoldTable(keyspace.name, keyspace, keyspace.merge))
        found += [
            FoldTable(each.name, keyspace, each.merge, each.udf, each.reads, each.outputs)
            for each in folds
            if each.keyspace == keyspace.name
        ]
    return found
