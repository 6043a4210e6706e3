"""What record_decoder must answer, in slow and obvious Python: SPEC's "Event record" checks, one record at a time."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field
from typing import Any

from streams.model.errors import BadInput
from streams.model.ttl import TTL_MS_MAX, TTL_MS_MIN
from streams.wasm.batch import OP_PURGE, Event
from streams.wasm.decoder import Reason

NEVER = 2**63 - 1
EMPTY_ITEMS_MAX = 65536
DEPTH_MAX = 256


@dataclass(frozen=True)
class Record:
    """A Kafka record as the oracle sees it."""

    offset: int
    append_ms: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes | None]] = field(default_factory=list)


@dataclass(frozen=True)
class Rules:
    keyspace: str
    schemas: dict[int, tuple[int, Any]]
    default_ttl_ms: int | None = None


class Bad(Exception):
    def __init__(self, reason: Reason, schema_id: int = 0) -> None:
        super().__init__(reason.name)
        self.reason = reason
        self.schema_id = schema_id


def judge(record: Record, rules: Rules) -> Event:
    """The event of a record; Bad with the reason."""
    check_key(record.key, rules.keyspace)
    value = record.value
    if value is None:
        raise Bad(Reason.NULL_VALUE)
    if value and value[0] != 0:
        raise Bad(Reason.WRONG_MAGIC_BYTE)
    if len(value) < 5:
        raise Bad(Reason.VALUE_TOO_SHORT)
    hlc, expires_ms, generation = read_headers(record, rules)
    schema_id = int.from_bytes(value[1:5], "big")
    if schema_id not in rules.schemas:
        raise Bad(Reason.UNKNOWN_SCHEMA, schema_id)
    op, schema = rules.schemas[schema_id]
    reader = Reader(value, 5)
    Body(reader, schema).check()
    if reader.at != len(value):
        raise Bad(Reason.BODY_TRAILING_BYTES)
    if op == OP_PURGE and too_far(Reader(value, 5).varint(64) % 2**64, record):
        raise Bad(Reason.CLOCK_AHEAD)
    assert record.key is not None
    return Event(record.append_ms, hlc, expires_ms, generation, op, record.key, value, record.offset)


def check_key(key: bytes | None, keyspace: str) -> None:
    if key is None:
        raise Bad(Reason.NULL_KEY)
    if not key:
        raise Bad(Reason.EMPTY_KEY)
    if len(key) > 1024:
        raise Bad(Reason.KEY_TOO_LONG)
    try:
        text = key.decode()
    except UnicodeDecodeError:
        raise Bad(Reason.KEY_NOT_UTF8) from None
    if not text.startswith(f"{keyspace}:") or text == f"{keyspace}:":
        raise Bad(Reason.WRONG_KEYSPACE)


def decimal(text: bytes | None) -> int:
    if text is None or not 1 <= len(text) <= 20 or any(c not in b"0123456789" for c in text) or int(text) >= 2**64:
        raise Bad(Reason.UNPARSABLE_HEADER)
    return int(text)


def read_headers(record: Record, rules: Rules) -> tuple[int, int, int]:
    hlc, generation, ttl = record.append_ms << 16, 0, rules.default_ttl_ms
    given = None
    for name, text in record.headers:
        if name == "hlc":
            hlc = decimal(text)
        elif name == "ttl_ms":
            given = decimal(text)
        elif name == "generation":
            generation = decimal(text)
        elif name == "origin":
            try:
                if not text or not text.decode():
                    raise Bad(Reason.UNPARSABLE_HEADER)
            except UnicodeDecodeError:
                raise Bad(Reason.UNPARSABLE_HEADER) from None
    if given is not None:
        if not TTL_MS_MIN <= given <= TTL_MS_MAX:
            raise Bad(Reason.TTL_OUT_OF_RANGE)
        ttl = given
    if too_far(hlc, record) or too_far(generation, record):
        raise Bad(Reason.CLOCK_AHEAD)
    return hlc, NEVER if ttl is None else record.append_ms + ttl, generation


def too_far(hlc: int, record: Record) -> bool:
    return (hlc >> 16) > record.append_ms + 1000


class Reader:
    def __init__(self, data: bytes, at: int) -> None:
        self.data = data
        self.at = at

    def take(self, n: int) -> bytes:
        if n < 0:
            raise Bad(Reason.BODY_INVALID)
        if self.at + n > len(self.data):
            raise Bad(Reason.BODY_TRUNCATED)
        self.at += n
        return self.data[self.at - n : self.at]

    def varint(self, bits: int) -> int:
        value = 0
        for shift in range(0, bits, 7):
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            if value >= 1 << bits or (bits - shift < 7 and byte >> (bits - shift)):
                raise Bad(Reason.BODY_INVALID)
            if byte < 0x80:
                return (value >> 1) ^ -(value & 1)
        raise Bad(Reason.BODY_INVALID)


class Body:
    """A strict Avro validator over the schema as parsed JSON."""

    def __init__(self, reader: Reader, schema: Any) -> None:
        self.reader = reader
        self.schema = schema
        self.named: dict[str, Any] = {}
        self.empty = 0
        collect(schema, self.named)

    def check(self) -> None:
        self.value(self.schema, 0)

    def value(self, schema: Any, depth: int) -> None:
        if depth > DEPTH_MAX:
            raise Bad(Reason.BODY_TOO_DEEP)
        r = self.reader
        if isinstance(schema, list):
            branch = r.varint(64)
            if not 0 <= branch < len(schema):
                raise Bad(Reason.BODY_INVALID)
            self.value(schema[branch], depth + 1)
            return
        if isinstance(schema, str) and schema in self.named:
            self.value(self.named[schema], depth + 1)
            return
        kind = schema["type"] if isinstance(schema, dict) else schema
        if kind == "record":
            for f in schema["fields"]:
                self.value(f["type"], depth + 1)
        elif kind in ("array", "map"):
            self.blocks(schema["items" if kind == "array" else "values"], kind == "map", depth + 1)
        elif kind == "enum":
            if not 0 <= r.varint(32) < len(schema["symbols"]):
                raise Bad(Reason.BODY_INVALID)
        elif kind == "fixed":
            r.take(schema["size"])
        else:
            self.primitive(kind)

    def primitive(self, kind: str) -> None:
        r = self.reader
        if kind == "boolean":
            if r.take(1)[0] > 1:
                raise Bad(Reason.BODY_INVALID)
        elif kind in ("int", "long"):
            r.varint(32 if kind == "int" else 64)
        elif kind in ("float", "double"):
            (number,) = struct.unpack("<f" if kind == "float" else "<d", r.take(4 if kind == "float" else 8))
            if not math.isfinite(number):
                raise Bad(Reason.NON_FINITE_NUMBER)
        elif kind in ("bytes", "string"):
            data = r.take(r.varint(64))
            try:
                data.decode() if kind == "string" else None
            except UnicodeDecodeError:
                raise Bad(Reason.BODY_INVALID) from None
        else:
            assert kind == "null", kind

    def blocks(self, item: Any, is_map: bool, depth: int) -> None:
        r = self.reader
        while count := r.varint(64):
            size = None
            if count < 0:
                if count == -(2**63):
                    raise Bad(Reason.BODY_INVALID)
                count, size = -count, r.varint(64)
                if size < 0:
                    raise Bad(Reason.BODY_INVALID)
            start = r.at
            for _ in range(count):
                before = r.at
                if is_map:
                    self.primitive("string")
                self.value(item, depth)
                if r.at == before:
                    self.empty += 1
                    if self.empty > EMPTY_ITEMS_MAX:
                        raise Bad(Reason.BODY_TOO_LONG)
            if size is not None and r.at - start != size:
                raise Bad(Reason.BODY_INVALID)


def collect(schema: Any, named: dict[str, Any]) -> None:
    """Finds the named types (the tests use short, unique names without a namespace)."""
    if isinstance(schema, list):
        for branch in schema:
            collect(branch, named)
    elif isinstance(schema, dict):
        if schema["type"] in ("record", "enum", "fixed"):
            if schema["name"] in named:
                raise BadInput("defined twice", field="schema")
            named[schema["name"]] = schema
        for f in schema.get("fields", ()):
            collect(f["type"], named)
        for inner in ("items", "values"):
            if inner in schema:
                collect(schema[inner], named)
