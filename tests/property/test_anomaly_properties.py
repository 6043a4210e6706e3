"""The anomaly UDF: any split of the input, and any restart from its rows, gives an equal table and equal alerts."""

from __future__ import annotations

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from streams.serde.codec import decode_body
from streams.wasm.batch import Event
from tests.property import fold_model
from tests.support.anomaly import BASE_MS, NEVER, SCHEMAS, folded, reading, state_of

CUTS = st.lists(st.tuples(st.integers(1, 40), st.sampled_from(["fold", "fold", "commit", "drop"])), max_size=20)


@st.composite
def an_event(draw: st.DrawFn) -> Event:
    append_ms = BASE_MS + draw(st.integers(0, 40))
    key = draw(st.sampled_from(["device:a:telemetry", "device:a", "device:b:telemetry", "device:ü:x", "device:b\x01"]))
    kind = draw(st.integers(0, 29))
    if kind == 0:
        return Event(append_ms, append_ms << 16, NEVER, 0, 1, key.encode(), b"\0\0\0\0\3")
    if kind == 1:
        body = fold_model.write_long(0) + fold_model.write_long(BASE_MS + draw(st.integers(0, 60)))
        value = b"\0\0\0\0\2" + body + fold_model.write_long(draw(st.integers(0, 9))) + b"\1"
        return Event(append_ms, append_ms << 16, NEVER, 0, 2, b"device:a:t", value)
    value = draw(st.one_of(st.floats(9, 11), st.floats(9, 11), st.sampled_from([10.0, 99.0, -99.0]), st.floats()))
    expires_ms = draw(st.sampled_from([NEVER] * 9 + [append_ms + 1, append_ms + 20]))
    metric = draw(st.sampled_from(["t", "t", "t", "", "p:%€"]))
    return reading(key, value, BASE_MS + draw(st.integers(0, 30)) // 4, append_ms, metric, expires_ms)


@settings(max_examples=150, deadline=None, print_blob=True)
@given(st.lists(an_event(), max_size=200), CUTS)
def test_any_split_gives_equal_rows_alerts_and_rejects(events: list[Event], cuts: list[tuple[int, str]]) -> None:
    whole, cut = folded(events), folded(events, cuts)
    assert cut.rows == whole.rows
    assert cut.outputs == whole.outputs
    assert cut.rejects == whole.rejects
    for row in cut.rows.values():
        if len(row) > 32:
            state = state_of(row)
            assert len(state["alerts"]) == min(state["anomalies"], 8)


class Model:
    """The test as the module's comment says it, in plain Python, on doubles."""

    def __init__(self) -> None:
        self.level = self.deviation = self.run_level = self.run_deviation = 0.0
        self.n = self.run = self.shifts = 0
        self.flagged: list[tuple[int, float]] = []

    def judge(self, value: float, time_ms: int) -> None:
        x = max(-1e300, min(1e300, value))
        off = x - self.level if self.n else 0.0
        sigma = max(1.2533141373155003 * self.deviation, 1e-3 * abs(self.level) + 1e-9)
        self.n += 1
        score = max(-1e6, min(1e6, off / sigma)) if self.n > 30 else 0.0
        pulled = max(-3 * sigma, min(3 * sigma, off)) if self.n > 8 else off
        if self.n == 1:
            self.level = x
        self.level += max(0.1, 1 / self.n) * pulled
        if self.n > 1:
            self.deviation += max(0.01, 1 / (self.n - 1)) * (abs(pulled) - self.deviation)
        if abs(score) <= 6:
            self.run = 0
            return
        self.flagged.append((time_ms, score))
        side = 1 if score > 0 else -1
        if self.run * side <= 0:
            self.run, self.run_level, self.run_deviation = side, x, 0.0
            return
        self.run += side
        far = abs(x - self.run_level)
        self.run_level += (1 / abs(self.run)) * (x - self.run_level)
        self.run_deviation += (1 / abs(self.run)) * (far - self.run_deviation)
        if abs(self.run) == 20:
            self.level, self.deviation = self.run_level, max(self.run_deviation, self.deviation)
            self.run, self.shifts = 0, self.shifts + 1


VALUES = st.lists(
    st.one_of(st.floats(9, 11), st.floats(9, 11), st.floats(59, 61), st.floats(allow_nan=False, allow_infinity=False)),
    min_size=1,
    max_size=30,
)


@settings(max_examples=100, deadline=None, print_blob=True)
@given(VALUES, VALUES, st.integers(0, 40))
def test_the_table_is_the_models(quiet: list[float], wild: list[float], repeats: int) -> None:
    values = (quiet * 40)[:60] + wild + (wild[:1] * repeats) + quiet
    model = Model()
    events = []
    for i, value in enumerate(values):
        model.judge(value, BASE_MS + i)
        events.append(reading("device:a", value, BASE_MS + i, BASE_MS + i))
    table = folded(events, [(7, "drop"), (50, "commit")])
    (row,) = table.rows.values()
    state = state_of(row)
    assert [(a["time"], a["score"]) for a in table.alerts()] == model.flagged
    assert (state["readings"], state["anomalies"], state["shifts"]) == (model.n, len(model.flagged), model.shifts)
    assert (state["level"], state["deviation"], state["run"]) == (model.level, model.deviation, model.run)
    assert math.isfinite(state["level"]) and math.isfinite(state["deviation"])
    for _, _, value in table.outputs:
        decode_body(SCHEMAS["streams.Alert"], value)
