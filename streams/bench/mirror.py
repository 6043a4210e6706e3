"""The `mirror` bench: bytes that go over the mirror for the bytes of readings that a region takes in."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from prometheus_client.parser import text_string_to_metric_families

from streams.bench.http_client import Connection
from streams.bench.ingest_load import LoadOptions, run_load
from streams.bench.ingest_table import KEYSPACE, TABLE
from streams.bench.own_system import OwnSystem, own_system
from streams.bench.readings import Readings
from streams.bench.report import Result
from streams.kafka.admin import Admin
from streams.model.errors import StreamsError, Timeout

Say = Callable[[str], None]
INGESTED, MIRRORED = "streams_events_log_bytes", "streams_mirrored_log_bytes"
CONVERGE_S = 120.0


@dataclass(frozen=True, slots=True)
class MirrorOptions:
    """Loads of `readings` each, of `devices` that report so often a second by the readings' own times."""

    readings: int = 1_000_000
    devices: int = 100
    per_device_s: Sequence[int] = (1, 100)


def bench_mirror(options: MirrorOptions, say: Say) -> list[Result]:
    """Load one region of two; what both brokers' logs hold when the other region's tables are equal."""
    results = []
    for per_device_s in options.per_device_s:
        say(f"starting two regions for devices of {per_device_s} readings a second")
        with own_system() as system:
            results += _measured(system, options, per_device_s)
    return results


def _measured(system: OwnSystem, options: MirrorOptions, per_device_s: int) -> list[Result]:
    first = next(iter(system.gateways))
    before = _bytes(system, first)
    readings = Readings(
        options.devices, time.time_ns() // 1_000_000 - 3_600_000, per_event_s=options.devices * per_device_s
    )
    here = replace(system, gateways={first: system.first}, bootstrap_servers={first: system.bootstrap_servers[first]})
    asyncio.run(run_load(here, readings, LoadOptions(count=options.readings)))
    _converged(system)
    asyncio.run(_refuse_raw(system.bootstrap_servers[list(system.gateways)[1]], first))
    ingested, mirrored = (now - then for now, then in zip(_bytes(system, first), before, strict=True))
    how = f"{options.devices} devices, {per_device_s} readings/s each"
    return [
        Result(f"bytes mirrored / bytes ingested, {how}", mirrored / ingested, "ratio"),
        Result(f"bytes ingested a reading, {how}", ingested / options.readings, "bytes"),
        Result(f"bytes mirrored a reading, {how}", mirrored / options.readings, "bytes"),
    ]


def _bytes(system: OwnSystem, origin: str) -> tuple[float, float]:
    """Of `origin`: its events in its own broker's logs, and what the second region's broker holds of its topics."""
    ingested = _metric(system.first, INGESTED, {})
    return ingested, _metric(system.second, MIRRORED, {"origin": origin})


def _metric(gateway: str, name: str, labels: dict[str, str]) -> float:
    with Connection(gateway) as connection:
        text = connection.request("GET", "/metrics").body.decode()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                return float(sample.value)
    raise StreamsError(f"{gateway} shows no {name} of {labels}")


def _converged(system: OwnSystem) -> None:
    """Wait until both tables are equal in both regions."""
    deadline = time.monotonic() + CONVERGE_S
    with Connection(system.first) as one, Connection(system.second) as other:
        for table in (KEYSPACE, TABLE):
            path = f"/v1/tables/{table}:digest"
            while one.request("GET", path).json()["digest"] != other.request("GET", path).json()["digest"]:
                if time.monotonic() > deadline:
                    raise Timeout(f"table {table} was not equal in both regions after {CONVERGE_S:.0f} s")
                time.sleep(0.1)


async def _refuse_raw(bootstrap_servers: str, origin: str) -> None:
    """StreamsError when raw events were mirrored."""
    async with Admin(bootstrap_servers) as admin:
        found = [name for name in await admin.topics() if name.startswith(f"{origin}.events.")]
    if found:
        raise StreamsError(f"raw events were mirrored: {', '.join(sorted(found))}")
