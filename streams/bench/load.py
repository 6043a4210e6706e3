"""The events of the `counters` bench: what is in the topics, and what every total must be in the end."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from streams.bench.java import Java
from streams.model.errors import StreamsError
from streams.model.row import counter_sums, decode_row


@dataclass(frozen=True, slots=True)
class Load:
    """Events that stand in a topic before anything is measured.

    The first `warmup_events` handed to a contender are not timed. `topic` has `partitions` partitions; event i adds
    (i mod 7) + 1 to the key `score:pNNNN`, NNNN = splitmix64(i) mod `keys`.
    """

    bootstrap_servers: str
    topic: str
    events: int
    warmup_events: int
    keys: int
    partitions: int = 2

    @property
    def total_events(self) -> int:
        """Timed events and those of the warm-up."""
        return self.events + self.warmup_events

    def totals(self) -> dict[str, int]:
        """What every key's counter must be when all events are in; keys without events are absent."""
        index = np.arange(self.total_events, dtype=np.uint64)
        players = (splitmix64(index) % np.uint64(self.keys)).astype(np.int64)
        adds = (index % np.uint64(7) + np.uint64(1)).astype(np.int64)
        sums = np.zeros(self.keys, dtype=np.int64)
        np.add.at(sums, players, adds)
        return {f"score:p{player:04d}": int(total) for player, total in enumerate(sums) if total}

    def verify(self, who: str, found: dict[str, int]) -> None:
        """StreamsError when `found` is not exactly what every total must be: a wrong number measures nothing."""
        wanted = self.totals()
        if found == wanted:
            return
        wrong = sum(found.get(key) != total for key, total in wanted.items()) + len(found.keys() - wanted.keys())
        raise StreamsError(
            f"{who} counted wrong: {wrong} of {len(wanted)} keys differ, their sum is {sum(found.values())}, "
            f"not {sum(wanted.values())}"
        )


def splitmix64(index: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The mixing function that spreads event numbers over keys, the same as in `BenchTool.java`."""
    golden = np.uint64(0x9E3779B97F4A7C15)
    mixed = index * golden + golden
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def create_topic(java: Java, load: Load, *settings: str) -> None:
    """Create the load's topic; `settings` are `name=value`."""
    java.run("BenchTool", "create", load.bootstrap_servers, load.topic, str(load.partitions), *settings)


def produce(java: Java, load: Load, *, record_format: str, origin: str = "-", schema: int = 0) -> None:
    """Put the load's events into its topic, as `long` (8-byte big-endian values) or `streams` (our wire format)."""
    numbers = (str(load.total_events), str(load.keys), str(schema))
    java.run("BenchTool", "produce", load.bootstrap_servers, load.topic, record_format, *numbers, origin)


def dump(java: Java, bootstrap_servers: str, topic: str, file: Path) -> dict[bytes, bytes]:
    """The last committed value of every key of a topic; removed keys are absent."""
    java.run("BenchTool", "dump", bootstrap_servers, topic, str(file))
    return parse_dump(file.read_bytes())


def parse_dump(data: bytes) -> dict[bytes, bytes]:
    """What `BenchTool dump` wrote: (i32 key length, key, i32 value length or -1, value)…, big endian."""
    found, at = {}, 0
    while at < len(data):
        (length,) = struct.unpack_from(">i", data, at)
        key = data[at + 4 : at + 4 + length]
        at += 4 + length
        (length,) = struct.unpack_from(">i", data, at)
        if length >= 0:
            found[key] = data[at + 4 : at + 4 + length]
        at += 4 + max(length, 0)
    return found


def counter_rows(rows: dict[bytes, bytes]) -> dict[str, int]:
    """Our counters from a dump of a table's changelog: positive less negative sums over each row's cells."""
    found = {}
    for key, data in rows.items():
        if key.startswith(b"\x00"):
            continue
        sums = [counter_sums(cell.payload) for cell in decode_row(data).cells]
        found[key.decode()] = sum(positive - negative for positive, negative in sums)
    return found
