"""Windows over any readings, put in any portions and partitions, are what the definition says."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.edge_units import Clock
from tests.support.telemetry import Reading, TelemetryTables, check_window, sessioned, slotted

START_MS = 1_700_000_000_000
VALUES = st.one_of(st.floats(-1e9, 1e9), st.sampled_from([0.0, -0.0, 1.0, 1e-320, -5.0]))
READINGS: st.SearchStrategy[list[Reading]] = st.lists(
    st.tuples(
        st.sampled_from(["a", "a:b", "ü"]),
        st.sampled_from(["t", "t2"]),
        VALUES,
        st.integers(-40_000, 40_000).map(lambda ms: START_MS + ms),
    ),
    max_size=60,
)
SPANS = st.one_of(
    st.tuples(st.integers(1, 30), st.integers(1, 30)).map(lambda pair: (max(pair), min(pair))),
    st.integers(1, 5),
)


def compare(found: list[dict[str, Any]], truth: dict[Any, list[float]], *, with_end: bool) -> None:
    keyed = {(w["device"], w["metric"], w["start"], *((w["end"],) if with_end else ())): w for w in found}
    assert len(keyed) == len(found) and keyed.keys() == truth.keys()
    for key, values in truth.items():
        check_window(keyed[key], values)


async def check(readings: list[Reading], cuts: list[tuple[int, int]], span: Any, by_device: bool) -> None:
    with tempfile.TemporaryDirectory() as place:
        edge = TelemetryTables(Path(place), clock=Clock(START_MS))
        try:
            at = 0
            for size, partition in [*cuts, (len(readings), 0)]:
                edge.put(readings[at : at + size], partition=partition)
                at += size
            by = "device" if by_device else "region"
            if isinstance(span, tuple):
                window, hop = span
                found = edge.ask(window=window, hop=hop, by=by)["windows"]
                compare(found, slotted(readings, window, hop, by_device=by_device), with_end=False)
            else:
                found = edge.ask(gap=span, by=by)["windows"]
                compare(found, sessioned(readings, span * 1000, by_device=by_device), with_end=True)
        finally:
            await edge.close()


@settings(max_examples=60, deadline=None, print_blob=True)
@given(READINGS, st.lists(st.tuples(st.integers(1, 20), st.integers(0, 1)), max_size=5), SPANS, st.booleans())
def test_any_readings_in_any_portions(
    readings: list[Reading], cuts: list[tuple[int, int]], span: Any, by_device: bool
) -> None:
    asyncio.run(check(readings, cuts, span, by_device))
