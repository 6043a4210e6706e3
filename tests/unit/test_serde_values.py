"""Values: JSON exact or refused, the wire format, puts, evolution of values."""

from __future__ import annotations

import json
import math
import random
import struct
from typing import Any

import pytest

from streams.model.errors import BadInput
from streams.model.keyspace import BUILTIN, Keyspace
from streams.model.row import MergeType
from streams.serde import (
    SchemaSet,
    delete_value,
    encode,
    from_avro,
    load_builtin,
    parse_json,
    parse_schema,
    project,
    purge_value,
    to_avro,
    wire_schema_id,
)

KEYSPACES = {keyspace.name: keyspace for keyspace in BUILTIN}
SCHEMAS = SchemaSet(load_builtin().values())


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("42", 42),
        ('{"a":{"b":[1,2.5,null,true,"x"]}}', {"a": {"b": [1, 2.5, None, True, "x"]}}),
        (str(2**64 - 1), 2**64 - 1),
        (str(-(2**63)), -(2**63)),
        ("1234567890123456789012.5", 1234567890123456789012.5),
        ('{"a" : 1, "b":2}', {"a": 1, "b": 2}),
        ('{"a":"\\":", "b":"123456789012345678901234567890"}', {"a": '":', "b": "123456789012345678901234567890"}),
        ("[" * 100 + "]" * 100, None),
    ],
)
def test_json_that_is_taken(text: str, value: Any) -> None:
    assert parse_json(text) == (json.loads(text) if value is None else value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("NaN", "no NaN"),
        ('{"a":Infinity}', "no NaN"),
        ("1e999", "infinity"),
        (b"\xff", "not JSON"),
        ('"\\ud800"', "surrogate"),
        (str(2**64), "does not fit 64 bits"),
        (str(-(2**63) - 1), "does not fit 64 bits"),
        ("[" + "9" * 300 + "]", "does not fit 64 bits"),
        ('{"a":1,"a":2}', "'a' occurs twice"),
        ('{"a" :1,"b":1,"b" :2}', "'b' occurs twice"),
        ('{"a":1,"\\u0061":2}', "'a' occurs twice"),
        ('[{"x":{"a":1,"a":1}}]', "'a' occurs twice"),
        ("[" * 101 + "]" * 101, "nested deeper"),
        ('{"a":' * 101 + "1" + "}" * 101, "nested deeper"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_json_that_is_refused(text: str | bytes, says: str) -> None:
    with pytest.raises(BadInput) as caught:
        parse_json(text)
    assert says in str(caught.value) and caught.value.field == "body" and caught.value.fix


def test_no_duplicate_name_gets_through() -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = random.Random(seed)
    names = ["a", "b", '":', "c d", ": "]
    for _ in range(3000):
        pairs = [(rng.choice(names), rng.choice(["1", '"x\\": "', '{"a":1}', "[]"])) for _ in range(rng.randrange(4))]
        inner = ",".join(f"{json.dumps(n)}{rng.choice(['', ' '])}:{rng.choice(['', ' '])}{v}" for n, v in pairs)
        duplicate = len({n for n, _ in pairs}) != len(pairs)
        try:
            parse_json("{" + inner + "}")
            assert not duplicate, inner
        except BadInput:
            assert duplicate, inner


NOW_MS = 1_700_000_001_000
DAY_MS = 86_400_000


@pytest.mark.parametrize(
    ("keyspace", "body", "back"),
    [
        ("score", {"add": 5}, {"add": 5}),
        ("score", {"add": -(2**53)}, {"add": -(2**53)}),
        ("best", 3, 3.0),
        ("best", {"value": -0.5}, -0.5),
        (
            "device",
            {"metric": "t", "value": 1, "time": 1700000000123},
            {"metric": "t", "value": 1.0, "time": 1700000000123},
        ),
        (
            "device",
            {"metric": "t", "value": 1, "time": "2023-11-14T22:13:20.123Z"},
            {"metric": "t", "value": 1.0, "time": 1700000000123},
        ),
        (
            "device",
            {"metric": "t", "value": 1, "time": "2023-11-14T23:13:20.123+01:00"},
            {"metric": "t", "value": 1.0, "time": 1700000000123},
        ),
        ("device", {"metric": "t", "value": 1}, {"metric": "t", "value": 1.0, "time": NOW_MS}),
        *[
            ("device", {"metric": "t", "value": 1, "time": t}, {"metric": "t", "value": 1.0, "time": t})
            for t in (0, NOW_MS + DAY_MS)
        ],
        ("kv", None, None),
        ("kv", {"ä": [1, 2.5, "x", True, None, 2**63]}, {"ä": [1, 2.5, "x", True, None, 2**63]}),
        ("prefs", "text", "text"),
    ],
)
def test_puts_of_builtin_keyspaces(keyspace: str, body: Any, back: Any) -> None:
    value = to_avro(KEYSPACES[keyspace], body, now_ms=NOW_MS)
    assert wire_schema_id(value) == load_builtin()[KEYSPACES[keyspace].schema].id
    assert from_avro(value, SCHEMAS) == back


@pytest.mark.parametrize(
    ("keyspace", "body", "field"),
    [
        *[("score", {"add": bad}, "add") for bad in (1.0, True, "1", None, math.nan, 2**53 + 1, -(2**70), [1])],
        ("score", 5, "add"),
        ("score", None, "add"),
        ("score", {}, "add"),
        ("score", {"add": 1, "typo": 2}, "typo"),
        ("best", "3", "value"),
        ("best", True, "value"),
        ("best", math.nan, "value"),
        ("best", math.inf, "value"),
        ("best", 2**53 + 1, "value"),
        ("best", {}, "value"),
        ("best", {"value": None}, "value"),
        ("device", 1, "value"),
        ("device", {"value": 1}, "metric"),
        ("device", {"metric": "", "value": 1}, "metric"),
        ("device", {"metric": "x" * 257, "value": 1}, "metric"),
        ("device", {"metric": "t"}, "value"),
        ("device", {"metric": "t", "value": "1"}, "value"),
        ("device", {"metric": "t", "value": math.inf}, "value"),
        *[
            ("device", {"metric": "t", "value": 1, "time": bad}, "time")
            for bad in ("yesterday", 1.5, True, -1, 2**63, "", 10**15, "0001-01-01T00:00:00+14:00", NOW_MS + DAY_MS + 1)
        ],
        ("device", {"metric": "t", "value": 1, "unit": "C"}, "unit"),
        ("kv", 2**70, "value"),
    ],
)
def test_puts_that_are_refused_name_the_field(keyspace: str, body: Any, field: str) -> None:
    with pytest.raises(BadInput) as caught:
        to_avro(KEYSPACES[keyspace], body, now_ms=NOW_MS)
    assert caught.value.field == field and caught.value.fix


USER = parse_schema(
    {
        "type": "record",
        "name": "Trip",
        "fields": [
            {"name": "id", "type": "string"},
            {"name": "n", "type": "int", "default": 3},
            {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
            {"name": "note", "type": ["null", "string"], "default": None},
            {
                "name": "stops",
                "type": {
                    "type": "array",
                    "items": {
                        "type": "record",
                        "name": "Stop",
                        "fields": [
                            {"name": "lat", "type": "double"},
                            {"name": "kind", "type": {"type": "enum", "name": "K", "symbols": ["A", "B"]}},
                        ],
                    },
                },
            },
            {"name": "tags", "type": {"type": "map", "values": ["long", "string"]}, "default": {}},
            {"name": "raw", "type": "bytes", "default": "\u00ff"},
            {"name": "more", "type": ["null", "Trip"], "default": None},
        ],
    }
)
TRIPS = Keyspace("trips", MergeType.LWW, "Trip")
TRIP = {"id": "x", "at": 5, "stops": [{"lat": 1, "kind": "A"}]}


def test_a_users_record_goes_there_and_back() -> None:
    body = {**TRIP, "tags": {"a": 1, "b": "c"}, "note": "hi", "more": TRIP}
    back = from_avro(to_avro(TRIPS, body, USER), SchemaSet([USER]))
    filled = {**TRIP, "n": 3, "note": None, "tags": {}, "raw": "\u00ff", "more": None}
    assert back == {**filled, "tags": {"a": 1, "b": "c"}, "note": "hi", "more": filled}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"id": 5}, "id"),
        ({"n": 2**31}, "n"),
        ({"n": True}, "n"),
        ({"at": 2**63}, "at"),
        ({"at": "soon"}, "at"),
        ({"note": 5}, "note"),
        ({"stops": [{"lat": 1, "kind": "A"}, {"lat": math.nan, "kind": "A"}]}, "stops[1].lat"),
        ({"stops": [{"lat": 1, "kind": "C"}]}, "stops[0].kind"),
        ({"stops": [{"kind": "A"}]}, "stops[0].lat"),
        ({"stops": {}}, "stops"),
        ({"tags": {"a": None}}, "tags.a"),
        ({"raw": "\u0100"}, "raw"),
        ({"extra": 1}, "extra"),
        ({"more": {"id": "x"}}, "more.at"),
    ],
)
def test_a_users_record_that_does_not_fit_names_the_path(change: dict[str, Any], field: str) -> None:
    with pytest.raises(BadInput) as caught:
        to_avro(TRIPS, {**TRIP, **change}, USER)
    assert caught.value.field == field and caught.value.fix


