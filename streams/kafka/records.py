"""Single records out of Runs, for readers that show events one by one (subscriptions, tests)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from aiokafka.record.default_records import DefaultRecordBatch

from streams.kafka.batches import Headers
from streams.kafka.run import Run


@dataclass(frozen=True, slots=True)
class EventRecord:
    """One record as it is in the log. `timestamp_ms`: the append time on LogAppendTime topics."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: Headers


def records_of(run: Run) -> Iterator[EventRecord]:
    """The records that a Run covers, in order; those before its base are left out."""
    for batch in run.batches:
        for record in DefaultRecordBatch(batch):
            if record.offset >= run.base:
                yield EventRecord(
                    run.topic, run.partition, record.offset, record.timestamp, record.key, record.value, record.headers
                )
