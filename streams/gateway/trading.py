"""`Trading`: the order books as a gateway has them: its replica of the orders' log, and whoever follows it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from streams.model.topology import Topology
from streams.sequencer.options import ORDERS_GROUP, SequencerOptions, home_servers, topic_of
from streams.sequencer.order_commands import OrdersResult
from streams.sequencer.orders_state import OrdersStep, OrdersStore
from streams.sequencer.threaded import ThreadedReplica
from streams.wasm.builtin import builtin_module
from streams.wasm.engine import ModuleCache

BATCH_BYTES = 256 << 10
INLINE_BYTES = 16 << 10
"""Some hundred orders: they are applied sooner than a thread would begin to."""


class Trading:
    """One gateway's replica of the order books. For one event loop."""

    def __init__(self, topology: Topology, region: str, path: Path, options: SequencerOptions | None = None) -> None:
        self.home, self.topic = topology.home.name, topic_of(ORDERS_GROUP)
        # An order costs microseconds here, a step should not cost readers many milliseconds: they wait for its end.
        options = replace(options or SequencerOptions(), batch_bytes=BATCH_BYTES)
        self.state = OrdersStore(path / self.topic, self.topic, builtin_module("order_book"), ModuleCache())
        servers = home_servers(topology, region)
        self.replica: ThreadedReplica[OrdersResult] = ThreadedReplica(
            ORDERS_GROUP, servers, self.state, self.stepped, options, inline_bytes=INLINE_BYTES
        )
        self._moved = asyncio.Event()

    def stepped(self, step: OrdersStep | None, _time_ms: int) -> None:
        """Something was applied: whoever follows looks."""
        if step is not None:
            self._moved.set()
            self._moved = asyncio.Event()

    @property
    def position(self) -> int:
        """The log's position up to which results are known here. What is read may be ahead of it, never behind."""
        return self.replica.told

    async def execute(self, command: bytes, appended: Callable[[], None] | None = None) -> tuple[OrdersResult, int]:
        """See Replica.execute."""
        return await self.replica.execute(command, appended)

    async def linearize(self) -> None:
        """See Replica.linearize."""
        await self.replica.linearize()

    async def moved(self, position: int, timeout_s: float) -> bool:
        """Wait until the log is applied up to `position` here, at most `timeout_s`; whether it is."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self.position < position:
                    await self._moved.wait()
        return self.position >= position

    def describe(self) -> dict[str, object]:
        """Where this replica stands: `state` is equal wherever `offset` is."""
        return self.state.describe()

    async def stop(self) -> None:
        """Stop following."""
        await self.replica.stop()

    def close(self) -> None:
        """Release the state's directory and the machine's memory."""
        self.state.close()
