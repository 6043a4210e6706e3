"""Warm worker processes, for deployed UDFs: loaded and idle, so that one serves a moment after it is asked for."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess
from asyncio.subprocess import Process
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

from streams.region.processes import kill_group, start_child

FIRST_S = 3.0
REFILL_S = 5.0


class Spares:
    """Keeps `count` idle processes of `command`. `run` it as a task; after it was cancelled, `close`.

    A spare waits for one line on its standard input, and ends when that is closed: so none outlives the supervisor.
    """

    def __init__(self, command: Sequence[str], count: int, log_file: Path, env: Mapping[str, str]) -> None:
        self._command, self._count, self._log_file, self._env = tuple(command), count, log_file, dict(env)
        self._idle: deque[Process] = deque()
        self._wanted = asyncio.Event()

    async def run(self) -> None:
        """Start the first after `FIRST_S`, when a starting system has calmed down, and others for those taken."""
        await asyncio.sleep(FIRST_S)
        while True:
            self._idle = deque(each for each in self._idle if each.returncode is None)
            if len(self._idle) < self._count:
                with contextlib.suppress(OSError):
                    self._idle.append(await self._start())
                    continue
            self._wanted.clear()
            await self._wanted.wait()
            await asyncio.sleep(REFILL_S)

    async def take(self, asked: Mapping[str, str]) -> Process | None:
        """A spare that becomes what the line `asked` says; None when there is none."""
        while self._idle:
            spare = self._idle.popleft()
            self._wanted.set()
            if spare.returncode is not None or spare.stdin is None:
                continue
            try:
                spare.stdin.write((json.dumps(dict(asked)) + "\n").encode())
                await spare.stdin.drain()
            except OSError:
                continue
            return spare
        return None

    async def close(self) -> None:
        """End those that are idle."""
        for spare in self._idle:
            kill_group(spare.pid, signal.SIGKILL)
            await spare.wait()
        self._idle.clear()

    async def _start(self) -> Process:
        return await start_child(self._command, self._log_file, self._env, stdin=subprocess.PIPE)
