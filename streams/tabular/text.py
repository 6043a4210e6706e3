"""NDJSON and CSV in blocks of whole lines, as rows."""

from __future__ import annotations

import codecs
import csv
from collections.abc import Iterator
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from streams.model.errors import BadInput
from streams.serde import parse_json
from streams.tabular.judge import REASON_CHARACTERS, Rejection
from streams.tabular.quick_json import ColumnReader
from streams.tabular.rows import CsvRows, JsonRows, Rows
from streams.tabular.shape import AS_IS, Shape
from streams.tabular.texts import text_array

LINE_BYTES_MAX = 16 << 20
CSV_FIELD_MAX = 16 << 20
BLOCK_BYTES = 512 << 10
_NDJSON_FIELDS = {"key", "value", "ttl"}
_LINE_FIX = 'send {"key", "value", "ttl"?}'
_SHAPE = bytes.maketrans(b"123456789\t\r\n", b"0" * 9 + b" " * 3)
_BIG_DIGITS, _SPACED = b"0" * 19, b'" '
"""What is looked for once digits and white space are all one: much faster than regular expressions."""

Parsed = tuple[Rows | None, list[Rejection]]


class BlockCutter:
    """Whole lines out of chunks. A line over `LINE_BYTES_MAX` comes as None, dropped as it came."""

    def __init__(self, block_bytes: int = BLOCK_BYTES) -> None:
        self._block_bytes = block_bytes
        self._rest: list[bytes] = []
        self._held = 0
        self._dropping = False

    def feed(self, chunk: bytes) -> Iterator[bytes | None]:
        """Blocks of lines, each ending in a line end; None for a line that is too long."""
        cut = chunk.rfind(b"\n")
        if cut >= 0 and self._dropping:
            first = chunk.index(b"\n")
            chunk, cut = chunk[first + 1 :], cut - first - 1
            self._dropping = False
            yield None
        if self._dropping:
            return
        if cut < 0 or self._held + cut < self._block_bytes:
            self._hold(chunk)
            if self._held > LINE_BYTES_MAX + self._block_bytes:
                yield from self._overflow()
            return
        block = b"".join([*self._rest, chunk[: cut + 1]])
        self._rest, self._held = [], 0
        self._hold(chunk[cut + 1 :])
        yield from _lengths_checked(block)

    def finish(self) -> Iterator[bytes | None]:
        """What is left."""
        block = b"".join(self._rest)
        self._rest, self._held = [], 0
        if self._dropping:
            yield None
        elif block:
            yield from _lengths_checked(block)
        self._dropping = False

    def _hold(self, chunk: bytes) -> None:
        if chunk:
            self._rest.append(chunk)
            self._held += len(chunk)

    def _overflow(self) -> Iterator[bytes | None]:
        """So much without a block: either whole lines are there, or one line is too long."""
        held = b"".join(self._rest)
        cut = held.rfind(b"\n") + 1
        self._rest, self._held = [], 0
        if cut:
            yield from _lengths_checked(held[:cut])
        if len(held) - cut > LINE_BYTES_MAX:
            self._dropping = True
        else:
            self._hold(held[cut:])


def _lengths_checked(block: bytes) -> Iterator[bytes | None]:
    if len(block) <= LINE_BYTES_MAX:
        yield block
        return
    for line in block.splitlines(keepends=True) if b"\r" not in block else block.split(b"\n"):
        yield None if len(line) > LINE_BYTES_MAX else line if line.endswith(b"\n") else line + b"\n"


