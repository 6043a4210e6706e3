"""Keeps an OrderedIndex in step with a table, without holding the event loop, and answers reads from it.

The index is built on the first ordered read, in short steps. After that each publish leaves the changed keys here, and
they are worked off in short steps too. A read is answered at a moment when nothing is left to work off, so it sees
whole commits only; the publisher waits while a read waits (`settled`), so reads cannot starve.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

from streams.edge.ordered_index import Entry, Number, OrderedIndex
from streams.model.clock import NEVER_MS
from streams.model.merge import Merged

T = TypeVar("T")
_INLINE_MAX = 64
_BATCH = 64


class IndexSource(Protocol):
    """What an index reads: the table, as it is now."""

    def now_ms(self) -> int:
        """The wall clock, milliseconds."""
        ...

    def merged_many(self, keys: list[bytes], now_ms: int) -> list[Merged | None]:
        """The merged rows of keys."""
        ...

    def chunks(self, now_ms: int) -> Iterator[list[tuple[bytes, Merged]]]:
        """All live rows, in small chunks, each as of when it is taken."""
        ...


class LiveIndex:
    """One ordered index of one table."""

    def __init__(self, source: IndexSource, number_of: Callable[[Merged], Number | None], step_s: float) -> None:
        self._source, self._number_of, self._step_s = source, number_of, step_s
        self._index = OrderedIndex()
        self._built = False
        self._life = 0
        self._pending: dict[bytes, None] = {}
        self._readers: list[tuple[Callable[[OrderedIndex], object], asyncio.Future[object]]] = []
        self._task: asyncio.Task[None] | None = None

    def changed(self, keys: Iterable[bytes]) -> None:
        """Take note of keys that a publish touched."""
        if self._built or self._working:
            self._pending.update(dict.fromkeys(keys))
            if self._built and self._pending:
                self._start()

    @property
    def _working(self) -> bool:
        return self._task is not None and not self._task.done()

    @property
    def built(self) -> bool:
        """Whether the first build is done."""
        return self._built

    @property
    def waiting(self) -> bool:
        """Whether reads wait for this (built) index to settle."""
        return self._built and bool(self._readers)

    @property
    def busy(self) -> bool:
        """Whether reads wait."""
        return bool(self._readers)

    def forget(self) -> None:
        """Everything may have changed: build anew on the next read (or at once, when reads wait)."""
        self._built = False
        self._pending.clear()
        self._life += 1
        if self._readers:
            self._start()

    def read_now(self, answer: Callable[[OrderedIndex], T]) -> T | None:
        """`answer` of the index if it can be given without waiting, else None; then nothing is begun."""
        if self._built and not self._readers and self._catch_up_inline():
            return answer(self._index)
        return None

    async def read(self, answer: Callable[[OrderedIndex], T]) -> T:
        """`answer` of the index when it is whole and free of expired keys."""
        if self._built and not self._readers and self._catch_up_inline():
            return answer(self._index)
        future: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        self._readers.append((answer, future))
        self._start()
        return await future  # type: ignore[return-value]  # what `answer` returned

    async def settled(self) -> None:
        """Wait until the reads that wait now are answered."""
        if self._readers:
            await asyncio.wait([future for _, future in self._readers])

    def stop(self) -> None:
        """Stop working; the index is not used again."""
        if self._task is not None:
            self._task.cancel()

    async def close(self) -> None:
        """Stop working; reads that wait are cancelled."""
        self.stop()
        if self._task is not None:
            await asyncio.wait([self._task])
        for _, future in self._readers:
            future.cancel()
        self._readers.clear()

    def _catch_up_inline(self) -> bool:
        now_ms = self._source.now_ms()
        if len(self._pending) > _INLINE_MAX:
            return False
        self._work(now_ms, _INLINE_MAX)
        return not self._pending and not self._index.has_expired(now_ms)

    def _start(self) -> None:
        if not self._working:
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        try:
            while True:
                if not self._built:
                    await self._build()
                    continue
                until = time.perf_counter() + self._step_s
                now_ms = self._source.now_ms()
                while time.perf_counter() < until and (self._pending or self._index.has_expired(now_ms)):
                    self._work(now_ms, _BATCH)
                if not self._pending and not self._index.has_expired(now_ms):
                    self._answer()
                    return
                await asyncio.sleep(0)
        except Exception as error:  # handed to the readers: whoever reads next tries again
            readers, self._readers = self._readers, []
            for _, future in readers:
                if not future.done():
                    future.set_exception(error)
            if not readers:
                raise

    def _answer(self) -> None:
        readers, self._readers = self._readers, []
        for answer, future in readers:
            if future.done():
                continue
            try:
                future.set_result(answer(self._index))
            except Exception as error:  # belongs to the reader that asked
                future.set_exception(error)

    def _work(self, now_ms: int, limit: int) -> None:
        keys = self._index.expired(now_ms, limit)
        while self._pending and len(keys) < limit:
            keys.append(self._pending.popitem()[0])
        for key, merged in zip(keys, self._source.merged_many(keys, now_ms), strict=True):
            number = None if merged is None else self._number_of(merged)
            if merged is None or number is None:
                self._index.discard(key)
            else:
                self._index.set(key, number, merged.expires_ms)

    async def _build(self) -> None:
        life = self._life
        entries: list[Entry] = []
        expiries: dict[bytes, int] = {}
        until = time.perf_counter() + self._step_s
        for chunk in self._source.chunks(self._source.now_ms()):
            for key, merged in chunk:
                number = self._number_of(merged)
                if number is not None:
                    entries.append((-number, key))
                    if merged.expires_ms != NEVER_MS:
                        expiries[key] = merged.expires_ms
            if time.perf_counter() > until:
                await asyncio.sleep(0)
                until = time.perf_counter() + self._step_s
        index = OrderedIndex()
        for _ in index.load(entries, expiries):
            if time.perf_counter() > until:
                await asyncio.sleep(0)
                until = time.perf_counter() + self._step_s
        if life == self._life:
            self._index = index
            self._built = True
            gc.freeze()  # a full collection would walk every entry and hold the loop for tens of milliseconds
