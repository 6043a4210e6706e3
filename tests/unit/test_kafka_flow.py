"""The transport's bookkeeping, without Faust."""

from __future__ import annotations

import asyncio

import pytest

from streams.kafka.flow import Flow
from streams.kafka.producer import _Budget
from streams.kafka.run import TP, Run
from streams.model.errors import TooManyRequests

T = TP("events.k", 0)


def run(base: int, following: int, size: int) -> Run:
    return Run(*T, base, following, (b"x" * size,), following, 0)


def test_bytes_and_runs_are_bounded_and_freed() -> None:
    flow = Flow(100, 3)
    flow.restart({T: 5})
    assert flow.expected(T) == 5 and flow.expected(TP("other", 0)) is None
    flow.deliver(run(5, 10, 99))
    assert flow.has_room(T)
    flow.deliver(run(10, 11, 50))
    assert not flow.has_room(T)
    assert (flow.expected(T), flow.done_before(T)) == (11, 5)
    flow.freed.clear()
    flow.acknowledge(T, 9)
    assert flow.freed.is_set() and flow.has_room(T) and flow.done_before(T) == 10
    flow.acknowledge(T, 10)
    assert flow.done_before(T) is None
    for base in (11, 12, 13):
        flow.deliver(run(base, base + 1, 0))
    assert not flow.has_room(T), "many small Runs are bounded too"


def test_late_acknowledgements_of_an_earlier_assignment_change_nothing() -> None:
    flow = Flow(100, 10)
    flow.restart({T: 0})
    flow.deliver(run(0, 5, 10))
    flow.drop([T])
    flow.acknowledge(T, 4)
    assert flow.expected(T) is None and flow.has_room(T)
    flow.restart({T: 2})
    flow.deliver(run(2, 9, 10))
    flow.acknowledge(T, 4)
    assert flow.done_before(T) == 2


async def test_the_producers_budget_is_fair_and_bounded() -> None:
    budget = _Budget(10)
    assert await budget.take(50, 1) == 10, "a record larger than the budget may go alone"
    with pytest.raises(TooManyRequests):
        await budget.take(1, 0.01)
    order: list[int] = []

    async def take(size: int) -> None:
        await budget.take(size, 5)
        order.append(size)

    tasks = [asyncio.create_task(take(size)) for size in (8, 1, 3)]
    await asyncio.sleep(0)
    cancelled = asyncio.create_task(budget.take(2, 5))
    await asyncio.sleep(0)
    cancelled.cancel()
    budget.give(10)
    await asyncio.wait(tasks[:2], timeout=1)
    assert order == [8, 1]
    budget.give(9)
    await asyncio.wait_for(tasks[2], 1)
    budget.give(3)
    assert await budget.take(10, 0.1) == 10
