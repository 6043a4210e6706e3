"""Avro: schemas, their ids and evolution, the wire format, JSON in and out. Sole importer of fastavro and avro."""

from streams.serde.codec import PREFIX_BYTES, SchemaSet, decode_body, encode, project, wire_schema_id
from streams.serde.compatibility import DEFAULT_LEVEL, LEVELS, check_level, compatibility, unreadable
from streams.serde.frame_checks import RejectedRow, columns_for
from streams.serde.frame_columns import Columns, Dictionary, Items, Raw
from streams.serde.frame_reader import FrameColumns, decode_frame
from streams.serde.frames import Frame, encode_frames, is_frame
from streams.serde.json_text import dump_json, parse_json
from streams.serde.puts import delete_value, from_avro, purge_frames, purge_value, to_avro
from streams.serde.schemas import DELETE, FRAME, PURGE, TABLE_PURGE, AvroSchema, load_builtin, parse_schema, schema_id

__all__ = [
    "DEFAULT_LEVEL",
    "DELETE",
    "FRAME",
    "LEVELS",
    "PREFIX_BYTES",
    "PURGE",
    "TABLE_PURGE",
    "AvroSchema",
    "Columns",
    "Dictionary",
    "Frame",
    "FrameColumns",
    "Items",
    "Raw",
    "RejectedRow",
    "SchemaSet",
    "check_level",
    "columns_for",
    "compatibility",
    "decode_body",
    "decode_frame",
    "delete_value",
    "dump_json",
    "encode",
    "encode_frames",
    "from_avro",
    "is_frame",
    "load_builtin",
    "parse_json",
    "parse_schema",
    "project",
    "purge_frames",
    "purge_value",
    "schema_id",
    "to_avro",
    "unreadable",
    "wire_schema_id",
]
