"""`Definitions`: schemas and keyspaces, the same in every region: written at home in one sequence, read locally."""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from streams.definitions.entries import Entry, config_entry, keyspace_entry, schema_entry, version_entry
from streams.definitions.kafka_log import KafkaDefinitionsLog
from streams.definitions.log import DefinitionsLog
from streams.definitions.sequenced import DefinitionsOptions, Sequenced
from streams.definitions.view import DefinitionsView, Version
from streams.model.errors import BadInput, Conflict, NotFound, Timeout
from streams.model.fold_table import DERIVED
from streams.model.keyspace import BUILTIN, Keyspace
from streams.model.row import MergeType
from streams.model.topology import Topology
from streams.serde import (
    DELETE,
    FRAME,
    PURGE,
    TABLE_PURGE,
    AvroSchema,
    SchemaSet,
    check_level,
    from_avro,
    load_builtin,
    parse_schema,
    to_avro,
    unreadable,
)

OP_PUT, OP_DELETE, OP_PURGE = 0, 1, 2
_SUBJECT = re.compile(r"[^/\x00-\x1f\x7f]{1,249}\Z")
_FOLDED = {
    MergeType.COUNTER: "streams.CounterAdd",
    MergeType.MAX: "streams.Number",
    MergeType.MIN: "streams.Number",
}


class Incompatible(Conflict):
    """A schema must not follow the ones before it; `reasons` says why, one path each."""

    def __init__(self, subject: str, reasons: Sequence[str]) -> None:
        super().__init__(
            f"the schema is incompatible with subject {subject}: {'; '.join(reasons)}",
            field="schema",
            fix="give new fields defaults, keep names and types, or change the subject's compatibility level",
        )
        self.reasons = tuple(reasons)


