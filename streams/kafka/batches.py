"""Building v2 record batches from rows of (key, value, headers)."""

from __future__ import annotations

import struct
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.util import calc_crc32c, encode_varint

from streams.model.errors import TooLarge

# Offset, length, leader epoch, magic, CRC; and from where the CRC counts on: attributes, last delta, times, producer.
_HEAD, _COUNTED = struct.Struct(">qiibI"), struct.Struct(">hiqqqhii")
HEADER_BYTES = _HEAD.size + _COUNTED.size
_LENGTH_FROM = 12
_TRANSACTIONAL = 0x10

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

    @property
    def size_bytes(self) -> int:
        """How long it is."""
        return len(self.data)


@dataclass(frozen=True, slots=True)
class EncodedBatch:
    """Records of one batch, encoded by whoever has them in columns: `parts` one after the other, `count` of them with
    offset deltas from 0 on and time deltas 0."""

    parts: Sequence[bytes | memoryview]
    count: int


@dataclass(frozen=True, slots=True)
class EncodedRecords:
    """Records in batches, each of which fits (its header takes HEADER_BYTES more). At least one."""

    batches: Sequence[EncodedBatch]

    def __len__(self) -> int:
        return sum(batch.count for batch in self.batches)


def encoded_record(delta: int, key: bytes, value: bytes) -> bytes:
    """One record without headers, `delta` after its batch's first: for the end of an EncodedBatch."""
    body = bytearray(b"\0\0")
    for number, data in ((delta, b""), (len(key), key), (len(value), value)):
        encode_varint(number, body.append)
        body += data
    body.append(0)
    length = bytearray()
    encode_varint(len(body), length.append)
    return bytes(length + body)


@dataclass(frozen=True, slots=True)
class FramedBatch:
    """A batch whose bytes are put together when they are sent, each time the same: a large unit's, all at once, would
    be its third copy in memory.
    """

    encoded: EncodedBatch
    state: ProducerState
    sequence: int
    now_ms: int

    @property
    def count(self) -> int:
        """How many records it has."""
        return self.encoded.count

    @property
    def size_bytes(self) -> int:
        """How long it is."""
        return HEADER_BYTES + sum(map(len, self.encoded.parts))

    @property
    def data(self) -> bytes:
        """The batch, ready to be produced."""
        state, count = self.state, self.encoded.count
        attributes = _TRANSACTIONAL if state.transactional else 0
        producer = state.producer_id, state.epoch, self.sequence
        counted = _COUNTED.pack(attributes, count - 1, self.now_ms, self.now_ms, *producer, count)
        body = b"".join((counted, *self.encoded.parts))
        return _HEAD.pack(0, len(body) + _HEAD.size - _LENGTH_FROM, -1, 2, calc_crc32c(body)) + body


AnyBatch = Batch | FramedBatch


def frame_batches(
    records: EncodedRecords, state: ProducerState, first_sequence: int, batch_bytes: int
) -> list[FramedBatch]:
    """As `encode_batches`, of records that are encoded."""
    now_ms = time.time_ns() // 1_000_000
    batches: list[FramedBatch] = []
    sequence = first_sequence
    for each in records.batches:
        batch = FramedBatch(each, state, sequence, now_ms)
        _check_size(batch.size_bytes, batch_bytes)
        batches.append(batch)
        sequence = (sequence + each.count) & 0x7FFFFFFF
    return batches


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
    _check_size(len(data), batch_bytes)
    return Batch(data, count)


def _check_size(size: int, batch_bytes: int) -> None:
    if size > batch_bytes:
        raise TooLarge(f"a record of {size} bytes does not fit a batch of {batch_bytes} bytes", field="value")
