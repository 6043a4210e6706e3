"""The records of the definitions topic: what a key means and what its value holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from streams.model.errors import BadInput
from streams.model.keyspace import Keyspace
from streams.serde import AvroSchema, dump_json, parse_json

KINDS = ("schema", "version", "keyspace", "config")


@dataclass(frozen=True, slots=True)
class Entry:
    """One definition: `key` as in `keyspace/score`, `value` its JSON object, None to take it back."""

    key: str
    value: Mapping[str, Any] | None

    @property
    def kind(self) -> str:
        """What is defined: one of `KINDS`, or something a newer version wrote."""
        return self.key.partition("/")[0]

    @property
    def name(self) -> str:
        """What stands after the kind."""
        return self.key.partition("/")[2]

    def record(self) -> tuple[bytes, bytes | None, list[tuple[str, bytes | None]]]:
        """The Kafka record: key, value, headers."""
        return self.key.encode(), None if self.value is None else dump_json(self.value), []


def decode_entry(key: bytes | None, value: bytes | None) -> Entry:
    """The entry of a Kafka record; BadInput when it is none."""
    try:
        name = (key or b"").decode()
    except UnicodeDecodeError:
        raise BadInput("the key is not UTF-8", field="key") from None
    if not name:
        raise BadInput("the record has no key", field="key")
    if value is None:
        return Entry(name, None)
    body = parse_json(value, field="value")
    if not isinstance(body, dict):
        raise BadInput("the value is not a JSON object", field="value")
    return Entry(name, body)


def schema_entry(schema: AvroSchema) -> Entry:
    """Defines what a schema id stands for."""
    return Entry(f"schema/{schema.id}", {"id": schema.id, "schema": schema.text})


def version_entry(subject: str, version: int, schema_id: int) -> Entry:
    """Defines a version (1, 2, …) of a subject."""
    return Entry(f"version/{subject}/{version}", {"subject": subject, "version": version, "id": schema_id})


def keyspace_entry(keyspace: Keyspace) -> Entry:
    """Defines a keyspace."""
    return Entry(f"keyspace/{keyspace.name}", keyspace.to_json())


def config_entry(subject: str, level: str | None) -> Entry:
    """Sets a subject's compatibility level (subject empty: everybody's), or with None takes it back."""
    return Entry(f"config/{subject}", None if level is None else {"compatibility": level})