class Definitions(Sequenced[DefinitionsView]):
    """The definitions as one process sees and changes them. Reads answer from memory; all methods on one event loop."""

    def __init__(
        self,
        topology: Topology,
        region: str,
        options: DefinitionsOptions | None = None,
        *,
        log: DefinitionsLog | None = None,
    ) -> None:
        self._at_home = topology.region(region).name == topology.home.name
        options = options or DefinitionsOptions()
        log = log or KafkaDefinitionsLog(topology, region, options.kafka)
        super().__init__(log, DefinitionsView(), DefinitionsView(), options)

    async def start(self) -> None:
        """Read everything, seed what is built in (home region) or wait for it (others), then follow the topic.

        Timeout or Unavailable when that takes longer than `start_s`.
        """
        started = time.monotonic()
        await self._log.start(self._options.start_s)
        try:
            await self._begin("definitions")
            if self._at_home and _missing(self._view):
                await self._write(_missing, self._options.start_s)
            left_s = self._options.start_s - (time.monotonic() - started)
            await self._until(lambda: not _missing(self._view), left_s, "the built-in definitions are not here yet")
        except BaseException:
            await self.stop()
            raise

    # ---- reads: the local region's view, no waiting

    @property
    def schemas(self) -> SchemaSet:
        """All schemas, by id."""
        return self._view.schemas

    @property
    def keyspaces(self) -> Mapping[str, Keyspace]:
        """All keyspaces, by name."""
        return MappingProxyType(self._view.keyspaces)

    def keyspace(self, name: str) -> Keyspace:
        """The keyspace called `name`; NotFound otherwise."""
        return self._view.keyspace(name)

    def schema(self, schema_id: int) -> AvroSchema:
        """The schema of an id; NotFound otherwise."""
        found = self._view.schemas.get(schema_id)
        if found is None:
            raise NotFound(f"there is no schema {schema_id}", field="id", fix="register it first")
        return found

    def subjects(self) -> list[str]:
        """All subjects, sorted."""
        return self._view.subjects()

    def versions(self, subject: str) -> list[Version]:
        """A subject's versions, oldest first; empty when there is no such subject."""
        return self._view.versions(subject)

    def lookup(self, subject: str, schema: AvroSchema) -> Version | None:
        """The version of a subject that is exactly this schema, or None."""
        return self._view.lookup(subject, schema)

    def level(self, subject: str = "") -> str:
        """A subject's compatibility level; where it has none of its own, or no subject is named, everybody's."""
        return self._view.level(subject)

    def own_level(self, subject: str) -> str | None:
        """The level that was set for exactly this subject, or None."""
        return self._view.own_level(subject)

    def incompatibilities(self, subject: str, schema: AvroSchema) -> list[str]:
        """Why `schema` would be refused as the subject's next version; empty when it would be taken."""
        return self._view.incompatibilities(subject, schema)

    def schema_of(self, keyspace: Keyspace) -> AvroSchema | None:
        """What `to_avro` writes values of a keyspace with: the built-in schema, or its subject's latest version."""
        return self._view.value_schema(keyspace)

    def schema_table(self, keyspace: str) -> list[tuple[int, int, Any]]:
        """What the record decoder takes in a keyspace: (schema id, operation, schema document).

        Every registered version of its subject puts (0), `streams.Delete` deletes (1), `streams.Purge` purges (2).
        """
        known = self._view.keyspace(keyspace)
        builtin = load_builtin()
        declared = self._view.value_schema(known)
        puts = {found.schema.id: found.schema for found in self._view.versions(known.subject)}
        if declared is not None:
            puts.setdefault(declared.id, declared)
        specials = {builtin[DELETE].id: OP_DELETE, builtin[PURGE].id: OP_PURGE, builtin[TABLE_PURGE].id: OP_PURGE}
        table = [(schema.id, OP_PUT, schema.document) for schema in puts.values() if schema.id not in specials]
        return [*table, *((ident, op, self.schema(ident).document) for ident, op in specials.items())]

    def to_avro(self, keyspace: Keyspace | str, body: Any, now_ms: int | None = None) -> bytes:
        """A put's parsed JSON body as wire-format bytes; BadInput names the field, NotFound the keyspace."""
        known = self._view.keyspace(keyspace) if isinstance(keyspace, str) else keyspace
        return to_avro(known, body, self._view.value_schema(known), now_ms)

    def from_avro(self, value: bytes) -> Any:
        """The JSON value of wire-format bytes; BadInput when they are invalid or their schema is unknown."""
        return from_avro(value, self._view.schemas)

    async def wait_for(self, schema_ids: Collection[int], timeout_s: float) -> bool:
        """Whether all these ids are known, at once or within the time."""
        try:
            await self._until(lambda: all(ident in self._view.schemas for ident in schema_ids), timeout_s, "")
        except Timeout:
            return False
        return True

    # ---- writes: sequenced at home, visible here when they return

    async def register_schema(self, subject: str, schema: AvroSchema | str | Any) -> tuple[int, int]:
        """Register a schema as a subject's next version; returns (schema id, version). Idempotent.

        BadInput: no valid schema or subject. Incompatible (409): with the reasons. Conflict: its id is taken.
        """
        parsed = schema if isinstance(schema, AvroSchema) else parse_schema(schema)
        check_subject(subject)
        await self._write(lambda view: _registration(view, subject, parsed))
        await self._visible(lambda: self._view.lookup(subject, parsed) is not None)
        found = self._view.lookup(subject, parsed)
        assert found is not None
        return parsed.id, found.version

    async def put_keyspace(self, keyspace: Keyspace, schema: AvroSchema | None = None) -> Keyspace:
        """Define a keyspace, or change its TTL or mirroring; returns it as it is in force. Idempotent.

        `schema` is registered for its subject at once. BadInput: settings that do not fit, or no such schema.
        Conflict: it exists with another merge type, schema, number of partitions or consistency.
        """
        wanted = Keyspace.from_json(keyspace.to_json())
        if schema is not None:
            wanted = replace(wanted, schema=schema.name)
        elif wanted.schema == "streams.Json" and wanted.merge in _FOLDED:
            wanted = replace(wanted, schema=_FOLDED[wanted.merge])
        await self._write(lambda view: _keyspace_plan(view, wanted, schema))
        await self._visible(lambda: self._view.keyspaces.get(wanted.name) == wanted)
        return wanted

    async def set_level(self, level: str | None, subject: str = "") -> None:
        """Set a subject's compatibility level (no subject: everybody's); None takes it back."""
        wanted = None if level is None else check_level(level)
        entry = config_entry(check_subject(subject) if subject else "", wanted)
        await self._write(lambda view: [] if view.own_level(subject) == wanted else [entry])
        await self._visible(lambda: self._view.own_level(subject) == wanted)


