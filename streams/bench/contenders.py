"""Who takes part in the `counters` bench: Kafka Streams twice, stock Faust, and ours.

A contender is given a topic full of events and an empty directory, starts its own process, and says how long it took
from the last warm-up event until everything after it was committed, and what its table's changelog then holds.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from streams.bench.java import Java, run
from streams.bench.load import Load, counter_rows, dump
from streams.model.errors import StreamsError
from streams.model.marker import Marker
from streams.region.processes import die_with_parent, spawn, stop

PEERS = Path(__file__).with_name("peers")
STREAMS = "streams"
SLOW = frozenset({"faust"})
"""Contenders that are given fewer events, since theirs last minutes otherwise."""


@dataclass(frozen=True, slots=True)
class Setting:
    """Where a contender runs: `name` is new in every round (application ids), `directory` is empty."""

    java: Java
    load: Load
    name: str
    directory: Path
    timeout_s: float = 120.0


@dataclass(frozen=True, slots=True)
class Measured:
    """Timed events, the seconds they took, and every key's total as read back from the committed changelog."""

    events: int
    seconds: float
    totals: dict[str, int]

    @property
    def events_per_s(self) -> float:
        """Events a second."""
        return self.events / self.seconds


Contender = Callable[[Setting], Measured]


def run_kafka_streams(setting: Setting, guarantee: str) -> Measured:
    """Kafka Streams: groupByKey, reduce, RocksDB with changelog; `guarantee` is its `processing.guarantee`."""
    load = setting.load
    arguments = (load.bootstrap_servers, load.topic, setting.name, str(setting.directory), guarantee)
    numbers = (str(load.partitions), str(load.warmup_events), f"{setting.timeout_s:.0f}", "counters")
    answer = setting.java.run("KafkaStreamsPeer", *arguments, *numbers, timeout_s=setting.timeout_s + 30)
    rows = dump(setting.java, load.bootstrap_servers, f"{setting.name}-counts-changelog", _dump_file(setting))
    return _measured(answer, {key.decode(): int.from_bytes(value, "big") for key, value in rows.items()})


def run_faust(setting: Setting) -> Measured:
    """Stock Faust: an agent and a `Table` in rocksdict with its changelog, one worker process."""
    load = setting.load
    arguments = [load.bootstrap_servers, load.topic, setting.name, str(setting.directory)]
    numbers = [str(load.warmup_events), str(load.total_events), f"{setting.timeout_s:.0f}"]
    command = [sys.executable, str(PEERS / "faust_counters.py"), *arguments, *numbers]
    answer = run(command, timeout_s=setting.timeout_s + 30)
    rows = dump(setting.java, load.bootstrap_servers, f"{setting.name}-counts-changelog", _dump_file(setting))
    return _measured(answer, {json.loads(key): json.loads(value) for key, value in rows.items()})


def run_streams(setting: Setting) -> Measured:
    """Ours: a worker process of the built-in UDFs over the load's topic, observed only through its changelog's markers.

    Timed from the first marker past the warm-up to the first that covers the topic's end, as a read_committed reader
    sees them; events committed with the former are not counted, and where the reader cannot tell when a commit
    happened, the time that is worse for us is taken. StreamsError when it does not get there in time.
    """
    load = setting.load
    region = ["--region", "us-east", "--bootstrap-servers", load.bootstrap_servers]
    place = ["--data", str(setting.directory / "data"), "--only-builtin"]
    command = [sys.executable, "-m", "streams.processing", *region, *place]
    log = setting.directory / "worker.log"
    watch = setting.java.command("BenchTool", "markers", load.bootstrap_servers, TABLE_TOPIC, heap_mb=256)
    watch.append(f"{setting.timeout_s:.0f}")
    watcher = subprocess.Popen(watch, stdout=subprocess.PIPE, text=True, preexec_fn=die_with_parent())
    worker: subprocess.Popen[bytes] | None = None
    try:
        if watcher.stdout is None or watcher.stdout.readline() != "ready\n":
            raise StreamsError("the reader of markers did not start")
        worker = spawn(command, log)
        start, end = _watch_markers(watcher, worker, load)
    except StreamsError as error:
        words = log.read_text(errors="replace").splitlines()[-3:] if log.exists() else []
        raise StreamsError(
            f"{error.detail}; the worker said: {' | '.join(words) or 'nothing'}", fix=error.fix
        ) from None
    finally:
        watcher.kill()
        watcher.wait()
        if worker is not None:
            stop(worker)
    rows = dump(setting.java, load.bootstrap_servers, TABLE_TOPIC, _dump_file(setting))
    return Measured(end.position - start.position, end.seen_s - start.asked_s, counter_rows(rows))


CONTENDERS: dict[str, Contender] = {
    STREAMS: run_streams,
    "kafka-streams-eos-v2": lambda setting: run_kafka_streams(setting, "exactly_once_v2"),
    "kafka-streams": lambda setting: run_kafka_streams(setting, "at_least_once"),
    "faust": run_faust,
}

TABLE_TOPIC = "table.score"
COMMITS_MIN = 5
"""Fewer between the clock's two marks would time the commits' spacing: folding goes on while one is in flight."""


@dataclass(frozen=True, slots=True)
class Progress:
    """The sum of next positions over a topic's partitions, in seconds since some start.

    At most so much was committed at `asked_s`, and all of it at `seen_s`: what came between two of them took at most
    the later's `seen_s` less the earlier's `asked_s`.
    """

    asked_s: float
    seen_s: float
    position: int


def _watch_markers(
    watcher: subprocess.Popen[str], worker: subprocess.Popen[bytes], load: Load
) -> tuple[Progress, Progress]:
    """The first committed progress past the warm-up, and the first that is complete."""
    positions: dict[str, int] = {}
    start: Progress | None = None
    commits = before = 0
    for line in watcher.stdout or ():
        if worker.poll() is not None:
            break
        progress = advance(positions, line)
        if progress.position >= load.total_events:
            if start is None or commits < COMMITS_MIN:
                raise StreamsError(
                    f"the timed events came in {commits} commits: the bench needs more of them", fix="raise --events"
                )
            return start, progress
        commits += start is not None and progress.position > before
        before = progress.position
        if start is None and progress.position >= load.warmup_events:
            start = progress
    raise StreamsError(f"ours got to {sum(positions.values())} of {load.total_events} events")


def advance(positions: dict[str, int], line: str) -> Progress:
    """Take in a line of `BenchTool markers`; `positions` is by `topic/partition`."""
    asked, seen, *markers = line.rstrip("\n").split("\t")
    for body in markers:
        if body:
            for name, at in Marker.decode(body.encode()).inputs.items():
                positions[name] = max(positions.get(name, 0), at.next)
    return Progress(float(asked), float(seen), sum(positions.values()))


def measured_events(answer: str) -> tuple[int, float]:
    """Timed events and their seconds from what a peer printed; StreamsError when it printed no result."""
    found = re.findall(r"\{.*\}", answer)  # Faust puts terminal codes before it
    if not found:
        raise StreamsError("the peer printed no result")
    body = json.loads(found[-1])
    return int(body["events"]), float(body["seconds"])


def _measured(answer: str, totals: dict[str, int]) -> Measured:
    return Measured(*measured_events(answer), totals)


def _dump_file(setting: Setting) -> Path:
    return setting.directory / "changelog.dump"
