"""Rows: what a fold UDF writes for a key, in one replica. The binary layout is shared with the WASM SDK.

Little endian. Header, 32 bytes: u8 version (1), u8 merge type, u16 number of cells, u32 zero, u64 sequence number of
the commit, u64 hybrid time of the latest delete, u64 hybrid time of the latest event. Then per cell: u64 start, u64
last, i64 expiry in milliseconds, u32 payload length, payload.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

from streams.model.clock import NEVER_MS

ROW_VERSION = 1
CELLS_MAX = 16
_HEADER = struct.Struct("<BBHIQQQ")
_CELL = struct.Struct("<QQqI")
_SEQ = struct.Struct("<Q")
_COUNTER = struct.Struct("<qq")
_NUMBER = struct.Struct("<d")
HEADER_BYTES = _HEADER.size


class MergeType(IntEnum):
    """How the rows that several replicas hold for one key become one value."""

    LWW = 1
    COUNTER = 2
    MAX = 3
    MIN = 4
    SET = 5
    TEXT = 6
    OPAQUE = 127

    @property
    def label(self) -> str:
        """The name used in keyspaces and manifests: `lww`, `counter`, …"""
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Cell:
    """One life of a key in one replica: from its first event until it expires."""

    start_hlc: int
    last_hlc: int
    expires_ms: int
    payload: bytes

    @property
    def never_expires(self) -> bool:
        """Whether this cell has no expiry."""
        return self.expires_ms == NEVER_MS


@dataclass(frozen=True, slots=True)
class Row:
    """Everything one replica knows of a key. No cells: a delete that must still be remembered."""

    merge_type: MergeType
    seq: int
    deleted_hlc: int
    last_hlc: int
    cells: tuple[Cell, ...]


def decode_row(data: bytes) -> Row:
    """The row in `data`. ValueError when it is not exactly one row of a known version."""
    try:
        version, kind, n_cells, _, seq, deleted, last = _HEADER.unpack_from(data)
        if version != ROW_VERSION:
            raise ValueError(f"row version {version} is unknown")
        position = HEADER_BYTES
        cells = []
        for _ in range(n_cells):
            start, cell_last, expires, length = _CELL.unpack_from(data, position)
            position += _CELL.size
            payload = bytes(data[position : position + length])
            position += length
            cells.append(Cell(start, cell_last, expires, payload))
    except struct.error as error:
        raise ValueError(f"row is truncated: {error}") from None
    if position != len(data):
        raise ValueError(f"row has {len(data)} bytes, its cells need {position}")
    return Row(MergeType(kind), seq, deleted, last, tuple(cells))


def encode_row(row: Row) -> bytes:
    """The inverse of `decode_row`."""
    parts = [
        _HEADER.pack(ROW_VERSION, row.merge_type, len(row.cells), 0, row.seq, row.deleted_hlc, row.last_hlc),
    ]
    for cell in row.cells:
        parts.append(_CELL.pack(cell.start_hlc, cell.last_hlc, cell.expires_ms, len(cell.payload)))
        parts.append(cell.payload)
    return b"".join(parts)


def patch_seq(data: bytes, seq: int) -> bytes:
    """`data` with its commit sequence number set to `seq`."""
    return data[:8] + _SEQ.pack(seq) + data[16:]


def seq_of(data: bytes) -> int:
    """The commit sequence number of an encoded row, without decoding the rest."""
    return int.from_bytes(data[8:16], "little")


def counter_payload(positive: int, negative: int) -> bytes:
    """Payload of a counter's cell: both sums are at least 0; the value is their difference."""
    return _COUNTER.pack(positive, negative)


def counter_sums(payload: bytes) -> tuple[int, int]:
    """The positive and the negative sum in a counter's cell."""
    positive, negative = _COUNTER.unpack(payload)
    return positive, negative


def number_payload(value: float) -> bytes:
    """Payload of a `max` or `min` cell."""
    return _NUMBER.pack(value)


def number_of(payload: bytes) -> float:
    """The number in a `max` or `min` cell."""
    (value,) = _NUMBER.unpack(payload)
    return float(value)
