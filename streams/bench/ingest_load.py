"""Load of the `ingest` bench on a running region: readings by `put_many` straight to Kafka, as fast as they are folded.

The producer is this process. What a table has committed is asked of the gateway: a position that its edge has passed is
committed, and visible.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import psutil

from streams.bench.http_client import Connection
from streams.bench.ingest_table import KEYSPACE, TABLE
from streams.bench.own_system import OwnSystem, memory_of
from streams.bench.readings import METRIC, Readings
from streams.client import connect
from streams.kafka.admin import Admin
from streams.model.errors import StreamsError, Timeout
from streams.model.token import Input, Token
from streams.tabular.tables import stream_of
from streams.tabular.texts import coded, text_array

SLICE_ROWS = 65_536
LOOK_S = 0.2
CODED_ROWS = 4
"""How many rows of a slice a device must have, on average, for keys to be coded: every slice carries its words."""

MEMORY_S = 1.0
DRAIN_TIMEOUT_S = 300.0
PRODUCER = "producer"


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """Produce from reading `first` on: for `seconds`, or `count` readings, whatever comes first.

    `rate_per_s`: no faster than this (0: as fast as it goes). `lag_max`: how many readings may be produced and not yet
    visible. `slice_rows`: how many go together; `frame_puts`: how many to a record. `coded`: keys and metrics as
    Arrow dictionaries (what a categorical column of pandas or polars is) while a slice has every device often; else as
    text, row by row.
    """

    first: int = 0
    seconds: float = 1e9
    count: int = 1 << 62
    rate_per_s: float = 0.0
    lag_max: int = 3_000_000
    slice_rows: int = SLICE_ROWS
    frame_puts: int = 10_000
    coded: bool = True


@dataclass(frozen=True, slots=True)
class Sample:
    """At one moment after the start: readings not yet visible, and the resident bytes of each process."""

    at_s: float
    lag: int
    rss_bytes: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Ran:
    """What a load came to: readings, seconds from the first produce until all were committed and visible, CPU seconds
    by process, samples over time.
    """

    readings: int
    seconds: float
    cpu_s: Mapping[str, float]
    samples: list[Sample] = field(default_factory=list)

    @property
    def per_s(self) -> float:
        """Readings a second."""
        return self.readings / self.seconds

    def cpu_us(self, process: str) -> float:
        """Microseconds of CPU time a reading, which is CPU seconds a million readings."""
        return self.cpu_s[process] * 1e6 / self.readings


class Throttle:
    """Shared by the producing thread and the looker: how far the tables are behind."""

    def __init__(self, options: LoadOptions) -> None:
        self.options = options
        self.produced = 0
        self.lag = 0
        self.seen_at = 0
        self.error: BaseException | None = None
        self.done = threading.Event()
        self._start_s = 0.0

    def wait(self) -> bool:
        """Wait for the next slice's turn; False when there is none."""
        options = self.options
        if not self.produced:
            self._start_s = time.monotonic()
        while not self.done.is_set():
            passed_s = time.monotonic() - self._start_s
            if passed_s >= options.seconds or self.produced >= options.count:
                return False
            early = options.rate_per_s and self.produced > options.rate_per_s * passed_s
            behind = self.lag + self.produced - self.seen_at > options.lag_max
            if not early and not behind:
                return True
            time.sleep(0.002)
        return False


def slices(readings: Readings, throttle: Throttle) -> Iterator[dict[str, Any]]:
    """The readings' columns, slice by slice, when the throttle lets them."""
    options = throttle.options
    words = text_array([readings.name(each) for each in range(readings.devices)])
    metric, same = text_array([METRIC]), np.zeros(options.slice_rows, np.int8)
    is_coded = options.coded and readings.devices * CODED_ROWS <= options.slice_rows
    while throttle.wait():
        count = min(options.slice_rows, options.count - throttle.produced)
        first = options.first + throttle.produced
        codes, values = readings.columns(first, count)
        times_ms = readings.times_ms(first, count)
        if is_coded:
            keys, metrics = coded(codes.astype(np.int32), words), coded(same[:count], metric)
        else:
            keys, metrics = words.take(codes), metric.take(same[:count])
        yield {"key": keys, "metric": metrics, "value": values, "time": times_ms}
        throttle.produced += count