class NdjsonRows:
    """A JSON object per line: `{"key", "value", "ttl"?}`, or what `shape` makes one of. Blank lines are no rows."""

    def __init__(self, shape: Shape = AS_IS) -> None:
        self._shape = shape
        self._line = 0
        self._columns = ColumnReader()

    def parse(self, block: bytes | None) -> Parsed:
        """The rows of a block."""
        if block is None:
            self._line += 1
            return None, [Rejection(self._line, f"the line is over {LINE_BYTES_MAX} bytes")]
        if not self._line:
            block = block.removeprefix(codecs.BOM_UTF8)
        found = self._columns.read(block, self._line + 1) if self._shape.plain else None
        if found is not None:
            self._line += len(found.numbers)
            return found, []
        lines = block.split(b"\n")
        if not lines[-1]:
            lines.pop()
        first, self._line = self._line + 1, self._line + len(lines)
        quick = self._quick(block, lines, first) if self._shape.plain else None
        return (quick, []) if quick is not None else self._exact(lines, first)

    @staticmethod
    def _quick(block: bytes, lines: list[bytes], first: int) -> JsonRows | None:
        """All lines at once, when nothing about them is doubtful: the same doubts as `parse_json` has of one."""
        shape = block.translate(_SHAPE)
        if b"[" in block or _BIG_DIGITS in shape or _SPACED in shape:
            return None
        try:
            puts = list(map(orjson.loads, lines))
            keys = [put["key"] for put in puts]
            values = [put["value"] for put in puts]
        except (orjson.JSONDecodeError, TypeError, KeyError):
            return None
        names = sum(map(len, puts))
        objects = [value for value in values if type(value) is dict]
        names += sum(map(len, objects))
        if block.count(b"{") != len(puts) + len(objects) or block.count(b'":') != names:
            return None
        if set(map(type, puts)) != {dict} or set(map(type, keys)) != {str} or len(lines) != len(puts):
            return None
        ttls = None
        if set(map(len, puts)) != {2}:
            ttls = [put.get("ttl") for put in puts]
            if any(put.keys() - _NDJSON_FIELDS for put in puts):
                return None
        return JsonRows(text_array(keys), values, ttls, np.arange(first, first + len(lines)))

    def _exact(self, lines: list[bytes], first: int) -> Parsed:
        keys, values, ttls, numbers, bad = [], [], [], [], []
        for number, raw in enumerate(lines, first):
            if not raw or raw.isspace():
                continue
            try:
                key, value, ttl = _put(raw, self._shape)
            except BadInput as error:
                bad.append(Rejection(number, str(error)[:REASON_CHARACTERS]))
                continue
            keys.append(key)
            values.append(value)
            ttls.append(ttl)
            numbers.append(number)
        rows = JsonRows(text_array(keys), values, ttls, np.array(numbers, np.int64)) if keys else None
        return rows, bad

    def finish(self) -> Parsed:
        """What the end of the input completes: nothing."""
        return None, []


def _put(raw: bytes, shape: Shape) -> tuple[str, object, object]:
    body = parse_json(raw, field="line")
    if type(body) is not dict:
        raise BadInput("not an object", fix=_LINE_FIX)
    if not shape.plain:
        body = shape.put(body)
    if body.keys() - _NDJSON_FIELDS:
        unknown = min(body.keys() - _NDJSON_FIELDS)
        raise BadInput("there is no such field here", field=unknown[:80], fix=_LINE_FIX)
    key = body.get("key")
    if type(key) is not str:
        raise BadInput("the key is missing or no string", field="key", fix=_LINE_FIX)
    if "value" not in body:
        raise BadInput("the field is missing", field="value", fix=_LINE_FIX)
    return key, body["value"], body.get("ttl")


