"""Records of one request: in their places one after the other, answered in their order, none after one that failed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from streams.gateway.order_pipeline import AHEAD, in_turn
from streams.model.errors import Unavailable

Placed = Callable[[], None]


class Jobs:
    """Jobs that note when they begin; each is placed, and ended, when the test says so."""

    def __init__(self, count: int) -> None:
        self.begun: list[int] = []
        self.cancelled: list[int] = []
        self.may_place = [asyncio.Event() for _ in range(count)]
        self.may_end = [asyncio.Event() for _ in range(count)]
        self.failing: dict[int, bool] = {}  # before (False) or after (True) it has its place

    def of(self, number: int) -> Callable[[Placed], Awaitable[int]]:
        """One of them."""

        async def job(placed: Placed) -> int:
            self.begun.append(number)
            try:
                await self.may_place[number].wait()
                if self.failing.get(number) is False:
                    raise Unavailable(f"job {number}")
                placed()
                await self.may_end[number].wait()
                if self.failing.get(number):
                    raise Unavailable(f"job {number}")
            except asyncio.CancelledError:
                self.cancelled.append(number)
                raise
            return number

        return job

    def all(self) -> list[Callable[[Placed], Awaitable[int]]]:
        """All of them."""
        return [self.of(number) for number in range(len(self.may_end))]


async def _idle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def _collect(jobs: Jobs, found: list[int]) -> None:
    async for each in in_turn(jobs.all()):
        found.append(each)


async def test_a_job_begins_when_the_one_before_has_its_place_and_no_more_than_a_few_wait() -> None:
    jobs, found = Jobs(AHEAD + 3), list[int]()
    task = asyncio.create_task(_collect(jobs, found))
    await _idle()
    assert jobs.begun == [0]
    for number in range(AHEAD - 1):
        jobs.may_place[number].set()
        await _idle()
        assert jobs.begun == list(range(number + 2))
    for event in jobs.may_place:
        event.set()
    await _idle()
    assert jobs.begun == list(range(AHEAD)) and not found, "the next waits for a result"
    for number in reversed(range(1, AHEAD)):
        jobs.may_end[number].set()
    await _idle()
    assert not found, "results come in the order of the jobs"
    jobs.may_end[0].set()
    await _idle()
    assert found == list(range(AHEAD))
    for event in jobs.may_end:
        event.set()
    await asyncio.wait_for(task, 5)
    assert found == jobs.begun == list(range(AHEAD + 3))


async def test_what_fails_before_its_place_lets_none_begin_after_it() -> None:
    jobs, found = Jobs(4), list[int]()
    jobs.failing[1] = False
    for event in (*jobs.may_place, *jobs.may_end):
        event.set()
    with pytest.raises(Unavailable, match="job 1"):
        await _collect(jobs, found)
    assert (found, jobs.begun) == ([0], [0, 1])


async def test_a_failure_is_raised_in_its_turn_and_those_behind_it_are_not_waited_for() -> None:
    jobs, found = Jobs(4), list[int]()
    jobs.failing[1] = True
    for event in jobs.may_place:
        event.set()
    task = asyncio.create_task(_collect(jobs, found))
    await _idle()
    jobs.may_end[1].set()
    await _idle()
    assert not task.done() and jobs.begun == [0, 1, 2, 3], "the first has not ended"
    jobs.may_end[0].set()
    with pytest.raises(Unavailable, match="job 1"):
        await asyncio.wait_for(task, 5)
    assert found == [0] and jobs.cancelled == [2, 3]


async def test_none_begins_once_one_has_failed_behind_one_that_waits() -> None:
    jobs, found = Jobs(4), list[int]()
    jobs.failing[1] = True
    jobs.may_place[0].set()
    jobs.may_place[1].set()
    task = asyncio.create_task(_collect(jobs, found))
    await _idle()
    jobs.may_end[1].set()
    await _idle()
    jobs.may_place[2].set()
    await _idle()
    assert jobs.begun == [0, 1, 2], "the third had begun before"
    jobs.may_end[0].set()
    with pytest.raises(Unavailable, match="job 1"):
        await asyncio.wait_for(task, 5)


async def test_whoever_goes_away_leaves_nothing_running() -> None:
    jobs, found = Jobs(3), list[int]()
    jobs.may_place[0].set()
    task = asyncio.create_task(_collect(jobs, found))
    await _idle()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert jobs.cancelled == [0, 1] and not found
