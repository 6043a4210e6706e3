"""The barrier that concurrent readers share: nobody may be answered by a probe from before they asked."""

from __future__ import annotations

import asyncio
from collections import deque

import pytest

from streams.model.errors import Unavailable
from streams.sequencer.barrier import SharedBarrier


class Probe:
    """A probe that answers when the test says so."""

    def __init__(self) -> None:
        self.waiting: deque[asyncio.Future[int]] = deque()

    async def __call__(self) -> int:
        self.waiting.append(asyncio.get_running_loop().create_future())
        return await self.waiting[-1]


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_readers_share_a_probe_but_never_one_that_was_under_way() -> None:
    probe = Probe()
    barrier = SharedBarrier(probe)
    first = asyncio.create_task(barrier.position())
    await turns()
    late = [asyncio.create_task(barrier.position()) for _ in range(50)]
    await turns()
    assert barrier.probes == 1
    probe.waiting.popleft().set_result(7)
    await turns()
    assert await first == 7 and not any(each.done() for each in late) and barrier.probes == 2
    probe.waiting.popleft().set_result(9)
    assert set(await asyncio.gather(*late)) == {9} and barrier.probes == 2


async def test_an_error_reaches_its_own_readers_and_the_next_probe_is_new() -> None:
    probe = Probe()
    barrier = SharedBarrier(probe)
    failing = [asyncio.create_task(barrier.position()) for _ in range(3)]
    await turns()
    after = asyncio.create_task(barrier.position())
    failing.pop().cancel()
    await turns()
    probe.waiting.popleft().set_exception(Unavailable("no broker"))
    for task in failing:
        with pytest.raises(Unavailable):
            await task
    await turns()
    probe.waiting.popleft().set_result(3)
    assert await after == 3
    again = asyncio.create_task(barrier.position())
    await turns()
    probe.waiting.popleft().set_result(4)
    assert await again == 4 and barrier.probes == 3
