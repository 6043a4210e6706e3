"""Strong writes over HTTP: placement and linearizable reads, near, far and with three brokers; commands of a crowd."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from streams.bench.crowd import crowd
from streams.bench.http_client import Connection, client_overhead_ms
from streams.bench.order_batches import OrderBatches, measure_batches
from streams.bench.own_system import OwnSystem, cpu_s, own_system
from streams.bench.report import Result, at_least, at_most
from streams.bench.statistics import percentile
from streams.model.errors import BadInput, StreamsError

Say = Callable[[str], None]
PARTS = ("latency", "commands", "batches", "brokers")


@dataclass(frozen=True, slots=True)
class StrongOptions:
    """How often each latency is measured; how many commands `clients` send. `rtt_ms`: between the regions."""

    placements: int = 1000
    reads: int = 2000
    visibilities: int = 300
    commands: int = 30_000
    clients: int = 64
    rtt_ms: float = 20.0
    warmup: int = 200
    parts: Sequence[str] = PARTS

    def __post_init__(self) -> None:
        """BadInput for an unknown part."""
        if unknown := set(self.parts) - set(PARTS):
            raise BadInput(f"strong has no part {min(unknown)}", field="--parts", fix=f"choose of {', '.join(PARTS)}")


def bench_strong(options: StrongOptions, say: Say) -> list[Result]:
    """Everything, each part in a system of its own; the client's own share of every latency at the end."""
    results: list[Result] = []
    if {"latency", "commands"} & set(options.parts):
        say(f"starting two regions, {options.rtt_ms:g} ms apart")
        with own_system(rtt_ms=options.rtt_ms) as system:
            _warm(system.first, options)
            if "latency" in options.parts:
                results += _latencies(system, options, say)
            if "commands" in options.parts:
                results += _commands(system, options, say)
    if "batches" in options.parts:
        say("starting two regions")
        with own_system() as system:
            results += measure_batches(system, OrderBatches(), say)
        say("starting the home region alone")
        with own_system("us-east") as system:
            results += measure_batches(system, OrderBatches(), say, "the home region alone, ")
    if "brokers" in options.parts:
        say("starting a region of three brokers")
        with own_system("us-east", brokers=3) as system:
            _warm(system.first, options)
            ms = _ms(measure_reads(system.first, options))
            results.append(at_most("linearizable read, appended barrier, three brokers, p50", percentile(ms, 50), "ms"))
            results.append(
                at_most("linearizable read, appended barrier, three brokers, p99", percentile(ms, 99), "ms", 12)
            )
            ms = _ms(measure_placements(system.first, options))
            results.append(at_most("strong put placed, three brokers, p50", percentile(ms, 50), "ms"))
            results.append(at_most("strong put placed, three brokers, p99", percentile(ms, 99), "ms"))
    share = Result("the client's own share (constant answer over loopback), p50", client_overhead_ms(), "ms")
    return [*results, share]


def _latencies(system: OwnSystem, options: StrongOptions, say: Say) -> list[Result]:
    say("placing, reading")
    near, far = _ms(measure_placements(system.first, options)), _ms(measure_placements(system.second, options))
    strong = _ms(measure_reads(system.first, options))
    eventual = _ms(measure_reads(system.first, options, "?consistency=eventual"))
    visible = [each - options.rtt_ms for each in _ms(measure_visible(system, options))]
    apart = f"{options.rtt_ms:g} ms away"
    return [
        at_most("strong put placed from the home region, p50", percentile(near, 50), "ms", 8),
        at_most("strong put placed from the home region, p99", percentile(near, 99), "ms", 25),
        at_most(f"strong put placed from the other region, {apart}, p50", percentile(far, 50), "ms"),
        at_most(f"strong put placed from the other region, {apart}, p99", percentile(far, 99), "ms", 50),
        at_most("the same beyond one round trip, p50", percentile(far, 50) - options.rtt_ms, "ms", 8),
        at_most("the same beyond one round trip, p99", percentile(far, 99) - options.rtt_ms, "ms", 25),
        at_most("linearizable read, one broker, p50", percentile(strong, 50), "ms", 1),
        at_most("linearizable read, one broker, p99", percentile(strong, 99), "ms", 6),
        at_most("eventual read, p50", percentile(eventual, 50), "ms"),
        at_most("eventual read, p99", percentile(eventual, 99), "ms", 1),
        at_most("strong put sent -> visible in the other region, beyond RTT, p50", percentile(visible, 50), "ms"),
        at_most("strong put sent -> visible in the other region, beyond RTT, p99", percentile(visible, 99), "ms", 100),
    ]