def test_a_keyspace_without_its_schema_says_what_to_do() -> None:
    with pytest.raises(BadInput, match=r"events\.trips-value"):
        to_avro(TRIPS, TRIP)


def test_deletes_and_purges() -> None:
    assert len(delete_value()) > 5 and from_avro(delete_value(), SCHEMAS) is None
    value = purge_value(2**62, 5, 2**63 - 1, remove=True)
    assert SCHEMAS.decode_value(value)[1] == {
        "generation": 2**62,
        "before_ms": 5,
        "last_hlc": 2**63 - 1,
        "remove": True,
    }


def test_what_another_client_wrote_as_json_is_given_as_it_is() -> None:
    assert from_avro(encode(load_builtin()["streams.Json"], {"json": "not json"}), SCHEMAS) == "not json"
    assert from_avro(encode(load_builtin()["streams.Number"], {"value": math.nan}), SCHEMAS) is None


COUNTER = load_builtin()["streams.CounterAdd"]


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (None, "null"),
        (b"", "too few"),
        (b"\x00\x00\x00", "too few"),
        (b"\x01" + struct.pack(">I", COUNTER.id) + b"\x02", "0x01, not 0x00"),
        (b"\x00" + struct.pack(">I", 1) + b"\x02", "schema id 1 is unknown"),
        (b"\x00" + struct.pack(">I", COUNTER.id), "cut short"),
        (b"\x00" + struct.pack(">I", COUNTER.id) + b"\x80", "cut short"),
        (b"\x00" + struct.pack(">I", COUNTER.id) + b"\x02\x02", "1 bytes are left"),
        (b"\x00" + struct.pack(">I", COUNTER.id) + b"\xff" * 10 + b"\x01", "longer than 10"),
        (b"\x00" + struct.pack(">I", COUNTER.id) + b"\xff" * 9 + b"\x02", "does not fit 64"),
        (b"\x00" + struct.pack(">I", load_builtin()["streams.Json"].id) + b"\x02\xff", "not UTF-8"),
        (b"\x00" + struct.pack(">I", load_builtin()["streams.Json"].id) + b"\x01", "negative"),
        (b"\x00" + struct.pack(">I", load_builtin()["streams.Purge"].id) + b"\x00\x00\x00\x02", "neither 0 nor 1"),
    ],
)
def test_bytes_that_are_no_value_are_refused(value: Any, says: str) -> None:
    with pytest.raises(BadInput, match="value"):
        SCHEMAS.decode_value(value)
    with pytest.raises(BadInput) as caught:
        SCHEMAS.decode_value(value)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("document", "body", "says"),
    [
        ({"type": "array", "items": "null"}, b"\xfe\xff\xff\xff\xff\xff\xff\xff\xff\x01\x00", "take no bytes"),
        ({"type": "array", "items": "int"}, b"\xfe\xff\xff\xff\xff\xff\xff\xff\xff\x01\x00", "cut short"),
        ({"type": "array", "items": "int"}, b"\x01\x04\x02\x00", "not as long as it says"),
        (["null", "int"], b"\x04", "no branch 2"),
        ({"type": "enum", "name": "E", "symbols": ["A"]}, b"\x02", "no symbol 1"),
        ("int", b"\x80\x80\x80\x80\x20", "does not fit 32"),
        (
            {"type": "record", "name": "L", "fields": [{"name": "next", "type": ["null", "L"]}]},
            b"\x02" * 100_000 + b"\x00",
            "nested deeper",
        ),
    ],
)
def test_hostile_bytes_are_refused(document: Any, body: bytes, says: str) -> None:
    schema = parse_schema(document if not isinstance(document, str) else json.dumps(document))
    with pytest.raises(BadInput) as caught:
        SchemaSet([schema]).decode_value(b"\x00" + struct.pack(">I", schema.id) + body)
    assert says in str(caught.value)


