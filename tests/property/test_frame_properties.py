"""Frames: however puts are spread over records and frames, the same events come out; corrupt ones only reject."""

from __future__ import annotations

import dataclasses
import struct
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from streams.model.errors import BadInput
from streams.serde import FRAME, decode_frame, is_frame, load_builtin
from streams.wasm.avro_program import avro_program
from streams.wasm.batch import Batch, Event
from streams.wasm.decoder import Decoded, DecoderConfig, Reason, SchemaProgram
from tests.property.decoder_oracle import Bad, Record, Rules, judge
from tests.property.frame_builder import frame_of
from tests.property.test_decoder_properties import (
    COUNTER_ADD,
    DECODER,
    JSON,
    NOW_MS,
    NUMBER,
    batch_bytes,
    good_keys,
    keys,
    write,
)


def record(name: str, **fields: Any) -> Any:
    return {"type": "record", "name": name, "fields": [{"name": n, "type": t} for n, t in fields.items()]}


READING = record("Reading", metric="string", value="double", time="long")
MIXED = record("Mixed", a="int", b="boolean", c="bytes", d="string")
NESTED = record("Nested", maybe=["null", "long"], n="long")
SCHEMAS: dict[int, tuple[int, Any]] = {
    11: (0, COUNTER_ADD),
    12: (0, JSON),
    13: (0, NUMBER),
    17: (0, READING),
    18: (0, MIXED),
    19: (0, NESTED),
}
RULES = Rules("score", SCHEMAS, 86_400_000)
PROGRAMS = {i: SchemaProgram(op, avro_program(schema)) for i, (op, schema) in SCHEMAS.items()}
CONFIG = DecoderConfig("score", PROGRAMS, RULES.default_ttl_ms, frame_schema_id=load_builtin()[FRAME].id)

longs = st.integers(-(2**63), 2**63 - 1) | st.integers(-300, 300)
doubles = (st.floats() | st.sampled_from([1.5, 2.5, float("nan")])).map(lambda x: struct.pack("<d", x))
good_doubles = st.floats(allow_nan=False, allow_infinity=False).map(lambda x: struct.pack("<d", x))
texts = st.text(max_size=12).map(str.encode) | st.sampled_from([b"temperature", b"x" * 300])
flags = st.sampled_from([b"\0", b"\1"])
raws = st.binary(max_size=6) | longs.map(lambda n: write(NESTED, {"maybe": None, "n": n}))
CELLS: dict[str, Any] = {
    "LONG": longs,
    "DOUBLE": doubles,
    "BOOLEAN": flags | st.just(b"\2"),
    "BYTES": texts,
    "RAW": raws,
}
GOOD = {**CELLS, "DOUBLE": good_doubles, "BOOLEAN": flags}
KINDS = {
    11: ["LONG"],
    12: ["BYTES"],
    13: ["DOUBLE"],
    17: ["BYTES", "DOUBLE", "LONG"],
    18: ["LONG", "BOOLEAN", "BYTES", "BYTES"],
    19: ["RAW"],
}
ttls = st.sampled_from([0, 0, 0, 1000, 60_000])
bad_ttls = st.sampled_from([0, 999, 1000, 3155760000000, 3155760000001, -5])


def varint(number: int) -> bytes:
    return write("long", number)


def avro_cell(kind: str, cell: Any) -> bytes:
    if kind == "LONG":
        return varint(cell)
    return varint(len(cell)) + cell if kind == "BYTES" else bytes(cell)


@dataclasses.dataclass
class Group:
    """Puts of one schema, to be written as one frame or as single records."""

    schema_id: int
    keys: list[bytes]
    ttls: list[int]
    kinds: list[str]
    rows: list[list[Any]]

    def values(self) -> list[bytes]:
        prefix = b"\0" + self.schema_id.to_bytes(4, "big")
        cells = [[avro_cell(k, c) for k, c in zip(self.kinds, row, strict=True)] for row in self.rows]
        return [prefix + b"".join(row) for row in cells]

    def frame(self, choose: Any) -> bytes:
        columns = [(kind, [row[i] for row in self.rows]) for i, kind in enumerate(self.kinds)]
        return frame_of(self.schema_id, self.keys, self.ttls, columns, choose)


