"""The `ingest` bench: readings put by `put_many`, committed as windowed aggregates, beside peers on the same ones."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from streams.bench.contenders import STREAMS
from streams.bench.ingest_http import ARROW, NDJSON, bodies, post
from streams.bench.ingest_load import PRODUCER, LoadOptions, Ran, run_load
from streams.bench.ingest_peers import CHOICE, Peers, PeersOptions
from streams.bench.ingest_table import rows_committed, verify_tables
from streams.bench.own_system import SETTLE_S, OwnSystem, own_system, settle
from streams.bench.plot import Chart, svg
from streams.bench.probe import end_probe, start_probe
from streams.bench.readings import WINDOW_MS, Readings
from streams.bench.report import Result, at_least, at_most
from streams.bench.statistics import percentile
from streams.model.errors import BadInput

REGION = "us-east"
EOS, EOS_PRODUCING = "kafka-streams-eos-v2", "kafka-streams-eos-v2-producing"
GOAL_PER_S, GOAL_RATIO = 1_000_000, 8
PARTS = ("sustained", "latency", "http", "growth")
WORKER, KAFKA, GATEWAY = "worker", "kafka", "gateway"
FIRST_MINUTE_S = 60.0
GROWTH = ((1_000, 10_000), (100_000, 10_000), (1_000_000, 10_000), (1_000, 1_000), (1_000, 100))
"""Devices and puts a frame."""
Growth = tuple[float, float, float, float]
"""Of one of them: readings/s, MB of the worker, CPU us/reading, rows/reading."""
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class IngestOptions:
    """`seconds` of sustained load; every other part is shortened with it. `events`, `rounds`: the peers'.

    `contenders`: of ours and the peers; `parts`: of `PARTS`. `plot`: where the growth's charts go as SVG.
    """

    seconds: float = 60.0
    events: int = 1_000_000
    rounds: int = 3
    devices: int = 1_000
    contenders: Sequence[str] = (STREAMS, *CHOICE)
    parts: Sequence[str] = PARTS
    plot: Path | None = None
    growth: Sequence[tuple[int, int]] = field(default=GROWTH)

    def __post_init__(self) -> None:
        """BadInput for sizes that measure nothing and for unknown names."""
        if not self.seconds >= 1:
            raise BadInput("less than a second measures nothing", field="seconds", fix="give 1 or more")
        if self.events < 1_000:
            raise BadInput("fewer than 1,000 events measure nothing", field="events", fix="use the default")
        if self.rounds < 1:
            raise BadInput("at least one round is needed", field="rounds")
        for name, given, known in (("only", self.contenders, (STREAMS, *CHOICE)), ("parts", self.parts, PARTS)):
            unknown = [each for each in given if each not in known]
            if unknown:
                raise BadInput(f"unknown: {', '.join(unknown)}", field=name, fix=f"choose of {', '.join(known)}")

    @property
    def settle_s(self) -> float:
        """How long to wait for an idle machine at most."""
        return min(SETTLE_S, self.seconds)

    @property
    def part_s(self) -> float:
        """How long the further parts take."""
        return max(1.0, self.seconds / 6)


def bench_ingest(options: IngestOptions, say: Say) -> list[Result]:
    """Run the bench; `say` gets progress. StreamsError when any contender aggregates wrong."""
    readings = Readings(options.devices, _base_ms())
    names = [name for name in options.contenders if name in CHOICE]
    peers = Peers(PeersOptions(options.events, options.rounds, options.devices, names), readings, say)
    results: list[Result] = []
    with tempfile.TemporaryDirectory(prefix="streams-bench-") as name:
        directory = Path(name)
        if "sustained" in options.parts:
            peers.run(range(1), directory / "peers-before")
        ran = None
        if STREAMS in options.contenders and {"sustained", "latency", "http"} & set(options.parts):
            ran, results = _own(options, readings, say)
        if "sustained" in options.parts:
            peers.run(range(1, options.rounds), directory / "peers-after")
            results = [*_first(ran, peers.speeds, options), *results]
    if STREAMS in options.contenders and "growth" in options.parts:
        results += _growth(options, say)
    return results


def _base_ms() -> int:
    """The first reading's time: near now, since logs forget by time, and a few readings before a window's end."""
    return time.time_ns() // 1_000_000 // WINDOW_MS * WINDOW_MS - 5


def _own(options: IngestOptions, readings: Readings, say: Say) -> tuple[Ran | None, list[Result]]:
    """Ours, on one region of its own: what was sustained, and the rows that go with it."""
    say("starting a region")
    with own_system(REGION, settle_s=options.settle_s) as system:
        results = _idle(system, options) if "latency" in options.parts else []
        warm_s = max(1.0, min(5.0, options.seconds / 4))
        warm = asyncio.run(run_load(system, readings, LoadOptions(seconds=warm_s)))
        total, ran = warm.readings, None
        if "sustained" in options.parts:
            ran = asyncio.run(run_load(system, readings, LoadOptions(total, options.seconds)))
            total += ran.readings
        count = asyncio.run(verify_tables(system.bootstrap_servers[REGION], readings, total))
        if ran is not None:
            say(f"streams: {ran.per_s:,.0f} readings/s ({ran.readings:,} in {ran.seconds:.2f} s), {count:,} rows exact")
            results = [*_costs(ran), *results]
        if "latency" in options.parts:
            loaded, rows = _loaded(system, readings, total, (ran or warm).per_s / 2, options)
            total += loaded.readings
            results += rows
        if "http" in options.parts:
            for kind, goal in ((ARROW, 500_000), (NDJSON, 100_000)):
                puts, rows = _http(system, readings, total, kind, goal, options)
                total += puts
                results += rows
        asyncio.run(run_load(system, readings, LoadOptions(total, count=1)))  # returns when all before it is visible
        verify = verify_tables(system.bootstrap_servers[REGION], readings, total + 1, in_order=False)
        say(f"streams: {total + 1:,} readings in all, {asyncio.run(verify):,} rows exact")
    return ran, results


def _first(ran: Ran | None, peers: Mapping[str, float], options: IngestOptions) -> list[Result]:
    value = ran.per_s if ran else None
    met = ran.per_s >= GOAL_PER_S if ran else None
    first = Result("readings_committed", value, "readings/s", peers, f">= {GOAL_PER_S:,} sustained", met)
    rows = [first]
    if ran is not None and EOS_PRODUCING in peers:
        what = f"readings_committed as a ratio to {EOS}, one record per reading, produced meanwhile as ours are"
        rows.append(at_least(what, ran.per_s / peers[EOS_PRODUCING], "x", GOAL_RATIO))
    if ran is not None and EOS in peers:
        what = f"readings_committed as a ratio to {EOS}, one record per reading, standing in its topic before"
        rows.append(Result(what, ran.per_s / peers[EOS], "x"))
    return rows


def _costs(ran: Ran) -> list[Result]:
    """CPU time by process, and whether memory and lag stay: the last quarter of the samples beside the second."""
    rows = [
        Result(f"CPU time of the {name}, sustained", ran.cpu_us(name), "us/reading")
        for name in (PRODUCER, KAFKA, WORKER, GATEWAY)
    ]
    quarter = max(1, len(ran.samples) // 4)
    early, late = ran.samples[quarter : 2 * quarter] or ran.samples[:1], ran.samples[-quarter:]
    lag = [sum(each.lag for each in part) / len(part) for part in (early, late)]
    rows.append(Result("lag, most: produced and not yet visible", max(each.lag for each in ran.samples), "readings"))
    what = "lag, growth from the run's second quarter to its last"
    rows.append(at_most(what, lag[1] - lag[0], "readings", GOAL_PER_S / 2))
    for kind in (WORKER, GATEWAY, KAFKA):
        rss = [
            sum(size for each in part for name, size in each.rss_bytes.items() if name.startswith(kind)) / len(part)
            for part in (early, late)
        ]
        rows.append(Result(f"RSS of the {kind} at the end of the run", rss[1] / 1e6, "MB"))
        limit = 10.0 if kind == WORKER else None
        what = f"RSS of the {kind}, growth from the run's second quarter to its last"
        rows.append(at_most(what, (rss[1] / rss[0] - 1) * 100, "%", limit))
    return [*rows, *_after_a_minute(ran)]


def _after_a_minute(ran: Ran) -> list[Result]:
    """For runs that are long enough to tell a leak from filling caches: the worker's memory after the first minute."""
    sizes = [
        (each.at_s, sum(size for name, size in each.rss_bytes.items() if name.startswith(WORKER)))
        for each in ran.samples
    ]
    first = [size for at_s, size in sizes if FIRST_MINUTE_S - 10 <= at_s < FIRST_MINUTE_S]
    later = [size for at_s, size in sizes if at_s >= 1.5 * FIRST_MINUTE_S]
    if not first or not later:
        return []
    what = "RSS of the worker, most after a minute and a half over most around the first minute"
    return [at_most(what, (max(later) / max(first) - 1) * 100, "%", 10.0)]


