"""Recent changes of a table, for subscribers that follow it and may come back.

A bounded log of (position, keys) in memory. A position is only good within one life of the gateway (`epoch`); whoever
comes back with an older one, or falls out of the log, is told so and reads the table again.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from streams.model.errors import Conflict


class WatchGap(Conflict):
    """Changes since the given position are no longer known here: read the table, then watch from `latest`."""

    title = "watch position lost"


@dataclass(frozen=True, slots=True)
class Position:
    """A place in a table's stream of publishes. Text form `epoch-number`."""

    epoch: int
    number: int

    def __str__(self) -> str:
        return f"{self.epoch}-{self.number}"

    @classmethod
    def parse(cls, text: str) -> Position:
        """The inverse of `str`; WatchGap when it never was one."""
        epoch, _, number = text.partition("-")
        if not (epoch.isdecimal() and number.isdecimal() and len(text) < 60):
            raise WatchGap(f"{text[:40]!r} is no position", field="Last-Event-ID", fix="watch from the start")
        return cls(int(epoch), int(number))


class WatchLog:
    """The latest publishes of one table, at most `changes_max` changed keys of them."""

    def __init__(self, epoch: int, changes_max: int) -> None:
        self._epoch, self._changes_max = epoch, changes_max
        self._log: deque[tuple[int, Sequence[bytes]]] = deque()
        self._held = 0
        self._number = 0
        self._waiters: list[asyncio.Future[None]] = []

    @property
    def latest(self) -> Position:
        """The position after the last publish."""
        return Position(self._epoch, self._number)

    def append(self, keys: Sequence[bytes]) -> None:
        """A publish changed `keys`."""
        self._number += 1
        self._log.append((self._number, keys))
        self._held += len(keys)
        while self._held > self._changes_max and self._log:
            self._held -= len(self._log.popleft()[1])
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def since(self, position: Position) -> tuple[list[bytes], Position]:
        """The keys changed after `position`, each once, and the position to go on from; WatchGap when unknown."""
        oldest = self._log[0][0] - 1 if self._log else self._number
        if position.epoch != self._epoch or not oldest <= position.number <= self._number:
            raise WatchGap(f"position {position} is not known here", field="Last-Event-ID", fix="read the table again")
        keys: dict[bytes, None] = {}
        for number, changed in reversed(self._log):
            if number <= position.number:
                break
            keys.update(dict.fromkeys(changed))
        return list(keys), self.latest

    async def wait(self, position: Position, timeout_s: float) -> bool:
        """Wait until something changed after `position`; False when nothing did within `timeout_s`."""
        if position != self.latest:
            return True
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        done, _ = await asyncio.wait([waiter], timeout=timeout_s)
        if not done and waiter in self._waiters:
            self._waiters.remove(waiter)
        return bool(done)