class CsvBlocks:
    """CSV with a header. Columns `key`, then `value` (JSON, or plain text), `ttl`; if there are others, all of them but
    `key` and `ttl` are the value's fields. The first line is line 1; quoted fields may span lines. `shape`: as columns
    are to be, for a file's that are otherwise."""

    def __init__(self, shape: Shape = AS_IS) -> None:
        self._shape = shape
        self._line = 0
        self._columns: list[str] | None = None
        self._open: list[bytes] = []
        self._open_line = 0
        self._open_bytes = 0
        self._quotes = 0

    def parse(self, block: bytes | None) -> Parsed:
        """The rows of a block. BadInput when the header is unusable."""
        if block is None:
            self._line += 1
            self._open, self._quotes, self._open_bytes = [], 0, 0
            return None, [Rejection(self._line, f"the line is over {LINE_BYTES_MAX} bytes")]
        lines = block.split(b"\n")
        if not lines[-1]:
            lines.pop()
        return self._rows(lines, b'"' in block or bool(self._open))

    def finish(self) -> Parsed:
        """A record that the end of the input cuts."""
        if not self._open:
            return None, []
        self._open, self._quotes = [], 0
        return None, [Rejection(self._open_line, "a quoted field does not end")]

    def _rows(self, lines: list[bytes], quoted: bool) -> Parsed:
        bad: list[Rejection] = []
        records, numbers = [], []
        source = self._joined(lines, bad) if quoted else self._plain(lines)
        for raw, number in source:
            if not raw or raw.isspace():
                continue
            try:
                fields = _fields(raw)
                if self._columns is None:
                    self._columns = _header(fields, self._shape)
                    continue
                if len(fields) != len(self._columns):
                    count = len(self._columns)
                    raise BadInput(f"{len(fields)} fields under a header of {count}", fix="quote fields with commas")
            except BadInput as error:
                if self._columns is None:
                    raise
                bad.append(Rejection(number, str(error)[:REASON_CHARACTERS]))
                continue
            records.append(fields)
            numbers.append(number)
        if not records or self._columns is None:
            return None, bad
        cells = zip(*records, strict=True)
        made: dict[str, Any] = {
            name: pa.array(column, pa.large_string()) for name, column in zip(self._columns, cells, strict=True)
        }
        return CsvRows(made if self._shape.plain else self._shape.columns(made), np.array(numbers, np.int64)), bad

    def _plain(self, lines: list[bytes]) -> Iterator[tuple[bytes, int]]:
        for raw in lines:
            self._line += 1
            yield raw, self._line

    def _joined(self, lines: list[bytes], bad: list[Rejection]) -> Iterator[tuple[bytes, int]]:
        """Records that may span lines."""
        for raw in lines:
            self._line += 1
            if not self._open:
                self._open_line, self._open_bytes = self._line, 0
            self._open.append(raw)
            self._open_bytes += len(raw)
            self._quotes += raw.count(b'"')
            if self._quotes % 2 == 0:
                record, self._open, self._quotes = b"\n".join(self._open), [], 0
                yield record, self._open_line
            elif self._open_bytes > LINE_BYTES_MAX:
                self._open, self._quotes = [], 0
                reason = f"the record is over {LINE_BYTES_MAX} bytes; is a quote missing?"
                bad.append(Rejection(self._open_line, reason))


def _header(fields: list[str], shape: Shape) -> list[str]:
    if any("\r" in name for name in fields):
        raise BadInput("the CSV's lines end in CR alone", field="body", fix="end lines with LF or CRLF")
    columns = [name.strip().removeprefix("\ufeff") for name in fields]
    if not shape.plain:
        shape.check(columns)
        return columns
    if "key" not in columns or len(columns) < 2 or len(set(columns)) != len(columns):
        raise BadInput(
            "the CSV's first line is no header with a `key` column",
            field="body",
            fix="name the columns key,value or key,FIELD,… and optionally ttl, each once",
        )
    return columns


def _fields(raw: bytes) -> list[str]:
    try:
        text = raw.decode().removesuffix("\r")
    except UnicodeDecodeError:
        raise BadInput("the line is not UTF-8") from None
    if '"' not in text:
        return text.split(",")
    try:
        rows = list(csv.reader(text.splitlines(keepends=True), strict=True))
    except csv.Error as error:
        raise BadInput(f"not CSV: {error}") from None
    return rows[0]


csv.field_size_limit(CSV_FIELD_MAX)
