"""NDJSON blocks whose lines are alike, read in columns by Arrow, without a Python object for each cell."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.json as arrow_json

from streams.model.errors import BadInput
from streams.serde import parse_json
from streams.serde.frame_columns import Array
from streams.tabular.rows import EXACT_MAX, ArrowRows, Cells

SAMPLE_LINES = 16
GIVE_UP_AFTER = 3
"""After so many blocks in vain, no further one is tried."""

_KINDS: dict[type, Any] = {str: pa.large_string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
_NEGATIVE_ZERO = re.compile(rb"[:\s]-0[\s,}]")
_FIELDS = {"key", "value", "ttl"}


class ColumnReader:
    """Reads the blocks of one body. A block is read when all its lines are one object each, `{"key", "value", "ttl"?}`
    with a flat object as value, of the fields and types that its first lines have; what Arrow reads otherwise than
    `parse_json` (NaN, -0, duplicate names, several objects in a line) is left to others.
    """

    def __init__(self) -> None:
        self._vain = 0

    def read(self, block: bytes, first: int) -> ColumnRows | None:
        """The rows of a block of whole lines, the first of which has the number `first`; None for a doubtful one."""
        if self._vain >= GIVE_UP_AFTER or not block.startswith(b"{"):
            return None
        kinds = _kinds_of(block)
        found = None if kinds is None or _is_doubtful(block) else self._table(block, kinds)
        if found is None:
            self._vain += 1
            return None
        value = found.column("value").combine_chunks()
        columns = {"key": found.column("key").combine_chunks()}
        if columns["key"].null_count or value.null_count:
            return None
        names = [field.name for field in value.type]
        columns |= {
            name: cells for name, cells in zip(names, value.flatten(), strict=True) if name not in _FIELDS - {"value"}
        }
        if len(columns) != len(names) + 1:
            return None  # a field of the value is called key or ttl
        ttl = found.column("ttl").combine_chunks() if "ttl" in found.schema.names else None
        return ColumnRows(self, block, columns, ttl, np.arange(len(found)), first)

    def _table(self, block: bytes, kinds: tuple[dict[str, Any], Any]) -> Any:
        """The block in columns; whole numbers as doubles where some are none."""
        fields, ttl = kinds
        for number in (pa.int64(), pa.float64()):
            typed = [(name, number if kind == pa.int64() else kind) for name, kind in fields.items()]
            schema = [
                ("key", pa.large_string()),
                ("value", pa.struct(typed)),
                *([("ttl", ttl)] if ttl is not None else []),
            ]
            try:
                found = arrow_json.read_json(
                    pa.BufferReader(block),
                    read_options=arrow_json.ReadOptions(use_threads=False, block_size=len(block) + 1),
                    parse_options=arrow_json.ParseOptions(
                        explicit_schema=pa.schema(schema), unexpected_field_behavior="error"
                    ),
                )
                found.validate(full=True)
            except pa.ArrowException:
                if pa.int64() not in fields.values():
                    return None
                continue
            return found if len(found) == block.count(b"\n") + (not block.endswith(b"\n")) else None
        return None

    def wants_objects(self) -> None:
        """Whoever reads the rows wants every value as it came, so columns are of no use."""
        self._vain = GIVE_UP_AFTER


class ColumnRows(ArrowRows):
    """Rows of a block that was read in columns. What is not plainly right is parsed again, from its line."""

    def __init__(
        self, reader: ColumnReader, block: bytes, columns: dict[str, Any], ttl: Any, at: Array, first: int
    ) -> None:
        self._reader, self._block, self._at, self._first = reader, block, at, first
        self._columns = {name: cells for name, cells in columns.items() if name != "key"}
        self.keys, self._ttl, self.numbers = columns["key"], ttl, at + first

    def taken(self, rows: Array) -> ColumnRows:
        """Some of the rows."""
        index = pa.array(rows)
        columns = {name: cells.take(index) for name, cells in (("key", self.keys), *self._columns.items())}
        ttl = None if self._ttl is None else self._ttl.take(index)
        return ColumnRows(self._reader, self._block, columns, ttl, self._at[rows], self._first)

    def doubles(self, name: str) -> Cells:
        """A column as float64; a number beyond EXACT_MAX may have been a whole one."""
        found, right = super().doubles(name)
        return found, right & (np.abs(found) < EXACT_MAX)

    def only(self, names: Sequence[str]) -> Array:
        """Which rows have no other fields; where there is another column, no cell may be a null, which is a field."""
        return np.full(len(self.numbers), self._columns.keys() <= set(names))

    def bodies(self, rows: Array) -> list[object]:
        """The values as they came; a BadInput in place of one that is none."""
        if len(rows) == len(self.numbers) > SAMPLE_LINES:
            self._reader.wants_objects()
        lines = self._block.split(b"\n")
        return [_value_of(lines[int(self._at[row])]) for row in rows.tolist()]


def _value_of(line: bytes) -> object:
    try:
        return parse_json(line, field="line")["value"]
    except BadInput as error:
        return error


def _kinds_of(block: bytes) -> tuple[dict[str, Any], Any] | None:
    """The value's fields with their Arrow types, and the type of the TTL (None: there is none), by the first lines."""
    fields: dict[str, Any] = {}
    ttl = None
    for line in block[: 64 << 10].split(b"\n", SAMPLE_LINES)[:-1] or [block]:
        try:
            put = orjson.loads(line)
        except orjson.JSONDecodeError:
            return None
        if type(put) is not dict or put.keys() - _FIELDS or type(put.get("value")) is not dict:
            return None
        for name, cell in put["value"].items():
            kind = _KINDS.get(type(cell))
            known = fields.setdefault(name, kind)
            if kind is None or (known != kind and {known, kind} != {pa.int64(), pa.float64()}):
                return None
            fields[name] = pa.float64() if pa.float64() in (known, kind) else kind
        if "ttl" in put:
            ttl = _KINDS.get(type(put["ttl"]))
            if ttl is None:
                return None
    return (fields, ttl) if fields else None


def _is_doubtful(block: bytes) -> bool:
    # Every line end stands between two objects: so no object spans lines, and as many rows as lines are one a line.
    data = np.frombuffer(block, np.uint8)
    ends = np.flatnonzero(data == 10)
    inner = ends[:-1] if block.endswith(b"\n") else ends
    if not (data[ends - 1] == 125).all() or not (data[inner + 1] == 123).all():
        return True
    # One byte is looked for much faster than two.
    if (b"N" in block and b"NaN" in block) or (b"I" in block and b"Inf" in block):
        return True
    return b"-" in block and b"-0" in block and _NEGATIVE_ZERO.search(block) is not None
