"""The peers of the `ingest` bench: one record per reading, tumbling windows of 10 s, on a broker of their own."""

from __future__ import annotations

import json
import struct
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from streams.bench.contenders import PEERS, measured_events
from streams.bench.java import Java, prepare_java, run
from streams.bench.load import parse_dump
from streams.bench.quix_environment import quix_python
from streams.bench.readings import Found, Readings, verify_windows
from streams.bench.statistics import median
from streams.model.errors import BadInput, Unavailable
from streams.region.kafka_server import KafkaServer

PARTITIONS = 2
_STARTS = struct.Struct(">q")
_FOUR = struct.Struct(">dddd")
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class PeerSetting:
    """Where a peer runs: `name` is new in every round, `directory` is empty."""

    java: Java
    bootstrap_servers: str
    topic: str
    name: str
    directory: Path
    warmup: int
    total: int
    readings: Readings
    timeout_s: float = 180.0


@dataclass(frozen=True, slots=True)
class Peer:
    """How a peer is run (standard output with its JSON line), its changelog (`{name}`, `{topic}`), how that is read.

    `share`: the part of the bench's readings that it is given, since slow ones would take minutes. `produces`: its
    topic is empty, and it produces the readings itself while it processes them, which is timed with it.
    """

    run: Callable[[PeerSetting], str]
    changelog: str
    parse: Callable[[dict[bytes, bytes]], Iterator[Found]]
    share: float = 1.0
    produces: bool = False


def _kafka_streams(setting: PeerSetting, guarantee: str) -> str:
    arguments = (setting.bootstrap_servers, setting.topic, setting.name, str(setting.directory), guarantee)
    numbers = (str(PARTITIONS), str(setting.warmup), f"{setting.timeout_s:.0f}", "windows")
    return setting.java.run("KafkaStreamsPeer", *arguments, *numbers, timeout_s=setting.timeout_s + 30)


def _producing(setting: PeerSetting, guarantee: str) -> str:
    """The same, the readings produced meanwhile, in its process."""
    arguments = (setting.bootstrap_servers, setting.topic, setting.name, str(setting.directory), guarantee)
    numbers = (str(PARTITIONS), str(setting.warmup), f"{setting.timeout_s:.0f}", "windows", str(setting.total))
    of = (setting.readings.devices, setting.readings.base_ms, setting.readings.per_event_s)
    timeout_s = setting.timeout_s + 30
    return setting.java.run("KafkaStreamsPeer", *arguments, *numbers, *map(str, of), timeout_s=timeout_s)


def _script(python: Path | str, script: str, setting: PeerSetting) -> str:
    arguments = [setting.bootstrap_servers, setting.topic, setting.name, str(setting.directory)]
    numbers = [str(setting.warmup), str(setting.total), f"{setting.timeout_s:.0f}"]
    return run([str(python), str(PEERS / script), *arguments, *numbers], timeout_s=setting.timeout_s + 30)


def kafka_streams_windows(rows: dict[bytes, bytes]) -> Iterator[Found]:
    """Windows from a Kafka Streams window store's changelog: key, i64 start, i32 number → four doubles."""
    for key, value in rows.items():
        yield key[:-12].decode(), _STARTS.unpack(key[-12:-4])[0], *_FOUR.unpack(value)


def faust_windows(rows: dict[bytes, bytes]) -> Iterator[Found]:
    """Windows from a Faust windowed table's changelog: JSON of (key, (start, end) in s) → JSON of four numbers."""
    for key, value in rows.items():
        name, (start, _) = json.loads(key)
        yield name, round(start * 1000), *json.loads(value)


def quix_windows(rows: dict[bytes, bytes]) -> Iterator[Found]:
    """Windows from a Quix Streams changelog: key|i64 start|i64 end → JSON of four numbers; other keys are its own."""
    for key, value in rows.items():
        if len(key) > 18 and key[-18:-17] == key[-9:-8] == b"|" and key.startswith(b"device:"):
            yield key[:-18].decode(), _STARTS.unpack(key[-17:-9])[0], *json.loads(value)


