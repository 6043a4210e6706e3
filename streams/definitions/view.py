"""`DefinitionsView`: what the definitions say, after the entries that were applied so far."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass

from streams.definitions.entries import Entry
from streams.model.errors import NotFound, StreamsError
from streams.model.keyspace import Keyspace
from streams.serde import (
    DEFAULT_LEVEL,
    AvroSchema,
    SchemaSet,
    check_level,
    compatibility,
    load_builtin,
    parse_schema,
    unreadable,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Version:
    """A registered version of a subject; versions count from 1."""

    subject: str
    version: int
    schema: AvroSchema


class DefinitionsView:
    """Schemas, subjects, keyspaces and compatibility levels. Entries may come more than once; the last one counts."""

    def __init__(self) -> None:
        self.schemas = SchemaSet(load_builtin().values())
        self.keyspaces: dict[str, Keyspace] = {}
        self.invalid: dict[str, str] = {}
        self._versions: dict[str, dict[int, int]] = {}
        self._levels: dict[str, str] = {}

    def apply(self, entries: Iterable[Entry]) -> list[Entry]:
        """Take entries in; returns those that say something. One that cannot be read is logged, kept in `invalid`."""
        taken = []
        for entry in entries:
            try:
                self._apply(entry)
            except (StreamsError, KeyError, TypeError, ValueError) as error:
                self.invalid[entry.key] = f"{type(error).__name__}: {error}"
                log.error("definition %s cannot be used: %s", entry.key, self.invalid[entry.key])
            else:
                self.invalid.pop(entry.key, None)
                taken.append(entry)
        return taken

    def subjects(self) -> list[str]:
        """All subjects, sorted."""
        return sorted(self._versions)

    def versions(self, subject: str) -> list[Version]:
        """A subject's versions, oldest first; empty when there is no such subject."""
        found = []
        for number, schema_id in sorted(self._versions.get(subject, {}).items()):
            schema = self.schemas.get(schema_id)
            if schema is not None:
                found.append(Version(subject, number, schema))
        return found

    def lookup(self, subject: str, schema: AvroSchema) -> Version | None:
        """The version of a subject that is exactly this schema, or None."""
        return next((found for found in self.versions(subject) if found.schema == schema), None)

    def level(self, subject: str = "") -> str:
        """A subject's compatibility level; where it has none of its own, everybody's."""
        return self._levels.get(subject) or self._levels.get("", DEFAULT_LEVEL)

    def own_level(self, subject: str) -> str | None:
        """The level that was set for exactly this subject (empty: for everybody), or None."""
        return self._levels.get(subject)

    def keyspace(self, name: str) -> Keyspace:
        """The keyspace called `name`; NotFound otherwise."""
        found = self.keyspaces.get(name)
        if found is None:
            raise NotFound(f"there is no keyspace {name[:80]!r}", field="key", fix=f"PUT /v1/keyspaces/{name[:80]}")
        return found

    def value_schema(self, keyspace: Keyspace) -> AvroSchema | None:
        """What values of a keyspace are written with: its built-in schema, or its subject's latest version."""
        builtin = load_builtin().get(keyspace.schema)
        if builtin is not None:
            return builtin
        versions = self.versions(keyspace.subject)
        return versions[-1].schema if versions else None

    def incompatibilities(self, subject: str, schema: AvroSchema) -> list[str]:
        """Why `schema` must not become the subject's next version; empty when it may.

        On top of the level: whatever is put into a built-in keyspace must be readable as its declared schema, since
        the UDF that folds it reads only that.
        """
        olds = [found.schema for found in self.versions(subject)]
        reasons = compatibility(schema, olds, self.level(subject))
        for keyspace in self.keyspaces.values():
            declared = load_builtin().get(keyspace.schema)
            if keyspace.subject == subject and declared is not None:
                found = unreadable(declared, schema)
                reasons += [f"keyspace {keyspace.name} reads {declared.name}: {reason}" for reason in found]
        return list(dict.fromkeys(reasons))

    def _apply(self, entry: Entry) -> None:
        kind, value = entry.kind, entry.value
        if value is None:
            self._remove(kind, entry.name)
        elif kind == "schema":
            schema = parse_schema(str(value["schema"]))
            if str(schema.id) != entry.name:
                raise ValueError(f"the id {entry.name} is not the fingerprint of its schema, {schema.id}")
            self.schemas.add(schema)
        elif kind == "version":
            subject, number, schema_id = str(value["subject"]), int(value["version"]), int(value["id"])
            if entry.name != f"{subject}/{number}":
                raise ValueError("key and value name different versions")
            self._versions.setdefault(subject, {})[number] = schema_id
        elif kind == "keyspace":
            keyspace = Keyspace.from_json(value)
            if keyspace.name != entry.name:
                raise ValueError("key and value name different keyspaces")
            self.keyspaces[keyspace.name] = keyspace
        elif kind == "config":
            self._levels[entry.name] = check_level(value["compatibility"])

    def _remove(self, kind: str, name: str) -> None:
        if kind == "keyspace":
            self.keyspaces.pop(name, None)
        elif kind == "config":
            self._levels.pop(name, None)
        elif kind in ("schema", "version"):
            raise ValueError("schemas and versions are never removed: logs carry their ids")
