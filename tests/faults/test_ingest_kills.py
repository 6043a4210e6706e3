"""Readings straight to Kafka while worker, gateway and broker are killed: every window's totals stay exact."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from streams.bench.http_client import Connection
from streams.bench.ingest_load import LoadOptions, Progress, Throttle, drained, slices
from streams.bench.ingest_table import KEYSPACE, verify_tables
from streams.bench.own_system import OwnSystem, parse_status
from streams.bench.readings import Longs, Readings, Windows
from streams.client import connect
from streams.kafka.admin import Admin
from streams.kafka.raw_fetch import RawConsumer
from streams.kafka.records import records_of
from streams.model.errors import StreamsError
from streams.region import status
from streams.serde import decode_frame, is_frame
from streams.tabular.tables import stream_of
from tests.support.polling import eventually
from tests.support.small_system import SmallSystem
from tests.support.whole_system import lasts

pytestmark = pytest.mark.kafka
REGION = "us-east"
DEVICES = 200
KINDS = ("worker", "gateway", "kafka")
RECOVERY_S = 90.0
SLICE_ROWS = 20_000


class OneRegion(SmallSystem):
    """`streams up --regions us-east`."""

    module = "streams.region.up"

    def __init__(self, data: Path) -> None:
        data.mkdir(parents=True)
        super().__init__(data, "--regions", REGION)

    def now(self) -> OwnSystem:
        """Processes and addresses as they are now."""
        return parse_status(self.data, status.status(self.data))

    def runs(self, kind: str) -> bool:
        """Whether there is a process of a kind, ready or not: kills do not wait for the region to recover."""
        rows = status.status(self.data)["regions"][REGION]["processes"]
        alive = ("running", "starting")
        return any(row["name"] == f"{kind}-{REGION}" and row["state"] in alive and row["pid"] for row in rows)

    async def kill(self, kind: str) -> None:
        """SIGKILL the region's process of a kind once there is one, and wait for its successor; it need not serve."""
        await eventually(lambda: self.runs(kind), RECOVERY_S, every_s=0.1)
        pid = self.now().pids[f"{kind}-{REGION}"]
        os.kill(pid, signal.SIGKILL)
        print(f"{time.monotonic():.1f}: killed {kind}, {pid}")
        await eventually(lambda: self.now().pids[f"{kind}-{REGION}"] not in (None, pid), RECOVERY_S, every_s=0.1)


@pytest.fixture
async def region(tmp_path: Path) -> AsyncIterator[OneRegion]:
    """A region of the test's own, ready."""
    found = OneRegion(tmp_path / "data")
    try:
        await asyncio.to_thread(found.wait_ready)
        yield found
    finally:
        await asyncio.to_thread(found.stop)


async def put_during(
    region: OneRegion, readings: Readings, rate_per_s: float, over: asyncio.Event
) -> tuple[list[range], int]:
    """Readings until it is over; which of them were acknowledged, and how many were tried.

    A put whose outcome is unknown is not tried again: the next readings follow it.
    """
    system = region.now()
    acknowledged, first = [], 0
    while not over.is_set():
        throttle = Throttle(LoadOptions(first, rate_per_s=rate_per_s, slice_rows=SLICE_ROWS, lag_max=1 << 62))
        ending = asyncio.create_task(over.wait())
        ending.add_done_callback(lambda _, throttle=throttle: throttle.done.set())  # type: ignore[misc]
        durable = 0
        try:
            async with connect(system.first, bootstrap_servers=system.bootstrap_servers[REGION]) as edge:
                durable = (await edge.put_many(KEYSPACE, stream_of(slices(readings, throttle)))).accepted
        except StreamsError as error:
            print(f"{time.monotonic():.1f}: {error}")
            await lasts(0.1)
        finally:
            ending.cancel()
            throttle.done.set()
        if durable:
            acknowledged.append(range(first, first + durable))
        first += throttle.produced
    return acknowledged, first


