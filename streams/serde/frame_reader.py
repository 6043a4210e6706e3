"""Reading frames in Python, for those who show puts one by one; the workers' reader is record_decoder."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from streams.model.errors import BadInput
from streams.serde.codec import decode_body, wire_schema_id
from streams.serde.frame_columns import BOOLEAN, BYTES, DOUBLE, LONG, RAW, Array
from streams.serde.frames import FRAME_COLUMNS_MAX, FRAME_EXPANSION_MAX, FRAME_PUTS_MAX
from streams.serde.schemas import FRAME, load_builtin

_TYPES = {LONG: "<i8", DOUBLE: "<f8", BOOLEAN: "u1"}
_PREFIX = struct.Struct(">BI")
_WIDTHS = {1: "u1", 2: "<u2", 4: "<u4", 8: "<u8"}


@dataclass(frozen=True, slots=True)
class FrameColumns:
    """A frame's puts. `ttl_ms`: one for all, one per put (0: none given), or None. Rows are cut out when asked for."""

    schema_id: int
    count: int
    ttl_ms: int | Array | None
    key_cells: list[bytes]
    value_cells: list[list[bytes]]

    def keys(self) -> list[bytes]:
        """Each put's key, unchecked."""
        return self.key_cells

    def values(self) -> list[bytes]:
        """Each put's value in wire format."""
        prefix = _PREFIX.pack(0, self.schema_id & 0xFFFFFFFF)
        if not self.value_cells:
            return [prefix] * self.count
        return [prefix + b"".join(row) for row in zip(*self.value_cells, strict=True)]

    def ttl_of(self, index: int) -> int | None:
        """The TTL that the frame gives to a put, None when it gives none."""
        if isinstance(self.ttl_ms, np.ndarray):
            return int(self.ttl_ms[index]) or None
        return self.ttl_ms or None


def decode_frame(value: bytes) -> FrameColumns:
    """The puts of a frame. BadInput names what does not fit: `count`, `keys.codes`, `values[1].data`…"""
    schema = load_builtin()[FRAME]
    if wire_schema_id(value) != schema.id:
        raise BadInput("the value is no frame", field="value", fix="look with is_frame first")
    frame = decode_body(schema, value)
    count, columns = frame["count"], frame["values"]
    if not 1 <= count <= min(FRAME_PUTS_MAX, len(value)):
        _bad("count", f"{count} puts in {len(value)} bytes")
    if len(columns) > FRAME_COLUMNS_MAX:
        _bad("values", f"over {FRAME_COLUMNS_MAX} columns")
    budget = _Budget(FRAME_EXPANSION_MAX * len(value))
    if frame["keys"]["kind"] != BYTES:
        _bad("keys.kind", "keys are BYTES")
    keys = _texts(frame["keys"], count, "keys", budget, sized=False)
    ttl_ms = frame["ttl_ms"]
    if isinstance(ttl_ms, dict):
        if ttl_ms["kind"] != LONG:
            _bad("ttl_ms.kind", "TTLs are LONG")
        ttl_ms = _numbers(ttl_ms, count, "ttl_ms")
    cells = [_cells(each, count, f"values[{i}]", budget) for i, each in enumerate(columns)]
    return FrameColumns(frame["schema_id"], count, ttl_ms, keys, cells)


class _Budget:
    """What a frame's cells may still expand to, counting 10 bytes for a LONG and no lengths."""

    def __init__(self, left: int) -> None:
        self._left = left

    def spend(self, size: int) -> None:
        """Take `size` bytes; BadInput when there are not so many left."""
        self._left -= size
        if self._left < 0:
            _bad("count", f"the puts take over {FRAME_EXPANSION_MAX} times the frame's bytes")


def _cells(column: dict[str, Any], count: int, field: str, budget: _Budget) -> list[bytes]:
    """Each put's cell as Avro."""
    kind = column["kind"]
    if kind in (BYTES, RAW):
        return _texts(column, count, field, budget, sized=kind == BYTES)
    numbers = _numbers(column, count, field)
    if kind == LONG:
        budget.spend(10 * count)
        return [_long(number) for number in numbers.tolist()]
    raw = numbers.tobytes()
    budget.spend(len(raw))
    width = numbers.dtype.itemsize
    return [raw[at : at + width] for at in range(0, len(raw), width)]


