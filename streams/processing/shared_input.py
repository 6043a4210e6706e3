"""One input partition whose runs several tables fold: each run goes to all of them and is decoded once."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from streams.processing.partition_runner import PartitionRunner
from streams.processing.ports import RunPort

T = TypeVar("T")
MEMOS = 8
"""Runs of a partition whose decoded form is kept for the tables that have not come to them yet."""


class SharedRun:
    """A fetched run that several tables fold (a RunPort). `once` keeps what decoding it gave until it is forgotten."""

    __slots__ = ("_keep", "_lock", "_memo", "_run")

    def __init__(self, run: RunPort) -> None:
        self._run = run
        self._lock = threading.Lock()
        self._memo: tuple[object, Any] | None = None
        self._keep = True

    @property
    def topic(self) -> str:
        """The input topic."""
        return self._run.topic

    @property
    def partition(self) -> int:
        """Its partition."""
        return self._run.partition

    @property
    def batches(self) -> tuple[bytes, ...]:
        """Raw record batches."""
        return self._run.batches

    @property
    def base(self) -> int:
        """The first offset it covers."""
        return self._run.base

    @property
    def next(self) -> int:
        """The position after it."""
        return self._run.next

    @property
    def high_watermark(self) -> int:
        """The partition's end when it was fetched."""
        return self._run.high_watermark

    @property
    def size_bytes(self) -> int:
        """Bytes of all batches."""
        return self._run.size_bytes

    def once(self, how: object, make: Callable[[], T]) -> T:
        """What `make` gave when it was last asked for in the same way, else what it gives now. From any thread."""
        with self._lock:
            if self._memo is not None and self._memo[0] == how:
                found: T = self._memo[1]
                return found
            made = make()
            if self._keep:
                self._memo = (how, made)
            return made

    def forget(self) -> None:
        """Keep nothing any more."""
        self._keep, self._memo = False, None


class SharedInput:
    """The runners of all tables that take one input partition, as the one reader that the consumer has of it.

    A run is done when every table is done with it, so the slowest table's bytes hold back the fetching. A table that
    restores or stands in an error is not waited for. Reading goes on at the least position of the running tables; those
    that are further pass over what they have.
    """

    def __init__(self, seek: Callable[[int], Awaitable[None]]) -> None:
        self.runners: dict[str, PartitionRunner] = {}
        self._seek = seek
        self._memos: deque[SharedRun] = deque(maxlen=MEMOS)
        self._seeking = asyncio.Lock()
        self._at = -1

    def offer(self, run: RunPort, done: Callable[[], object]) -> None:
        """Hand a run to every table. Never blocks."""
        self._at = run.next
        runners = list(self.runners.values())
        if len(runners) == 1:
            runners[0].offer(run, done)
            return
        shared, left = SharedRun(run), len(runners)
        if len(self._memos) == MEMOS:
            self._memos[0].forget()
        self._memos.append(shared)

        def one_done() -> None:
            nonlocal left
            left -= 1
            if left == 0:
                shared.forget()
                done()

        if not runners:
            done()
        for runner in runners:
            runner.offer(shared, one_done)

    async def seek(self, table: str, offset: int) -> None:
        """Make sure that `table` gets the events from `offset` on."""
        async with self._seeking:
            tasks = [runner.task for name, runner in self.runners.items() if name != table]
            wanted = [at for task in tasks if task is not None and (at := task.wanted) is not None]
            self._at = min([offset, *wanted])
            await self._seek(self._at)

    def rewound(self, runner: PartitionRunner) -> bool:
        """Whether the input is read for a table further behind: this one has nothing to do until that has caught up."""
        return runner.task is not None and 0 <= self._at < runner.task.position
