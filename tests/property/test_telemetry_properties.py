"""The telemetry UDF: any split of the input gives an equal table and outputs, and the table is a plain model's."""

from __future__ import annotations

import itertools
import math
import struct
import tempfile
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.model.row import decode_row, encode_row
from streams.serde import encode, load_builtin
from streams.serde.codec import decode_body
from streams.use_cases.telemetry.panes import decode_segments
from streams.wasm.batch import Batch, Event, assemble, build
from streams.wasm.builtin import builtin_module
from streams.wasm.engine import ModuleCache
from streams.wasm.fold_host import FoldHost, FoldOptions
from tests.property import fold_model

CACHE = ModuleCache(Path(tempfile.gettempdir()) / "streams-test-wasm")
SCHEMAS = load_builtin()
READING, PANES = SCHEMAS["streams.Reading"], SCHEMAS["streams.TelemetryPanes"]
NEVER = 2**63 - 1
GRACE_MS = 86_400_000
BASE_MS = 1_700_000_000_000
Output = tuple[int, bytes, bytes]


def reading(key: str, value: float, time_ms: int, append_ms: int, metric: str = "t", expires_ms: int = NEVER) -> Event:
    body = encode(READING, {"metric": metric, "value": value, "time": time_ms})
    return Event(append_ms, append_ms << 16, expires_ms, 0, 0, key.encode(), body)


