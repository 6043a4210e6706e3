"""record_decoder equals the Python oracle on random records, good and malformed, in random batches."""

from __future__ import annotations

import io
import struct
import tempfile
from pathlib import Path
from typing import Any

import fastavro
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from streams.wasm.avro_program import avro_program
from streams.wasm.batch import Batch, Event
from streams.wasm.decoder import DecoderConfig, Reason, RecordDecoder, SchemaProgram
from streams.wasm.engine import ModuleCache
from tests.property.decoder_oracle import Bad, Body, Reader, Record, Rules, judge

CACHE = ModuleCache(Path(tempfile.gettempdir()) / "streams-test-wasm")
DECODER = RecordDecoder(CACHE)
NOW_MS = 1_700_000_000_000
COUNTER_ADD = {"type": "record", "name": "CounterAdd", "fields": [{"name": "add", "type": "long"}]}
JSON = {"type": "record", "name": "Json", "fields": [{"name": "json", "type": "string"}]}
NUMBER = {"type": "record", "name": "Number", "fields": [{"name": "value", "type": "double"}]}
DELETE: dict[str, Any] = {"type": "record", "name": "Delete", "fields": []}
PURGE = {
    "type": "record",
    "name": "Purge",
    "fields": [
        {"name": "generation", "type": "long"},
        {"name": "before_ms", "type": "long"},
        {"name": "last_hlc", "type": "long"},
        {"name": "remove", "type": "boolean"},
    ],
}
SCHEMAS: dict[int, tuple[int, Any]] = {
    11: (0, COUNTER_ADD),
    12: (0, JSON),
    13: (0, NUMBER),
    14: (1, DELETE),
    15: (2, PURGE),
}


def config_of(rules: Rules) -> DecoderConfig:
    programs = {i: SchemaProgram(op, avro_program(schema)) for i, (op, schema) in rules.schemas.items()}
    return DecoderConfig(rules.keyspace, programs, rules.default_ttl_ms)


def write(schema: Any, datum: Any) -> bytes:
    out = io.BytesIO()
    fastavro.schemaless_writer(out, fastavro.parse_schema(schema), datum)
    return out.getvalue()


def batch_bytes(records: list[Record], log_append_ms: int | None) -> bytes:
    """One record batch v2; offsets are the records' own, gaps included."""
    base = records[0].offset
    builder = DefaultRecordBatchBuilder(2, 0, 0, -1, -1, -1, 1 << 26)
    for r in records:
        assert builder.append(r.offset - base, r.append_ms, r.key, r.value, list(r.headers)) is not None
    raw = bytearray(builder.build())
    struct.pack_into(">q", raw, 0, base)
    if log_append_ms is not None:
        (attributes,) = struct.unpack_from(">h", raw, 21)
        struct.pack_into(">h", raw, 21, attributes | 8)
        struct.pack_into(">q", raw, 35, log_append_ms)
    return bytes(raw)


# ---- random records

decimals = st.one_of(
    st.integers(0, 2**70).map(lambda n: b"%d" % n),
    st.sampled_from(
        [b"", b"-1", b"+5", b" 1", b"1e3", b"0x1", b"18446744073709551615", b"18446744073709551616", b"000"]
    ),
    st.just(None),
)
hlcs = st.integers(-5_000, 5_000).map(lambda d: b"%d" % ((NOW_MS + d) << 16))
ttls = st.sampled_from([b"999", b"1000", b"3155760000000", b"3155760000001", b"0", b"60000"])
headers = st.lists(
    st.one_of(
        st.tuples(st.just("hlc"), st.one_of(hlcs, hlcs, decimals)),
        st.tuples(st.just("ttl_ms"), st.one_of(ttls, ttls, decimals)),
        st.tuples(st.just("generation"), st.one_of(hlcs, decimals)),
        st.tuples(st.just("origin"), st.sampled_from([b"us-east", b"", "é".encode(), b"\xff", None])),
        st.tuples(
            st.sampled_from(["idempotency_key", "", "HLC", "other"]), st.one_of(st.none(), st.binary(max_size=9))
        ),
    ),
    max_size=4,
)
good_headers = st.just([]) | st.tuples(st.tuples(st.just("hlc"), st.just(b"%d" % (NOW_MS << 16)))).map(list)
keys = st.one_of(
    st.text(max_size=20).map(lambda s: b"score:" + s.encode("utf-8", "ignore")),
    st.sampled_from(
        [None, b"", b"score", b"score:", b"scores:x", b"score:\xff", b"score:\xed\xa0\x80", b"score:\xc0\x80"]
    ),
    st.sampled_from([b"score:" + b"x" * 1018, b"score:" + b"x" * 1019, b"score:\xf4\x90\x80\x80", b"score:\xf0\x9f"]),
)
good_keys = st.integers(0, 99).map(lambda n: b"score:%d" % n)
bodies = st.one_of(
    st.integers(-(2**63), 2**63 - 1).map(lambda n: (11, write(COUNTER_ADD, {"add": n}))),
    st.text(max_size=30).map(lambda s: (12, write(JSON, {"json": s}))),
    st.floats().map(lambda x: (13, write(NUMBER, {"value": x}))),
    st.just((14, b"")),
    st.tuples(st.integers(-2000, 2000), st.booleans()).map(
        lambda t: (
            15,
            write(PURGE, {"generation": (NOW_MS + t[0]) << 16, "before_ms": 1, "last_hlc": 2, "remove": t[1]}),
        )
    ),
    st.tuples(st.sampled_from([11, 12, 13, 14, 15, 16]), st.binary(max_size=14)),
)


