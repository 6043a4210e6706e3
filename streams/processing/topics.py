"""The topics that a keyspace lives on, and their settings."""

from __future__ import annotations

from collections.abc import Iterable

from streams.kafka.admin import Admin, TopicSpec
from streams.model.errors import Conflict
from streams.model.fold_table import fold_tables
from streams.model.keyspace import Keyspace

RECORD_BYTES_MAX = 20 << 20
EVENTS_RETENTION_MS = 7 * 24 * 3_600_000
COMPACTION_LAG_MS = 5 * 60_000
DELETE_RETENTION_MS = 24 * 3_600_000
TABLE_SEGMENT_MS = 3_600_000


def keyspace_topics(keyspace: Keyspace) -> list[TopicSpec]:
    """Events (the broker's append time), dead letters, and for each table that is folded from the events its changelog
    (compacted, not before minutes) and what its UDF puts out. A strong keyspace has none: its group's log holds all."""
    if keyspace.is_strong:
        return []
    size = {"max.message.bytes": str(RECORD_BYTES_MAX)}
    appended = {"message.timestamp.type": "LogAppendTime"}
    retention = {"retention.ms": str(EVENTS_RETENTION_MS)}
    table = {
        "cleanup.policy": "compact",
        "min.compaction.lag.ms": str(COMPACTION_LAG_MS),
        "delete.retention.ms": str(DELETE_RETENTION_MS),
        "segment.ms": str(TABLE_SEGMENT_MS),
    }
    events = {**size, **appended, **retention}
    tables = fold_tables([keyspace])
    return [
        TopicSpec(keyspace.events_topic, keyspace.partitions, events),
        TopicSpec(keyspace.dead_letter_topic, 1, events),
        *(TopicSpec(each.topic, each.partitions, {**size, **table}) for each in tables),
        *(TopicSpec(output, each.partitions, events) for each in tables for output in each.outputs),
    ]


async def ensure_keyspace_topics(admin: Admin, keyspaces: Iterable[Keyspace]) -> None:
    """Create the missing topics; existing ones keep their settings (an operator may have changed them).

    Conflict when an existing topic has another number of partitions than its keyspace.
    """
    specs = [spec for keyspace in keyspaces for spec in keyspace_topics(keyspace)]
    existing = await admin.topics([spec.name for spec in specs])
    for spec in specs:
        found = existing.get(spec.name)
        if found is not None and found.partitions != spec.partitions:
            raise Conflict(
                f"topic {spec.name} has {found.partitions} partitions, its keyspace {spec.partitions}",
                field="partitions",
                fix="a keyspace's partitions cannot change once its topics exist",
            )
    missing = [spec for spec in specs if spec.name not in existing]
    if missing:
        await admin.ensure_topics(missing)
