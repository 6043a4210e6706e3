"""What an interrupted `streams load` has left in the log: a state file says where to look, record headers what.

Every frame of a load carries the header `load`: `<load id>:<chunk>`, `.<n>` after it for the n-th further frame of the
chunk in its partition. A partition's frames are appended in order, so its last one says what of the load it holds.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from streams.kafka.admin import Admin
from streams.kafka.raw_fetch import FetchOptions, RawConsumer
from streams.kafka.records import records_of
from streams.model.keyspace import Keyspace
from streams.region.paths import cache_dir

Place = tuple[int, int]
"""A chunk, and which of its frames in one partition."""

_FORMAT = 1
"""Changes when the same file would give other chunks."""

_SETTLE_S = 0.5
_LEFT_OVER_S = 5.0


def load_id(path: Path, options: dict[str, object]) -> str:
    """The id of a load: the same for the same file, unchanged, under the same options."""
    stat = path.stat()
    what = [_FORMAT, str(path.absolute()), stat.st_size, stat.st_mtime_ns, options]
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:16]


@dataclass(slots=True)
class LoadState:
    """One load. `started_ms`: the time of readings that give none; `durable`: by partition, the last frame there."""

    ident: str
    bootstrap_servers: str
    keyspace: Keyspace
    started_ms: int = 0
    resumed: bool = False
    durable: dict[int, Place] = field(default_factory=dict)

    @property
    def _path(self) -> Path:
        return cache_dir() / "loads" / f"{self.ident}.json"

    async def begin(self) -> None:
        """Find what an interrupted run has left, or note where in the log this one begins, before it writes."""
        try:
            kept = json.loads(self._path.read_text())
            positions = {int(number): int(offset) for number, offset in kept["positions"].items()}
            self.started_ms = int(kept["started_ms"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            await self._remember()
            return
        self.resumed = True
        await self._scan(positions)

    def done(self) -> None:
        """The load is complete: the next run of the same file is another load."""
        with suppress(FileNotFoundError):
            self._path.unlink()

    def holds(self, partition: int, place: Place) -> bool:
        """Whether a frame is in the log."""
        return place <= self.durable.get(partition, (-1, -1))

    async def _ends(self) -> dict[int, int]:
        topic = self.keyspace.events_topic
        async with Admin(self.bootstrap_servers) as admin:
            found = await admin.end_offsets([(topic, number) for number in range(self.keyspace.partitions)])
        return {partition: offset for (_, partition), offset in found.items()}

    async def _remember(self) -> None:
        self.started_ms = time.time_ns() // 1_000_000
        text = json.dumps({"positions": await self._ends(), "started_ms": self.started_ms})
        await asyncio.to_thread(_write_durably, self._path, text)

    async def _scan(self, positions: dict[int, int]) -> None:
        """Read from `positions` to the end; again while a killed run's last requests may still be on their way."""
        topic, wanted = self.keyspace.events_topic, f"{self.ident}:".encode()
        consumer = RawConsumer(self.bootstrap_servers, FetchOptions(client_id="streams-load"))
        await consumer.start()
        try:
            consumer.assign({(topic, partition): offset for partition, offset in positions.items()})
            at, quiet_since_s, began_s = dict(positions), time.monotonic(), time.monotonic()
            while time.monotonic() - quiet_since_s < _SETTLE_S:
                ends = await self._ends()
                while any(at[partition] < ends[partition] for partition in at):
                    for run in await consumer.get_runs(1.0):
                        for record in records_of(run):
                            value = dict(record.headers).get("load") or b""
                            if value.startswith(wanted):
                                self.durable[run.partition] = _place(value[len(wanted) :])
                                if time.monotonic() - began_s < _LEFT_OVER_S:
                                    quiet_since_s = time.monotonic()
                        at[run.partition] = run.next
                await asyncio.sleep(_SETTLE_S / 5)
        finally:
            await consumer.stop()


def header_of(ident: str, place: Place) -> str:
    """The `load` header of a frame."""
    return f"{ident}:{place[0]}" + (f".{place[1]}" if place[1] else "")


def _place(text: bytes) -> Place:
    chunk, _, index = text.partition(b".")
    return int(chunk), int(index or 0)


def _write_durably(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(f".{os.getpid()}")
    with draft.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
