"""The Confluent wire format: a zero byte, the schema id (u32, big endian), and the value as Avro binary."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterable, Iterator
from typing import Any

import fastavro
from fastavro.schema import SchemaParseException

from streams.model.errors import BadInput, Conflict
from streams.serde.schemas import AvroSchema
from streams.serde.strict import check_body

MAGIC = 0
PREFIX_BYTES = 5
_PREFIX = struct.Struct(">BI")
_FIX = "send 0x00, the schema id as 4 bytes big endian, then Avro binary"


class SchemaSet:
    """Schemas by id. Adding is idempotent; an id that two schemas share is refused."""

    def __init__(self, schemas: Iterable[AvroSchema] = ()) -> None:
        self._by_id: dict[int, AvroSchema] = {}
        for schema in schemas:
            self.add(schema)

    def add(self, schema: AvroSchema) -> AvroSchema:
        """Make a schema known; Conflict if its id already stands for another one."""
        known = self._by_id.setdefault(schema.id, schema)
        if known != schema:
            raise Conflict(
                f"the schema's id {schema.id} is that of another schema ({known.name})",
                field="schema",
                fix="change the schema a little, for example its doc",
            )
        return known

    def get(self, schema_id: int) -> AvroSchema | None:
        """The schema of an id, or None."""
        return self._by_id.get(schema_id)

    def __contains__(self, schema_id: int) -> bool:
        return schema_id in self._by_id

    def __iter__(self) -> Iterator[AvroSchema]:
        return iter(list(self._by_id.values()))

    def __len__(self) -> int:
        return len(self._by_id)

    def known(self, schema_id: int) -> AvroSchema:
        """The schema of an id; BadInput when it is not known."""
        found = self._by_id.get(schema_id)
        if found is None:
            raise BadInput(
                f"schema id {schema_id} is unknown", field="value", fix="register the schema before using its id"
            )
        return found

    def encode_value(self, schema_id: int, obj: Any) -> bytes:
        """`obj` (Avro's plain values) in wire format; BadInput when it does not fit the schema."""
        return encode(self.known(schema_id), obj)

    def decode_value(self, value: bytes) -> tuple[int, Any]:
        """The schema id and the value (Avro's plain values) of wire-format bytes.

        BadInput (field `value`): wrong magic, unknown id, truncated, trailing or otherwise invalid bytes.
        """
        schema = self.known(wire_schema_id(value))
        return schema.id, decode_body(schema, value)


def wire_schema_id(value: bytes | None) -> int:
    """The schema id that wire-format bytes carry; BadInput when they have no valid prefix."""
    if value is None:
        raise BadInput("the value is null", field="value", fix=_FIX)
    if len(value) < PREFIX_BYTES:
        raise BadInput(f"the value has {len(value)} bytes, too few for a schema id", field="value", fix=_FIX)
    magic, schema_id = _PREFIX.unpack_from(value)
    if magic != MAGIC:
        raise BadInput(f"the value begins with {magic:#04x}, not 0x00", field="value", fix=_FIX)
    return int(schema_id)


def encode(schema: AvroSchema, obj: Any) -> bytes:
    """`obj` (Avro's plain values; unions may be tagged as `(label, value)`) in wire format."""
    out = io.BytesIO()
    out.write(_PREFIX.pack(MAGIC, schema.id))
    try:
        fastavro.schemaless_writer(out, schema.compiled, obj)
    except (ValueError, TypeError, KeyError, OverflowError, AttributeError, struct.error) as error:
        raise BadInput(
            f"the value does not fit {schema.name}: {str(error)[:200]}", field="value", fix="match the schema"
        ) from None
    return out.getvalue()


def decode_body(schema: AvroSchema, value: bytes) -> Any:
    """The value of wire-format bytes that were written with `schema`; BadInput unless they are exactly one value."""
    check_body(schema.tree, value, PREFIX_BYTES)
    return fastavro.schemaless_reader(io.BytesIO(value[PREFIX_BYTES:]), schema.compiled, None)


def project(value: bytes, writer: AvroSchema, reader: AvroSchema) -> bytes:
    """Wire-format bytes written with `writer`, as if written with `reader` (Avro's schema resolution).

    BadInput when the bytes are invalid, or the schemas do not resolve for this value.
    """
    if writer == reader:
        return value
    check_body(writer.tree, value, PREFIX_BYTES)
    body = io.BytesIO(value[PREFIX_BYTES:])
    try:
        obj = fastavro.schemaless_reader(body, writer.compiled, reader.compiled, return_named_type=True)
    except (SchemaParseException, ValueError, TypeError, KeyError, IndexError, EOFError, RecursionError) as error:
        raise _unresolved(writer, reader, error) from None
    except fastavro.read.SchemaResolutionError as error:
        raise _unresolved(writer, reader, error) from None
    return encode(reader, obj)


def _unresolved(writer: AvroSchema, reader: AvroSchema, error: Exception) -> BadInput:
    return BadInput(
        f"a value of {writer.name} cannot be read as {reader.name}: {str(error)[:200]}",
        field="value",
        fix="evolve the schema compatibly: give new fields defaults",
    )
