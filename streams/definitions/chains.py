"""Where maps, filters and flat_maps write to: the schemas of their outputs, and that no chain feeds itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from streams.definitions.registry import Definitions
from streams.model.errors import BadInput, Conflict
from streams.model.keyspace import Keyspace
from streams.serde import AvroSchema, load_builtin, parse_schema
from streams.serde.compatibility import unreadable
from streams.wasm.batch import OP_PUT
from streams.wasm.manifest import Manifest

PutSchemas = Callable[[str], Mapping[int, AvroSchema]]
"""The schemas that a keyspace's puts may carry, by id."""


@dataclass(frozen=True, slots=True)
class PutRule:
    """An output of a map: the keyspace, and the schema of the bodies that it writes (0: it passes values on)."""

    keyspace: Keyspace
    schema_id: int


def put_schemas(definitions: Definitions, keyspace: str) -> dict[int, AvroSchema]:
    """Every version of a keyspace's subject, and its built-in schema. NotFound for no keyspace."""
    table = definitions.schema_table(keyspace)
    return {ident: definitions.schema(ident) for ident, op, _ in table if op == OP_PUT}


def put_rules(manifest: Manifest, keyspaces: Mapping[str, Keyspace], schemas: PutSchemas) -> tuple[PutRule, ...]:
    """The outputs of a map; none of other kinds. BadInput, Conflict: which field of udf.toml does not fit, and why."""
    found = []
    for name, writes in zip(manifest.puts, manifest.writes, strict=True):
        keyspace = keyspaces.get(name)
        if keyspace is None:
            fix = f"use one of {', '.join(sorted(keyspaces))}"
            raise BadInput(f"there is no keyspace {name}", field="output", fix=fix)
        if keyspace.is_strong:
            raise Conflict(
                f"keyspace {name} is strong: its writes are commands", field="output", fix="write to an eventual one"
            )
        if manifest.kind == "filter":
            _check_passed(manifest, keyspace, schemas)
            found.append(PutRule(keyspace, 0))
        else:
            found.append(PutRule(keyspace, _written(keyspace, writes, schemas(name))))
    return tuple(found)


def _check_passed(manifest: Manifest, output: Keyspace, schemas: PutSchemas) -> None:
    taken = schemas(output.name)
    for name in manifest.inputs:
        for schema in schemas(name).values():
            if schema.id not in taken:
                raise BadInput(
                    f"values of keyspace {name} are {schema.name}, which keyspace {output.name} does not take",
                    field="output",
                    fix=f"filter into a keyspace of the same schema, register it for {output.subject}, or use a map",
                )


def _written(keyspace: Keyspace, writes: str, taken: Mapping[int, AvroSchema]) -> int:
    builtin = load_builtin()
    if not writes:
        schema = builtin.get(keyspace.schema)
        if schema is None:
            raise BadInput(
                f"keyspace {keyspace.name} has a schema of its own, {keyspace.schema}, and it may get versions",
                field="writes",
                fix="add writes = the Avro schema, as JSON, of the bodies that the module writes",
            )
        return schema.id
    schema = builtin[writes] if writes in builtin else _parsed(writes)
    if schema.id not in taken:
        reasons = [reason for each in taken.values() for reason in unreadable(each, schema)]
        why = f": {reasons[0]}" if reasons else ""
        raise BadInput(
            f"keyspace {keyspace.name} does not take {schema.name}{why}"[:500],
            field="writes",
            fix=f"write {keyspace.schema}, or register the schema for {keyspace.subject}",
        )
    return schema.id


def _parsed(text: str) -> AvroSchema:
    try:
        return parse_schema(text)
    except BadInput as error:
        raise BadInput(
            f"is neither a built-in schema nor Avro: {error.detail}"[:500],
            field="writes",
            fix="name one, as streams.CounterAdd, or give an Avro schema as JSON",
        ) from None


def check_loops(wanted: Manifest, others: Iterable[Manifest]) -> None:
    """Conflict when what `wanted` writes would come back to it, by itself or through other deployed maps."""
    edges: dict[str, set[str]] = {}
    for each in (*others, wanted):
        for name in each.inputs:
            edges.setdefault(name, set()).update(each.puts)
    paths: dict[str, tuple[str, ...]] = {name: (name,) for name in wanted.puts}
    work = list(wanted.puts)
    while work:
        name = work.pop()
        if name in wanted.inputs:
            way = " → ".join((name, *paths[name]))
            raise Conflict(f"the chain feeds itself: {way}", field="output", fix="write to another keyspace")
        for further in edges.get(name, ()):
            if further not in paths:
                paths[further] = (*paths[name], further)
                work.append(further)
