"""The `counters` bench: one record per put, from a topic into a committed table, beside peers on the same broker."""

from __future__ import annotations

import resource
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from streams.bench.contenders import CONTENDERS, SLOW, STREAMS, Setting
from streams.bench.java import Java, prepare_java
from streams.bench.load import Load, create_topic, produce
from streams.bench.report import Result
from streams.bench.statistics import median
from streams.model.errors import BadInput
from streams.region.kafka_server import KafkaServer
from streams.serde.schemas import load_builtin

GOALS = {"kafka-streams-eos-v2": 2.0, "faust": 50.0}
EVENTS, ROUNDS = 4_000_000, 3
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class CountersOptions:
    """Sizes of the bench. Slow contenders get `slow_events` instead of `events`; a warm-up of `warmup_share` precedes.

    `contenders`: names of `CONTENDERS`, each of which runs once a round, in an order that rotates from round to round.
    """

    events: int = EVENTS
    slow_events: int = 15_000
    warmup_share: float = 0.3
    keys: int = 10_000
    rounds: int = ROUNDS
    contenders: Sequence[str] = tuple(CONTENDERS)

    def __post_init__(self) -> None:
        """BadInput for sizes that measure nothing and for unknown names."""
        if self.events < 1000 or self.slow_events < 1000:
            raise BadInput("fewer than 1,000 events measure nothing", field="events", fix="use the default")
        if self.rounds < 1:
            raise BadInput("at least one round is needed", field="rounds")
        unknown = [name for name in self.contenders if name not in CONTENDERS]
        if unknown:
            raise BadInput(f"unknown: {', '.join(unknown)}", field="only", fix=f"choose of {', '.join(CONTENDERS)}")


@dataclass(slots=True)
class Samples:
    """What the rounds measured of one contender."""

    events_per_s: list[float]
    cpu_us_per_event: list[float]


def bench_counters(options: CountersOptions, say: Say) -> list[Result]:
    """Run the bench on a broker of its own; `say` gets progress. StreamsError when any contender counts wrong."""
    say("preparing Java")
    java = prepare_java()
    with tempfile.TemporaryDirectory(prefix="streams-bench-") as name:
        directory = Path(name)
        with KafkaServer.on_free_ports("bench", directory / "kafka") as kafka:
            loads = _fill_topics(java, kafka.bootstrap_servers, options, say)
            samples: dict[str, Samples] = defaultdict(lambda: Samples([], []))
            for number in range(options.rounds):
                shift = number % len(options.contenders)
                for contender in (*options.contenders[shift:], *options.contenders[:shift]):
                    setting = _setting(java, loads[contender], f"{contender}-{number}", directory)
                    _measure(contender, setting, samples[contender], say)
    return _results(samples, options)


def _setting(java: Java, load: Load, name: str, directory: Path) -> Setting:
    (directory / name).mkdir()
    return Setting(java, load, f"bench-{name}", directory / name)


def _fill_topics(java: Java, bootstrap_servers: str, options: CountersOptions, say: Say) -> dict[str, Load]:
    """Produce the events once for all rounds; every contender's load."""
    warmup, slow_warmup = int(options.events * options.warmup_share), int(options.slow_events * options.warmup_share)
    plain = Load(bootstrap_servers, "bench.plain", options.events, warmup, options.keys)
    slow = Load(bootstrap_servers, "bench.plain.few", options.slow_events, slow_warmup, options.keys)
    ours = Load(bootstrap_servers, "events.score", options.events, warmup, options.keys)
    loads = {name: slow if name in SLOW else ours if name == STREAMS else plain for name in options.contenders}
    for load in {load.topic: load for load in loads.values()}.values():
        say(f"producing {load.total_events:,} events to {load.topic}")
        if load is ours:
            create_topic(java, load, "message.timestamp.type=LogAppendTime")
            schema = load_builtin()["streams.CounterAdd"].id
            produce(java, load, record_format="streams", origin="us-east", schema=schema)
        else:
            create_topic(java, load)
            produce(java, load, record_format="long")
    return loads


def _measure(contender: str, setting: Setting, samples: Samples, say: Say) -> None:
    """Run a contender once, check its totals, remove what it left in Kafka, and note what it took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    measured = CONTENDERS[contender](setting)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    setting.load.verify(contender, measured.totals)
    for prefix in (setting.name, "table.", "dead-letter."):
        setting.java.run("BenchTool", "delete", setting.load.bootstrap_servers, prefix)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    samples.events_per_s.append(measured.events_per_s)
    samples.cpu_us_per_event.append(cpu_s * 1e6 / setting.load.total_events)
    say(f"{contender}: {measured.events_per_s:,.0f} events/s ({measured.events:,} in {measured.seconds:.2f} s), exact")


def _results(samples: dict[str, Samples], options: CountersOptions) -> list[Result]:
    speeds = {name: median(each.events_per_s) for name, each in samples.items()}
    work = {name: median(each.cpu_us_per_event) for name, each in samples.items()}
    ours, our_work = speeds.pop(STREAMS, None), work.pop(STREAMS, None)
    goals = {name: times for name, times in GOALS.items() if name in speeds}
    met = all(ours >= times * speeds[name] for name, times in goals.items()) if ours and goals else None
    goal = ", ".join(f">= {times:g}x {name}" for name, times in goals.items()) or None
    few = f" (faust: {options.slow_events:,})" if "faust" in speeds else ""
    what = f"one record per put into committed tables, {options.keys:,} keys, {options.events:,} events{few}"
    spent = "CPU time of the worker alone, its start included"
    return [
        Result(what, ours, "events/s", speeds, goal, met),
        Result(spent, our_work, "us/event", work),
    ]
