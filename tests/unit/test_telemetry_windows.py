"""Windows over the real table, folded by the real module: against a plain oracle; what closes, is late or expires."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from streams.model.errors import BadInput, NotFound
from streams.use_cases.telemetry import windows
from streams.use_cases.telemetry.answer import AnswerLimits
from streams.use_cases.telemetry.panes import MalformedRow, decode_segments
from tests.support.edge_units import NOW, Clock
from tests.support.telemetry import (
    DAY_MS,
    IDLE_MS,
    REGIONS,
    Reading,
    TelemetryTables,
    check_window,
    sessioned,
    slotted,
)

START_MS = NOW // 60_000 * 60_000
FAR = f"iot:region:{REGIONS[1]}"


@pytest_asyncio.fixture
async def edge(tmp_path: Path) -> AsyncIterator[TelemetryTables]:
    found = TelemetryTables(tmp_path, clock=Clock(START_MS))
    yield found
    await found.close()


def compare(answered: Sequence[dict[str, Any]], truth: dict[Any, list[float]], window_s: int | None = None) -> None:
    """The windows are exactly the oracle's, in order."""
    keyed = {(w["device"], w["metric"], w["start"], *(() if window_s else (w["end"],))): w for w in answered}
    assert keyed.keys() == truth.keys()
    assert len(keyed) == len(answered)
    assert list(keyed) == sorted(keyed, key=lambda key: (key[0] or "", *key[1:]))
    for key, window in keyed.items():
        if window_s:
            assert window["end"] - window["start"] == window_s
        check_window(window, truth[key])


def some_readings(seeded: random.Random, count: int, spread_ms: int, devices: int = 7) -> list[Reading]:
    kinds = (lambda: seeded.gauss(20, 5), lambda: seeded.uniform(-1e6, 1e6), lambda: float(seeded.randint(0, 3)))
    return [
        (
            f"d:{seeded.randrange(devices)}",
            seeded.choice(("temp", "hum")),
            seeded.choice(kinds)(),
            START_MS + seeded.randrange(spread_ms),
        )
        for _ in range(count)
    ]


@pytest.mark.parametrize(("window", "hop"), [(1, 1), (60, 60), (10, 4), (30, 10), (45, 30), (7, 3), (3600, 3600)])
async def test_windows_are_the_oracles(edge: TelemetryTables, window: int, hop: int) -> None:
    seed = window * 100 + hop
    print(f"seed {seed}")
    seeded = random.Random(seed)
    readings = some_readings(seeded, 1_200, 400_000)
    for at in range(0, len(readings), 171):
        edge.put(readings[at : at + 171])
    found = edge.ask(window=window, hop=hop)
    compare(found["windows"], slotted(readings, window, hop), window)
    assert found["late"] == 0
    assert found["watermark"] == max(each[3] for each in readings) / 1000
    region = edge.ask(window=window, hop=hop, by="region")
    compare(region["windows"], slotted(readings, window, hop, by_device=False), window)
    assert region["watermark"] == found["watermark"]


@pytest.mark.parametrize("gap", [1, 3, 20])
async def test_sessions_are_the_oracles(edge: TelemetryTables, gap: int) -> None:
    print(f"seed {gap}")
    readings = some_readings(random.Random(gap), 600, 600_000)
    readings += [("edge", "temp", 1.0, START_MS + t) for t in (0, gap * 1000, 2 * gap * 1000 + 1, 900_000_000)]
    edge.put(readings)
    compare(edge.ask(gap=gap)["windows"], sessioned(readings, gap * 1000))
    compare(edge.ask(gap=gap, by="region")["windows"], sessioned(readings, gap * 1000, by_device=False))
    at = (START_MS + 300_000) / 1000
    some = edge.ask(gap=gap, from_=at, to=at + 20)["windows"]
    everything = edge.ask(gap=gap)["windows"]
    assert some == [w for w in everything if w["end"] > at and w["start"] < at + 20] and some


