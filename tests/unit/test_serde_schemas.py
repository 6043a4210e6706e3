"""Schemas: ids, parsing with reasons, compatibility with paths."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from streams.model.errors import BadInput, Conflict
from streams.serde import SchemaSet, compatibility, load_builtin, parse_schema, schema_id
from streams.serde.schemas import AvroSchema


def record(*fields: dict[str, Any], name: str = "R", **more: Any) -> AvroSchema:
    return parse_schema({"type": "record", "name": name, "fields": list(fields), **more})


def test_builtin_ids_are_pinned_because_logs_carry_them() -> None:
    assert {name: schema.id for name, schema in load_builtin().items()} == {
        "streams.Alert": 333382610,
        "streams.Anomaly": 1926091149,
        "streams.BlackBox": 272180280,
        "streams.CounterAdd": 597403240,
        "streams.Delete": 894452393,
        "streams.Frame": 160114116,
        "streams.Json": 293954584,
        "streams.Number": 1968485633,
        "streams.Purge": 722869604,
        "streams.Reading": 497969218,
        "streams.TablePurge": 112939448,
        "streams.TelemetryDevice": 1136584940,
        "streams.TelemetryPanes": 1837063360,
        "streams.TelemetrySegment": 357686311,
    }


def test_an_id_is_the_fingerprint_of_sorted_compact_json() -> None:
    document = {"type": "record", "name": "Size", "fields": []}
    text = '{"fields":[],"name":"G","type":"record"}'
    expected = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") & 0x7FFFFFFF
    assert schema_id({**document, "name": "G"}) == parse_schema(text).id == expected
    assert parse_schema(' { "type":"record",\n"fields":[], "name":"G"}') == parse_schema(text)
    assert parse_schema('"string"').id == schema_id("string") == parse_schema("string").id


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("{", "not JSON"),
        ("5", "a schema is a JSON object"),
        ("null", "a schema is"),
        ('"strin"', "no type 'strin'"),
        ('{"type":"record","name":"A"}', "no list of 'fields'"),
        ('{"type":"record","name":"1A","fields":[]}', "is not a name"),
        ('{"type":"record","name":"A","namespace":"1b","fields":[]}', "is not a namespace"),
        ('{"type":"record","name":"A","fields":[{"name":"x","type":"lon"}]}', "at x: there is no type 'lon'"),
        ('{"type":"record","name":"A","fields":[{"name":"x"}]}', "at x: the field has no type"),
        ('{"type":"record","name":"A","fields":[{"name":"x y","type":"int"}]}', "is not a field name"),
        (
            '{"type":"record","name":"A","fields":[{"name":"x","type":"int"},{"name":"x","type":"int"}]}',
            "at x: the record has two fields",
        ),
        (
            '{"type":"record","name":"A","fields":[{"name":"x","type":{"type":"array","items":["null","nix"]}}]}',
            "at x.items[1]: there is no type 'nix'",
        ),
        ('{"type":"record","name":"A","fields":[{"name":"x","type":"long","default":"a"}]}', "Default value"),
        ('{"type":"enum","name":"E","symbols":["A","A"]}', "a symbol twice"),
        ('{"type":"enum","name":"E","symbols":[]}', "no list of 'symbols'"),
        ('{"type":"fixed","name":"F","size":-1}', "'size'"),
        ('["null","null"]', "holds null twice"),
        ('["null",["int"]]', "must not hold a union"),
        ("[]", "the union is empty"),
        ('{"type":"array"}', "has no 'items'"),
        ('{"type":"record","name":"A","name":"B","fields":[]}', "occurs twice"),
        ('{"type":"record","name":"A","fields":[],"x":NaN}', "NaN is not JSON"),
        ('{"type":"array","items":' * 70 + '"int"' + "}" * 70, "too large"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_a_schema_that_is_wrong_says_where(source: str, says: str) -> None:
    with pytest.raises(BadInput) as caught:
        parse_schema(source)
    assert says in str(caught.value)
    assert caught.value.field == "schema"
    assert caught.value.fix


def test_a_huge_schema_is_refused() -> None:
    with pytest.raises(BadInput, match="bytes, over"):
        parse_schema(json.dumps({"type": "record", "name": "A", "fields": [], "doc": "x" * 300_000}))


def test_a_collision_of_ids_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streams.serde.schemas.fingerprint_id", lambda text: 7)
    one, other = record(name="CollideOne"), record(name="CollideTwo")
    schemas = SchemaSet([one, one])
    with pytest.raises(Conflict, match="that of another schema"):
        schemas.add(other)
    assert len(schemas) == 1


V = {"name": "v", "type": "long"}
ENUM_AB = {"type": "enum", "name": "E", "symbols": ["A", "B"]}
ENUM_A = {"type": "enum", "name": "E", "symbols": ["A"]}


@pytest.mark.parametrize(
    ("new", "old", "reason"),
    [
        (record(V, {"name": "u", "type": "string", "default": ""}), record(V), None),
        (record(V, {"name": "u", "type": "string"}), record(V), "u: this field is new and has no default"),
        (record(), record(V), None),
        (record({"name": "v", "type": "double"}), record(V), None),
        (record({"name": "v", "type": "int"}), record(V), "v: long cannot be read as int"),
        (record(V, name="S"), record(V), "the schema: the name changed from R to S"),
        (record(V, name="S", aliases=["R"]), record(V), None),
        (record({"name": "w", "type": "long", "aliases": ["v"]}), record(V), None),
        (record({"name": "v", "type": ["null", "long"]}), record(V), None),
        (record(V), record({"name": "v", "type": ["null", "long"]}), "v: null was allowed and cannot be read as long"),
        (
            record({"name": "e", "type": ENUM_A}),
            record({"name": "e", "type": ENUM_AB}),
            "e: the enum lost B and has no default",
        ),
        (record({"name": "e", "type": {**ENUM_A, "default": "A"}}), record({"name": "e", "type": ENUM_AB}), None),
        (
            record({"name": "f", "type": {"type": "fixed", "name": "F", "size": 4}}),
            record({"name": "f", "type": {"type": "fixed", "name": "F", "size": 2}}),
            "f: the size of F changed from 2 to 4 bytes",
        ),
        (
            record({"name": "a", "type": {"type": "array", "items": "int"}}),
            record({"name": "a", "type": {"type": "array", "items": "string"}}),
            "a[]: string cannot be read as int",
        ),
        (
            record({"name": "m", "type": {"type": "map", "values": "int"}}),
            record({"name": "m", "type": {"type": "map", "values": "string"}}),
            "m{}: string cannot be read as int",
        ),
        (
            record({"name": "r", "type": record(V, {"name": "n", "type": "int"}, name="In").document}),
            record({"name": "r", "type": record(V, name="In").document}),
            "r.n: this field is new and has no default",
        ),
    ],
)
def test_backward_compatibility_and_its_reason(new: AvroSchema, old: AvroSchema, reason: str | None) -> None:
    reasons = compatibility(new, [old])
    if reason is None:
        assert reasons == []
    else:
        assert len(reasons) == 1 and reason in reasons[0], reasons


def test_all_reasons_are_given() -> None:
    new = record({"name": "v", "type": "int"}, {"name": "u", "type": "string"})
    assert len(compatibility(new, [record(V)])) == 2


def test_levels() -> None:
    one = record(V)
    two = record(V, {"name": "u", "type": "string", "default": ""})
    three = record(V, {"name": "u", "type": "string"})
    assert compatibility(three, [one, two], "BACKWARD") == []
    assert compatibility(three, [one, two], "backward_transitive") != []
    assert compatibility(three, [one], "FORWARD") == []
    assert compatibility(three, [one], "FULL") != []
    assert compatibility(two, [one], "FULL_TRANSITIVE") == []
    assert compatibility(parse_schema('"int"'), [one], "NONE") == []
    assert "old schema cannot read new" in compatibility(record(), [one], "FORWARD")[0]
    with pytest.raises(BadInput, match="no compatibility level"):
        compatibility(one, [two], "SIDEWAYS")


def test_recursive_schemas_compare() -> None:
    def node(kind: str) -> AvroSchema:
        return record({"name": "v", "type": kind}, {"name": "next", "type": ["null", "R"], "default": None})

    assert compatibility(node("long"), [node("int")]) == []
    assert any("v: long cannot be read as int" in reason for reason in compatibility(node("int"), [node("long")]))