@st.composite
def a_value(draw: st.DrawFn) -> bytes | None:
    schema_id, body = draw(bodies)
    value = b"\0" + schema_id.to_bytes(4, "big") + body
    match draw(st.integers(0, 12)):
        case 0:
            return None
        case 1:
            return draw(st.binary(max_size=8))
        case 2:
            return value[: draw(st.integers(0, len(value)))]
        case 3:
            return value + draw(st.binary(min_size=1, max_size=3))
    return value


@st.composite
def a_run(draw: st.DrawFn) -> tuple[list[Record], list[bytes]]:
    offset, seen, batches = draw(st.integers(0, 2**40)), [], []
    for _ in range(draw(st.integers(0, 4))):
        log_append = draw(st.sampled_from([None, NOW_MS, NOW_MS + 77]))
        records = []
        for _ in range(draw(st.integers(1, 8))):
            tidy = draw(st.booleans())
            append_ms = NOW_MS + draw(st.integers(0, 3))
            key, value = draw(good_keys if tidy else keys), draw(a_value())
            records.append(Record(offset, append_ms, key, value, draw(good_headers if tidy else headers)))
            offset += draw(st.sampled_from([1, 1, 1, 2, 130]))
        batches.append(batch_bytes(records, log_append))
        seen += [r if log_append is None else Record(r.offset, log_append, r.key, r.value, r.headers) for r in records]
        offset += draw(st.integers(0, 3))
    return seen, batches


def oracle(records: list[Record], rules: Rules) -> tuple[list[Event], list[tuple[int, int, Reason, int, Any, Any]]]:
    events, rejects = [], []
    for r in records:
        try:
            events.append(judge(r, rules))
        except Bad as bad:
            rejects.append((r.offset, r.append_ms, bad.reason, bad.schema_id, r.key, r.value))
    return events, rejects


@settings(max_examples=300, deadline=None, print_blob=True)
@given(a_run(), st.sampled_from([None, 86_400_000]), st.data())
def test_decoder_equals_the_oracle(run: tuple[list[Record], list[bytes]], ttl: int | None, data: st.DataObject) -> None:
    records, batches = run
    rules = Rules("score", SCHEMAS, ttl)
    offsets = [r.offset for r in records] or [0]
    start = data.draw(st.sampled_from([offsets[0], offsets[0], *offsets]))
    end = data.draw(st.sampled_from([offsets[-1] + 1, offsets[-1] + 1, *offsets]))
    assume(start <= end)
    decoded = DECODER.decode(batches, start, end, config_of(rules))
    events, rejects = oracle([r for r in records if start <= r.offset < end], rules)
    assert Batch.parse(decoded.batch).events() == events
    assert decoded.n == len(events)
    assert [(r.offset, r.append_ms, r.reason, r.schema_id, r.key, r.value) for r in decoded.rejects] == rejects
    assert decoded.unknown_schema_ids == {r[3] for r in rejects if r[2] is Reason.UNKNOWN_SCHEMA}
    assert (decoded.next_position, decoded.truncated) == (end, False)
    assert all(r.text for r in decoded.rejects)


@settings(max_examples=100, deadline=None, print_blob=True)
@given(a_run(), st.data())
def test_a_cut_batch_is_left_to_the_next_fetch(run: tuple[list[Record], list[bytes]], data: st.DataObject) -> None:
    records, batches = run
    assume(batches)
    cut = data.draw(st.integers(0, len(batches[-1]) - 1))
    whole = batches[:-1]
    rules = Rules("score", SCHEMAS)
    (base,) = struct.unpack_from(">q", batches[-1])
    decoded = DECODER.decode([*whole, batches[-1][:cut]], records[0].offset, records[-1].offset + 1, config_of(rules))
    assert decoded.truncated
    assert decoded.next_position <= base
    events, rejects = oracle([r for r in records if r.offset < base], rules)
    assert Batch.parse(decoded.batch).events() == events
    assert [r.offset for r in decoded.rejects] == [r[0] for r in rejects]


