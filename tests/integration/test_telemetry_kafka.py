"""Telemetry through the real system: two Kafkas, a mirror, workers, gateways; loads of every form, both gateways.

The two NAB series of the development data, where they are there; synthetic ones of the same kind, always.
"""

from __future__ import annotations

import io
import os
import random
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pandas as pd
import pytest

from streams.client import AsyncClient, TelemetryWindows, connect, connect_sync
from streams.kafka.admin import Admin
from streams.model.errors import BadInput, NotFound
from streams.model.token import Token
from streams.serde import SchemaSet, load_builtin
from tests.support.polling import eventually
from tests.support.retention import raw_keys
from tests.support.telemetry import DAY_MS, IDLE_MS, Reading, check_window, sessioned, slotted
from tests.support.whole_system import FAR, HOME, WholeSystem, equal_digests, read_log

pytestmark = pytest.mark.kafka
ROOT = Path(__file__).resolve().parents[2]
PARTITION, FAR_PARTITION = f"iot:region:{HOME}", f"iot:region:{FAR}"
NAB = Path(os.environ.get("STREAMS_TEST_SERIES", ROOT.parent / "shared" / "data"))
SERIES = ("machine_temperature_system_failure", "ec2_cpu_utilization_5f5533")


@pytest.fixture(scope="module")
def system(whole_system: WholeSystem) -> WholeSystem:
    """The session's."""
    return whole_system


def series_of(name: str) -> pd.DataFrame:
    """A NAB series, or one like it: a reading every 5 minutes in 2014, some instants twice."""
    path = NAB / f"{name}.csv"
    if path.exists():
        return pd.read_csv(path)
    print(f"{name}: synthetic, seed {len(name)}")
    seeded = np.random.default_rng(len(name))
    count = 4_000
    minutes = np.sort(seeded.integers(0, count, count)) * 5
    times = pd.Timestamp("2014-01-01") + pd.to_timedelta(minutes, unit="min")
    values = seeded.normal(0, 1, count).cumsum() / 10 + seeded.choice([0.0, -40.0, 300.0], count)
    return pd.DataFrame({"timestamp": times.strftime("%Y-%m-%d %H:%M:%S"), "value": values})


def as_readings(device: str, metric: str, frame: pd.DataFrame) -> list[Reading]:
    times = pd.to_datetime(frame["timestamp"], utc=True).astype("datetime64[ms, UTC]").astype("int64")
    return [(device, metric, v, t) for v, t in zip(frame["value"].tolist(), times.tolist(), strict=True)]


def key_of(device: str) -> str:
    return f"device:{device}:telemetry"


def answers(found: TelemetryWindows) -> list[dict[str, Any]]:
    return [{name: each[name] for name in each.__dataclass_fields__} for each in found.windows]


def settled(found: TelemetryWindows) -> list[dict[str, Any]]:
    """What does not change as the clock goes on."""
    return [{**each, "closed": None} for each in answers(found)]


def compare(found: TelemetryWindows, truth: dict[Any, list[float]], devices: set[str] | None = None) -> None:
    """The answer's windows (of these devices) are the oracle's."""
    chosen = [w for w in answers(found) if devices is None or w["device"] in devices]
    keyed = {(w["device"], w["metric"], w["start"]): w for w in chosen}
    assert keyed.keys() == {key[:3] for key in truth} and len(keyed) == len(chosen)
    for key, values in truth.items():
        check_window(keyed[key[:3]], values)