@st.composite
def a_group(draw: st.DrawFn) -> Group:
    schema_id = draw(st.sampled_from(list(KINDS)))
    n = draw(st.integers(1, 6) | st.sampled_from([17, 300]))
    tidy = draw(st.booleans())
    kinds = KINDS[schema_id] if draw(st.integers(0, 7)) else ["RAW"]
    some_keys = good_keys if tidy else st.one_of(good_keys, keys.filter(lambda k: k is not None))
    pick = GOOD if tidy else CELLS
    rows = [[draw(pick[kind]) for kind in kinds] for _ in range(min(n, 6))]
    return Group(
        schema_id,
        [draw(some_keys) for _ in range(6)] * (n // 6) + [draw(some_keys) for _ in range(n % 6)],
        [draw(ttls if tidy else bad_ttls) for _ in range(n)] if n < 10 else [draw(ttls)] * n,
        kinds,
        [rows[i % len(rows)] for i in range(n)],
    )


def header_of(ttl: int, hlc: bytes) -> list[tuple[str, bytes | None]]:
    return [("hlc", hlc), *([("ttl_ms", b"%d" % ttl)] if ttl else [])]


def judged(puts: list[tuple[Record, int]]) -> tuple[list[Event], list[tuple[Any, ...]]]:
    """Events and rejects of puts as the oracle sees each alone, with its part."""
    events, rejects = [], []
    for one, part in puts:
        try:
            events.append(dataclasses.replace(judge(one, RULES), part=part))
        except Bad as bad:
            # A negative TTL of a column is out of range; as a header's text it cannot be read.
            reason = Reason.TTL_OUT_OF_RANGE if bad.reason is Reason.UNPARSABLE_HEADER else bad.reason
            rejects.append((one.offset, part, reason, bad.schema_id, one.key, one.value))
    return events, rejects


def seen(decoded: Decoded) -> tuple[list[Event], list[tuple[Any, ...]]]:
    rejects = [(r.offset, r.part, r.reason, r.schema_id, r.key, r.value) for r in decoded.rejects]
    same = (Reason.UNPARSABLE_HEADER, Reason.TTL_OUT_OF_RANGE)
    return Batch.parse(decoded.batch).events(), [
        (*r[:2], Reason.TTL_OUT_OF_RANGE if r[2] in same else r[2], *r[3:]) for r in rejects
    ]


@settings(max_examples=250, deadline=None, print_blob=True)
@given(st.lists(st.tuples(a_group(), st.booleans()), min_size=1, max_size=4), st.data())
def test_puts_in_frames_are_the_puts_alone(groups: list[tuple[Group, bool]], data: st.DataObject) -> None:
    def choose(options: Any) -> Any:
        return data.draw(st.sampled_from(options))

    offset, batches, puts = 5, [], []
    for group, framed in groups:
        hlc = b"%d" % ((NOW_MS - 3) << 16)
        alone = [
            Record(offset + (0 if framed else i), NOW_MS, key, value, header_of(ttl, hlc))
            for i, (key, value, ttl) in enumerate(zip(group.keys, group.values(), group.ttls, strict=True))
        ]
        records = [Record(offset, NOW_MS, None, group.frame(choose), header_of(0, hlc))] if framed else alone
        batches.append(batch_bytes(records, None))
        puts += [(one, i if framed else -1) for i, one in enumerate(alone)]
        offset += len(records)
    decoded = DECODER.decode(batches, 0, offset, CONFIG)
    events, rejects = seen(decoded)
    expected_events, expected_rejects = judged(puts)
    assert rejects == expected_rejects
    assert events == expected_events
    check_typed(Batch.parse(decoded.batch), events)
    check_key_ids(Batch.parse(decoded.batch), events)
    check_items_and_runs(Batch.parse(decoded.batch), events)
    check_selection(Batch.parse(decoded.batch), data)


def check_typed(batch: Batch, events: list[Event]) -> None:
    """Typed columns, when there are any, hold what the bodies hold."""
    if not events or int.from_bytes(events[0].value[1:5], "big") != 17:
        return
    values, times = batch.typed_column(1, "<d"), batch.typed_column(2, "<q")
    if values is not None and times is not None:
        for value, moment, event in zip(values.tolist(), times.tolist(), events, strict=True):
            assert event.value.endswith(struct.pack("<d", value) + varint(moment))


def check_key_ids(batch: Batch, events: list[Event]) -> None:
    """Events of one id have one key; there are ids only when every event is of a frame."""
    found = batch._sections.get(12)
    if found is None:
        return
    ids = found[1].view("<u4").tolist()
    assert all(event.part >= 0 for event in events)
    assert len({(ident, event.key) for ident, event in zip(ids, events, strict=True)}) == len(set(ids))


def check_items_and_runs(batch: Batch, events: list[Event]) -> None:
    """Puts of one item id have one metric; events of one run have the same clocks, expiry and operation."""
    items, runs, times = batch._sections.get(128), batch._sections.get(13), batch.typed_column(2, "<q")
    if events and items is not None and times is not None and int.from_bytes(events[0].value[1:5], "big") == 17:
        sizes = [8 + len(varint(moment)) for moment in times.tolist()]
        metrics = [event.value[:-size] for event, size in zip(events, sizes, strict=True)]
        ids = items[1].view("<u4").tolist()
        assert len(set(zip(ids, metrics, strict=True))) == len(set(ids))
    if runs is not None:
        starts = runs[1].view("<u4").tolist()
        same = [dataclasses.replace(event, key=b"", value=b"", part=0) for event in events]
        assert all(event.part >= 0 for event in events)
        assert starts == sorted(set(starts))
        assert all(i in starts for i in range(batch.n) if not i or same[i] != same[i - 1])


def check_selection(batch: Batch, data: st.DataObject) -> None:
    """What the fold host does to find a culprit inside a frame."""
    if batch.n:
        chosen = data.draw(st.lists(st.integers(0, batch.n - 1), max_size=5))
        part = batch.select(chosen)
        assert part.events() == [batch.event(i) for i in chosen]
        for c in range(4):
            whole, cut = batch.typed_column(c, "<i8"), part.typed_column(c, "<i8")
            assert (whole is None) == (cut is None)
            if whole is not None and cut is not None:
                assert cut.tolist() == whole[chosen].tolist()


@settings(max_examples=300, deadline=None, print_blob=True)
@given(a_group(), st.data())
def test_corrupt_frames_give_rejects_and_nothing_else(group: Group, data: st.DataObject) -> None:
    """Flipped and cut bytes: the module agrees with the reader in Python, put by put, and lives on."""

    def choose(options: Any) -> Any:
        return data.draw(st.sampled_from(options))

    value = bytearray(group.frame(choose))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(5, len(value) - 1))
        value[at] = data.draw(st.integers(0, 255) | st.sampled_from([value[at] ^ 1, value[at] ^ 2]))
    if data.draw(st.booleans()):
        del value[data.draw(st.integers(5, len(value))) :]
    raw = bytes(value)
    hlc = b"%d" % (NOW_MS << 16)
    good = Record(1, NOW_MS, b"score:a", b"\0\0\0\0\x0b\2", [])
    records = [Record(0, NOW_MS, None, raw, header_of(0, hlc)), good]
    events, rejects = seen(DECODER.decode([batch_bytes(records, None)], 0, 2, CONFIG))
    assert events[-1] == judge(good, RULES)
    assert is_frame(raw)
    whole = [r for r in rejects if r[1] == -1]
    try:
        frame = decode_frame(raw)
    except BadInput as error:
        assert error.field
        assert [(r[2] in (Reason.MALFORMED_FRAME, Reason.UNKNOWN_SCHEMA), r[5]) for r in rejects] == [(True, raw)]
        return
    if whole:
        assert rejects == whole
        assert whole[0][2] is (Reason.UNKNOWN_SCHEMA if frame.schema_id not in SCHEMAS else Reason.MALFORMED_FRAME)
        return
    puts = [
        (Record(0, NOW_MS, key, value, header_of(frame.ttl_of(i) or 0, hlc)), i)
        for i, (key, value) in enumerate(zip(frame.keys(), frame.values(), strict=True))
    ]
    expected_events, expected_rejects = judged(puts)
    assert (events[:-1], rejects) == (expected_events, expected_rejects)
