"""Bulk puts as text: lines out of chunks, and puts out of lines (NDJSON and CSV), in bounded memory."""

from __future__ import annotations

import codecs
import csv
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import orjson

from streams.model.errors import BadInput
from streams.model.ttl import parse_ttl_ms
from streams.serde import parse_json

LINE_BYTES_MAX = 16 << 20
CSV_FIELD_MAX = 16 << 20
_NDJSON_FIELDS = {"key", "value", "ttl"}
_LINE_FIX = 'send {"key", "value", "ttl"?}'


@dataclass(frozen=True, slots=True)
class Put:
    """One put of a batch, not checked against its keyspace yet. `line` counts from 1."""

    line: int
    key: str
    value: object
    ttl_ms: int | None


@dataclass(frozen=True, slots=True)
class Bad:
    """A line that is no put, and why."""

    line: int
    reason: str


async def lines_of(chunks: AsyncIterator[bytes]) -> AsyncIterator[list[bytes | None]]:
    """Groups of complete lines, without their ends. A line over `LINE_BYTES_MAX` comes as None, dropped as it came."""
    rest: list[bytes] = []
    held = 0
    dropping = False
    async for chunk in chunks:
        first, newline, more = chunk.partition(b"\n")
        if not dropping:
            rest.append(first)
            held += len(first)
            dropping = held > LINE_BYTES_MAX
            if dropping:
                rest.clear()
        if not newline:
            continue
        group: list[bytes | None] = [None if dropping else b"".join(rest)]
        *whole, last = more.split(b"\n")
        group.extend(whole)
        rest, held, dropping = [last], len(last), False
        yield group
    if dropping or held:
        yield [None if dropping else b"".join(rest)]


class NdjsonParser:
    """One JSON object per line: `{"key", "value", "ttl"?}`. Blank lines are passed over."""

    def __init__(self) -> None:
        self._line = 0

    def feed(self, lines: list[bytes | None]) -> Iterator[Put | Bad]:
        """The puts in `lines`."""
        for raw in lines:
            self._line += 1
            if raw is not None and self._line == 1:
                raw = raw.removeprefix(codecs.BOM_UTF8)
            if raw is None:
                yield Bad(self._line, f"the line is over {LINE_BYTES_MAX} bytes")
            elif raw and not raw.isspace():
                try:
                    yield self._put(raw)
                except BadInput as error:
                    yield Bad(self._line, one_line(error))

    def finish(self) -> Iterator[Put | Bad]:
        """What the end of the input completes."""
        return iter(())

    def _put(self, raw: bytes) -> Put:
        body = parse_json(raw, field="line")
        if type(body) is not dict:
            raise BadInput("not an object", fix=_LINE_FIX)
        if body.keys() - _NDJSON_FIELDS:
            unknown = min(body.keys() - _NDJSON_FIELDS)
            raise BadInput("there is no such field here", field=unknown[:80], fix=_LINE_FIX)
        key = body.get("key")
        if type(key) is not str:
            raise BadInput("the key is missing or no string", field="key", fix=_LINE_FIX)
        if "value" not in body:
            raise BadInput("the field is missing", field="value", fix=_LINE_FIX)
        ttl = body.get("ttl")
        return Put(self._line, key, body["value"], None if ttl is None else parse_ttl_ms(ttl))


class CsvParser:
    """CSV with a header. Columns `key`, then `value` (JSON, or plain text), `ttl`; if there are others, all of them but
    `key` and `ttl` are the value's fields. The first line is line 1; quoted fields may span lines."""

    def __init__(self) -> None:
        self._line = 0
        self._columns: list[str] | None = None
        self._open: list[bytes] = []
        self._open_line = 0
        self._quotes = 0

    def feed(self, lines: list[bytes | None]) -> Iterator[Put | Bad]:
        """The puts in `lines`. BadInput when the header is unusable."""
        for raw in lines:
            self._line += 1
            if raw is None:
                self._open.clear()
                self._quotes = 0
                yield Bad(self._line, f"the line is over {LINE_BYTES_MAX} bytes")
                continue
            if not self._open:
                self._open_line = self._line
            self._open.append(raw)
            self._quotes += raw.count(b'"')
            if self._quotes % 2 == 0:
                yield from self._record()
            elif sum(map(len, self._open)) > LINE_BYTES_MAX:
                self._open.clear()
                self._quotes = 0
                yield Bad(self._open_line, f"the record is over {LINE_BYTES_MAX} bytes; is a quote missing?")

    def finish(self) -> Iterator[Put | Bad]:
        """A record that the end of the input cuts."""
        if self._open:
            self._open.clear()
            yield Bad(self._open_line, "a quoted field does not end")

    def _record(self) -> Iterator[Put | Bad]:
        raw = b"\n".join(self._open)
        self._open.clear()
        self._quotes = 0
        if not raw or raw.isspace():
            return
        try:
            fields = _csv_fields(raw)
            if self._columns is None:
                self._columns = _header(fields)
            else:
                yield self._put(fields, self._columns)
        except BadInput as error:
            if self._columns is None:
                raise
            yield Bad(self._open_line, one_line(error))

    def _put(self, fields: list[str], columns: list[str]) -> Put:
        if len(fields) != len(columns):
            raise BadInput(f"{len(fields)} fields under a header of {len(columns)}", fix="quote fields with commas")
        named = dict(zip(columns, fields, strict=True))
        key, ttl = named.pop("key"), named.pop("ttl", "")
        value: object
        if named.keys() == {"value"}:
            value = _cell(named["value"])
        else:
            value = {name: _cell(text) for name, text in named.items() if text != ""}
        return Put(self._open_line, key, value, parse_ttl_ms(ttl) if ttl else None)


def one_line(error: BadInput) -> str:
    """An error as one line of a batch's answer."""
    return str(error)[:300]


def _header(fields: list[str]) -> list[str]:
    if any("\r" in name for name in fields):
        raise BadInput("the CSV's lines end in CR alone", field="body", fix="end lines with LF or CRLF")
    columns = [name.strip().removeprefix("\ufeff") for name in fields]
    if "key" not in columns or len(columns) < 2 or len(set(columns)) != len(columns):
        raise BadInput(
            "the CSV's first line is no header with a `key` column",
            field="body",
            fix="name the columns key,value or key,FIELD,… and optionally ttl, each once",
        )
    return columns


def _csv_fields(raw: bytes) -> list[str]:
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


def _cell(text: str) -> object:
    """A cell's JSON value; text that is no JSON stands for itself, unless it set out to be JSON."""
    try:
        return orjson.loads(text) if text[:1] not in "{[" else parse_json(text, field="value")
    except orjson.JSONDecodeError:
        if text[:1] == '"':
            raise BadInput("a JSON string that does not end", field="value") from None
        return text


csv.field_size_limit(CSV_FIELD_MAX)
