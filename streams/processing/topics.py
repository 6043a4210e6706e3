"""The topics that a keyspace lives on, and their settings."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from streams.kafka.admin import Admin, TopicSpec
from streams.model.errors import Conflict
from streams.model.fold_table import FoldTable, fold_tables
from streams.model.keyspace import Keyspace

RECORD_BYTES_MAX = 20 << 20
_HOUR_MS = 3_600_000
_RULED = ("retention.ms", "segment.ms")


@dataclass(frozen=True, slots=True)
class LogOptions:
    """How long logs keep what. Times in milliseconds, by the broker's append time.

    `margin_ms`: raw events outlive their keyspace's TTL by this, for workers that were down and tables built anew by
    replay. `default_ms`: raw events of keyspaces without a TTL, and dead letters. `compaction_lag_ms`,
    `compaction_lag_max_ms`: a changelog's record is not compacted before, and its segment at the latest after.
    `delete_retention_ms`: how long a changelog remembers that a row was removed. `table_segment_ms`,
    `table_segment_bytes`: when a changelog's segment is closed; only closed ones are compacted.
    """

    margin_ms: int = 24 * _HOUR_MS
    default_ms: int = 7 * 24 * _HOUR_MS
    compaction_lag_ms: int = 5 * 60_000
    compaction_lag_max_ms: int = 24 * _HOUR_MS
    delete_retention_ms: int = 24 * _HOUR_MS
    table_segment_ms: int = _HOUR_MS
    table_segment_bytes: int = 128 << 20

    def retention_ms(self, keyspace: Keyspace) -> int:
        """How long the keyspace's raw events are kept."""
        return self.default_ms if keyspace.ttl_ms is None else keyspace.ttl_ms + self.margin_ms


def keyspace_topics(keyspace: Keyspace, options: LogOptions = LogOptions()) -> list[TopicSpec]:
    """Events (the broker's append time), dead letters, and for each table that is folded from the events its changelog
    (compacted, not before minutes) and what its UDF puts out, which is kept as long as the events. A strong keyspace
    has none: its group's log holds all."""
    if keyspace.is_strong:
        return []
    size = {"max.message.bytes": str(RECORD_BYTES_MAX)}
    events = {**size, **_kept(options.retention_ms(keyspace))}
    return [
        TopicSpec(keyspace.events_topic, keyspace.partitions, events),
        TopicSpec(keyspace.dead_letter_topic, 1, {**size, **_kept(options.default_ms)}),
        *(spec for each in fold_tables([keyspace]) for spec in table_topics(each, options)),
    ]


def table_topics(table: FoldTable, options: LogOptions = LogOptions()) -> list[TopicSpec]:
    """The table's changelog, and what its UDF puts out, which is kept as long as the events."""
    size = {"max.message.bytes": str(RECORD_BYTES_MAX)}
    changelog = {
        "cleanup.policy": "compact",
        "min.compaction.lag.ms": str(options.compaction_lag_ms),
        "max.compaction.lag.ms": str(options.compaction_lag_max_ms),
        "delete.retention.ms": str(options.delete_retention_ms),
        "segment.ms": str(options.table_segment_ms),
        "segment.bytes": str(options.table_segment_bytes),
    }
    events = {**size, **_kept(options.retention_ms(table.keyspace))}
    return [
        TopicSpec(table.topic, table.partitions, {**size, **changelog}),
        *(TopicSpec(output, table.partitions, events) for output in table.outputs),
    ]


def _kept(retention_ms: int) -> dict[str, str]:
    # A segment goes as a whole, once its last record is old enough: eight of them keep what is over to an eighth.
    return {
        "message.timestamp.type": "LogAppendTime",
        "retention.ms": str(retention_ms),
        "segment.ms": str(min(7 * 24 * _HOUR_MS, max(1_000, retention_ms // 8))),
    }


async def ensure_keyspace_topics(
    admin: Admin, keyspaces: Iterable[Keyspace], options: LogOptions = LogOptions()
) -> None:
    """Create the missing topics; existing ones keep their settings (an operator may have changed them).

    Conflict when an existing topic has another number of partitions than its keyspace.
    """
    await _ensure(admin, [spec for keyspace in keyspaces for spec in keyspace_topics(keyspace, options)])


async def ensure_table_topics(admin: Admin, tables: Iterable[FoldTable], options: LogOptions = LogOptions()) -> None:
    """The same for the topics of deployed UDFs' tables."""
    await _ensure(admin, list({spec.name: spec for table in tables for spec in table_topics(table, options)}.values()))


async def _ensure(admin: Admin, specs: list[TopicSpec]) -> None:
    existing = await admin.topics([spec.name for spec in specs])
    for spec in specs:
        found = existing.get(spec.name)
        if found is not None and found.partitions != spec.partitions:
            raise Conflict(
                f"topic {spec.name} has {found.partitions} partitions, its keyspace or table {spec.partitions}",
                field="partitions",
                fix="a keyspace's partitions cannot change once its topics exist",
            )
    missing = [spec for spec in specs if spec.name not in existing]
    if missing:
        await admin.ensure_topics(missing)


async def follow_ttls(admin: Admin, keyspaces: Iterable[Keyspace], options: LogOptions = LogOptions()) -> list[str]:
    """Make the logs of raw events keep what their keyspaces' TTLs say; returns the topics whose settings changed.

    The definition rules: a retention that an operator set on such a topic is set back. Topics not there are left out.
    """
    wanted = {}
    for keyspace in keyspaces:
        names = {keyspace.events_topic, *(name for each in fold_tables([keyspace]) for name in each.outputs)}
        wanted.update({spec.name: spec.config for spec in keyspace_topics(keyspace, options) if spec.name in names})
    existing = await admin.topics(list(wanted))
    if not existing:
        return []
    actual = await admin.configs(list(existing))
    changes = {
        name: {key: wanted[name][key] for key in _RULED}
        for name in existing
        if any(actual[name].get(key) != wanted[name][key] for key in _RULED)
    }
    if changes:
        await admin.alter_configs(changes)
    return sorted(changes)