def _commands(system: OwnSystem, options: StrongOptions, say: Say) -> list[Result]:
    say(f"{options.commands:,} commands from {options.clients} clients")
    crowd(system.first, options.clients, options.commands // 10, _put_of("w"))
    before, own = {name: cpu_s(pid) for name, pid in system.pids.items()}, time.process_time()
    found = crowd(system.first, options.clients, options.commands, _put_of("c"))
    own = time.process_time() - own
    used = {name: (cpu_s(pid) - before[name]) / options.commands * 1e6 for name, pid in system.pids.items()}
    ms, how = _ms(found.seconds), f"one by one from {options.clients} clients"
    return [
        at_least(f"strong commands, {how}", found.per_s, "commands/s", 5_000),
        at_most(f"strong command, {how}, p50", percentile(ms, 50), "ms"),
        at_most(f"strong command, {how}, p99", percentile(ms, 99), "ms"),
        Result("CPU a command, the whole system", sum(used.values()), "µs"),
        *(Result(f"CPU a command, {name}", each, "µs") for name, each in used.items() if each >= 1),
        Result("CPU a command, the clients", own / options.commands * 1e6, "µs"),
    ]


def _put_of(run: str) -> Callable[[int], tuple[str, str, bytes]]:
    return lambda number: ("PUT", f"/v1/kv/strong:{run}{number % 10_000}", b'{"n": %d}' % number)


def _ms(seconds: Sequence[float]) -> list[float]:
    return [each * 1e3 for each in seconds]


def _warm(gateway: str, options: StrongOptions) -> None:
    """The JVM compiles what it will need."""
    crowd(gateway, 8, 10 * options.warmup, _put_of("warm"))


def measure_placements(gateway: str, options: StrongOptions) -> list[float]:
    """Seconds of each strong put, one after the other, after a warm-up."""
    with Connection(gateway) as connection:
        answers = [connection.put(f"strong:p{n % 1000}", {"n": n}) for n in range(options.warmup + options.placements)]
    for answer in answers:
        answer.json()
    return [answer.seconds for answer in answers[options.warmup :]]


def measure_reads(gateway: str, options: StrongOptions, query: str = "") -> list[float]:
    """Seconds of each read of a key that is there, after a warm-up."""
    with Connection(gateway) as connection:
        connection.put("strong:read", {"n": 1}).json()
        asked = options.warmup + options.reads
        answers = [connection.request("GET", f"/v1/kv/strong:read{query}") for _ in range(asked)]
    for answer in answers:
        answer.json()
    return [answer.seconds for answer in answers[options.warmup :]]


def measure_visible(system: OwnSystem, options: StrongOptions) -> list[float]:
    """Seconds from sending a put in the home region until the other region's own copy shows it.

    Read over and over on another connection. StreamsError when a newer value is followed by an older one.
    """
    samples = []
    with Connection(system.first) as writer, Connection(system.second) as reader:
        for number in range(options.warmup // 10 + options.visibilities):
            began_s = time.perf_counter()
            writer.put("strong:visible", number).json()
            while True:
                answer = reader.request("GET", "/v1/kv/strong:visible?consistency=eventual")
                seen = json.loads(answer.body)["value"] if answer.status == 200 else -1
                if seen > number:
                    raise StreamsError(f"the other region shows {seen}, which was not written yet")
                if seen == number:
                    break
            samples.append(time.perf_counter() - began_s)
    return samples[options.warmup // 10 :]
