"""RowEncoder: the rows of a unit -> records of Kafka's record batches, by a trusted module: no object per record.

It holds the opposite of what `decoder` reads. What makes a record batch of the records (header, CRC) is the writer's.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from streams.model.errors import StreamsError
from streams.wasm.builtin import builtin_module
from streams.wasm.engine import Limits, ModuleCache, UdfTrap
from streams.wasm.guest import Guest
from streams.wasm.packed_rows import Longs, PackedRows, RowChunk

_HEAD = struct.Struct("<QIIII")
_OUT = struct.Struct("<IIIIII")
_LIMITS = Limits(memory_bytes=2 << 30, deadline_s=30.0, output_bytes=1 << 30)
BUDGET_BYTES = 48 << 20
"""The instance is renewed when a chunk has grown its memory beyond this."""


@dataclass(frozen=True, slots=True)
class RecordBatch:
    """Records of one batch, encoded: `parts` one after the other, `count` of them in `size_bytes`."""

    parts: Sequence[bytes | memoryview]
    count: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class _Encoded:
    chunk: RowChunk
    records: bytes
    row_at: Longs


class EncodedRows(Collection[tuple[bytes, bytes | None]]):
    """The rows as they were encoded, stamped with their commit; objects are made while they are looked at."""

    def __init__(self, rows: PackedRows, encoded: Sequence[_Encoded]) -> None:
        self._rows, self._encoded = rows, encoded

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, row: object) -> bool:
        return any(each == row for each in self)

    def __iter__(self) -> Iterator[tuple[bytes, bytes | None]]:
        for number, each in enumerate(self._encoded):
            chunk, records = each.chunk, each.records
            ends = each.row_at + np.diff(chunk.row_ends, prepend=0)
            rows: list[bytes | None] = [
                records[at:end] for at, end in zip(each.row_at.tolist(), ends.tolist(), strict=True)
            ]
            if not bool(chunk.present.all()):
                for at in np.flatnonzero(~chunk.present).tolist():
                    rows[at] = None
            pairs = zip(chunk.keys(), rows, strict=True)
            if self._rows.skip is None:
                yield from pairs
            else:
                left_out = self._rows.skip[number].tolist()
                yield from (pair for pair, left in zip(pairs, left_out, strict=True) if not left)

    @property
    def size_bytes(self) -> int:
        """What keys and rows come to, with where they begin and end."""
        return self._rows.size_bytes


class RowEncoder:
    """Encodes units with one instance of the module, kept between calls. Not thread-safe."""

    def __init__(self, cache: ModuleCache) -> None:
        self._cache = cache
        self._compiled = cache.load(builtin_module("row_encoder"))
        self._guest: Guest | None = None

    def encode(self, rows: PackedRows, seq: int, batch_bytes: int) -> tuple[EncodedRows, list[RecordBatch]]:
        """The rows with `seq` in them, and their records in batches whose records take at most `batch_bytes` (a batch
        always has one). A removed row is a record without a value, with a header `seq` of 8 bytes."""
        try:
            return self._encode(rows, seq, batch_bytes)
        except UdfTrap as trap:
            self.close()
            raise StreamsError(f"row encoder stopped: {trap.detail}") from trap

    def _encode(self, rows: PackedRows, seq: int, batch_bytes: int) -> tuple[EncodedRows, list[RecordBatch]]:
        encoded: list[_Encoded] = []
        batches: list[RecordBatch] = []
        parts: list[bytes | memoryview] = []
        size = count = 0
        for number, chunk in enumerate(rows.chunks):
            skip = None if rows.skip is None else rows.skip[number].tobytes()
            head = _HEAD.pack(seq, batch_bytes, size, count, len(chunk) if skip is not None else 0)
            records, cuts, row_at, size, count = self._call(head, skip or b"", chunk)
            encoded.append(_Encoded(chunk, records, row_at))
            begin, view = 0, memoryview(records)
            for end, in_batch in cuts:
                parts.append(view[begin:end])
                batches.append(RecordBatch(parts, in_batch, sum(map(len, parts))))
                parts, begin = [], end
            parts.append(view[begin:] if begin else records)
        if count:
            batches.append(RecordBatch(parts, count, size))
        return EncodedRows(rows, encoded), batches

    def _call(self, head: bytes, skip: bytes, chunk: RowChunk) -> tuple[bytes, list[tuple[int, int]], Longs, int, int]:
        if self._guest is None:
            self._guest = Guest(self._compiled, _LIMITS, self._cache.host)
        guest = self._guest
        out = guest.call("streams_encode", *guest.put(head, skip, chunk.data))
        if not out:
            raise StreamsError("the row encoder refused its input")
        at, length, cuts_at, n_cuts, size, count = _OUT.unpack(guest.read(out, _OUT.size))
        records, facts = guest.read(at, length), guest.read(cuts_at, 8 * n_cuts + 4 * len(chunk))
        cuts = [(cut, in_batch) for cut, in_batch in struct.iter_unpack("<II", facts[: 8 * n_cuts])]
        row_at = np.frombuffer(facts, "<u4", len(chunk), 8 * n_cuts).astype(np.int64)
        if guest.memory_bytes > BUDGET_BYTES:
            self.close()
        return records, cuts, row_at, size, count

    def close(self) -> None:
        """Frees the instance; the next call makes another."""
        if self._guest is not None:
            self._guest.close()
            self._guest = None
