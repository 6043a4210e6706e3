"""Keeps one assigned partition served: takes over, runs the task, and after an error takes over again.

Which errors end what: an unknown outcome or a broker's or store's failure drops the task, and a new one starts from
the changelog. Being fenced means someone else owns the partition: it is given up until reassigned, or until the group
has had time to say otherwise. A marker that does not fit its log stays a visible error.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from streams.kafka.errors import Fenced
from streams.model.errors import StreamsError
from streams.processing.partition_task import PartitionTask, TaskState
from streams.processing.ports import RunPort
from streams.processing.position import PositionError
from streams.processing.task_stats import TaskStats

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RunnerOptions:
    """Pauses in seconds before taking over again: after a failure (doubling to `retry_max_s`), after being fenced
    (longer than the group's session timeout, so that a zombie has learnt of its loss), after a position error.
    """

    retry_s: float = 0.2
    retry_max_s: float = 10.0
    fenced_s: float = 10.0
    position_error_s: float = 30.0


MakeTask = Callable[[], Awaitable[PartitionTask]]


class PartitionRunner:
    """Runs one partition's tasks, one after the other, from assignment to revocation."""

    def __init__(self, name: str, make_task: MakeTask, options: RunnerOptions) -> None:
        self.name = name
        self.task: PartitionTask | None = None
        self.error = ""
        self.failures = 0
        self.fenced = 0
        self._past = TaskStats()
        self._make_task = make_task
        self._options = options
        self._loop: asyncio.Task[None] | None = None
        self._retry = asyncio.Event()
        self._closing = False

    @property
    def state(self) -> str:
        """`running`, `restoring`, `paused`, `error`, …: for metrics and the watchdog."""
        if self.error:
            return "error"
        if self.task is not None and self.task.paused and self.task.state is TaskState.RUNNING:
            return "paused"
        return self.task.state.value if self.task is not None else "new"

    @property
    def stats(self) -> TaskStats:
        """Sums over all tasks of this runner."""
        return self._past if self.task is None else self._past + self.task.stats

    def start(self) -> None:
        """Begin taking over."""
        self._loop = asyncio.create_task(self._serve(), name=f"partition {self.name}")

    def offer(self, run: RunPort, done: Callable[[], object]) -> None:
        """Hand a fetched run to the task, if there is one. `done` as in `PartitionTask.offer`."""
        if self.task is not None:
            self.task.offer(run, done)
        else:
            done()

    def restart(self) -> None:
        """Drop the task and take over again (the watchdog's remedy)."""
        if self._loop is not None and not self._closing:
            self._loop.cancel()
            stuck = self._loop
            self._loop = asyncio.create_task(self._after(stuck), name=f"partition {self.name}")

    async def _after(self, stuck: asyncio.Task[None]) -> None:
        await asyncio.gather(stuck, return_exceptions=True)
        await self._serve()

    async def _serve(self) -> None:
        pause_s = self._options.retry_s
        while not self._closing:
            self._retry.clear()
            began = asyncio.get_running_loop().time()
            try:
                await self._one_ownership()
                return
            except Fenced as fenced:
                self.fenced += 1
                self._failed(f"Fenced: {fenced}")
                wait_s = self._options.fenced_s
            except PositionError as wrong:
                self._failed(str(wrong))
                wait_s = self._options.position_error_s
            except Exception as failure:  # whatever ended the ownership, the partition must be served again
                if asyncio.get_running_loop().time() - began > self._options.retry_max_s:
                    pause_s = self._options.retry_s
                self._failed(f"{type(failure).__name__}: {failure}", failure)
                wait_s, pause_s = pause_s, min(pause_s * 2, self._options.retry_max_s)
            await self._pause(wait_s)

    def _failed(self, reason: str, failure: BaseException | None = None) -> None:
        self.failures += 1
        self.error = reason
        foreseen = failure is None or isinstance(failure, StreamsError)
        log.error("%s: dropped, will take over again: %s", self.name, reason, exc_info=None if foreseen else failure)

    async def _pause(self, wait_s: float) -> None:
        try:
            async with asyncio.timeout(wait_s):
                await self._retry.wait()
        except TimeoutError:
            return

    async def _one_ownership(self) -> None:
        task = await self._make_task()
        self._past, self.task = self.stats, task
        try:
            await task.take_over()
            self.error = ""
            await task.run()
        finally:
            await asyncio.shield(task.release())

    async def close(self, deadline_s: float) -> None:
        """Commit what is folded if that is done by `deadline_s` seconds from now, else drop it; then let go of all."""
        self._closing = True
        self._retry.set()
        if self.task is not None:
            self.task.request_close()
        if self._loop is None:
            return
        done, _ = await asyncio.wait({self._loop}, timeout=deadline_s)
        if not done:
            log.warning("%s: dropping uncommitted folds, the deadline of %.1f s has passed", self.name, deadline_s)
            self._loop.cancel()
        await asyncio.gather(self._loop, return_exceptions=True)