def _numbers(column: dict[str, Any], count: int, field: str) -> Array:
    kind, encoding = column["kind"], column["encoding"]
    if column["lengths"]:
        _bad(f"{field}.lengths", "numbers have no lengths")
    if encoding == "OFFSET":
        if kind != LONG:
            _bad(f"{field}.encoding", f"no OFFSET of {kind}")
        if column["items"] or column["data"]:
            _bad(f"{field}.items", "OFFSET has none")
        codes = _codes(column, count, field, (1, 2, 4, 8))
        base = np.array(column["base"], "<i8").view("<u8")
        offsets: Array = codes.astype("<u8") + base
        return offsets.view("<i8")
    items = _items(column, count, field)
    width = np.dtype(_TYPES[kind]).itemsize
    if len(column["data"]) != width * items:
        _bad(f"{field}.data", f"{len(column['data'])} bytes for {items} items")
    cells = np.frombuffer(column["data"], _TYPES[kind])
    return cells if encoding == "PLAIN" else cells[_indices(column, count, field)]


def _texts(column: dict[str, Any], count: int, field: str, budget: _Budget, *, sized: bool) -> list[bytes]:
    if column["encoding"] == "OFFSET":
        _bad(f"{field}.encoding", f"no OFFSET of {column['kind']}")
    items = _items(column, count, field)
    raw = column["lengths"]
    width = len(raw) // items
    if width * items != len(raw) or width not in (1, 2, 4):
        _bad(f"{field}.lengths", f"{len(raw)} bytes for {items} items")
    lengths = np.frombuffer(raw, _WIDTHS[width]).astype(np.int64)
    ends = np.cumsum(lengths)
    data = column["data"]
    if int(ends[-1]) != len(data):
        _bad(f"{field}.data", f"{len(data)} bytes, and the lengths' sum is {int(ends[-1])}")
    starts = (ends - lengths).tolist()
    slices = [data[at:end] for at, end in zip(starts, ends.tolist(), strict=True)]
    if sized:
        slices = [_long(len(each)) + each for each in slices]
    if column["encoding"] == "PLAIN":
        budget.spend(len(data))
        return slices
    indices = _indices(column, count, field)
    budget.spend(int(lengths[indices].sum()))
    return [slices[index] for index in indices.tolist()]


def _items(column: dict[str, Any], count: int, field: str) -> int:
    items = int(column["items"])
    if column["encoding"] == "PLAIN":
        if items != count:
            _bad(f"{field}.items", f"{items} plain cells for {count} puts")
        if column["codes"]:
            _bad(f"{field}.codes", "PLAIN has none")
    elif not 1 <= items <= count:
        _bad(f"{field}.items", f"{items} distinct cells for {count} puts")
    return items


def _codes(column: dict[str, Any], count: int, field: str, widths: tuple[int, ...]) -> Array:
    raw = column["codes"]
    if not raw:
        return np.zeros(count, "u1")
    width = len(raw) // count
    if width * count != len(raw) or width not in widths:
        _bad(f"{field}.codes", f"{len(raw)} bytes for {count} puts")
    return np.frombuffer(raw, _WIDTHS[width])


def _indices(column: dict[str, Any], count: int, field: str) -> Array:
    codes = _codes(column, count, field, (1, 2, 4))
    if int(codes.max()) >= column["items"]:
        _bad(f"{field}.codes", "an index lies outside the dictionary")
    return codes


def _long(number: int) -> bytes:
    raw = (number << 1) ^ (number >> 63)
    if raw < 0x80:
        return raw.to_bytes(1, "little")
    out = bytearray()
    while raw >= 0x80:
        out.append(raw & 0x7F | 0x80)
        raw >>= 7
    out.append(raw)
    return bytes(out)


def _bad(field: str, detail: str) -> NoReturn:
    raise BadInput(detail, field=field, fix="write frames with encode_frames, or as schemas/Frame.avsc says")
