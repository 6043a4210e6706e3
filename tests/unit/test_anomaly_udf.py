"""The anomaly UDF: what it flags, what it learns, what it refuses; and the two real series, where they are."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from streams.wasm.batch import OP_DELETE, OP_PURGE, Event
from streams.wasm.manifest import read_manifest
from tests.property.fold_model import write_long
from tests.support.anomaly import BASE_MS, NEVER, SCHEMAS, SERIES, folded, reading, real_series, series

SEED = 3
ROW = "device:a:t"


def noise(n: int, scale: float = 1.0) -> list[float]:
    print("seed", SEED)
    return [float(v) for v in 20 + np.random.default_rng(SEED).normal(0, scale, n)]


def test_the_schema_ids_in_the_manifest_are_the_schemas() -> None:
    manifest = read_manifest(Path(str(files("wasm_udfs").joinpath("sdk"))).parent / "anomaly")
    constants = dict(manifest.constants)
    for name in ("Reading", "Anomaly", "Alert"):
        assert constants[f"{name.upper()}_ID"] == SCHEMAS[f"streams.{name}"].id
    assert manifest.outputs == ("alerts.device",)


def test_a_spike_is_flagged_once_and_hardly_moves_the_baseline() -> None:
    quiet = folded(series(noise(600)))
    assert quiet.alerts() == []
    with_spike = noise(600)
    with_spike[400] = 500.0
    table = folded(series(with_spike))
    (alert,) = table.alerts()
    assert alert["device"] == "a" and alert["metric"] == "t" and alert["value"] == 500.0
    assert alert["time"] == BASE_MS + 400_000
    assert math.isclose(alert["expected"], 20, abs_tol=1.5) and alert["score"] > 100
    state = table.states()[ROW]
    assert (state["anomalies"], state["readings"], state["anomalous"]) == (1, 600, False)
    assert [kept["value"] for kept in state["alerts"]] == [500.0]
    assert abs(state["level"] - quiet.states()[ROW]["level"]) < 0.1
    assert table.outputs[0][:2] == (0, b"device:a:telemetry")


def test_normal_noise_gives_few_false_alarms() -> None:
    table = folded(series(noise(50_000)))
    assert len(table.alerts()) <= 2  # of 50,000; a normal distribution beyond 6 sigma: none
    assert math.isclose(table.states()[ROW]["deviation"] * 1.2533, 1.0, rel_tol=0.25)


def test_a_new_level_is_flagged_then_accepted() -> None:
    table = folded(series([*noise(200), *(v + 50 for v in noise(200))]))
    state = table.states()[ROW]
    assert state["shifts"] >= 1
    assert 10 <= state["anomalies"] <= 40
    assert len(state["alerts"]) == 8  # bounded
    assert [a["time"] for a in state["alerts"]] == sorted(a["time"] for a in state["alerts"])
    assert math.isclose(state["level"], 70, abs_tol=1.5)
    assert not state["anomalous"] and state["run"] == 0


def test_nothing_is_judged_while_warming_up() -> None:
    table = folded(series([1.0, 1e9, -1e9] * 10))
    assert table.alerts() == []
    assert table.states()[ROW]["score"] == 0


@pytest.mark.parametrize("level", [0.0, -0.0, 5.0, -1e12])
def test_a_constant_series_flags_what_is_clearly_else(level: float) -> None:
    table = folded(series([level] * 100 + [level + abs(level) * 1e-4] + [level + 1 + abs(level)]))
    (alert,) = table.alerts()
    assert alert["value"] == level + 1 + abs(level)


def test_the_largest_numbers_overflow_nothing() -> None:
    big = 1.7976931348623157e308
    table = folded(series([big, -big] * 50 + [5e-324, 0.0] * 50 + [big]))
    state = table.states()[ROW]
    assert all(math.isfinite(state[name]) for name in ("level", "deviation", "expected", "score", "run_level"))
    assert abs(state["score"]) <= 1e6


def test_older_readings_are_counted_and_teach_nothing() -> None:
    plain = folded(series(noise(100)))
    late = [reading("device:a:telemetry", 1e6, BASE_MS - 5, BASE_MS + 100)]
    table = folded([*series(noise(100)), *late])
    before, after = plain.states()[ROW], table.states()[ROW]
    assert after == {**before, "late": 1}
    assert table.alerts() == []


def test_rows_of_devices_and_metrics_are_apart_and_their_keys_unambiguous() -> None:
    events = [
        reading("device:a:telemetry", 1.0, BASE_MS, BASE_MS, "b:c"),
        reading("device:a", 2.0, BASE_MS, BASE_MS, "b:c"),
        reading("device:a:b", 3.0, BASE_MS, BASE_MS, "c"),
        reading("device:a:b", 4.0, BASE_MS, BASE_MS, "100%"),
        reading("device:a:b", 5.0, BASE_MS, BASE_MS, ""),
    ]
    states = folded(events).states()
    assert {key: (s["metric"], s["value"], s["readings"]) for key, s in states.items()} == {
        "device:a:b%3ac": ("b:c", 2.0, 2),
        "device:a:b:c": ("c", 3.0, 1),
        "device:a:b:100%25": ("100%", 4.0, 1),
        "device:a:b:": ("", 5.0, 1),
    }


def test_an_expired_row_starts_again_deletes_leave_it_and_a_purge_removes_it() -> None:
    def event(op: int, key: str, value: bytes, append_ms: int) -> Event:
        return Event(append_ms, append_ms << 16, NEVER, 0, op, key.encode(), value)

    first = [reading("device:a", 1.0, BASE_MS + i, BASE_MS + i, expires_ms=BASE_MS + 1000) for i in range(5)]
    delete = event(OP_DELETE, "device:a", b"\0\0\0\0\1", BASE_MS + 10)
    again = reading("device:a", 9.0, BASE_MS, BASE_MS + 2000, expires_ms=BASE_MS + 3000)
    assert folded([*first, delete]).states()[ROW]["readings"] == 5
    table = folded([*first, delete, again])
    assert (table.states()[ROW]["readings"], table.states()[ROW]["value"]) == (1, 9.0)
    last_hlc = (BASE_MS + 2000) << 16
    body = write_long(0) + write_long(BASE_MS + 4000) + write_long(last_hlc) + b"\1"
    purge = event(OP_PURGE, ROW, b"\0\0\0\0\2" + body, BASE_MS + 4000)
    assert folded([*first, delete, again, purge]).rows == {}


def test_what_is_no_reading_of_a_device_is_refused() -> None:
    events = [
        reading("device:a", float("nan"), BASE_MS, BASE_MS),
        reading("device:a", 1.0, 2**60, BASE_MS),
        reading("device:a\x01", 1.0, BASE_MS, BASE_MS),
        reading("device:a", 1.0, BASE_MS, BASE_MS, "m\n"),
        reading("device:a", 1.0, BASE_MS, BASE_MS, "%" * 400),
        Event(BASE_MS, 0, NEVER, 0, 0, b"device:a", b"\0\0\0\0\1x"),
        Event(BASE_MS, 0, NEVER, 0, 0, b"device:a", reading("device:a", 1.0, 1, 1).value[:12]),
    ]
    assert [reason for _, reason in folded(events).rejects] == [
        "non-finite value",
        "time out of range",
        "the device's name holds control characters or is empty",
        "the metric holds control characters",
        "the key is too long for anomaly",
        "not a streams.Reading",
        "malformed value",
    ]


WINDOWS = {
    "machine_temperature_system_failure": [
        ("2013-12-10 06:25", "2013-12-12 05:35"),
        ("2013-12-15 07:50", "2013-12-17 17:00"),
        ("2014-01-27 14:20", "2014-01-29 13:30"),
        ("2014-02-07 14:55", "2014-02-09 14:05"),
    ],
    "ec2_cpu_utilization_5f5533": [("2014-02-18 11:00", "2014-02-19 13:30"), ("2014-02-24 06:00", "2014-02-25 07:00")],
}
"""The Numenta Anomaly Benchmark's labels: windows around known failures, a tenth of each series."""


def milliseconds(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 1000


@pytest.mark.parametrize(
    ("name", "least", "episodes"), [("machine_temperature_system_failure", 3, 15), ("ec2_cpu_utilization_5f5533", 1, 2)]
)
def test_the_real_series(name: str, least: int, episodes: int) -> None:
    """What the README of the UDF says of them, with some room."""
    if not (SERIES / f"{name}.csv").is_file():
        pytest.skip(f"{name}.csv is not here")
    table = folded([reading("device:n", v, t, BASE_MS + i) for i, (t, v) in enumerate(real_series(name))])
    times = [alert["time"] for alert in table.alerts()]
    windows = [(milliseconds(a), milliseconds(b)) for a, b in WINDOWS[name]]
    found = [sum(a <= t <= b for t in times) for a, b in windows]
    outside = [t for t in times if not any(a <= t <= b for a, b in windows)]
    false = sum(1 for i, t in enumerate(outside) if not i or t - outside[i - 1] > 3_600_000)
    print(name, "alerts per window", found, "outside", len(outside), "in episodes", false)
    assert sum(n > 0 for n in found) >= least
    assert false <= episodes