def test_any_bytes_are_a_value_or_bad_input() -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = random.Random(seed)
    schemas = SchemaSet([USER])
    good = bytearray(to_avro(TRIPS, {**TRIP, "tags": {"a": 1}, "more": TRIP}, USER))
    for _ in range(3000):
        mutated = bytearray(good)
        for _ in range(rng.randrange(1, 4)):
            mutated[rng.randrange(5, len(mutated))] = rng.randrange(256)
        try:
            _, obj = schemas.decode_value(bytes(mutated))
        except BadInput:
            continue
        assert isinstance(obj, dict)


def test_projection_reads_old_and_new_values_as_declared() -> None:
    newer = parse_schema(
        {
            "type": "record",
            "name": "streams.CounterAdd",
            "fields": [
                {"name": "reason", "type": ["null", "string"], "default": None},
                {"name": "add", "type": "int"},
            ],
        }
    )
    value = encode(newer, {"reason": "gift", "add": 7})
    assert project(value, newer, COUNTER) == encode(COUNTER, {"add": 7})
    wider = parse_schema(
        {
            "type": "record",
            "name": "streams.CounterAdd",
            "fields": [{"name": "add", "type": "double"}, {"name": "why", "type": "string", "default": "-"}],
        }
    )
    assert project(encode(COUNTER, {"add": 7}), COUNTER, wider) == encode(wider, {"add": 7.0, "why": "-"})
    assert project(value, newer, newer) is value
    with pytest.raises(BadInput, match="left after"):
        project(value + b"x", newer, COUNTER)
    with pytest.raises(BadInput, match="cannot be read as"):
        project(
            encode(COUNTER, {"add": 7}),
            COUNTER,
            parse_schema({"type": "record", "name": "streams.CounterAdd", "fields": [{"name": "x", "type": "int"}]}),
        )


def test_projection_keeps_the_named_branch_of_a_union() -> None:
    def union(*more: Any) -> Any:
        a = {"type": "record", "name": "A", "fields": [{"name": "v", "type": "int"}, *more]}
        b = {"type": "record", "name": "B", "fields": [{"name": "v", "type": "int"}, *more]}
        return parse_schema({"type": "record", "name": "U", "fields": [{"name": "u", "type": [a, b]}]})

    old, new = union(), union({"name": "w", "type": "int", "default": 9})
    value = encode(old, {"u": ("B", {"v": 1})})
    assert project(value, old, new) == encode(new, {"u": ("B", {"v": 1, "w": 9})})