async def test_a_range_gives_the_whole_windows_that_overlap_it(edge: TelemetryTables) -> None:
    readings = [("a", "t", float(i), START_MS + i * 7_000) for i in range(400)]
    edge.put(readings)
    truth = slotted(readings, 60, 20)
    for low, high in ((START_MS / 1000 + 61, START_MS / 1000 + 200), (START_MS / 1000 + 60, START_MS / 1000 + 120)):
        found = edge.ask(window=60, hop=20, from_=low, to=high)["windows"]
        compare(found, {k: v for k, v in truth.items() if k[2] + 60 > low and k[2] < high}, 60)
    starts = [w["start"] for w in edge.ask(window=60, from_=START_MS / 1000 + 60, to=START_MS / 1000 + 180)["windows"]]
    assert starts == [START_MS / 1000 + 60, START_MS / 1000 + 120]
    milliseconds = edge.ask(window=60, from_=START_MS + 60_000, to=START_MS + 180_000)["windows"]
    assert [w["start"] for w in milliseconds] == starts
    assert edge.ask(to=START_MS / 1000 - 1)["windows"] == [] == edge.ask(from_=START_MS / 1000 + 9e6)["windows"]


async def test_filters_and_names_with_colons_and_spaces(edge: TelemetryTables) -> None:
    names = ["a", "a b", "a:b", "a:telemetry", "ab", "ü/€"]
    readings = [(name, metric, 1.0, START_MS) for name in names for metric in ("m", "m1", "µ")]
    edge.put(readings)
    for name in names:
        found = edge.ask(device=name, metric="m")
        assert [(w["device"], w["metric"]) for w in found["windows"]] == [(name, "m")] and found["watermark"]
    assert [w["device"] for w in edge.ask(device="device:a:b:telemetry", metric="µ")["windows"]] == ["a:b"]
    assert edge.ask(device="none") == {"windows": [], "watermark": None, "late": 0}
    assert [(w["device"], w["count"]) for w in edge.ask(by="region", metric="m1")["windows"]] == [(None, 6)]


async def test_regions_never_mix_and_one_device_may_write_to_two_partitions(edge: TelemetryTables) -> None:
    here = [("a", "t", float(i), START_MS + i * 500) for i in range(40)]
    there = [("a", "t", 1000.0 + i, START_MS + i * 500) for i in range(40)]
    edge.put(here[::2], partition=0)
    edge.put(here[1::2], partition=1)
    edge.put(there, REGIONS[1])
    for by in (True, False):
        given = {"window": 10, "by": "device" if by else "region"}
        compare(edge.ask(**given)["windows"], slotted(here, 10, 10, by_device=by), 10)
        compare(edge.ask(FAR, **given)["windows"], slotted(there, 10, 10, by_device=by), 10)
        compare(edge.ask(gap=1, by=given["by"])["windows"], sessioned(here, 1_000, by_device=by))


