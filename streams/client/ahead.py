"""Takes what an iterator gives while what came before is being sent, so that many small pieces can go as one."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Iterator
from typing import Any

from streams.tabular.tables import SLICE_BYTES, SLICE_ROWS, join_batches


class Ahead:
    """Iterates record batches in a thread, up to a slice (`SLICE_ROWS` rows or `SLICE_BYTES` bytes) ahead of `take`.

    As Nagle's algorithm: what is at hand when the last piece has been sent goes together, and nothing waits for more.
    So a lone batch goes at once, and a stream of small ones in as few pieces as the sending is slow. For one event
    loop; `stop` it in the end. The iterator is not asked for anything after `stop`, but may be blocked in its `next`.
    """

    def __init__(self, batches: Iterator[Any]) -> None:
        self._batches = batches
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Condition()
        self._held: deque[tuple[Any, int]] = deque()
        self._rows = self._bytes = 0
        self._ended = self._stopped = False
        self._error: BaseException | None = None
        self._waiting: asyncio.Event | None = None
        self._pulling = asyncio.ensure_future(asyncio.to_thread(self._pull))

    def _pull(self) -> None:
        try:
            for batch in self._batches:
                with self._lock:
                    size = int(batch.nbytes)
                    self._held.append((batch, size))
                    self._rows, self._bytes = self._rows + batch.num_rows, self._bytes + size
                    self._wake()
                    self._lock.wait_for(self._has_room)
                    if self._stopped:
                        return
        except BaseException as error:  # the caller's iterator may raise anything: `take` raises it again
            self._error = error
        finally:
            with self._lock:
                self._ended = True
                self._wake()

    def _has_room(self) -> bool:
        return self._stopped or not self._held or (self._rows < SLICE_ROWS and self._bytes < SLICE_BYTES)

    def _wake(self) -> None:
        if self._waiting is not None:
            event, self._waiting = self._waiting, None
            self._loop.call_soon_threadsafe(event.set)

    async def take(self) -> Any:
        """What is at hand, as one record batch of about a slice at most; waits for the first. None at the end.

        An error of the iterator is raised when everything before it has been taken.
        """
        while True:
            with self._lock:
                found = self._pop()
                if found:
                    self._lock.notify()
                    break
                if self._ended:
                    if self._error is not None:
                        raise self._error
                    return None
                event = self._waiting = asyncio.Event()
            await event.wait()
        return found[0] if len(found) == 1 else join_batches(found)

    def _pop(self) -> list[Any]:
        found: list[Any] = []
        rows = size = 0
        while self._held:
            batch, its_size = self._held[0]
            if found and (rows + batch.num_rows > SLICE_ROWS or size + its_size > SLICE_BYTES):
                break
            self._held.popleft()
            found.append(batch)
            rows, size = rows + batch.num_rows, size + its_size
        self._rows, self._bytes = self._rows - rows, self._bytes - size
        return found

    @property
    def done(self) -> bool:
        """Whether its thread has ended."""
        return self._pulling.done()

    def stop(self) -> None:
        """Ask the iterator for nothing more."""
        with self._lock:
            self._stopped = True
            self._lock.notify()
        self._pulling.add_done_callback(lambda done: done.cancelled() or done.exception())