@settings(max_examples=150, deadline=None, print_blob=True)
@given(a_run(), st.data())
def test_garbage_never_hurts(run: tuple[list[Record], list[bytes]], data: st.DataObject) -> None:
    """Flipped bytes: whatever comes out is a well-formed batch, and the decoder lives on."""
    _, batches = run
    assume(batches)
    raw = bytearray(batches[0])
    for _ in range(data.draw(st.integers(1, 6))):
        raw[data.draw(st.integers(17, len(raw) - 1))] = data.draw(st.integers(0, 255))
    decoded = DECODER.decode([bytes(raw)], 0, 2**62, config_of(Rules("score", SCHEMAS)))
    for event in Batch.parse(decoded.batch).events():
        assert event.key.startswith(b"score:")
        assert event.value[0] == 0


# ---- random schemas


@st.composite
def a_schema(draw: st.DrawFn, names: list[str], depth: int = 0) -> Any:
    kinds = ["null", "boolean", "int", "long", "float", "double", "bytes", "string", "enum", "fixed"]
    kind = draw(st.sampled_from(kinds + ["array", "map", "union", "record", "record"] * (depth < 3)))
    if kind in ("enum", "fixed", "record"):
        name = f"N{len(names)}"
        names.append(name)
        if kind == "enum":
            return {"type": "enum", "name": name, "symbols": [f"S{i}" for i in range(draw(st.integers(1, 3)))]}
        if kind == "fixed":
            return {"type": "fixed", "name": name, "size": draw(st.integers(0, 5))}
        fields = [draw(a_schema(names, depth + 1)) for _ in range(draw(st.integers(0, 3)))]
        if draw(st.booleans()):
            fields.append(["null", name])
        return {"type": "record", "name": name, "fields": [{"name": f"f{i}", "type": t} for i, t in enumerate(fields)]}
    if kind == "array":
        return {"type": "array", "items": draw(a_schema(names, depth + 1))}
    if kind == "map":
        return {"type": "map", "values": draw(a_schema(names, depth + 1))}
    if kind == "union":
        pool = draw(st.permutations(["null", "long", "string", "double", "boolean"]))
        return [*pool[: draw(st.integers(1, 3))], {"type": "array", "items": draw(a_schema(names, depth + 1))}]
    return kind


def check_alone(schema: Any, body: bytes) -> Reason | None:
    rules = Rules("score", {7: (0, schema)})
    record = Record(0, NOW_MS, b"score:a", b"\0\0\0\0\7" + body)
    decoded = DECODER.decode([batch_bytes([record], None)], 0, 1, config_of(rules))
    assert decoded.n + len(decoded.rejects) == 1
    return decoded.rejects[0].reason if decoded.rejects else None


def check_oracle(schema: Any, body: bytes) -> Reason | None:
    reader = Reader(body, 0)
    try:
        Body(reader, schema).check()
    except Bad as bad:
        return bad.reason
    return None if reader.at == len(body) else Reason.BODY_TRAILING_BYTES


@settings(max_examples=300, deadline=None, print_blob=True)
@given(st.data())
def test_avro_programs_judge_bodies_as_the_oracle_does(data: st.DataObject) -> None:
    schema = data.draw(a_schema([]))
    body = b"".join(
        data.draw(st.lists(st.sampled_from([b"\0", b"\2", b"\4", b"\1", b"a", b"\x80", b"\xff", b"\0\0"]), max_size=20))
    )
    if data.draw(st.booleans()):
        body = data.draw(st.binary(max_size=24))
    assert check_alone(schema, body) == check_oracle(schema, body)


@settings(max_examples=150, deadline=None, print_blob=True)
@given(st.data())
def test_what_fastavro_writes_is_accepted_and_what_is_accepted_it_reads(data: st.DataObject) -> None:
    schema = data.draw(a_schema([]))
    seed = data.draw(st.integers(0, 2**31))
    from random import Random

    body = write(schema, random_datum(schema, {}, Random(seed), 0))
    assert check_alone(schema, body) is None
    mutated = bytearray(body)
    if mutated:
        mutated[data.draw(st.integers(0, len(mutated) - 1))] = data.draw(st.integers(0, 255))
    verdict = check_alone(schema, bytes(mutated))
    assert verdict == check_oracle(schema, bytes(mutated))
    if verdict is None:
        stream = io.BytesIO(bytes(mutated))
        fastavro.schemaless_reader(stream, fastavro.parse_schema(schema), None)
        assert stream.tell() == len(mutated)