async def test_series_of_years_ago_are_what_pandas_makes_of_them(system: WholeSystem) -> None:
    frames = {name: series_of(name) for name in SERIES}
    truth = [each for name, frame in frames.items() for each in as_readings(name, "value", frame)]
    async with connect(system.url(FAR)) as there, connect(system.url(HOME)) as here:
        for name, frame in frames.items():
            columns = {"key": [key_of(name)] * len(frame), "metric": ["value"] * len(frame)}
            receipt = await here.put_many("device", {**columns, "value": frame["value"], "time": frame["timestamp"]})
            assert receipt.accepted == len(frame) and not receipt.rejected_count
        there.observe(here.token)
        for window in (300, 3_600, 86_400):
            found = await here.aggregate_telemetry(PARTITION, window)
            compare(found, slotted(truth, window, window), set(SERIES))
            assert settled(await there.aggregate_telemetry(PARTITION, window)) == settled(found)
        assert found.watermark == max(each[3] for each in truth) / 1000 and found.late == 0
        hop = await there.aggregate_telemetry(PARTITION, "1d", hop="6h", device=SERIES[0])
        compare(hop, slotted([each for each in truth if each[0] == SERIES[0]], 86_400, 21_600))
        compare(await there.aggregate_telemetry(PARTITION, gap="6m", device=SERIES[1]),
                sessioned([each for each in truth if each[0] == SERIES[1]], 360_000))  # fmt: skip
        region = await there.aggregate_telemetry(PARTITION, 86_400, "region", metric="value")
        compare(region, slotted(truth, 86_400, 86_400, by_device=False))
        by_pandas(frames[SERIES[0]], await here.aggregate_telemetry(PARTITION, "1h", device=SERIES[0]))
        some = await here.aggregate_telemetry(
            PARTITION, "1h", device=SERIES[0], start=datetime(2014, 1, 2, tzinfo=UTC), end="2014-01-03T00:00:00Z"
        )
        assert [each.start for each in some.windows] == [1_388_620_800.0 + 3_600 * i for i in range(24)]
    with connect_sync(system.url(FAR), token=here.token) as twin:
        assert settled(twin.aggregate_telemetry(PARTITION, 86_400, "region", metric="value")) == settled(region)


def by_pandas(frame: pd.DataFrame, found: TelemetryWindows) -> None:
    """The same once more, by pandas itself: count, min and max bit-exact, the rest to its tolerance."""
    values = frame["value"].set_axis(pd.to_datetime(frame["timestamp"])).resample("1h", origin="epoch")
    table = values.agg(["count", "sum", "min", "max", "mean", "std"])
    for share, name in ((0.5, "p50"), (0.95, "p95"), (0.99, "p99")):
        table[name] = values.quantile(share)
    table = table[table["count"] > 0]
    answered = pd.DataFrame(answers(found)).set_axis([pd.Timestamp(w.start, unit="s") for w in found.windows])
    assert list(answered.index) == list(table.index)
    for name in ("count", "min", "max"):
        assert (answered[name] == table[name]).all(), name
    for name, tolerance in (("sum", 1e-12), ("mean", 1e-12), ("p50", 0.01), ("p95", 0.01), ("p99", 0.01)):
        np.testing.assert_allclose(answered[name], table[name], rtol=tolerance, err_msg=name)
    np.testing.assert_allclose(answered["stddev"], table["std"].fillna(0.0), rtol=1e-7, atol=1e-9)


FORMS = ("single", "iso", "ndjson", "csv", "arrow", "kafka", "file-csv", "file-ndjson", "file-parquet", "file-arrow")


async def test_every_way_in_gives_the_same_windows(system: WholeSystem, tmp_path: Path) -> None:
    seeded = random.Random(11)
    now_ms = time.time_ns() // 1_000_000
    points = [(seeded.gauss(20, 5), now_ms - seeded.randrange(7_200_000)) for _ in range(300)]
    tables = {form: table_of(f"a:{form}", points) for form in FORMS}
    async with connect(system.url(HOME)) as edge, connect(
        system.url(HOME), bootstrap_servers=system.kafka(HOME)
    ) as direct:  # fmt: skip
        for form in ("single", "iso"):
            for value, time_ms in points[:60]:
                at: Any = time_ms if form == "single" else datetime.fromtimestamp(time_ms / 1000, UTC).isoformat()
                await edge.put(key_of(f"a:{form}"), {"metric": "t", "value": value, "time": at})
        for form, kind in (("ndjson", "application/x-ndjson"), ("csv", "text/csv")):
            await edge.put_raw(text_of(tables[form], form), kind)
        await edge.put_many("device", tables["arrow"])
        edge.observe((await direct.put_many("device", tables["kafka"])).token)
        for form in FORMS[6:]:
            load(system, write(tables[form], tmp_path / f"readings.{form.removeprefix('file-')}"))
        await eventually(lambda: all_there(edge, f"a:{FORMS[-1]}", len(points)), 30)
        for form in FORMS:
            mine = points[:60] if form in FORMS[:2] else points
            found = await edge.aggregate_telemetry(PARTITION, 60, device=f"a:{form}")
            compare(found, slotted([(f"a:{form}", "t", v, t) for v, t in mine], 60, 60))
        row = await edge.get(key_of("a:single"))
        assert row is not None and row.value["metric"] == "t"


