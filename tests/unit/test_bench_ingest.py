"""What the ingest bench compares with: readings, windows, the peers' changelogs, the charts."""

from __future__ import annotations

import json
import struct
import xml.etree.ElementTree as ET
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest

from streams.bench.ingest import GROWTH, IngestOptions, _costs, charts
from streams.bench.ingest_load import PRODUCER, LoadOptions, Ran, Sample, Throttle, slices
from streams.bench.ingest_peers import faust_windows, kafka_streams_windows, quix_windows
from streams.bench.plot import svg
from streams.bench.readings import Readings, verify_windows
from streams.model.errors import BadInput, StreamsError
from streams.tabular.tables import stream_of

BASE_MS = 1_700_000_000_000 - 5
TOTAL = 30_000
READINGS = Readings(7, BASE_MS, per_event_s=1_000)
MASK = (1 << 64) - 1


def mixed(number: int) -> int:
    """splitmix64 in Python's own integers."""
    value = (number * 0x9E3779B97F4A7C15 + 0x9E3779B97F4A7C15) & MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
    return value ^ (value >> 31)


def plain() -> dict[tuple[str, int], tuple[float, float, float, float]]:
    """The windows, one reading at a time."""
    held: dict[tuple[str, int], list[float]] = defaultdict(list)
    for number in range(TOTAL):
        device, value = (mixed(number) >> 32) * 7 >> 32, (mixed(number) & 1023) / 4
        time_ms = BASE_MS + number
        held[f"device:{device:07d}:telemetry", time_ms // 10_000 * 10_000].append(value)
    return {key: (float(len(each)), sum(each), min(each), max(each)) for key, each in held.items()}


def test_the_truth_is_every_readings_window() -> None:
    truth = READINGS.truth(TOTAL)
    assert truth.rows() == plain()
    assert sum(row[0] for row in truth.by_window().values()) == TOTAL
    assert truth.rows([3]) == {key: four for key, four in plain().items() if ":0000003:" in key[0]}
    last = READINGS.last(TOTAL)
    assert max(last) == TOTAL - 1 and all(READINGS.columns(int(at), 1)[0][0] == i for i, at in enumerate(last))


@pytest.mark.parametrize("damage", [1.0, -1.0, None], ids=["more", "less", "missing"])
def test_one_wrong_window_fails(damage: float | None) -> None:
    found = {key: (*key, *four) for key, four in plain().items()}
    verify_windows("ours", READINGS.truth(TOTAL), found.values())
    key = next(iter(found))
    if damage is None:
        del found[key]
    else:
        name, start, count, *rest = found[key]
        found[key] = (name, start, count + damage, *rest)  # type: ignore[assignment]
    with pytest.raises(StreamsError, match="ours aggregated wrong: 1 of 24 windows differ"):
        verify_windows("ours", READINGS.truth(TOTAL), found.values())


def test_peers_changelogs_are_read() -> None:
    start, four = 1_700_000_000_000, (2.0, 3.5, 1.0, 2.5)
    starts, ends = start.to_bytes(8, "big"), (start + 10_000).to_bytes(8, "big")
    wanted = [("device:a:telemetry", start, *four)]
    key = b"device:a:telemetry"
    assert list(kafka_streams_windows({key + starts + bytes(4): struct.pack(">dddd", *four)})) == wanted
    rows = {key + b"|" + starts + b"|" + ends: b"[2, 3.5, 1.0, 2.5]", key + b"|__latest_timestamp__": b"17"}
    assert list(quix_windows(rows)) == wanted
    name = json.dumps(["device:a:telemetry", [start / 1000, start / 1000 + 9.9]]).encode()
    assert list(faust_windows({name: b"[2, 3.5, 1.0, 2.5]"})) == wanted


def test_slices_are_the_readings_as_far_as_the_throttle_lets_them() -> None:
    throttle = Throttle(LoadOptions(first=10, count=250, slice_rows=100))
    (batch,) = stream_of(slices(READINGS, throttle)).read_all().combine_chunks().to_batches()
    assert throttle.produced == len(batch) == 250
    codes, values = READINGS.columns(10, 250)
    assert batch.column("key").to_pylist() == [READINGS.name(code) for code in codes.tolist()]
    assert batch.column("value").to_pylist() == values.tolist()
    assert batch.column("time").to_pylist() == (np.arange(10, 260) + BASE_MS).tolist()
    behind = Throttle(LoadOptions(lag_max=10))
    behind.produced, behind.lag = 100, 90
    behind.done.set()
    assert not behind.wait()


def test_options_that_measure_nothing_are_refused() -> None:
    for wrong in ({"seconds": 0.5}, {"events": 10}, {"rounds": 0}, {"contenders": ("flink",)}, {"parts": ("all",)}):
        with pytest.raises(BadInput):
            replace(IngestOptions(), **wrong)  # type: ignore[arg-type]


def test_charts_show_growth_by_devices_and_by_frames() -> None:
    series = {key: (1e6 / (i + 1), 100.0 + i, 2.0, 0.1) for i, key in enumerate(GROWTH)}
    found = charts(series)
    assert [x for x, _ in found[0].points] == [1_000, 100_000, 1_000_000]
    assert sorted(x for x, _ in found[4].points) == [100, 1_000, 10_000]
    drawn = ET.fromstring(svg(found))
    assert len(drawn.findall(".//{*}polyline")) == 8
    assert len(drawn.findall(".//{*}circle")) == 24


def test_a_long_run_shows_what_the_workers_memory_does_after_its_first_minute() -> None:
    cpu_s = dict.fromkeys((PRODUCER, "kafka", "worker", "gateway"), 1.0)

    def costs(seconds: int, end_mb: float) -> dict[str, tuple[float | None, bool | None]]:
        sizes = [400.0 if at < 60 else end_mb for at in range(seconds)]
        samples = [
            Sample(at, 0, {"worker-x": int(mb * 1e6), "gateway-x": 10**8, "kafka-x": 10**8})
            for at, mb in enumerate(sizes)
        ]
        return {each.what: (each.value, each.met) for each in _costs(Ran(1_000_000, seconds, cpu_s, samples))}

    what = "RSS of the worker, most after a minute and a half over most around the first minute"
    assert what not in costs(60, 400.0)
    assert costs(180, 420.0)[what] == (pytest.approx(5.0), True)
    assert costs(180, 480.0)[what] == (pytest.approx(20.0), False)
