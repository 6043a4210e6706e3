"""`Run`: a fetched stretch of one partition as raw, decompressed v2 record batches. No per-record Python anywhere."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from aiokafka import codec
from aiokafka.errors import CorruptRecordException
from aiokafka.record.control_record import ABORT_MARKER, ControlRecord
from aiokafka.record.default_records import DefaultRecordBatch
from aiokafka.record.util import calc_crc32c

HEADER_BYTES = 61
_HEADER = struct.Struct(">qiibIhiqqqhii")
_LENGTH = struct.Struct(">i")
_PREFIX_BYTES = 12
_CRC_FROM = 21
_ATTRIBUTES_AT = 21
_CODEC, _TIMESTAMP_TYPE, _TRANSACTIONAL, _CONTROL = 0x07, 0x08, 0x10, 0x20
_DECODERS = {
    1: codec.gzip_decode,
    2: codec.snappy_decode,
    3: codec.lz4_decode,
    4: codec.zstd_decode,
}


class TP(NamedTuple):
    """A topic's partition. Equal (and of equal hash) to aiokafka's and Faust's own tuples."""

    topic: str
    partition: int


@dataclass(frozen=True, slots=True)
class Run:
    """Committed data of one partition between two fetch positions.

    `[base, next)` is the stretch it covers; it may hold no batch at all (control batches, aborted or compacted data).
    `batches` are complete v2 record batches, decompressed (codec bits cleared; the CRC of a batch that came
    compressed is stale and must not be checked again). The first batch may begin *before* `base`, when the position
    was inside it: a decoder skips records with an offset < base. `fetched_at_ms` is the wall clock, ms since epoch.
    """

    topic: str
    partition: int
    base: int
    next: int
    batches: tuple[bytes, ...]
    high_watermark: int
    fetched_at_ms: int

    @property
    def tp(self) -> TP:
        """The partition."""
        return TP(self.topic, self.partition)

    @property
    def size_bytes(self) -> int:
        """Bytes of all batches, decompressed."""
        return sum(map(len, self.batches))

    @property
    def count(self) -> int:
        """Records in the batches by their headers (an upper bound when the first batch begins before `base`)."""
        return sum(_LENGTH.unpack_from(batch, 57)[0] for batch in self.batches)


class BatchHeader(NamedTuple):
    """The fixed header of a v2 record batch, in wire order."""

    base_offset: int
    length: int
    leader_epoch: int
    magic: int
    crc: int
    attributes: int
    last_offset_delta: int
    first_timestamp: int
    max_timestamp: int
    producer_id: int
    producer_epoch: int
    base_sequence: int
    records: int

    @property
    def next_offset(self) -> int:
        """The offset after the batch's last one, also when compaction removed its last records."""
        return self.base_offset + self.last_offset_delta + 1

    @property
    def log_append_time(self) -> bool:
        """Whether `max_timestamp` is the broker's append time of every record."""
        return bool(self.attributes & _TIMESTAMP_TYPE)


def batch_header(batch: bytes) -> BatchHeader:
    """Parse the header of one batch."""
    return BatchHeader(*_HEADER.unpack_from(batch))


def split_batches(buffer: bytes) -> Iterator[bytes]:
    """The complete batches of a fetch response's record set; a truncated last one is left out, as Kafka allows."""
    at, end = 0, len(buffer)
    while end - at >= _PREFIX_BYTES:
        stop = at + _PREFIX_BYTES + _LENGTH.unpack_from(buffer, at + 8)[0]
        if stop > end or stop <= at + _PREFIX_BYTES:
            return
        yield buffer if at == 0 and stop == end else buffer[at:stop]
        at = stop


def decompressed(batch: bytes, header: BatchHeader) -> bytes:
    """The batch with its records uncompressed and its codec bits cleared (its CRC is then stale)."""
    kind = header.attributes & _CODEC
    if not kind:
        return batch
    decode = _DECODERS.get(kind)
    if decode is None:
        raise CorruptRecordException(f"unknown compression codec {kind}")
    records = bytes(decode(batch[HEADER_BYTES:]))
    fixed = bytearray(batch[:HEADER_BYTES])
    _LENGTH.pack_into(fixed, 8, HEADER_BYTES - _PREFIX_BYTES + len(records))
    struct.pack_into(">h", fixed, _ATTRIBUTES_AT, header.attributes & ~_CODEC)
    return bytes(fixed) + records


def _is_abort(batch: bytes) -> bool:
    # Compaction may leave a control batch without its record (aiokafka raises on it for ever; Java reads on).
    control = next(iter(DefaultRecordBatch(batch)), None)
    return control is not None and bool(ControlRecord.parse(control.key) == ABORT_MARKER)


class CommittedFilter:
    """Which batches a read_committed reader sees, by the fetch response's aborted list (like aiokafka does)."""

    def __init__(self, aborted: Iterable[tuple[int, int]] | None) -> None:
        self._aborted = sorted(aborted or (), key=lambda entry: entry[1], reverse=True)
        self._producers: set[int] = set()

    def admits(self, batch: bytes, header: BatchHeader) -> bool:
        """Whether the batch is committed data (not aborted, not control). Call once per batch, in log order."""
        while self._aborted and self._aborted[-1][1] <= header.base_offset:
            self._producers.add(self._aborted.pop()[0])
        if header.attributes & _CONTROL:
            if header.producer_id in self._producers and _is_abort(batch):
                self._producers.discard(header.producer_id)
            return False
        return not (header.attributes & _TRANSACTIONAL and header.producer_id in self._producers)


def committed_batches(
    buffer: bytes, position: int, aborted: Iterable[tuple[int, int]] | None, *, read_committed: bool, check_crcs: bool
) -> tuple[tuple[bytes, ...], int]:
    """The decompressed committed batches of a fetched record set, and the position after it.

    Raises aiokafka's CorruptRecordException on a CRC mismatch or a batch that is not of format v2.
    """
    keep: list[bytes] = []
    committed = CommittedFilter(aborted if read_committed else None)
    for batch in split_batches(buffer):
        if len(batch) < HEADER_BYTES or batch[16] != 2:
            raise CorruptRecordException("not a v2 record batch")
        header = batch_header(batch)
        if check_crcs and calc_crc32c(memoryview(batch)[_CRC_FROM:]) != header.crc:
            raise CorruptRecordException(f"invalid CRC of the batch at offset {header.base_offset}")
        if committed.admits(batch, header) and header.next_offset > position and header.records > 0:
            keep.append(decompressed(batch, header))
        position = max(position, header.next_offset)
    return tuple(keep), position