def _idle(system: OwnSystem, options: IngestOptions) -> list[Result]:
    """Latencies of an idle, warm region."""
    end_probe(start_probe(system.first, options.part_s))
    settle(options.settle_s)
    found = end_probe(start_probe(system.first, options.part_s))
    return _latencies(found.durable_ms, found.visible_ms, "idle", 5.0, None)


def _loaded(
    system: OwnSystem, readings: Readings, first: int, rate_per_s: float, options: IngestOptions
) -> tuple[Ran, list[Result]]:
    """Latencies while half of the sustained load is produced."""
    probe = start_probe(system.first, options.part_s)
    try:
        ran = asyncio.run(run_load(system, readings, LoadOptions(first, options.part_s, rate_per_s=rate_per_s)))
        found = end_probe(probe)
    finally:
        probe.kill()
    return ran, _latencies(found.durable_ms, found.visible_ms, "under half the sustained load", None, 1000.0)


def _latencies(
    durable: Sequence[float],
    visible: Sequence[float],
    when: str,
    durable_goal: float | None,
    visible_goal: float | None,
) -> list[Result]:
    put, read = "one reading by HTTP PUT, to durable", "one reading by HTTP PUT -> its aggregate visible"
    return [
        Result(f"{put}, {when}, p50", percentile(durable, 50), "ms"),
        at_most(f"{put}, {when}, p99", percentile(durable, 99), "ms", durable_goal),
        Result(f"{read}, {when}, p50", percentile(visible, 50), "ms"),
        at_most(f"{read}, {when}, p99", percentile(visible, 99), "ms", visible_goal),
    ]


