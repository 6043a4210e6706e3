"""A worker for each deployed UDF: the region's gateway says which there are, in DIR/udfs/<region>.json."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from streams.model.keys import is_name
from streams.model.topology import Region
from streams.region.supervisor import ProcessSpec, Supervisor

POLL_S = 0.05
UDFS_MAX = 1_000
_GROUP = "udf."  # of a deployed UDF's worker: its consumer group and its directory (processing/options.py)


def udf_process(region: str, udf: str) -> str:
    """The name of the process."""
    return f"worker-{region}-udf-{udf}"


class DeployedWorkers:
    """Adds to a supervisor the workers of what is deployed, and takes them away. `run` it as a task.

    A file instead of Kafka, so that supervision goes on without it, and a region that starts without a mirror still
    runs what it ran before.
    """

    def __init__(
        self,
        directory: Path,
        regions: Sequence[Region],
        supervisor: Supervisor,
        spec: Callable[[Region, str], ProcessSpec],
    ) -> None:
        self._regions, self._supervisor, self._spec = tuple(regions), supervisor, spec
        self._directory = directory
        self._files = {region.name: directory / "udfs" / f"{region.name}.json" for region in regions}
        self._read: dict[str, tuple[int, int]] = {}
        self._running: dict[str, set[str]] = {region.name: set() for region in regions}
        self._leaving: dict[str, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Follow the files until cancelled; what was added is the supervisor's to stop."""
        while True:
            for region in self._regions:
                self.follow(region)
            await asyncio.sleep(POLL_S)

    def follow(self, region: Region) -> None:
        """Start and stop what the region's file asks for, if it has changed."""
        file = self._files[region.name]
        try:
            seen = file.stat()
            stamp = (seen.st_mtime_ns, seen.st_ino)
            if self._read.get(region.name) == stamp:
                return
            wanted = {str(name) for name in json.loads(file.read_text())["udfs"][:UDFS_MAX] if _is_label(str(name))}
        except (OSError, ValueError, KeyError, TypeError):
            return  # none yet, or not readable now: what runs goes on
        self._read[region.name] = stamp
        running = self._running[region.name]
        for udf in sorted(running - wanted):
            name = udf_process(region.name, udf)
            self._leaving[name] = asyncio.create_task(self._leave(name, self._place(region) / f"{_GROUP}{udf}"))
            running.discard(udf)
        self._clear(region, wanted)
        for udf in sorted(wanted - running):
            name = udf_process(region.name, udf)
            if name in self._leaving:
                self._read.pop(region.name, None)  # deployed again while its last worker ends: look again
                continue
            self._supervisor.add(self._spec(region, udf))
            running.add(udf)

    async def _leave(self, name: str, place: Path) -> None:
        try:
            await self._supervisor.remove(name)
            await asyncio.to_thread(shutil.rmtree, place, ignore_errors=True)
        finally:
            del self._leaving[name]

    def _place(self, region: Region) -> Path:
        return self._directory / "worker" / region.name

    def _clear(self, region: Region, wanted: set[str]) -> None:
        """Remove what a worker left that was not stopped here: its rows are in the changelog, if anybody wants them."""
        for found in self._place(region).glob(f"{_GROUP}*"):
            label = found.name.removeprefix(_GROUP)
            if label not in wanted and udf_process(region.name, label) not in self._leaving:
                shutil.rmtree(found, ignore_errors=True)


def _is_label(text: str) -> bool:
    name, dot, generation = text.partition(".g")
    return is_name(name) and (not dot or generation.isdecimal())
