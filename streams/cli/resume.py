"""What an interrupted `streams load` remembers: where in the log to look for what it has left."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from streams.kafka.loads import Place
from streams.region.paths import cache_dir

KEPT_S = 30 * 86_400
"""How long an interrupted load may be gone on with."""

_FORMAT = 1
"""Changes when the same file would give other chunks."""


def load_id(path: Path, options: list[object]) -> str:
    """The id of a load: the same for the same file, unchanged, under the same options."""
    stat = path.stat()
    what = [_FORMAT, str(path.absolute()), stat.st_size, stat.st_mtime_ns, options]
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:16]


class LogView(Protocol):
    """The log, seen directly or through a gateway. A start is JSON."""

    async def start(self) -> Any:
        """Where the log ends now."""
        ...

    async def durable(self, start: Any, ident: str) -> dict[int, Place]:
        """By partition, the last frame of the load after `start`."""
        ...


@dataclass(slots=True)
class LoadState:
    """One load. `started_ms`: the time of readings that give none; `durable`: by partition, the last frame there."""

    ident: str
    started_ms: int = 0
    durable: dict[int, Place] = field(default_factory=dict)

    @property
    def _path(self) -> Path:
        return cache_dir() / "loads" / f"{self.ident}.json"

    async def begin(self, view: LogView) -> None:
        """Find what an interrupted run has left, or note where in the log this one begins, before it writes."""
        try:
            kept = json.loads(self._path.read_text())
            start, self.started_ms = kept["start"], int(kept["started_ms"])
        except (OSError, ValueError, KeyError, TypeError):
            self.started_ms = time.time_ns() // 1_000_000
            self._forget_old()
            text = json.dumps({"start": await view.start(), "started_ms": self.started_ms})
            await asyncio.to_thread(_write_durably, self._path, text)
            return
        self.durable = await view.durable(start, self.ident)

    def _forget_old(self) -> None:
        """Drop what loads left that nobody went on with."""
        for path in self._path.parent.glob("*.json"):
            with suppress(OSError):
                if path.stat().st_mtime < time.time() - KEPT_S:
                    path.unlink()

    def done(self) -> None:
        """The load is complete: the next run of the same file is another load."""
        with suppress(FileNotFoundError):
            self._path.unlink()

    def holds(self, partition: int, place: Place) -> bool:
        """Whether a frame is in the log."""
        return place <= self.durable.get(partition, (-1, -1))


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
