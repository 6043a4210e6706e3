"""Avro schemas: parsing, ids derived from their fingerprints, and the built-in ones."""

from __future__ import annotations

import functools
import hashlib
import json
import warnings
from dataclasses import dataclass, field
from importlib import resources
from types import MappingProxyType
from typing import Any, NoReturn

import avro.errors
import avro.schema
import fastavro
from fastavro.schema import SchemaParseException, UnknownType

from streams.model.errors import BadInput
from streams.serde.tree import Node, build_tree

TEXT_BYTES_MAX = 256 * 1024
"""The longest schema, as canonical JSON."""

DELETE, PURGE, FRAME = "streams.Delete", "streams.Purge", "streams.Frame"
TABLE_PURGE = "streams.TablePurge"
_FIX = "send a valid Avro 1.12 schema"


@dataclass(frozen=True, eq=False, slots=True)
class AvroSchema:
    """A checked schema. Two are equal when their ids are: an id is derived from the content.

    `document`: the parsed JSON (do not change it). `text`: its canonical JSON, which the id is the fingerprint of.
    `name`: full name of a record, enum or fixed, else Avro's type name. `tree`: the types as a graph.
    `compiled`: what fastavro reads and writes with, without logical types (values are Avro's plain ones).
    """

    id: int
    name: str
    text: str
    document: Any
    tree: Node = field(repr=False)
    compiled: Any = field(repr=False)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AvroSchema) and self.text == other.text

    def __hash__(self) -> int:
        return self.id


def canonical_json(document: Any) -> str:
    """The schema with sorted names and no spaces, as UTF-8 text; what fingerprints are taken of."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def fingerprint_id(text: str) -> int:
    """The schema id of canonical JSON: the first 4 bytes of its SHA-256, without the sign bit; never 0."""
    return (int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") & 0x7FFFFFFF) or 1


def schema_id(schema: AvroSchema | Any) -> int:
    """The id of a schema or of a schema document: the same in every region, without asking anybody."""
    return schema.id if isinstance(schema, AvroSchema) else fingerprint_id(canonical_json(schema))


def parse_schema(source: str | bytes | dict[str, Any] | list[Any]) -> AvroSchema:
    """The schema of JSON text or of a parsed document. BadInput says where it is wrong."""
    document = _load(source) if isinstance(source, str | bytes) else source
    try:
        text = canonical_json(document)
        size = len(text.encode())
    except (ValueError, TypeError, RecursionError) as error:
        raise BadInput(f"the schema is not JSON: {error}", field="schema", fix=_FIX) from None
    if size > TEXT_BYTES_MAX:
        raise BadInput(f"the schema has {size} bytes, over {TEXT_BYTES_MAX}", field="schema", fix="make it smaller")
    return _parsed(text)


@functools.cache
def load_builtin() -> MappingProxyType[str, AvroSchema]:
    """The schemas shipped in `schemas/*.avsc`, by full name."""
    found = {}
    for entry in resources.files("schemas").iterdir():
        if entry.name.endswith(".avsc"):
            schema = parse_schema(entry.read_bytes())
            found[schema.name] = schema
    if not {DELETE, PURGE, FRAME, TABLE_PURGE} <= found.keys():
        raise BadInput("the built-in schemas are missing", field="schemas", fix="install the package again")
    return MappingProxyType(found)


def without_logical_types(document: Any) -> Any:
    """The document with every `logicalType` left out, so that codecs see Avro's plain values."""
    if isinstance(document, list):
        return [without_logical_types(part) for part in document]
    if not isinstance(document, dict):
        return document
    kept = {name: part for name, part in document.items() if name != "logicalType"}
    for name in ("type", "items", "values"):
        if name in kept:
            kept[name] = without_logical_types(kept[name])
    if isinstance(kept.get("fields"), list):
        kept["fields"] = [without_logical_types(member) for member in kept["fields"]]
    return kept


def avro_object(schema: AvroSchema) -> Any:
    """The schema as the `avro` package sees it, for its compatibility checker."""
    return _avro_object(schema.text)


@functools.lru_cache(maxsize=1024)
def _parsed(text: str) -> AvroSchema:
    document = json.loads(text)
    tree = build_tree(document)
    try:
        compiled = fastavro.parse_schema(without_logical_types(document))
        _avro_object(text)
    except UnknownType as error:
        raise BadInput(f"there is no type {error.name!r}", field="schema", fix=_FIX) from None
    except (SchemaParseException, avro.errors.AvroException, ValueError, TypeError, KeyError) as error:
        raise BadInput(f"the schema is not valid: {str(error)[:300]}", field="schema", fix=_FIX) from None
    return AvroSchema(fingerprint_id(text), tree.label, text, document, tree, compiled)


@functools.lru_cache(maxsize=1024)
def _avro_object(text: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # logical types that it does not know are plain types, as Avro wants
        return avro.schema.parse(text)


def _load(source: str | bytes) -> Any:
    try:
        return json.loads(source, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        if isinstance(source, str) and source.isidentifier():
            return source  # `string` is how some clients send the schema "string"
        raise BadInput(f"the schema is not JSON: {str(error)[:160]}", field="schema", fix=_FIX) from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice in an object")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