async def test_old_series_and_present_ones_live_beside_each_other(edge: TelemetryTables) -> None:
    old = [("old", "t", float(i), 1_386_018_900_000 + i * 300_000) for i in range(500)]
    new = [("new", "t", float(i), START_MS + i * 1_000) for i in range(100)]
    for at in range(0, 500, 50):
        edge.put([*new[at // 5 : at // 5 + 10], *old[at : at + 50]])
    found = edge.ask(window=3600)
    compare(found["windows"], slotted(old + new, 3600, 3600), 3600)
    assert found["late"] == 0


async def test_late_readings_are_counted_put_out_and_in_no_window(edge: TelemetryTables) -> None:
    timely = [("a", "t", 1.0, START_MS), ("a", "t", 2.0, START_MS - DAY_MS), ("b", "t", 5.0, START_MS - 3 * DAY_MS)]
    late = [("a", "t", 3.0, START_MS - DAY_MS - 1), ("a", "u", 4.0, 0)]
    edge.put([timely[0], *late, *timely[1:]])
    found = edge.ask(window=1)
    compare(found["windows"], slotted(timely, 1, 1), 1)
    assert (found["late"], found["watermark"]) == (2, START_MS / 1000)
    assert [(index, key) for index, key, _ in edge.late] == [(0, b"device:a:telemetry")] * 2
    assert edge.ask(device="b")["late"] == 0 and edge.ask(by="region")["late"] == 2


def closed(edge: TelemetryTables, **given: object) -> list[bool]:
    return [w["closed"] for w in edge.ask(window=10, **given)["windows"]]


async def test_windows_close_by_watermark_and_by_the_clock_when_a_device_is_quiet(edge: TelemetryTables) -> None:
    edge.put([("a", "t", 1.0, START_MS + t) for t in (0, 9_999)])
    assert closed(edge) == [False]
    edge.put([("a", "t", 1.0, START_MS + 10_000)])
    assert closed(edge) == [True, False], "the watermark has reached the first one's end"
    edge.clock.ms = START_MS + 20_000 + IDLE_MS - 1
    edge.beat()
    assert closed(edge) == [True, False]
    edge.clock.ms += 1
    assert closed(edge) == [True, False], "the clock alone says nothing: what came before it may be under way"
    edge.beat()
    assert closed(edge) == [True, True]
    assert closed(edge, by="region") == [True, True]
    edge.put([("a", "t", 1.0, START_MS + 20_500)])
    assert closed(edge)[2] is False


async def test_a_regions_window_waits_for_every_device_that_is_not_quiet(edge: TelemetryTables) -> None:
    edge.clock.ms = START_MS + 3_600_000
    edge.put([("fast", "t", 1.0, START_MS + 30_000), ("slow", "t", 1.0, START_MS)])
    assert closed(edge, by="region") == [False, False]
    assert closed(edge, device="fast") == [False] == closed(edge, device="slow")
    edge.put([("slow", "t", 1.0, START_MS + 10_000)])
    assert closed(edge, by="region") == [True, False, False]
    edge.clock.ms += IDLE_MS
    edge.put([("fast", "t", 1.0, START_MS + 41_000)])
    assert closed(edge, by="region") == [True, True, True, False], "slow is quiet by now"


async def test_a_cut_origin_closes_nothing_by_the_clock(edge: TelemetryTables) -> None:
    edge.put([("a", "t", 1.0, START_MS)], REGIONS[1])
    edge.clock.ms += 3_600_000
    assert [w["closed"] for w in edge.ask(FAR)["windows"]] == [False]
    edge.beat()
    assert [w["closed"] for w in edge.ask(FAR)["windows"]] == [True]


async def test_expired_readings_vanish_and_an_expired_device_begins_anew(edge: TelemetryTables) -> None:
    edge.put([("a", "t", 1.0, START_MS)], ttl_ms=1_000)
    edge.put([("b", "t", 1.0, START_MS)])
    edge.clock.ms += 1_000
    assert [w["device"] for w in edge.ask()["windows"]] == ["b"]
    edge.put([("a", "t", 2.0, START_MS - 9 * DAY_MS)])
    found = edge.ask()
    assert [(w["device"], w["sum"]) for w in found["windows"]] == [("a", 2.0), ("b", 1.0)] and found["late"] == 0


async def test_what_is_asked_is_checked(edge: TelemetryTables) -> None:
    for given, field in (
        ({"window": "0"}, "window"), ({"window": "1.5"}, "window"), ({"window": "x"}, "window"),
        ({"window": "-60"}, "window"), ({"window": ""}, "window"), ({"window": "9" * 12}, "window"),
        ({"window": 10, "hop": 20}, "hop"), ({"gap": "0"}, "gap"), ({"gap": 1, "window": 60}, "window"),
        ({"gap": 1, "hop": 60}, "hop"), ({"by": "x"}, "by"), ({"from": "yesterday"}, "from"), ({"to": "-1"}, "to"),
        ({"from": "5", "to": "5"}, "to"), ({"from": "nan"}, "from"), ({"from": "9" * 15}, "from"),
        ({"by": "region", "device": "a"}, "device"), ({"device": ""}, "device"),
    ):  # fmt: skip
        with pytest.raises(BadInput) as refused:
            edge.ask(**given)
        assert refused.value.field == field, given
    for partition in ("iot:region:mars", "iot:region:", "us-east", ""):
        with pytest.raises(NotFound, match="iot:region:us-east, iot:region:eu-west"):
            edge.ask(partition)
    edge.put([("a", "t", 1.0, START_MS + i * 1000) for i in range(200)])
    same = [
        edge.ask(window=window, from_=begin)
        for window in ("60", "60s", "1m", "60.0")
        for begin in (START_MS // 1000 + 60, f"{START_MS / 1000 + 60:.3f}", "2023-11-14T22:14:00Z", "2023-11-14 22:14")
    ]
    assert all(each == same[0] for each in same) and same[0]["windows"]


async def test_answers_and_work_are_bounded(edge: TelemetryTables) -> None:
    edge.put([("a", "t", 1.0, START_MS + i * 1000) for i in range(200)])
    edge.limits = AnswerLimits(windows_max=100)
    for given, field in (({"window": 1}, "window"), ({"window": 60, "hop": 1}, "window")):
        with pytest.raises(BadInput, match="100") as refused:
            edge.ask(**given)
        assert refused.value.field == field
    assert len(edge.ask(window=2)["windows"]) == 100
    edge.limits = AnswerLimits(rows_max=19)
    for given, field in (({}, "from"), ({"gap": 5}, "gap"), ({"by": "region"}, "from")):
        with pytest.raises(BadInput) as refused:
            edge.ask(**given)
        assert refused.value.field == field
    assert len(edge.ask(to=START_MS / 1000 + 120)["windows"]) == 2
    edge.limits = AnswerLimits()
    with pytest.raises(BadInput) as refused:
        edge.ask(window="10d", hop=1)
    assert refused.value.field == "hop"


async def test_a_view_is_of_one_moment(edge: TelemetryTables) -> None:
    edge.put([("a", "t", 1.0, START_MS)])
    view = edge.tables.table("telemetry").view_of(REGIONS[0])
    edge.put([("b", "t", 1.0, START_MS)])
    keys = []
    for cursor in view.cursors:
        key = cursor.seek(b"device:")
        while key is not None:
            keys.append(key)
            key = cursor.advance()
    assert len(keys) == 3 and not any(key.startswith(b"device:b") for key in keys)


def test_extremes_of_values_and_quantile_estimates() -> None:
    seeded = np.random.default_rng(3)
    values = np.concatenate(
        [seeded.normal(size=2_000) * 10.0 ** seeded.integers(-300, 300, 2_000), [5e-324, 0.0, -0.0]]
    )
    bits = np.abs(values).view(np.int64)
    index = (bits >> 52) * 50 + ((bits & ((1 << 52) - 1)) * 50 >> 52)
    index = np.where(bits >> 52 == 0, 0, np.where(values < 0, -index, index))
    found = windows.estimates(index)
    normal = np.abs(values) > 2.3e-308
    assert (np.abs(found - values)[normal] <= windows.QUANTILE_ERROR * 1.000001 * np.abs(values)[normal]).all()
    assert (found[~normal] == 0).all()


async def test_huge_values_answer_null_where_there_is_no_number(edge: TelemetryTables) -> None:
    edge.put([("a", "t", value, START_MS) for value in (1.7e308, 1.7e308, -1.7e308, -0.0)])
    (window,) = edge.ask()["windows"]
    assert (window["min"], window["max"], window["count"]) == (-1.7e308, 1.7e308, 4)
    edge.put([("b", "t", 1.7e308, START_MS)] * 3)
    window = edge.ask(device="b")["windows"][0]
    assert window["sum"] is None and window["max"] == window["p50"] == 1.7e308


def test_rows_of_another_form_are_refused_not_misread() -> None:
    for row in (b"", bytes(20), bytes(200), b"\x01\x7f\x01\x00" + bytes(90)):
        with pytest.raises(MalformedRow):
            decode_segments([row], np.zeros(1, np.int64), 0)