async def all_there(edge: AsyncClient, device: str, count: int) -> bool:
    found = await edge.aggregate_telemetry(PARTITION, 86_400, device=device)
    return sum(each.count for each in found.windows) == count


def table_of(device: str, points: list[tuple[float, int]]) -> pd.DataFrame:
    """As a user's frame: times as timestamps."""
    times = pd.to_datetime([t for _, t in points], unit="ms", utc=True).astype("datetime64[ms, UTC]")
    return pd.DataFrame({"key": key_of(device), "metric": "t", "value": [v for v, _ in points], "time": times})


def text_of(table: pd.DataFrame, form: str) -> bytes:
    written = table.assign(time=[t.isoformat() for t in table["time"]])
    if form == "csv":
        return written.to_csv(index=False).encode()
    lines = io.StringIO()
    for key, value in zip(written["key"], written.drop(columns="key").to_dict("records"), strict=True):
        print(pd.io.json.ujson_dumps({"key": key, "value": value}, double_precision=15), file=lines)
    return lines.getvalue().encode()


def write(table: pd.DataFrame, path: Path) -> Path:
    if path.suffix == ".parquet":
        table.to_parquet(path)
    elif path.suffix == ".arrow":
        table.to_feather(path, compression="uncompressed")
    else:
        path.write_bytes(text_of(table, path.suffix[1:]))
    return path


