"""A key of another batch, as a second gateway meets it: nothing is placed behind what is told again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from streams.gateway.order_batches import UnknownBatch
from streams.gateway.routes_orders import OrderRoutes
from streams.model.errors import Unprocessable
from streams.sequencer.order_commands import SYMBOL, Fixed, OrdersResult, SymbolTerms, command
from streams.sequencer.orders_state import OrdersStore
from streams.sequencer.replica import OutcomeUnknown
from streams.wasm.builtin import builtin_module
from streams.wasm.engine import ModuleCache
from streams.wasm.machine_host import LogCommand


class Log:
    """Order books whose results come after their records have their places; those of `lost` never."""

    def __init__(self, state: OrdersStore) -> None:
        self.state, self.lost = state, set[int]()
        self.appended: list[int] = []
        self._turn = asyncio.Lock()

    async def execute(self, asked: bytes, appended: Callable[[], None] | None = None) -> tuple[OrdersResult, int]:
        """Append and, a while later, apply."""
        offset = 1 + len(self.appended)
        self.appended.append(offset)
        if appended is not None:
            appended()
        async with self._turn:  # in the order of their places
            await asyncio.sleep(0)
            result = self.state.apply([LogCommand(offset, 1_000 + offset, asked)], offset + 1).results[0]
        if offset in self.lost:
            raise OutcomeUnknown("the answer is lost")
        return result, offset


@pytest.fixture
def log(tmp_path: Path) -> Log:
    store = OrdersStore(tmp_path / "s", "orders", builtin_module("order_book"), ModuleCache())
    terms = SymbolTerms("S", Fixed(1, 0), Fixed(1, 0))
    store.apply([LogCommand(0, 1_000, command(SYMBOL, bytes(16), [terms.encode()]))], 1)
    return Log(store)


async def place(log: Log, count: int) -> dict[str, Any]:
    """Place so many orders under one key; the answer."""
    row = '{{"id":"a{}","symbol":"S","side":"buy","price":"5","quantity":"1"}}'
    body = "\n".join(row.format(number) for number in range(count)).encode()

    async def read() -> bytes:
        return body

    call = SimpleNamespace(
        query={"answer": "summary"},
        content_type="application/x-ndjson",
        principal=SimpleNamespace(name="p", may=lambda *_: True, allows=lambda *_: True),
        body=read,
        header=lambda name: "key" if name == b"idempotency-key" else None,
    )
    routes = OrderRoutes(SimpleNamespace(trading=log))  # type: ignore[arg-type]
    answer = await routes.place_many(call)  # type: ignore[arg-type]
    found: dict[str, Any] = json.loads(answer.body)
    return found


@pytest.fixture(autouse=True)
def open_to_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streams.gateway.routes_orders.authorize", lambda *_: None)


async def test_a_longer_batch_under_the_key_places_nothing_new(log: Log) -> None:
    assert (await place(log, 6_000))["accepted"] == 6_000
    with pytest.raises(Unprocessable) as refused:
        await place(log, 17_000)
    assert refused.value.extra["accepted"] == 4_000, "the first record is the first request's"
    assert len(log.appended) == 4, "no record after the one that was refused"
    assert [log.state.order(f"a{number}") is not None for number in (5_999, 6_000, 8_000, 16_999)] == [True] + [
        False
    ] * 3
    assert (await place(log, 6_000))["accepted"] == 6_000


async def test_what_was_lost_in_the_middle_is_placed_by_the_same_request(log: Log) -> None:
    log.lost = {3}
    with pytest.raises(UnknownBatch) as unknown:
        await place(log, 17_000)
    assert unknown.value.extra["accepted"] == 8_000
    assert (await place(log, 17_000))["accepted"] == 17_000
    best = log.state.depth("S", 1)
    assert best is not None and best.bids == [["5", "17000"]], "each is there once"