def _http(
    system: OwnSystem, readings: Readings, first: int, kind: str, goal: int, options: IngestOptions
) -> tuple[int, list[Result]]:
    """Batches through the gateway; a tenth goes ahead to warm it up."""
    prepared = bodies(readings, first, int(goal * options.part_s), kind)
    warmup = max(1, len(prepared) // 10) if len(prepared) > 1 else 0
    pid = next(pid for name, pid in system.pids.items() if name.startswith(GATEWAY))
    if warmup:
        post(system.first, pid, prepared[:warmup], kind)
    posted = post(system.first, pid, prepared[warmup:], kind)
    name = "Arrow" if kind == ARROW else "NDJSON"
    what = f"POST /v1/kv:batch, {name}, one gateway process, its region folding meanwhile"
    return sum(count for count, _ in prepared), [
        at_least(what, posted.puts / posted.seconds, "puts/s", goal),
        Result(f"{what}: the gateway's CPU time", posted.cpu_s * 1e6 / posted.puts, "us/put"),
    ]


def _growth(options: IngestOptions, say: Say) -> list[Result]:
    """The same load with more devices, and with smaller frames, each on a region of its own. Beside each number of
    devices the strongest peer, a record a reading; of our four rows by device it keeps one."""
    results: list[Result] = []
    series: dict[tuple[int, int], Growth] = {}
    for devices, frame in options.growth:
        readings = Readings(devices, _base_ms())
        with own_system(REGION, settle_s=options.settle_s) as system:
            load = LoadOptions(seconds=options.part_s, frame_puts=frame)
            ran = asyncio.run(run_load(system, readings, load))
            asyncio.run(verify_tables(system.bootstrap_servers[REGION], readings, ran.readings))
            rows = asyncio.run(rows_committed(system.bootstrap_servers[REGION])) / ran.readings
        cpu = sum(ran.cpu_us(name) for name in ran.cpu_s)
        rss = max(size for each in ran.samples for name, size in each.rss_bytes.items() if name.startswith(WORKER))
        series[devices, frame] = (ran.per_s, rss / 1e6, cpu, rows)
        what = f"{devices:,} devices, frames of {frame:,}"
        say(f"{what}: {ran.per_s:,.0f} readings/s, worker {rss / 1e6:.0f} MB, exact")
        results += [
            Result(
                f"{what}: from a cold start, committed", ran.per_s, "readings/s", _peer(devices, frame, options, say)
            ),
            Result(f"{what}: RSS of the worker, most", rss / 1e6, "MB"),
            Result(f"{what}: CPU time of all processes", cpu, "us/reading"),
            Result(f"{what}: rows committed a reading, of three tables", rows, "rows/reading"),
            Result(f"{what}: CPU time of all processes a row", cpu / rows, "us/row"),
        ]
    if options.plot is not None:
        options.plot.write_text(svg(charts(series), columns=4))
        say(f"charts: {options.plot}")
    return results


def _peer(devices: int, frame: int, options: IngestOptions, say: Say) -> Mapping[str, float]:
    if EOS_PRODUCING not in options.contenders or frame < max(size for _, size in options.growth):
        return {}
    wanted = PeersOptions(options.events, 1, devices, [EOS_PRODUCING])
    peers = Peers(wanted, Readings(devices, _base_ms()), say)
    with tempfile.TemporaryDirectory(prefix="streams-bench-") as name:
        peers.run(range(1), Path(name) / "peers")
    return peers.speeds


def charts(series: Mapping[tuple[int, int], Growth]) -> list[Chart]:
    """Throughput, memory, CPU time, rows: over devices (frames of the largest size), over frames (fewest devices)."""
    frame, devices = max(key[1] for key in series), min(key[0] for key in series)
    found = []
    for axis, label, title in ((0, "devices", f"frames of {frame:,}"), (1, "puts a frame", f"{devices:,} devices")):
        points = {key[axis]: values for key, values in series.items() if key[1 - axis] == (frame, devices)[axis]}
        for index, y_label in enumerate(("readings/s", "worker MB", "CPU us/reading", "rows/reading")):
            found.append(Chart(title, label, y_label, [(x, values[index]) for x, values in points.items()]))
    return found
