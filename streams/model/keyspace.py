"""Keyspaces: the settings that a key's first part names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from streams.model.errors import BadInput
from streams.model.keys import check_name
from streams.model.row import MergeType
from streams.model.ttl import check_ttl_ms

CONSISTENCIES = ("eventual", "causal", "strong")
PARTITIONS_MAX = 256


@dataclass(frozen=True, slots=True)
class Keyspace:
    """Settings of one keyspace.

    `merge`: how regions' rows become one value. `schema`: full name of the Avro schema of its values. `ttl_ms`: default
    time to live, None for none. `consistency`: one of `CONSISTENCIES`. `mirror`: `rows`, or `events` to mirror raw
    events too.
    """

    name: str
    merge: MergeType = MergeType.LWW
    schema: str = "streams.Json"
    partitions: int = 2
    ttl_ms: int | None = None
    consistency: str = "eventual"
    mirror: str = "rows"

    @property
    def is_strong(self) -> bool:
        """Whether its writes are commands in one sequence; it has no events topic then, and no changelog."""
        return self.consistency == "strong"

    @property
    def events_topic(self) -> str:
        """The topic that every put of this keyspace is appended to."""
        return f"events.{self.name}"

    @property
    def table_topic(self) -> str:
        """The compacted changelog of its table."""
        return f"table.{self.name}"

    @property
    def dead_letter_topic(self) -> str:
        """Where events go that no UDF could take."""
        return f"dead-letter.{self.name}"

    @property
    def subject(self) -> str:
        """The schema subject of its values."""
        return f"events.{self.name}-value"

    def to_json(self) -> dict[str, object]:
        """The form kept in definitions and shown over HTTP."""
        return {
            "name": self.name,
            "merge": self.merge.label,
            "schema": self.schema,
            "partitions": self.partitions,
            "ttl_ms": self.ttl_ms,
            "consistency": self.consistency,
            "mirror": self.mirror,
        }

    @classmethod
    def from_json(cls, body: Mapping[str, object]) -> Keyspace:
        """A keyspace from `to_json`'s form; BadInput names the field that is wrong."""
        name = check_name(str(body.get("name", "")), field="name")
        label = str(body.get("merge", "lww"))
        types = {kind.label: kind for kind in MergeType}
        if label not in types:
            raise BadInput(f"{label[:40]!r} is no merge type", field="merge", fix=f"use one of {', '.join(types)}")
        partitions = body.get("partitions", 2)
        if type(partitions) is not int or not 1 <= partitions <= PARTITIONS_MAX:
            raise BadInput("partitions is out of range", field="partitions", fix=f"use 1 to {PARTITIONS_MAX}")
        ttl_ms = body.get("ttl_ms")
        if ttl_ms is not None and type(ttl_ms) is not int:
            raise BadInput("ttl_ms is not a whole number", field="ttl_ms", fix="give milliseconds, or leave it out")
        consistency = str(body.get("consistency", "eventual"))
        if consistency not in CONSISTENCIES:
            raise BadInput(
                f"{consistency[:40]!r} is no consistency",
                field="consistency",
                fix=f"use one of {', '.join(CONSISTENCIES)}",
            )
        mirror = str(body.get("mirror", "rows"))
        if mirror not in ("rows", "events"):
            raise BadInput(f"{mirror[:40]!r} is not mirrored", field="mirror", fix="use rows or events")
        return cls(
            name,
            types[label],
            str(body.get("schema", "streams.Json")),
            partitions,
            None if ttl_ms is None else check_ttl_ms(ttl_ms, field="ttl_ms"),
            consistency,
            mirror,
        )


BUILTIN = (
    Keyspace("score", MergeType.COUNTER, "streams.CounterAdd"),
    Keyspace("best", MergeType.MAX, "streams.Number"),
    Keyspace("device", MergeType.LWW, "streams.Reading", ttl_ms=86_400_000),
    Keyspace("prefs"),
    Keyspace("content"),
    Keyspace("kv"),
    Keyspace("strong", partitions=1, consistency="strong"),
)
"""The keyspaces that every system starts with."""

RESERVED = {"order": "its keys are orders of the books, in a log of their own"}
"""Names that will mean something particular, and why they cannot be used now."""