async def in_the_log(bootstrap_servers: str, readings: Readings, tried: int) -> Longs:
    """How often each reading is in the log: with one reading a millisecond, its time says which it is."""
    topic = f"events.{KEYSPACE}"
    found = np.zeros(tried, np.int64)
    async with Admin(bootstrap_servers) as admin:
        until = await admin.end_offsets([(topic, 0), (topic, 1)])
    consumer = RawConsumer(bootstrap_servers)
    await consumer.start()
    try:
        consumer.assign({(tp.topic, tp.partition): 0 for tp in until})
        at = dict.fromkeys(until, 0)
        while any(at[tp] < end for tp, end in until.items()):
            for run in await consumer.get_runs(5.0):
                at[run.tp] = run.next
                for record in records_of(run):
                    assert record.value is not None and is_frame(record.value)
                    cells = decode_frame(record.value).value_cells[2]
                    times = {cell: zigzag(cell) for cell in set(cells)}
                    index = np.array([times[cell] for cell in cells]) - readings.base_ms
                    found += np.bincount(index, minlength=tried)
    finally:
        await consumer.stop()
    return found


def zigzag(cell: bytes) -> int:
    """An Avro long."""
    number = sum((byte & 127) << 7 * place for place, byte in enumerate(cell))
    return number >> 1 ^ -(number & 1)


async def killing(region: OneRegion, kinds: list[str], every_s: float, over: asyncio.Event) -> None:
    """Kill one after another, whether the others serve again or not, in the midst of the load; then let it end."""
    try:
        for kind in kinds:
            await lasts(every_s)
            await region.kill(kind)
        await lasts(2 * every_s)
    finally:
        over.set()


@pytest.mark.parametrize(
    ("seconds", "rounds", "rate_per_s"),
    [(10.0, 1, 50_000.0), pytest.param(60.0, 4, 200_000.0, marks=[pytest.mark.slow, pytest.mark.timeout(900)])],
)
async def test_totals_are_exact_through_kills(
    region: OneRegion, seconds: float, rounds: int, rate_per_s: float
) -> None:
    seed = int(os.environ.get("STREAMS_TEST_SEED") or random.SystemRandom().randrange(2**32))
    print(f"seed {seed}")
    rng = random.Random(seed)
    kinds = [kind for _ in range(rounds) for kind in rng.sample(KINDS, len(KINDS))]
    readings = Readings(DEVICES, time.time_ns() // 10_000_000_000 * 10_000, per_event_s=1_000)
    bootstrap = region.now().bootstrap_servers[REGION]
    over = asyncio.Event()
    (acknowledged, tried), _ = await asyncio.gather(
        put_during(region, readings, rate_per_s, over), killing(region, kinds, seconds / (len(kinds) + 2), over)
    )
    durable = sum(map(len, acknowledged))
    print(f"{tried} readings tried, {durable} acknowledged at once, {kinds} killed")
    found = await in_the_log(bootstrap, readings, tried)
    assert found.max() == 1, "a reading is in the log twice"
    for part in acknowledged:
        assert found[part.start : part.stop].all(), "an acknowledged reading is not in the log"
    assert durable > 0 and found.sum() > SLICE_ROWS * len(kinds), "hardly any load survived the kills"
    truth = windows_of(readings, found)
    progress = Progress(region.now())
    async with Admin(bootstrap) as admin:
        ends = await progress.ends(admin)
    await eventually(lambda: answers(region), RECOVERY_S + seconds * 4, every_s=0.2)
    await drained(progress, region.now().first, ends)
    rows = await verify_tables(bootstrap, readings, tried, truth=truth, in_order=bool(found.all()))
    print(f"{int(found.sum())} readings in the log, {rows} rows exact")


def answers(region: OneRegion) -> bool:
    """Whether the gateway serves."""
    try:
        with Connection(region.now().first) as connection:
            return connection.request("GET", "/readyz").status == 200
    except StreamsError:
        return False


def windows_of(readings: Readings, found: Longs) -> Windows:
    """The windows of those readings that are in the log."""
    truth = readings.truth(len(found))
    lost = np.flatnonzero(found == 0)
    if not len(lost):
        return truth
    kept = Windows.empty(truth.devices, truth.start, truth.windows)
    for first in range(0, len(found), 1 << 20):
        count = min(1 << 20, len(found) - first)
        codes, values = readings.columns(first, count)
        windows = readings.times_ms(first, count) // 10_000 - truth.start
        here = found[first : first + count] == 1
        kept.add((codes * truth.windows + windows)[here], values[here])
    return kept
