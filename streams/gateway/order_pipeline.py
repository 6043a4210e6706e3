"""Several records of one request: each has its place in the log before the next is sent, none waits for its result."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from typing import TypeVar

from streams.gateway.trading import Trading
from streams.sequencer.order_commands import OrdersResult

AHEAD = 4
"""Records whose results are waited for, at most: what a request may hold up for others."""
T = TypeVar("T")


class Placing:
    """The order books, telling when a command has got its place in the log."""

    def __init__(self, trading: Trading, placed: Callable[[], None]) -> None:
        self._trading, self._placed = trading, placed

    async def execute(self, command: bytes) -> tuple[OrdersResult, int]:
        """See Trading.execute."""
        return await self._trading.execute(command, self._placed)


async def in_turn(
    jobs: Iterable[Callable[[Callable[[], None]], Awaitable[T]]], ahead: int = AHEAD
) -> AsyncGenerator[T]:
    """The results of jobs, in their order. A job begins when the one before it has called what it is given, or ended;
    `ahead` of them may be under way. The first that fails ends it all: its error is raised in its turn, no more begin.
    """
    running: deque[asyncio.Task[T]] = deque()
    try:
        for job in jobs:
            if any(_failed(task) for task in running):
                break
            placed = asyncio.Event()
            task = asyncio.ensure_future(_of(job, placed))
            running.append(task)
            task.add_done_callback(lambda _, placed=placed: placed.set())  # type: ignore[misc]
            await placed.wait()
            while len(running) >= ahead or (running and running[0].done()):
                yield await running.popleft()
        while running:
            yield await running.popleft()
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


def _failed(task: asyncio.Task[T]) -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None)


async def _of(job: Callable[[Callable[[], None]], Awaitable[T]], placed: asyncio.Event) -> T:
    return await job(placed.set)
