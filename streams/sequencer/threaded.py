"""`ThreadedReplica`: a replica whose state applies long stretches of the log in a thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from streams.kafka.raw_fetch import RawConsumer
from streams.kafka.records import records_of
from streams.kafka.run import Run
from streams.sequencer.options import SequencerOptions
from streams.sequencer.replica import LogState, OnStep, Replica, Told, pieces_of
from streams.wasm.machine_host import LogCommand

R = TypeVar("R", bound=Told)


class ThreadedReplica(Replica[R]):
    """A replica that applies pieces of over `inline_bytes` in a thread of its own, one at a time; smaller ones at once.

    So its state is ahead of the results that are known here, for a moment: whoever waits, waits for those (`told`).
    `state` must bear being read by the event loop meanwhile.
    """

    def __init__(
        self,
        group: str,
        home_servers: str,
        state: LogState,
        on_step: OnStep,
        options: SequencerOptions | None = None,
        *,
        inline_bytes: int = 0,
    ) -> None:
        super().__init__(group, home_servers, state, on_step, options)
        self.told = state.next
        self._inline_bytes = inline_bytes
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=group)

    async def stop(self) -> None:
        """As `Replica.stop`; a piece under way is applied to its end."""
        await super().stop()
        await asyncio.to_thread(self._thread.shutdown)

    async def _connect(self, consumer: RawConsumer) -> None:
        await super()._connect(consumer)
        self.told = self.state.next

    async def _until(self, position: int) -> None:
        if min(self.told, self.state.next) < position:
            await self._turn_of(position)

    async def _take(self, run: Run) -> None:
        commands = [LogCommand(each.offset, each.timestamp_ms, each.value or b"") for each in records_of(run)]
        for piece in pieces_of(commands, self._options.batch_commands, self._options.batch_bytes) or [[]]:
            last = not piece or piece[-1] is commands[-1]
            following = run.next if last else piece[-1].offset + 1
            step = await self._step(piece, lambda piece=piece, to=following: self.state.apply(piece, to))  # type: ignore[misc]
            self.told = following
            self._publish(piece, step)
            await asyncio.sleep(0)

    async def _step(self, piece: Sequence[LogCommand], work: Callable[[], Any]) -> Any:
        if self._inline_bytes and sum(len(each.value) for each in piece) <= self._inline_bytes:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)