@st.composite
def an_event(draw: st.DrawFn) -> Event:
    append_ms = BASE_MS + draw(st.integers(0, 40))
    key = draw(st.sampled_from(["device:a:telemetry", "device:a", "device:b:telemetry", "device:ü:x", "device:b\x01"]))
    kind = draw(st.integers(0, 19))
    if kind == 0:
        return Event(append_ms, append_ms << 16, NEVER, 0, 1, key.encode(), b"\0\0\0\0\3")
    if kind <= 2:
        row = draw(
            st.sampled_from([b"device:a\x1f", b"device:\x1ft\x1f%010x" % (2**39 + BASE_MS // 10_000), b"device:a"])
        )
        body = fold_model.write_long(0) + fold_model.write_long(BASE_MS + draw(st.integers(0, 60)))
        value = b"\0\0\0\0\2" + body + fold_model.write_long(draw(st.integers(0, 9))) + b"\1"
        return Event(append_ms, append_ms << 16, NEVER, 0, 2, row, value)
    base = BASE_MS + draw(st.sampled_from([0, 0, 0, 1, -1])) * draw(st.sampled_from([GRACE_MS, GRACE_MS + 12_000]))
    time_ms = draw(st.sampled_from([base, base, -5])) + draw(st.integers(-3_000, 12_000))
    value = draw(st.one_of(st.floats(-100, 100), st.floats(allow_nan=True), st.sampled_from([0.0, -0.0, 1.0, 1.0])))
    expires_ms = draw(st.one_of(st.just(NEVER), st.integers(1, 30).map(lambda ttl: append_ms + ttl)))
    event = reading(key, value, time_ms, append_ms, draw(st.sampled_from(["t", "t", "", "p€"])), expires_ms)
    return event if kind < 19 else Event(append_ms, 0, NEVER, 0, 0, key.encode(), b"\0\0\0\0\1x")


class Table:
    """A committed table and its output topics, and a FoldHost over it."""

    def __init__(self, name: str = "telemetry", **options: int) -> None:
        self.rows: dict[bytes, bytes] = {}
        self.outputs: list[Output] = []
        self.rejects: list[tuple[int, str]] = []
        self.host = FoldHost(builtin_module(name), CACHE, FoldOptions(merge=127, outputs=1, **options))

    def fold(self, at: int, batch: Batch) -> None:
        found = self.host.fold(batch.raw, lambda keys: [self.rows.get(k) for k in keys])
        self.rejects += [(at + r.index, r.reason) for r in found]

    def commit(self) -> None:
        for key, row in self.host.take():
            if row is None:
                self.rows.pop(key, None)
            else:
                self.rows[key] = row
        self.outputs += self.host.take_outputs()
        self.host.committed()


def folded(events: list[Event], cuts: list[tuple[int, str]], name: str = "telemetry") -> Table:
    table, at = Table(name), 0
    for size, step in cuts:
        if at < len(events):
            table.fold(at, build(events[at : at + size]))
        at += size
        if step != "fold":
            table.commit()
        if step == "drop":
            table.host.discard()
    if at < len(events):
        table.fold(at, build(events[at:]))
    table.commit()
    table.host.close()
    return table


CUTS = st.lists(st.tuples(st.integers(1, 12), st.sampled_from(["fold", "fold", "commit", "drop"])), max_size=20)


@settings(max_examples=150, deadline=None, print_blob=True)
@given(st.lists(an_event(), max_size=80), CUTS)
def test_any_split_gives_equal_rows_outputs_and_rejects(events: list[Event], cuts: list[tuple[int, str]]) -> None:
    whole, cut = folded(events, []), folded(events, cuts)
    assert cut.rows == whole.rows
    assert cut.outputs == whole.outputs
    assert cut.rejects == whole.rejects
    for key, row in cut.rows.items():
        cells = decode_row(row).cells
        for cell in cells:
            name = "streams.TelemetryDevice" if key.endswith(b"\x1f") else PANES.name
            decode_body(SCHEMAS[name], cell.payload)
        key.decode()


def bucket(value: float) -> int:
    bits = struct.unpack("<Q", struct.pack("<d", abs(value)))[0]
    index = (bits >> 52) * 50 + ((bits & (2**52 - 1)) * 50 >> 52)
    return 0 if bits >> 52 == 0 else int(math.copysign(index, value))


def unpacked(segment: dict[str, Any]) -> list[list[tuple[int, int]]]:
    """(index, weight) of each pane's buckets, number by number."""
    numbers, value, shift = [], 0, 0
    for byte in segment["sketch"]:
        value, shift = value | (byte & 127) << shift, shift + 7
        if byte < 128:
            numbers.append(value)
            value = shift = 0
    assert shift == 0
    panes = []
    for size in map(int, segment["buckets"]):
        pairs, numbers = numbers[: 2 * size], numbers[2 * size :]
        pairs[0] = pairs[0] >> 1 ^ -(pairs[0] & 1)
        panes.append(list(zip(itertools.accumulate(pairs[::2]), pairs[1::2], strict=True)))
    assert not numbers
    return panes


def as_before(row: bytes) -> bytes:
    """A segment's row as version 1.0 of the UDF wrote it."""
    (cell,) = decode_row(row).cells
    segment = decode_body(PANES, cell.payload)
    buckets = [each for pane in unpacked(segment) for each in pane]
    del segment["sketch"]
    segment |= {"index": [float(i) for i, _ in buckets], "weight": [float(w) for _, w in buckets]}
    old = encode(SCHEMAS["streams.TelemetrySegment"], segment)
    return encode_row(replace(decode_row(row), cells=(replace(cell, payload=old),)))


def test_rows_of_the_version_before_are_read_and_written_anew() -> None:
    seed = 3
    rng = np.random.default_rng(seed)
    print("seed", seed)
    n = 3_000
    times = BASE_MS + rng.integers(0, 25_000, n)
    values = np.where(rng.random(n) < 0.9, rng.normal(20, 3, n), np.exp(rng.uniform(-300, 300, n)))
    values[rng.random(n) < 0.3] *= -1
    events = [reading(f"device:{i % 3}", float(values[i]), int(times[i]), BASE_MS + i // 9) for i in range(n)]
    whole, half = folded(events, []), folded(events[: n // 2], [])
    segments = [key for key in half.rows if not key.endswith(b"\x1f")]
    old = [as_before(half.rows[key]) for key in segments]
    series = np.arange(len(segments))
    new_panes = decode_segments([half.rows[key] for key in segments], series, BASE_MS)
    old_panes = decode_segments(old, series, BASE_MS)
    mixed = [row if i % 2 else half.rows[segments[i]] for i, row in enumerate(old)]
    mixed_panes = decode_segments(mixed, series, BASE_MS)
    order = np.argsort(mixed_panes.series * 1_000 + mixed_panes.slot % 1_000)
    for name in (
        "series",
        "slot",
        "first_ms",
        "last_ms",
        "count",
        "sum",
        "min",
        "max",
        "m2",
        "sizes",
        "index",
        "weight",
    ):
        assert np.array_equal(getattr(new_panes, name), getattr(old_panes, name)), name
        assert np.array_equal(getattr(mixed_panes.taken(order), name), getattr(new_panes, name)), name
    table = Table()
    table.rows = {**half.rows, **dict(zip(segments, old, strict=True))}
    table.fold(n // 2, build(events[n // 2 :]))
    table.commit()
    assert table.rows == whole.rows


@settings(max_examples=100, deadline=None, print_blob=True)
@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.floats(-1e6, 1e6), st.integers(-25_000, 25_000), st.booleans()), max_size=60
    ),
    CUTS,
)
def test_the_table_is_the_models(found: list[tuple[str, float, int, bool]], cuts: list[tuple[int, str]]) -> None:
    events, marks, late = [], {}, defaultdict(int)
    panes: dict[tuple[str, int], list[tuple[float, int]]] = defaultdict(list)
    for i, (name, value, offset, old) in enumerate(found):
        time_ms = BASE_MS + offset - (GRACE_MS + 10_000 if old else 0)
        events.append(reading(f"device:{name}:telemetry", value, time_ms, BASE_MS + i))
        if time_ms < marks.get(name, time_ms) - GRACE_MS:
            late[name] += 1
            continue
        marks[name] = max(marks.get(name, time_ms), time_ms)
        for who in (name, ""):
            panes[who, time_ms // 1000].append((value, time_ms % 1000))
    table = folded(events, cuts)
    assert len(table.outputs) == sum(late.values())
    seen = 0
    for key, row in table.rows.items():
        (cell,) = decode_row(row).cells
        parts = key.decode().removeprefix("device:").split("\x1f")
        if len(parts) == 2:
            state = decode_body(SCHEMAS["streams.TelemetryDevice"], cell.payload)
            assert (state["watermark"], state["late"]) == (marks[parts[0]], late[parts[0]])
            continue
        s = decode_body(PANES, cell.payload)
        sketches = unpacked(s)
        assert int(parts[2], 16) - 2**39 == s["start"] // 10_000
        for i, second in enumerate(s["second"]):
            want = panes[parts[0], s["start"] // 1000 + int(second)]
            values = np.array([v for v, _ in want])
            assert (s["count"][i], s["min"][i], s["max"][i]) == (len(want), values.min(), values.max())
            assert (s["first"][i], s["last"][i]) == (min(t for _, t in want), max(t for _, t in want))
            assert math.isclose(s["sum"][i], values.sum(), rel_tol=1e-9, abs_tol=1e-6)
            assert math.isclose(s["m2"][i], values.var() * len(want), rel_tol=1e-6, abs_tol=1e-3)
            expected = sorted((b, [bucket(v) for v in values].count(b)) for b in {bucket(v) for v in values})
            assert sketches[i] == expected
            seen += 1
    assert seen == len(panes)


def test_typed_columns_give_the_same_table() -> None:
    rng = np.random.default_rng(5)
    times = BASE_MS + rng.integers(-9_000, 9_000, 500)
    values = rng.normal(size=500)
    events = [
        reading(f"device:{i % 7}", float(values[i]), int(times[i]), BASE_MS + i, "t" * (i % 3)) for i in range(500)
    ]
    plain = folded(events, [])
    batch = build(events)
    columns = {i: (w, d.tobytes()) for i, (w, d) in batch._sections.items()}
    table = Table()
    table.fold(0, assemble(500, {**columns, 65: (8, values.tobytes()), 66: (8, times.astype("<i8").tobytes())}))
    table.commit()
    assert table.rows == plain.rows


def test_many_metrics_and_long_names() -> None:
    events = [reading("device:x", 1.0, BASE_MS + i, BASE_MS, f"m{i % 40}") for i in range(400)]
    table = folded(events, [(100, "fold"), (7, "commit")])
    assert len(table.rows) == 1 + 2 * 40
    long = [
        reading("device:" + "x" * 1017, 1.0, BASE_MS, BASE_MS),
        reading("device:x", 1.0, BASE_MS, BASE_MS, "m" * 1020),
        reading("device:x", 1.0, BASE_MS, BASE_MS, "m\x02"),
        reading("device:x", 1.0, 2**60, BASE_MS),
    ]
    assert [r for _, r in folded(long, []).rejects] == [
        "the key is too long for telemetry",
        "the key is too long for telemetry",
        "the metric holds control characters",
        "time out of range",
    ]


def test_long_inputs_in_any_cut() -> None:
    """Rows forgotten and asked for again, both ways of keeping many buckets, both keys of a device, many metrics."""
    seed = 11
    rng = np.random.default_rng(seed)
    print("seed", seed)
    n = 24_000
    times = BASE_MS + np.arange(n) * 20 + rng.integers(-15_000, 15_000, n)
    near, wide = rng.normal(20, 1, n), np.exp(rng.uniform(-40, 40, n)) * rng.choice([-1, 1], n)
    values = np.where(rng.random(n) < 0.97, near, wide)
    metrics = np.where(rng.random(n) < 0.002, rng.integers(1, 30, n), 0)
    keys = [f"device:{d}{s}" for d in "abc" for s in ("", ":telemetry")]
    which = rng.integers(0, len(keys), n)
    appends = BASE_MS + np.arange(n) // 7
    events = [
        reading(
            keys[which[i]], float(values[i]), int(times[i]), int(appends[i]), f"m{metrics[i]}", int(appends[i]) + 900
        )
        for i in range(n)
    ]
    whole = folded(events, [])
    assert whole.rejects == []
    for _ in range(3):
        sizes = rng.integers(1, 3000, 40)
        cuts = [(int(size), str(rng.choice(["fold", "commit", "drop"], p=[0.3, 0.6, 0.1]))) for size in sizes]
        cut = folded(events, cuts)
        assert cut.rows == whole.rows, cuts
        assert cut.outputs == whole.outputs