def random_datum(schema: Any, named: dict[str, Any], rng: Any, depth: int) -> Any:
    if isinstance(schema, list):
        branch = schema[0] if depth > 6 else rng.choice(schema)
        return random_datum(branch, named, rng, depth + 1)
    if isinstance(schema, str) and schema in named:
        return random_datum(named[schema], named, rng, depth + 1)
    kind = schema["type"] if isinstance(schema, dict) else schema
    if kind in ("record", "enum", "fixed"):
        named[schema["name"]] = schema
    size = 0 if depth > 6 else rng.randrange(3)
    match kind:
        case "record":
            return {f["name"]: random_datum(f["type"], named, rng, depth + 1) for f in schema["fields"]}
        case "array":
            return [random_datum(schema["items"], named, rng, depth + 1) for _ in range(size)]
        case "map":
            return {f"k{i}": random_datum(schema["values"], named, rng, depth + 1) for i in range(size)}
        case "enum":
            return rng.choice(schema["symbols"])
        case "fixed":
            return rng.randbytes(schema["size"])
        case "bytes":
            return rng.randbytes(size)
    simple = {"null": None, "boolean": rng.random() < 0.5, "string": "é€𝄞"[:size], "float": 1.5, "double": rng.random()}
    return simple[kind] if kind in simple else rng.randrange(-(2**31), 2**31)


def test_limits_of_nesting_and_of_empty_items() -> None:
    chain = {"type": "record", "name": "Link", "fields": [{"name": "next", "type": ["null", "Link"]}]}
    assert check_alone(chain, b"\2" * 80 + b"\0") is None
    assert check_alone(chain, b"\2" * 5000 + b"\0") is Reason.BODY_TOO_DEEP
    nulls = {"type": "array", "items": "null"}
    assert check_alone(nulls, b"\x80\x08\0") is None
    assert check_alone(nulls, b"\xff\xff\xff\xff\xff\xff\xff\xff\x7f\0") is not None
    assert check_alone(nulls, write("long", 2**62) + b"\0") is Reason.BODY_TOO_LONG
    assert check_alone({"type": "array", "items": "long"}, b"\3\4\2\2\0") is None
    assert check_alone({"type": "array", "items": "long"}, b"\3\6\2\2\0") is Reason.BODY_INVALID


def test_clock_and_key_limits_are_exact() -> None:
    """A clock 1000 ms ahead passes and one of 1001 ms does not; the same for generations, purges and key lengths."""
    value = b"\0\0\0\0\x0b\2"
    edge, over = b"%d" % (((NOW_MS + 1000) << 16) + 0xFFFF), b"%d" % ((NOW_MS + 1001) << 16)
    purges = [
        b"\0\0\0\0\x0f" + write(PURGE, {"generation": int(hlc), "before_ms": 0, "last_hlc": 0, "remove": True})
        for hlc in (edge, over)
    ]
    cases: list[tuple[bytes, bytes, list[tuple[str, bytes | None]], Reason | None]] = [
        (b"score:a", value, [("hlc", edge)], None),
        (b"score:a", value, [("hlc", over)], Reason.CLOCK_AHEAD),
        (b"score:a", value, [("generation", edge)], None),
        (b"score:a", value, [("generation", over)], Reason.CLOCK_AHEAD),
        (b"score:a", purges[0], [], None),
        (b"score:a", purges[1], [], Reason.CLOCK_AHEAD),
        (b"score:" + b"x" * 1018, value, [], None),
        (b"score:" + b"x" * 1019, value, [], Reason.KEY_TOO_LONG),
        (b"score:", value, [], Reason.WRONG_KEYSPACE),
        (b"score:a", value, [("ttl_ms", b"1000")], None),
        (b"score:a", value, [("ttl_ms", b"999")], Reason.TTL_OUT_OF_RANGE),
        (b"score:a", value, [("hlc", b"1"), ("hlc", over)], Reason.CLOCK_AHEAD),
    ]
    records = [Record(i, NOW_MS, key, value, headers) for i, (key, value, headers, _) in enumerate(cases)]
    batches = [batch_bytes(records, None)]
    rules = Rules("score", SCHEMAS)
    whole = DECODER.decode(batches, 0, len(cases), config_of(rules))
    assert {r.offset: r.reason for r in whole.rejects} == {i: c[3] for i, c in enumerate(cases) if c[3] is not None}
    middle = DECODER.decode(batches, 2, 5, config_of(rules))
    assert [e.offset for e in Batch.parse(middle.batch).events()] == [2, 4]
    assert [r.offset for r in middle.rejects] == [3]
