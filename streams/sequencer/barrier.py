"""`SharedBarrier`: a position that is no older than the asking, found once for all who ask meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable


class SharedBarrier:
    """Concurrent readers share one `probe`. For one event loop.

    A reader takes part only in a probe that begins after it asked: the answer to one that was under way may be from
    before a write that the reader already knows of.
    """

    def __init__(self, probe: Callable[[], Awaitable[int]]) -> None:
        self._probe = probe
        self._next: asyncio.Future[int] | None = None
        self._rounds: asyncio.Task[None] | None = None
        self.probes = 0

    async def position(self) -> int:
        """What a probe that began after this call answered; its error."""
        if self._next is None:
            self._next = asyncio.get_running_loop().create_future()
        waiting = self._next
        if self._rounds is None or self._rounds.done():
            self._rounds = asyncio.get_running_loop().create_task(self._run())
        return await asyncio.shield(waiting)

    async def _run(self) -> None:
        while (round_ := self._next) is not None:
            self._next = None
            self.probes += 1
            try:
                found = await self._probe()
            except Exception as error:  # handed to every reader of this round
                round_.set_exception(error)
                round_.exception()  # a reader that gave up meanwhile must not leave a warning
            except BaseException:
                round_.cancel()
                raise
            else:
                round_.set_result(found)

    def close(self) -> None:
        """Let nobody wait any more."""
        if self._rounds is not None:
            self._rounds.cancel()
        if self._next is not None:
            self._next.cancel()