def load(system: WholeSystem, path: Path) -> None:
    command = [sys.executable, "-m", "streams.cli.main", "load", "device", str(path), "--data", str(system.data)]
    run = subprocess.run([*command, "--region", HOME], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert run.returncode == 0, run.stderr


async def test_late_readings_are_counted_and_go_to_their_topic(system: WholeSystem) -> None:
    now_ms = time.time_ns() // 1_000_000
    async with connect(system.url(FAR)) as edge:
        for value, ago_ms in ((1.0, 0), (2.0, DAY_MS + 60_000), (3.0, DAY_MS - 60_000), (4.0, 9 * DAY_MS)):
            await edge.put(key_of("tardy"), {"metric": "t", "value": value, "time": now_ms - ago_ms})
        found = await edge.aggregate_telemetry(FAR_PARTITION, 1, device="tardy")
        assert [each.sum for each in found.windows] == [3.0, 1.0]
        assert (found.late, found.watermark) == (2, now_ms / 1000)
        records = await read_log(system.kafka(FAR), "late.device")
        schemas = SchemaSet(load_builtin().values())
        values = [schemas.decode_value(each.value)[1] for each in records if each.key == key_of("tardy").encode()]
        assert values == [
            {"metric": "t", "value": 2.0, "time": now_ms - DAY_MS - 60_000},
            {"metric": "t", "value": 4.0, "time": now_ms - 9 * DAY_MS},
        ]
        headers = dict(records[-1].headers)
        assert headers["origin"] == FAR.encode() and headers["source"].startswith(b"events.device/")
        assert not [each async for each in edge.scan("telemetry", prefix="device:none")]


async def test_a_quiet_device_closes_by_the_clock_in_both_regions(system: WholeSystem) -> None:
    now_ms = time.time_ns() // 1_000_000
    async with connect(system.url(HOME)) as here, connect(system.url(FAR)) as there:
        await here.put(key_of("quiet"), {"metric": "t", "value": 1, "time": now_ms})
        there.observe(here.token)
        ends_ms = now_ms // 1000 * 1000 + 1000
        for edge in (here, there):
            found = await edge.aggregate_telemetry(PARTITION, 1, device="quiet")
            assert [each.closed for each in found.windows] == [time.time_ns() // 1_000_000 > ends_ms + IDLE_MS]

        async def closed() -> bool:
            both = [await edge.aggregate_telemetry(PARTITION, 1, device="quiet") for edge in (here, there)]
            return all(each.windows[0].closed for each in both)

        await eventually(closed, IDLE_MS / 1000 + 20, every_s=0.25)
        assert time.time_ns() // 1_000_000 >= ends_ms + IDLE_MS


async def test_what_is_wrong_is_refused_and_the_route_is_documented(system: WholeSystem) -> None:
    async with connect(system.url(HOME)) as edge, aiohttp.ClientSession(system.url(HOME)) as http:
        with pytest.raises(NotFound, match=f"{PARTITION}, {FAR_PARTITION}"):
            await edge.aggregate_telemetry("iot:region:mars")
        with pytest.raises(BadInput) as refused:
            await edge.aggregate_telemetry(PARTITION, 0)
        assert refused.value.field == "window"
        ahead = {"metric": "t", "value": 1, "time": time.time_ns() // 1_000_000 + DAY_MS + 60_000}
        with pytest.raises(BadInput, match="ahead") as refused:
            await edge.put(key_of("fast-clock"), ahead)
        assert refused.value.field == "time"
        receipt = await edge.put_many("device", {"key": ["x"], **{name: [value] for name, value in ahead.items()}})
        assert receipt.accepted == 0 and "ahead" in receipt.rejected[0].reason
        async with http.get(f"/v1/telemetry/{PARTITION}:aggregate", params={"by": "region"}) as answer:
            assert answer.status == 200 and set(await answer.json()) == {"windows", "watermark", "late"}
            assert Token.decode(answer.headers["Causal-Token"]) and int(answer.headers["Staleness-Ms"]) >= 0
        async with http.get("/openapi.json") as answer:
            described = (await answer.json())["paths"]["/v1/telemetry/{partition}:aggregate"]["get"]
        assert {"window", "hop", "gap", "by", "from", "to"} <= {each["name"] for each in described["parameters"]}
        fields = described["responses"]["200"]["content"]["application/json"]["schema"]["properties"]
        assert set(fields) == {"windows", "watermark", "late"}
        async with http.get("/v1/tables/telemetry?limit=1000") as answer:
            assert answer.status == 200
        for path in ("/v1/tables/telemetry:top", "/v1/tables/telemetry:digest"):
            async with http.get(path) as answer:
                assert answer.status == 200, path


async def test_the_table_is_equal_in_both_regions_and_outlives_a_killed_worker(system: WholeSystem) -> None:
    async with connect(system.url(HOME)) as edge:
        times = list(range(1_600_000_000_000, 1_600_000_000_000 + 3_000_000, 1_000))
        pid = system.kill(f"worker-{HOME}")
        for at in range(0, len(times), 500):
            some = times[at : at + 500]
            columns = {"key": [key_of(f"k{t // 1000 % 20}") for t in some], "metric": ["t"] * len(some)}
            await edge.put_many("device", {**columns, "value": [float(t % 7_919) for t in some], "time": some})
        await system.back(f"worker-{HOME}", pid)
        truth = slotted([(f"k{t // 1000 % 20}", "t", float(t % 7_919), t) for t in times], 60, 60)

        async def right() -> bool:
            async with connect(system.url(HOME)) as fresh:
                found = await fresh.aggregate_telemetry(PARTITION, 60, start=1_600_000_000, end=1_600_003_000)
            compare(found, truth)
            return True

        await eventually(right, 30)
    await equal_digests(system, ("telemetry", "device"))


async def test_what_has_expired_goes_from_reads_at_once_and_from_all_stores_of_both_regions(
    system: WholeSystem,
) -> None:
    """TTLs by put, by row of a frame, by keyspace; the rows that further tables have made of them too."""
    for ttl_s in (6, 40):  # a busy machine may need longer to see them alive in the other region
        name, count = f"fleeting{time.time_ns()}", 60
        async with system.sessions() as sessions:
            dies_ms = await put_fleeting(*sessions, name, ttl_s, count)
            seen = [await seen_of(edge, name) for edge in sessions]
            in_time = time.time_ns() / 1e6 < min(dies_ms)
            await eventually(lambda dies=dies_ms: time.time_ns() / 1e6 > max(dies), ttl_s + 5)
            left = [await seen_of(edge, name) for edge in sessions]
            assert left == [{"kv": 2 * count, name: 0, "device": 0}] * 2, left
            for region in (HOME, FAR):
                found = await sessions[0].aggregate_telemetry(f"iot:region:{region}", 60, metric=name)
                assert not found.windows
        if in_time:
            break
    assert in_time and seen == [{"kv": 4 * count + 2, name: 2 * count, "device": 2 * count}] * 2, seen
    for table, rows in {"kv": 2 * count, name: 0, "device": 0, "telemetry": 0, "anomaly": 0}.items():
        await eventually(lambda table=table, rows=rows: stores_hold(system, table, name, rows), 90, every_s=0.5)
    await equal_digests(system, ("kv", name, "device", "telemetry", "anomaly"))


async def put_fleeting(home: AsyncClient, far: AsyncClient, name: str, ttl_s: int, count: int) -> list[int]:
    """In both regions: `count` rows of each kind that live for `ttl_s`, and as many of `kv` that live for an hour.

    When the first died, and the last, at about; each session has seen what the other has put.
    """
    await home.put_keyspace(name, partitions=1, ttl=ttl_s)
    await eventually(lambda: far.get_json(f"/v1/keyspaces/{name}"), 30)
    dies_ms, ids = [time.time_ns() // 1_000_000 + ttl_s * 1_000], range(count)
    for region, edge in ((HOME, home), (FAR, far)):
        keys = [f"kv:{name}-{region}-{kind}-{each}" for each in ids for kind in ("long", "short")]
        await edge.put_many("kv", {"key": keys, "value": ["v"] * len(keys), "ttl": [3_600, ttl_s] * count})
        await edge.put_many(name, {"key": [f"{name}:{region}-{each}" for each in ids], "value": [1] * count})
        readings = {"key": [key_of(f"{name}-{region}-{each}") for each in ids], "metric": [name] * count}
        await edge.put_many("device", {**readings, "value": np.arange(count) * 1.0, "ttl": [ttl_s] * count})
        receipt = await edge.put(f"kv:{name}-{region}-one", 1, ttl=ttl_s)
        dies_ms.append(receipt.timestamp + ttl_s * 1_000)
    for edge, other in ((home, far), (far, home)):
        edge.observe(other.token)
    return dies_ms


async def seen_of(edge: AsyncClient, name: str) -> dict[str, int]:
    """How many rows of this test a gateway shows."""
    prefixes = {"kv": f"kv:{name}", name: f"{name}:", "device": f"device:{name}"}
    return {table: len([row async for row in edge.scan(table, prefix=at)]) for table, at in prefixes.items()}


def stores_hold(system: WholeSystem, table: str, name: str, rows: int) -> bool:
    """Whether each region's worker holds half of so many of this test's rows, and each gateway both halves."""
    for region in (HOME, FAR):
        worker = [system.data / "worker" / region / "builtin" / table]
        gateway = [system.data / "gateway" / region / table / origin for origin in (HOME, FAR)]
        found = [len(raw_keys(places, name.encode())) for places in (worker, gateway)]
        assert found == [rows // 2, rows], (region, table, found)
    return True


async def test_a_keyspace_may_have_its_events_mirrored(system: WholeSystem) -> None:
    name = f"whole{time.time_ns()}"
    async with system.sessions() as (home, far):
        await home.put_keyspace(name, partitions=1)
        first = await home.put(f"{name}:a", 1)
        await home.put_keyspace(name, partitions=1, mirror="events")

        async def known() -> bool:
            try:
                return bool(await far.get_json(f"/v1/keyspaces/{name}"))
            except NotFound:
                return False

        await eventually(known, 30)
        await home.put(f"{name}:b", 2)

    async def mirrored() -> bool:
        async with Admin(system.kafka(FAR)) as admin:
            assert await admin.topics([f"{HOME}.events.{name}"]), "there is no such topic yet"
        there = await read_log(system.kafka(FAR), f"{HOME}.events.{name}")
        here = await read_log(system.kafka(HOME), f"events.{name}")
        assert [(each.key, each.value) for each in there] == [(each.key, each.value) for each in here]
        assert [each.timestamp for each in there][:1] == [first.timestamp], "retention goes by the time of put"
        return len(there) == 2

    await eventually(mirrored, 90, every_s=0.5)
    async with Admin(system.kafka(FAR)) as admin:
        assert set(await admin.topics([f"{HOME}.events.device"])) == set(), "other keyspaces' events stay"
