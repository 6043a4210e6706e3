"""The trading demo: traders of both regions on one book, then a call; every unit of money and stock accounted for."""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

from streams.client import AsyncClient, connect
from streams.model.errors import Conflict, StreamsError
from streams.model.topology import Topology

Say = Callable[[str], None]
TRADERS, SINGLES, BATCH, CALL = 8, 400, 4_000, 40
CASH, STOCK = "1000000", "10000"


async def run(topology: Topology, say: Say) -> None:
    """Trade, and check what came of it; StreamsError when anything is not as it must be."""
    name = uuid.uuid4().hex[:6]
    urls = [region.gateway_url for region in topology.regions]
    edges = [connect(url) for url in urls]
    try:
        await _session(edges, f"ACME-{name}", [f"trader-{name}-{number}" for number in range(TRADERS)], say)
    finally:
        await asyncio.gather(*(edge.close() for edge in edges))


async def _session(edges: Sequence[AsyncClient], symbol: str, traders: Sequence[str], say: Say) -> None:
    home, seeded = edges[0], random.Random(symbol)
    await home.put_symbol(symbol, tick="0.01", lot="1", accounts="required")
    for trader in traders:
        await home.put_account(trader, {"USD": CASH, symbol: STOCK})
    took = await asyncio.gather(*(_trade(edge, symbol, traders, seeded, f"{n}") for n, edge in enumerate(edges)))
    for (refused, times), edge in zip(took, edges, strict=True):
        middle = sorted(times)[len(times) // 2] * 1000
        say(f"{len(times)} orders one by one at {edge.url}: p50 {middle:.1f} ms, {refused} refused for want of funds")
    many = [_order(seeded, symbol, traders, f"batch-{index}") for index in range(BATCH)]
    started = time.perf_counter()
    batch = await home.place_orders(many)
    seconds = time.perf_counter() - started
    say(f"{BATCH:,} orders in one request: {batch['accepted']:,} taken, {BATCH / seconds:,.0f} orders/s")
    await _check(edges, symbol, traders, say)
    await _call(edges, f"{symbol}-CALL", seeded, say)


def _order(seeded: random.Random, symbol: str, traders: Sequence[str], number: str) -> dict[str, Any]:
    price = Decimal(seeded.randint(9_900, 10_100)) / 100
    return {
        "id": f"{symbol}-{number}",
        "symbol": symbol,
        "side": seeded.choice(("buy", "sell")),
        "price": str(price),
        "quantity": str(seeded.randint(1, 50)),
        "account": seeded.choice(traders),
    }


async def _trade(
    edge: AsyncClient, symbol: str, traders: Sequence[str], seeded: random.Random, who: str
) -> tuple[int, list[float]]:
    refused, times = 0, []
    for index in range(SINGLES // 2):
        order, started = _order(seeded, symbol, traders, f"{who}-{index}"), time.perf_counter()
        try:
            await edge.place_order(**order)
        except Conflict:
            refused += 1
        times.append(time.perf_counter() - started)
    return refused, times


async def _check(edges: Sequence[AsyncClient], symbol: str, traders: Sequence[str], say: Say) -> None:
    """Money and stock are all there, and every region has the same book."""
    accounts = [await edges[0].get_account(trader) for trader in traders]
    for asset, each in (("USD", CASH), (symbol, STOCK)):
        found = sum(Decimal(account["balances"].get(asset, "0")) for account in accounts)
        if found != Decimal(each) * len(traders):
            raise StreamsError(f"{found} {asset} instead of {Decimal(each) * len(traders)}", fix="this is a defect")
    books = [await edge.get_order_book(symbol, 1_000) for edge in edges]
    if any((book["bids"], book["asks"]) != (books[0]["bids"], books[0]["asks"]) for book in books):
        raise StreamsError("the regions' books differ", fix="this is a defect: report it")
    volume = sum([Decimal(trade["quantity"]) async for trade in edges[-1].trades(symbol)])
    if not volume:
        raise StreamsError("nothing was traded", fix="this is a defect: report it")
    say(f"{volume:,} {symbol} traded; money and stock are all there; the book is the same in {len(edges)} regions")


async def _call(edges: Sequence[AsyncClient], symbol: str, seeded: random.Random, say: Say) -> None:
    """Orders rest, crossed; one region matches, the other executes."""
    await edges[0].put_symbol(symbol, tick="0.01", lot="1", mode="call")
    for index in range(CALL):
        order = _order(seeded, symbol, ["-"], f"{index}")
        del order["account"]
        await edges[index % len(edges)].place_order(**order)
    trades = await edges[0].match_orders(symbol)
    done = await edges[-1].execute_trades(trades)
    if len(done["trades"]) != len(trades) or await edges[0].match_orders(symbol):
        raise StreamsError("the call was not executed whole", fix="this is a defect: report it")
    say(f"a call of {CALL} orders: {len(trades)} trades matched in one region, executed in another, all or none")