def check_subject(subject: str) -> str:
    """`subject` itself, if it can be one; BadInput otherwise."""
    if not _SUBJECT.match(subject):
        raise BadInput(
            f"{subject[:80]!r} is not a subject", field="subject", fix="use 1 to 249 characters, no '/' or control ones"
        )
    return subject


def _registration(view: DefinitionsView, subject: str, schema: AvroSchema) -> list[Entry]:
    """What to append so that `schema` is the subject's latest version; nothing if it is a version already."""
    if view.lookup(subject, schema) is not None:
        return []
    SchemaSet([*view.schemas]).add(schema)
    reasons = view.incompatibilities(subject, schema)
    if reasons:
        raise Incompatible(subject, reasons)
    versions = view.versions(subject)
    number = versions[-1].version + 1 if versions else 1
    return [schema_entry(schema), version_entry(subject, number, schema.id)]


def _keyspace_plan(view: DefinitionsView, wanted: Keyspace, schema: AvroSchema | None) -> list[Entry]:
    if any(each.name == wanted.name for each in DERIVED):
        raise Conflict(f"{wanted.name} is a built-in table", field="name", fix="choose another name")
    known = view.keyspaces.get(wanted.name)
    if known is not None:
        for name in ("merge", "schema", "partitions", "consistency"):
            is_, asked = known.to_json()[name], wanted.to_json()[name]
            if is_ != asked:
                raise Conflict(
                    f"keyspace {wanted.name} has {name} {is_}, which cannot become {asked}",
                    field=name,
                    fix="make another keyspace; its TTL and mirroring may change",
                )
    entries = _schema_plan(view, wanted, schema)
    return entries if known == wanted else [*entries, keyspace_entry(wanted)]


def _schema_plan(view: DefinitionsView, wanted: Keyspace, schema: AvroSchema | None) -> list[Entry]:
    """Register the keyspace's schema, or check that it is there; it must be what the merge type folds."""
    builtin = load_builtin()
    if wanted.schema in (DELETE, PURGE, FRAME, TABLE_PURGE):
        raise BadInput(f"{wanted.schema} is the platform's own", field="schema", fix="choose a schema of values")
    declared = _FOLDED.get(wanted.merge)
    if declared is not None and wanted.schema != declared:
        raise BadInput(
            f"a {wanted.merge.label} keyspace holds {declared}, not {wanted.schema}",
            field="schema",
            fix=f"leave the schema out, or name {declared}",
        )
    chosen = schema or builtin.get(wanted.schema)
    if chosen is None:
        versions = view.versions(wanted.subject)
        if not versions or versions[-1].schema.name != wanted.schema:
            raise BadInput(
                f"subject {wanted.subject} has no schema {wanted.schema[:80]}",
                field="schema",
                fix="register the schema first, or use streams.Json",
            )
        return []
    if wanted.schema in builtin and chosen != builtin[wanted.schema]:
        reasons = unreadable(builtin[wanted.schema], chosen)
        if reasons:
            raise Incompatible(wanted.subject, reasons)
    return _registration(view, wanted.subject, chosen)


def _missing(view: DefinitionsView) -> list[Entry]:
    """The built-in definitions that are not there yet."""
    builtin = load_builtin()
    entries = []
    for name in (DELETE, PURGE):
        if view.lookup(name, builtin[name]) is None:
            entries += _registration(view, name, builtin[name])
    for keyspace in BUILTIN:
        if view.lookup(keyspace.subject, builtin[keyspace.schema]) is None:
            entries += _registration(view, keyspace.subject, builtin[keyspace.schema])
        if keyspace.name not in view.keyspaces:
            entries.append(keyspace_entry(keyspace))
    return list({entry.key: entry for entry in entries}.values())