class Progress:
    """How far both tables of the region have come, by what its gateway has published."""

    def __init__(self, system: OwnSystem) -> None:
        self._system = system
        (self.region,) = system.gateways
        self._tps = [(f"events.{KEYSPACE}", partition) for partition in range(2)]

    def applied(self, connection: Connection) -> dict[int, int]:
        """By partition of the events, the position that both tables have passed."""
        found: dict[int, int] = {}
        for table in (KEYSPACE, TABLE):
            answer = connection.request("GET", f"/v1/tables/{table}?prefix=~&limit=1")
            answer.json()
            at = Token.decode(answer.headers["causal-token"]).positions
            for topic, partition in self._tps:
                position = at.get(Input(self.region, topic, partition), 0)
                found[partition] = min(found.get(partition, position), position)
        return found

    async def ends(self, admin: Admin) -> dict[int, int]:
        """By partition, the end of the events."""
        ends = await admin.end_offsets(self._tps)
        return {tp.partition: end for tp, end in ends.items()}


async def run_load(system: OwnSystem, readings: Readings, options: LoadOptions) -> Ran:
    """Produce, and wait until everything is committed and visible. StreamsError when that takes too long."""
    throttle, progress = Throttle(options), Progress(system)
    samples: list[Sample] = []
    before = cpu_seconds(system)
    async with Admin(system.bootstrap_servers[progress.region]) as admin:
        starts = await progress.ends(admin)
        looking = asyncio.create_task(_look(system, progress, admin, throttle, samples, starts))
        start_s = time.perf_counter()
        try:
            async with connect(system.first, bootstrap_servers=system.bootstrap_servers[progress.region]) as edge:
                table = stream_of(slices(readings, throttle))
                receipt = await edge.put_many(KEYSPACE, table, frame_puts=options.frame_puts)
            await drained(progress, system.first, await progress.ends(admin))
        finally:
            throttle.done.set()
            looking.cancel()
            await asyncio.wait([looking])
        seconds = time.perf_counter() - start_s
    if not looking.cancelled() and looking.exception() is not None:
        raise StreamsError(f"the load could not be watched: {looking.exception()}")
    if receipt.accepted != throttle.produced:
        raise StreamsError(f"{receipt.accepted} readings were durable of {throttle.produced}")
    after = cpu_seconds(system)
    spent = {name: after[name] - before[name] for name in after}
    return Ran(throttle.produced, seconds, spent, samples)


async def _look(
    system: OwnSystem,
    progress: Progress,
    admin: Admin,
    throttle: Throttle,
    samples: list[Sample],
    starts: dict[int, int],
) -> None:
    """Tell the throttle how far behind the tables are; take samples."""
    start_s, memory_s = time.monotonic(), -MEMORY_S
    try:
        with Connection(system.first) as connection:
            while True:
                produced = throttle.produced
                ends = await progress.ends(admin)
                applied = await asyncio.to_thread(progress.applied, connection)
                frames = sum(ends[each] - starts[each] for each in ends)
                behind = sum(max(0, ends[each] - max(starts[each], applied[each])) for each in ends)
                throttle.lag, throttle.seen_at = (produced * behind // frames if frames else produced), produced
                now_s = time.monotonic() - start_s
                if now_s - memory_s >= MEMORY_S:
                    memory_s = now_s
                    rss = {name: memory_of({pid}).rss_bytes for name, pid in system.pids.items()}
                    samples.append(Sample(now_s, throttle.lag, rss))
                await asyncio.sleep(LOOK_S)
    except BaseException:
        throttle.done.set()  # nobody would let the producer go on
        raise


async def drained(progress: Progress, gateway: str, ends: dict[int, int]) -> None:
    """Wait until both tables have passed `ends` and show it; Timeout otherwise."""
    deadline = time.monotonic() + DRAIN_TIMEOUT_S
    with Connection(gateway) as connection:
        while True:
            applied = await asyncio.to_thread(progress.applied, connection)
            if all(applied[partition] >= end for partition, end in ends.items()):
                return
            if time.monotonic() > deadline:
                raise Timeout(f"the tables stand at {applied} of {ends} after {DRAIN_TIMEOUT_S:.0f} s")
            await asyncio.sleep(0.02)


def cpu_seconds(system: OwnSystem) -> dict[str, float]:
    """CPU seconds until now of the region's processes, by kind, and of this one (the producer)."""
    found = {PRODUCER: sum(os.times()[:2])}
    for name, pid in system.pids.items():
        times = psutil.Process(pid).cpu_times()
        kind = name.partition("-")[0]
        found[kind] = found.get(kind, 0.0) + times.user + times.system
    return found
