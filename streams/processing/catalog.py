"""What the worker needs to know of the definitions: keyspaces, and which schema ids their events may carry."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from streams.definitions.chains import PutRule
from streams.definitions.registry import Definitions
from streams.model.fold_table import DERIVED, DerivedFold, FoldTable, fold_tables
from streams.model.keyspace import BUILTIN, Keyspace
from streams.model.row import MergeType
from streams.serde import DELETE, FRAME, PURGE, TABLE_PURGE, AvroSchema, load_builtin
from streams.wasm.avro_program import avro_program
from streams.wasm.batch import OP_DELETE, OP_PURGE, OP_PUT
from streams.wasm.decoder import DecoderConfig, SchemaProgram
from streams.wasm.engine import Limits
from streams.wasm.quarantine import TrapPolicy

_UDF_INPUT = {
    MergeType.COUNTER: "streams.CounterAdd",
    MergeType.MAX: "streams.Number",
    MergeType.MIN: "streams.Number",
}


@dataclass(frozen=True, slots=True)
class DeployedModule:
    """A deployed UDF's module, the version that it is of, what it may use, and what happens when it traps. `from_ms`:
    from when on it folds the log; 0: all of it. `puts`: where a map writes to."""

    version: str
    sha256: str
    wasm: bytes = field(repr=False)
    limits: Limits = field(default_factory=Limits)
    name: str = ""
    policy: TrapPolicy = TrapPolicy()  # noqa: RUF009
    from_ms: int = 0
    kind: str = "fold"
    puts: tuple[PutRule, ...] = ()


class Catalog(Protocol):
    """The definitions, as far as the worker follows them."""

    def keyspaces(self) -> Sequence[Keyspace]:
        """All keyspaces known now."""
        ...

    def tables(self) -> Sequence[FoldTable]:
        """All tables that are folded from their events."""
        ...

    def put_schemas(self, keyspace: str) -> Mapping[int, AvroSchema]:
        """The schemas of a keyspace's puts, all versions, by id."""
        ...

    @property
    def deployed(self) -> DeployedModule | None:
        """The module that folds all tables, when they are a deployed UDF's; None: the built-in ones do."""
        ...

    @property
    def changed(self) -> asyncio.Event:
        """Set after every change; whoever waits on it clears it."""
        ...


@dataclass(frozen=True, slots=True)
class KeyspaceRules:
    """How a keyspace's records are decoded. `input_schema`: what its UDF reads (None: the bytes as they came);
    `others`: the put schemas that must be projected to it, by id.
    """

    config: DecoderConfig
    input_schema: AvroSchema | None
    others: Mapping[int, AvroSchema]


class RulesCache:
    """The rules of each table's input, made anew when the schemas change."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._made: dict[str, tuple[tuple[FoldTable, frozenset[int]], KeyspaceRules]] = {}

    def rules(self, table: FoldTable) -> KeyspaceRules:
        """The rules as of now."""
        puts = self._catalog.put_schemas(table.keyspace.name)
        version, name = (table, frozenset(puts)), f"{table.name}/{table.keyspace.name}"
        found = self._made.get(name)
        if found is None or found[0] != version:
            rules = keyspace_rules(table.keyspace, puts, table.reads, table.ttl_ms)
            found = self._made[name] = (version, rules)
        return found[1]


def keyspace_rules(
    keyspace: Keyspace, puts: Mapping[int, AvroSchema], reads: str = "", ttl_ms: int | None = None
) -> KeyspaceRules:
    """The rules of a keyspace whose puts may carry these schemas, for a UDF that reads the schema `reads`.

    `ttl_ms`: the time to live of puts that give none; None: the keyspace's; 0: for ever.
    """
    builtin = load_builtin()
    programs = {schema.id: SchemaProgram(OP_PUT, avro_program(schema.document)) for schema in puts.values()}
    for name, op in ((DELETE, OP_DELETE), (PURGE, OP_PURGE), (TABLE_PURGE, OP_PURGE)):
        programs[builtin[name].id] = SchemaProgram(op, avro_program(builtin[name].document))
    wanted = reads or _UDF_INPUT.get(keyspace.merge)
    reader = builtin[wanted] if wanted else None
    others = {} if reader is None else {ident: schema for ident, schema in puts.items() if ident != reader.id}
    default_ms = keyspace.ttl_ms if ttl_ms is None else ttl_ms or None
    config = DecoderConfig(keyspace.name, programs, default_ms, frame_schema_id=builtin[FRAME].id)
    return KeyspaceRules(config, reader, others)


class DefinitionsCatalog:
    """The definitions topic, as snapshots: decoding threads read them while the event loop follows the topic."""

    def __init__(self, definitions: Definitions) -> None:
        self._definitions = definitions
        self._changed = asyncio.Event()
        self._keyspaces: tuple[Keyspace, ...] = ()
        self._puts: dict[str, dict[int, AvroSchema]] = {}
        definitions.on_change(lambda _: self._refresh())
        self._refresh()

    @property
    def deployed(self) -> DeployedModule | None:
        """None: the built-in modules."""
        return None

    def _refresh(self) -> None:
        found = self._definitions
        keyspaces = tuple(found.keyspaces.values())
        self._puts = {
            each.name: {ident: found.schema(ident) for ident, op, _ in found.schema_table(each.name) if op == OP_PUT}
            for each in keyspaces
        }
        self._keyspaces = keyspaces
        self._changed.set()

    @property
    def changed(self) -> asyncio.Event:
        """Set after every change."""
        return self._changed

    def keyspaces(self) -> Sequence[Keyspace]:
        """Those defined."""
        return self._keyspaces

    def tables(self) -> Sequence[FoldTable]:
        """The keyspaces' own, and the built-in derived ones."""
        return fold_tables(self._keyspaces)

    def put_schemas(self, keyspace: str) -> Mapping[int, AvroSchema]:
        """Every registered version of the keyspace's subject."""
        return self._puts.get(keyspace, {})


class BuiltinCatalog:
    """The built-in keyspaces and schemas, without a definitions topic (benchmarks and tests)."""

    def __init__(self, keyspaces: Sequence[Keyspace] = BUILTIN, derived: Sequence[DerivedFold] = DERIVED) -> None:
        self._keyspaces, self._derived = tuple(keyspaces), tuple(derived)
        self._changed = asyncio.Event()

    @property
    def deployed(self) -> DeployedModule | None:
        """None: the built-in modules."""
        return None

    @property
    def changed(self) -> asyncio.Event:
        """Never set."""
        return self._changed

    def keyspaces(self) -> Sequence[Keyspace]:
        """Those given."""
        return self._keyspaces

    def tables(self) -> Sequence[FoldTable]:
        """Their own, and those derived."""
        return fold_tables(self._keyspaces, self._derived)

    def put_schemas(self, keyspace: str) -> Mapping[int, AvroSchema]:
        """The schema that the keyspace names."""
        found = {each.name: each for each in self._keyspaces}
        schema = load_builtin()[found[keyspace].schema]
        return {schema.id: schema}
