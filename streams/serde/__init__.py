"""Avro: schemas, their ids and evolution, the wire format, JSON in and out. Sole importer of fastavro and avro."""

from streams.serde.codec import PREFIX_BYTES, SchemaSet, decode_body, encode, project, wire_schema_id
from streams.serde.compatibility import DEFAULT_LEVEL, LEVELS, check_level, compatibility, unreadable
from streams.serde.json_text import dump_json, parse_json
from streams.serde.puts import delete_value, from_avro, purge_value, to_avro
from streams.serde.schemas import DELETE, PURGE, AvroSchema, load_builtin, parse_schema, schema_id

__all__ = [
    "DEFAULT_LEVEL",
    "DELETE",
    "LEVELS",
    "PREFIX_BYTES",
    "PURGE",
    "AvroSchema",
    "SchemaSet",
    "check_level",
    "compatibility",
    "decode_body",
    "delete_value",
    "dump_json",
    "encode",
    "from_avro",
    "load_builtin",
    "parse_json",
    "parse_schema",
    "project",
    "purge_value",
    "schema_id",
    "to_avro",
    "unreadable",
    "wire_schema_id",
]
