"""Hand-made record batches for the unit tests of the Kafka room (built with aiokafka's own builder)."""

from __future__ import annotations

import struct

from aiokafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder
from aiokafka.record.util import calc_crc32c

from streams.kafka.run import TP, Run

TOPIC = TP("table.score", 0)
Row = tuple[bytes | None, bytes | None, list[tuple[str, bytes | None]]]


def batch(base: int, rows: list[Row], *, producer: int = -1, transactional: bool = False, codec: int = 0) -> bytes:
    """A batch as a broker would store it at offset `base`."""
    builder = DefaultRecordBatchBuilder(2, codec, int(transactional), producer, 0, 0, 1 << 20)
    for i, (key, value, headers) in enumerate(rows):
        builder.append(i, 1_000 + i, key, value, headers)
    data = bytearray(builder.build())
    struct.pack_into(">q", data, 0, base)
    return bytes(data)


def control(base: int, producer: int, *, commit: bool) -> bytes:
    """A control batch: the marker that ends a transaction."""
    data = bytearray(batch(base, [(struct.pack(">hh", 0, int(commit)), b"\0" * 6, [])], producer=producer))
    attributes = struct.unpack_from(">h", data, 21)[0] | 0x30
    struct.pack_into(">h", data, 21, attributes)
    struct.pack_into(">I", data, 17, calc_crc32c(bytes(data[21:])))
    return bytes(data)


def emptied(data: bytes) -> bytes:
    """The batch as compaction leaves it when all its records are gone: a header alone."""
    head = bytearray(data[:61])
    struct.pack_into(">i", head, 8, 49)
    struct.pack_into(">i", head, 57, 0)
    struct.pack_into(">I", head, 17, calc_crc32c(bytes(head[21:])))
    return bytes(head)


def run_of(base: int, *batches: bytes, following: int | None = None) -> Run:
    """A Run of TOPIC made of these batches."""
    end = following if following is not None else DefaultRecordBatch(batches[-1]).next_offset
    return Run(TOPIC.topic, TOPIC.partition, base, end, batches, end, 0)
