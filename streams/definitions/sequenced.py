"""What `Definitions` and `Udfs` share: a view of a sequenced log, followed locally, written at home under claims."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, Self, TypeVar

from streams.definitions.entries import Entry
from streams.definitions.kafka_log import KafkaLogOptions
from streams.definitions.log import DefinitionsLog, Fenced, UnknownOutcome
from streams.model.errors import StreamsError, Timeout

log = logging.getLogger(__name__)

Callback = Callable[[Sequence[Entry]], None]


class View(Protocol):
    """What entries say once they are applied."""

    def apply(self, entries: Iterable[Entry]) -> list[Entry]:
        """Take entries in; returns those that say something."""
        ...


V = TypeVar("V", bound=View)


@dataclass(frozen=True, slots=True)
class DefinitionsOptions:
    """Waits, in seconds. `start_s`: until all built-in definitions are here. `write_s`: a write, with its retries.

    `visible_s`: from a write until the local region has it. `kafka`: how the topic is read and written.
    """

    start_s: float = 60.0
    write_s: float = 20.0
    visible_s: float = 15.0
    kafka: KafkaLogOptions = KafkaLogOptions()  # noqa: RUF009


class Sequenced(Generic[V]):
    """A log's view as one process has it, kept current; writing is sequenced at home. All on one event loop."""

    def __init__(self, log: DefinitionsLog, view: V, home_view: V, options: DefinitionsOptions) -> None:
        self._options = options
        self._log = log
        self._view, self._home_view = view, home_view
        self._callbacks: list[Callback] = []
        self._waiters: list[tuple[Callable[[], bool], asyncio.Future[None]]] = []
        self._writing = asyncio.Lock()
        self._tail: asyncio.Task[None] | None = None
        self.trouble: str | None = None

    async def start(self) -> None:
        """Read everything, then follow. Timeout or Unavailable when that takes longer than `start_s`."""
        await self._log.start(self._options.start_s)
        try:
            await self._begin(type(self).__name__)
        except BaseException:
            await self.stop()
            raise

    async def _begin(self, name: str) -> None:
        while not await self._log.at_end():
            self._take(await self._log.read(1.0))
        self._tail = asyncio.create_task(self._follow(), name=name)

    async def stop(self) -> None:
        """Stop following and disconnect; idempotent."""
        tail, self._tail = self._tail, None
        if tail is not None:
            tail.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await tail
        await self._log.stop()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def on_change(self, callback: Callback) -> Callable[[], None]:
        """Call back with the entries that came, after they are in force. Returns what unsubscribes. Must not block."""
        self._callbacks.append(callback)
        return lambda: self._callbacks.remove(callback)

    async def _write(self, plan: Callable[[V], Sequence[Entry]], timeout_s: float | None = None) -> None:
        """Claim, read to the end, decide, append; again when another writer came between. Timeout after `timeout_s`
        (None: `write_s`)."""
        timeout_s = self._options.write_s if timeout_s is None else timeout_s
        deadline = time.monotonic() + timeout_s
        pause_s = 0.01
        async with self._writing:
            while True:
                reason: StreamsError
                try:
                    self._home_view.apply(await self._log.claim(self._options.write_s))
                    entries = plan(self._home_view)
                    if entries:
                        await self._log.append(entries)
                    return
                except (Fenced, UnknownOutcome) as error:
                    reason = error
                if time.monotonic() + pause_s > deadline:
                    raise Timeout(
                        f"the definition could not be written within {timeout_s:g} s: {reason}",
                        fix="look whether it is there, then try again",
                    )
                await asyncio.sleep(pause_s * random.uniform(0.5, 1.5))
                pause_s = min(pause_s * 2, 0.5)

    async def _follow(self) -> None:
        pause_s = 0.1
        while True:
            try:
                self._take(await self._log.read(1.0))
            except StreamsError as error:
                self.trouble = str(error)
                log.warning("definitions cannot be read now: %s", error)
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, 2.0)
            else:
                self.trouble, pause_s = None, 0.1

    def _take(self, entries: Sequence[Entry]) -> None:
        taken = self._view.apply(entries)
        waiting = [waiter for waiter in self._waiters if not waiter[1].done()]
        self._waiters = []
        for check, future in waiting:
            if check():
                future.set_result(None)
            else:
                self._waiters.append((check, future))
        if not taken:
            return
        for callback in list(self._callbacks):
            try:
                callback(taken)
            except Exception:  # somebody else's code: it must not end the tail that everybody reads through
                log.exception("a callback on changed definitions failed; the others go on")

    async def _visible(self, check: Callable[[], bool]) -> None:
        await self._until(check, self._options.visible_s, "the definition is written, but not yet mirrored to here")

    async def _until(self, check: Callable[[], bool], timeout_s: float, otherwise: str) -> None:
        if check():
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append((check, future))
        try:
            await asyncio.wait_for(future, max(timeout_s, 0.0))
        except TimeoutError:
            detail = f"{otherwise} after {timeout_s:.1f} s"
            raise Timeout(f"{detail}: {self.trouble}" if self.trouble else detail) from None
