"""Building v2 record batches from rows of (key, value, headers)."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from aiokafka.record.default_records import DefaultRecordBatchBuilder

from streams.model.errors import TooLarge

#: Header names are text, values bytes or None.
Headers = Sequence[tuple[str, bytes | None]]
#: (key, value, headers); a None value is a tombstone.
Record = tuple[bytes | None, bytes | None, Headers]


@dataclass(frozen=True)
class ProducerState:
    """Who writes: the ids that make a batch idempotent, and whether it belongs to a transaction."""

    producer_id: int
    epoch: int
    transactional: bool


@dataclass(frozen=True)
class Batch:
    """One encoded batch, ready to be produced."""

    data: bytes
    count: int


def encode_batches(
    records: Iterable[Record], state: ProducerState, first_sequence: int, batch_bytes: int
) -> list[Batch]:
    """The records as batches of at most `batch_bytes` (a batch always takes one record), timestamped now.

    Sequences run on from `first_sequence`, wrapping after 2**31-1 as Kafka does. TooLarge if one record is over.
    """
    now_ms = time.time_ns() // 1_000_000
    batches: list[Batch] = []
    sequence, count, builder = first_sequence, 0, None
    nothing: list[tuple[str, bytes | None]] = []
    for key, value, given in records:
        headers = (given if type(given) is list else list(given)) if given else nothing
        if builder is not None and builder.append(count, now_ms, key, value, headers) is not None:
            count += 1
            continue
        if builder is not None:
            batches.append(_built(builder, count, batch_bytes))
            sequence = (sequence + count) & 0x7FFFFFFF
        builder = DefaultRecordBatchBuilder(
            2, 0, int(state.transactional), state.producer_id, state.epoch, sequence, batch_bytes
        )
        builder.append(0, now_ms, key, value, headers)
        count = 1
    if builder is not None:
        batches.append(_built(builder, count, batch_bytes))
    return batches


def _built(builder: DefaultRecordBatchBuilder, count: int, batch_bytes: int) -> Batch:
    data = bytes(builder.build())
    if len(data) > batch_bytes:
        raise TooLarge(f"a record of {len(data)} bytes does not fit a batch of {batch_bytes} bytes", field="value")
    return Batch(data, count)
