"""What `put_many` takes while it sends: small batches together, none held back, errors in their place."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest

from streams.client.ahead import Ahead
from streams.tabular.tables import SLICE_ROWS
from tests.support.polling import eventually


def batch(first: int, rows: int) -> Any:
    return pa.record_batch({"key": [f"kv:{at}" for at in range(first, first + rows)]})


async def test_small_batches_at_hand_go_together_in_order_and_a_lone_one_at_once() -> None:
    gate, asked = threading.Event(), []

    def source() -> Iterator[Any]:
        yield batch(0, 2)
        gate.wait()
        for number in range(1, 5):
            asked.append(number)
            yield batch(2 * number, 2)

    ahead = Ahead(source())
    assert (await ahead.take()).num_rows == 2
    later = asyncio.ensure_future(ahead.take())
    gate.set()
    first = await later
    await eventually(lambda: len(asked) == 4)
    found = [first]
    while (more := await ahead.take()) is not None:
        found.append(more)
    assert [key for each in found for key in each.column("key").to_pylist()] == [f"kv:{at}" for at in range(2, 10)]
    assert len(found) < 4, "what was at hand did not go together"
    ahead.stop()


async def test_it_runs_at_most_a_slice_ahead_and_no_piece_is_larger() -> None:
    asked = []

    def source() -> Iterator[Any]:
        for number in range(8):
            asked.append(number)
            yield batch(0, SLICE_ROWS // 2 - 1)

    ahead = Ahead(source())
    await eventually(lambda: len(asked) >= 3)
    rows = []
    while (piece := await ahead.take()) is not None:
        rows.append(piece.num_rows)
        assert len(asked) <= 2 * len(rows) + 4
    assert sum(rows) == 8 * (SLICE_ROWS // 2 - 1) and max(rows) <= SLICE_ROWS
    ahead.stop()


async def test_an_error_comes_after_what_came_before_it() -> None:
    def source() -> Iterator[Any]:
        yield batch(0, 1)
        raise ZeroDivisionError

    ahead = Ahead(source())
    assert (await ahead.take()).num_rows == 1
    with pytest.raises(ZeroDivisionError):
        await ahead.take()
    ahead.stop()


async def test_stop_frees_the_thread_that_waits_for_room() -> None:
    ended = threading.Event()

    def source() -> Iterator[Any]:
        try:
            while True:
                yield batch(0, SLICE_ROWS)
        finally:
            ended.set()

    batches = source()
    ahead = Ahead(batches)
    await ahead.take()
    ahead.stop()
    await eventually(lambda: ahead.done)
    batches.close()  # type: ignore[attr-defined]
    assert ended.is_set()
