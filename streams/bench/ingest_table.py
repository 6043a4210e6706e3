"""What the `ingest` bench's tables hold, read back from their committed changelogs and compared with the truth."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence

from streams.bench.readings import METRIC, WINDOW_MS, Readings, Windows, compare
from streams.kafka.admin import Admin
from streams.kafka.changelog_reader import ChangelogReader
from streams.model.errors import StreamsError
from streams.model.row import decode_row
from streams.serde import decode_body, load_builtin

KEYSPACE, TABLE = "device", "telemetry"
TABLES = (KEYSPACE, TABLE, "anomaly")
ALL_DEVICES_MAX = 20_000
"""With more devices, all windows' totals are compared, and so many devices' own windows, chosen at random."""

_SEPARATOR = b"\x1f"
_ORIGIN = 1 << 39
Four = tuple[float, float, float, float]
Rows = dict[tuple[int, bytes], bytes]


async def verify_tables(
    bootstrap_servers: str,
    readings: Readings,
    total: int,
    *,
    in_order: bool = True,
    truth: Windows | None = None,
    seed: int = 7,
) -> int:
    """Compare both tables with the first `total` readings; the number of rows that were looked at.

    Telemetry: count, sum, min and max of every window of 10 s, over all devices and by device. The keyspace's own
    table: every device's latest reading (when they were put `in_order`), and no other device. StreamsError when
    anything differs. Keys whose device does not begin with a digit are others', and so must their metric be.
    `truth`: the windows there must be, when they are not those of the first readings alone.
    """
    truth = readings.truth(total) if truth is None else truth
    devices = range(readings.devices)
    chosen: Sequence[int] = devices
    if readings.devices > ALL_DEVICES_MAX:
        chosen = sorted(random.Random(seed).sample(devices, ALL_DEVICES_MAX))
    names = {name.removesuffix(":telemetry"): name for name in (readings.name(each) for each in chosen)}
    rows = await _rows(bootstrap_servers, TABLE)
    compare("ours", "windows over all devices", truth.by_window(), _windows(rows, {"device:": ""}, "")[""])
    by_device = _windows(rows, names, "device:")
    found = {(name, start): four for name, windows in by_device.items() for start, four in windows.items()}
    compare("ours", "devices' windows", truth.rows(chosen), found)
    own = await _rows(bootstrap_servers, KEYSPACE)
    _verify_devices(own, truth)
    if in_order:
        _verify_latest(own, readings, total, chosen)
    return len(rows) + len(own)


async def rows_committed(bootstrap_servers: str) -> int:
    """How many rows all tables of readings have committed since the region began, with some markers a second."""
    async with Admin(bootstrap_servers) as admin:
        found = await admin.topics([f"table.{name}" for name in TABLES])
        tps = [(topic, partition) for topic, each in found.items() for partition in range(each.partitions)]
        return sum((await admin.end_offsets(tps)).values())


async def _rows(bootstrap_servers: str, table: str) -> Rows:
    """The latest committed row of each key and partition."""
    rows: Rows = {}
    async with Admin(bootstrap_servers) as admin:
        partitions = (await admin.topics([f"table.{table}"]))[f"table.{table}"].partitions
        tps = [(f"table.{table}", partition) for partition in range(partitions)]
        starts, ends = await admin.start_offsets(tps), await admin.end_offsets(tps)
    reader = ChangelogReader(bootstrap_servers)
    await reader.start({(tp.topic, tp.partition): start for tp, start in starts.items()})
    try:
        while any(reader.position(tp) < end for tp, end in ends.items()):
            for unit in await reader.units(1.0):
                if unit.marker is not None:
                    for key, row, _ in unit.rows:
                        if row is None:
                            rows.pop((unit.partition, key), None)
                        else:
                            rows[unit.partition, key] = row
    finally:
        await reader.stop()
    return rows


def _windows(rows: Rows, names: Mapping[str, str], prefix: str) -> dict[str, dict[int, Four]]:
    """The windows of 10 s of some series, by their names. `names`: what a row's key begins with → its name."""
    schema = load_builtin()["streams.TelemetryPanes"]
    found: dict[str, dict[int, Four]] = defaultdict(dict)
    metric = METRIC.encode()
    for (_, key), row in rows.items():
        parts = key.split(_SEPARATOR)
        name = names.get(parts[0].decode())
        if name is None or len(parts) != 3 or parts[1] != metric or len(parts[0]) < len(prefix):
            continue
        (cell,) = decode_row(row).cells
        body = decode_body(schema, cell.payload)
        start = (int(parts[2], 16) - _ORIGIN) * 10_000 // WINDOW_MS * WINDOW_MS
        windows = found[name]
        count, total, least, most = windows.get(start, (0.0, 0.0, float("inf"), float("-inf")))
        windows[start] = (
            count + sum(body["count"]),
            total + sum(body["sum"]),
            min(least, *body["min"]),
            max(most, *body["max"]),
        )
    return found


def _verify_devices(rows: Rows, truth: Windows) -> None:
    ours = [key for _, key in rows if key[7:8].isdigit()]
    if len(ours) != int(truth.seen().sum()):
        raise StreamsError(f"ours has rows of {len(ours)} devices in {KEYSPACE}, not of {int(truth.seen().sum())}")


def _verify_latest(rows: Rows, readings: Readings, total: int, chosen: Sequence[int]) -> None:
    last = readings.last(total)
    by_key = {key.decode(): row for (_, key), row in rows.items()}
    schema = load_builtin()["streams.Reading"]
    wanted, found = {}, {}
    for device in chosen:
        if last[device] < 0:
            continue
        at, key = int(last[device]), readings.name(device)
        wanted[key] = (float(readings.columns(at, 1)[1][0]), int(readings.times_ms(at, 1)[0]))
        if key in by_key:
            (cell,) = decode_row(by_key[key]).cells
            body = decode_body(schema, cell.payload)
            found[key] = (body["value"], body["time"])
    compare("ours", "devices' latest readings", wanted, found)
