"""A definitions log in memory, with the semantics of the real one: claims fence, appends are atomic, mirrors lag."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from streams.definitions.entries import Entry
from streams.definitions.log import Fenced, UnknownOutcome
from streams.model.errors import Timeout


class MemoryHome:
    """The home region's log; shared by the `MemoryLog`s of several processes."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.epoch = 0
        self.appends = 0


class MemoryLog:
    """One process's access. `lag`: how many of the newest entries its local copy does not have yet.

    `lose_next`: the next append's answer is lost, after it took effect (`"applied"`) or before (`"dropped"`).
    """

    def __init__(self, home: MemoryHome, lag: int = 0) -> None:
        self.home, self.lag = home, lag
        self.lose_next = ""
        self._read = self._claimed = 0
        self._epoch = -1

    async def start(self, timeout_s: float) -> None:
        """Nothing to connect."""

    async def stop(self) -> None:
        """Nothing to disconnect."""

    async def read(self, timeout_s: float) -> Sequence[Entry]:
        """New local entries; yields to others when there are none."""
        found = self.home.entries[self._read : max(self._read, len(self.home.entries) - self.lag)]
        self._read += len(found)
        if not found:
            await asyncio.sleep(min(timeout_s, 0.002))
        return found

    async def at_end(self) -> bool:
        """Whether the local copy is read."""
        return self._read >= len(self.home.entries) - self.lag

    async def claim(self, timeout_s: float) -> Sequence[Entry]:
        """Fence the others."""
        self.home.epoch += 1
        self._epoch = self.home.epoch
        await asyncio.sleep(0)
        found = self.home.entries[self._claimed :]
        self._claimed += len(found)
        await asyncio.sleep(0)
        return found

    async def append(self, entries: Sequence[Entry]) -> None:
        """Fenced if somebody claimed since."""
        await asyncio.sleep(0)
        if self._epoch != self.home.epoch:
            raise Fenced("somebody else claimed")
        how, self.lose_next = self.lose_next, ""
        if how != "dropped":
            self.home.entries += entries
            self.home.appends += 1
        if how:
            raise UnknownOutcome("the answer was lost")


class SilentLog(MemoryLog):
    """A mirror that never comes."""

    async def start(self, timeout_s: float) -> None:
        """Waits in vain."""
        raise Timeout("us-east.definitions is not mirrored yet")
