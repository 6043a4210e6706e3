"""Keyspaces whose raw events are mirrored too: the regions' gateways say which, in DIR/mirrored/<region>.json."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from streams.model.keys import is_name
from streams.region.supervisor import Supervisor

POLL_S = 0.2
KEYSPACES_MAX = 1_000


class MirroredEvents:
    """What is mirrored besides tables. `names` is for the mirror's start; `run` starts it anew when that has changed.

    MirrorMaker takes its topics when it starts, and is exactly-once, so it is killed: a second or two without mirror.
    """

    def __init__(self, directory: Path, regions: Sequence[str]) -> None:
        self._files = [directory / "mirrored" / f"{region}.json" for region in regions]
        self._running: tuple[str, ...] = ()

    def names(self) -> tuple[str, ...]:
        """The keyspaces that any region's gateway names; the mirror that starts now is taken to know them."""
        self._running = self._wanted()
        return self._running

    def _wanted(self) -> tuple[str, ...]:
        found: set[str] = set()
        for file in self._files:
            try:
                found.update(str(name) for name in json.loads(file.read_text())["keyspaces"][:KEYSPACES_MAX])
            except (OSError, ValueError, KeyError, TypeError):
                continue  # none yet
        return tuple(sorted(name for name in found if is_name(name)))

    async def run(self, supervisor: Supervisor, mirror: str, say: Callable[[str], None]) -> None:
        """Follow the files until cancelled."""
        while True:
            if (wanted := self._wanted()) != self._running:
                say(f"{mirror}: starting again to mirror the events of {', '.join(wanted) or 'no keyspace'}")
                self._running = wanted
                await supervisor.restart(mirror)
            await asyncio.sleep(POLL_S)