CHOICE: dict[str, Peer] = {
    "kafka-streams-eos-v2": Peer(
        lambda setting: _kafka_streams(setting, "exactly_once_v2"), "{name}-windows-changelog", kafka_streams_windows
    ),
    "kafka-streams-eos-v2-producing": Peer(
        lambda setting: _producing(setting, "exactly_once_v2"),
        "{name}-windows-changelog",
        kafka_streams_windows,
        produces=True,
    ),
    "kafka-streams": Peer(
        lambda setting: _kafka_streams(setting, "at_least_once"), "{name}-windows-changelog", kafka_streams_windows
    ),
    "quix": Peer(
        lambda setting: _script(quix_python(), "quix_windows.py", setting),
        "changelog__{name}--{topic}--tumbling_window_10000_reduce",
        quix_windows,
        share=0.2,
    ),
    "faust": Peer(
        lambda setting: _script(sys.executable, "faust_windows.py", setting),
        "{name}-windows-changelog",
        faust_windows,
        share=0.015,
    ),
}


@dataclass(frozen=True, slots=True)
class PeersOptions:
    """`events` readings are timed (slow peers: a share of them), after a warm-up of `warmup_share` as many again."""

    events: int = 1_000_000
    rounds: int = 3
    devices: int = 1_000
    names: Sequence[str] = tuple(CHOICE)
    warmup_share: float = 0.3

    def __post_init__(self) -> None:
        """BadInput for unknown names."""
        unknown = [name for name in self.names if name not in CHOICE]
        if unknown:
            raise BadInput(f"unknown: {', '.join(unknown)}", field="only", fix=f"choose of {', '.join(CHOICE)}")

    def sizes(self, name: str) -> tuple[int, int]:
        """Readings of the warm-up, and all."""
        timed = max(1_000, int(self.events * CHOICE[name].share))
        warmup = int(timed * self.warmup_share)
        return warmup, warmup + timed


class Peers:
    """Runs peers in rounds; `speeds` are each one's medians. One that cannot be installed is left out, and said."""

    def __init__(self, options: PeersOptions, readings: Readings, say: Say) -> None:
        self._options, self._readings, self._say = options, readings, say
        self._samples: dict[str, list[float]] = defaultdict(list)
        self._missing: set[str] = set()
        self._made: set[tuple[str, str]] = set()

    @property
    def speeds(self) -> dict[str, float]:
        """Readings a second."""
        return {name: median(self._samples[name]) for name in self._options.names if name in self._samples}

    def run(self, rounds: range, directory: Path) -> None:
        """Some rounds, on one broker, in an order that rotates. StreamsError when a peer aggregates wrong."""
        if not self._options.names or not rounds:
            return
        self._say("preparing Java")
        java = prepare_java()
        directory.mkdir()
        with KafkaServer.on_free_ports("bench", directory / "kafka") as kafka:
            for number in rounds:
                names = self._options.names
                shift = number % len(names)
                for name in (*names[shift:], *names[:shift]):
                    if name not in self._missing:
                        self._run(java, kafka.bootstrap_servers, name, f"bench-{name}-{number}", directory)

    def _run(self, java: Java, bootstrap_servers: str, name: str, run_name: str, directory: Path) -> None:
        peer, (warmup, total) = CHOICE[name], self._options.sizes(name)
        if peer.produces:
            topic = f"readings.{run_name}"
            java.run("BenchTool", "create", bootstrap_servers, topic, str(PARTITIONS), "retention.ms=-1")
        else:
            topic = self._topic(java, bootstrap_servers, total)
        place = directory / run_name
        place.mkdir()
        setting = PeerSetting(java, bootstrap_servers, topic, run_name, place, warmup, total, self._readings)
        try:
            events, seconds = measured_events(peer.run(setting))
        except Unavailable as error:
            self._missing.add(name)
            self._say(f"{name} is left out: {error}")
            return
        dumped = place / "changelog.dump"
        changelog = peer.changelog.format(name=run_name, topic=topic)
        java.run("BenchTool", "dump", bootstrap_servers, changelog, str(dumped))
        verify_windows(name, self._readings.truth(total), peer.parse(parse_dump(dumped.read_bytes())))
        self._samples[name].append(events / seconds)
        self._say(f"{name}: {events / seconds:,.0f} readings/s ({events:,} in {seconds:.2f} s), exact")

    def _topic(self, java: Java, bootstrap_servers: str, total: int) -> str:
        """A topic with the first `total` readings, made on first use; contenders with as many share it."""
        topic, readings = f"readings.{total}", self._readings
        if (bootstrap_servers, topic) not in self._made:
            self._made.add((bootstrap_servers, topic))
            self._say(f"producing {total:,} readings, one record each")
            java.run("BenchTool", "create", bootstrap_servers, topic, str(PARTITIONS), "retention.ms=-1")
            numbers = (readings.devices, readings.base_ms, readings.per_event_s)
            java.run("BenchTool", "readings", bootstrap_servers, topic, str(total), *map(str, numbers))
        return topic
