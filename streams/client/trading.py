"""Trading in the client: orders, books, calls, accounts. Prices and quantities are decimals in texts."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncGenerator, Coroutine, Sequence
from typing import Any, TypeVar
from urllib.parse import quote

import aiohttp
import orjson

from streams.client.columns import dump
from streams.client.follow import CONNECT_S, GIVE_UP_S, Patience
from streams.client.transport import Transport
from streams.model.errors import NotFound, StreamsError, Unavailable, error_of

T = TypeVar("T")
Answer = dict[str, Any]
PAGE_TRADES = 1_000


class TradingCalls:
    """Orders and books; part of AsyncClient.

    All calls raise BadInput and NotFound that name the field, Conflict for what the book or an account does not allow,
    and Unavailable when nothing was done or the outcome is not known: then `error.extra["idempotency_key"]` is what
    `resolve` takes, and the same call again answers the first result.
    """

    _transport: Transport

    async def put_symbol(self, symbol: str, *, tick: str, lot: str, **terms: str) -> Answer:
        """Define a symbol; `terms`: mode, self_trade, accounts, base, quote."""
        return await self._write("PUT", _at("symbols", symbol), {"tick": tick, "lot": lot, **terms}, None)

    async def place_order(
        self,
        *,
        id: str,
        symbol: str,
        side: str,
        quantity: str,
        price: str | None = None,
        type: str = "limit",
        account: str | None = None,
        idempotency_key: str | None = None,
    ) -> Answer:
        """Place an order: `order` with its `status` and `filled`, the `trades` that it made, and its `offset`.

        Placed once under its id: again with the same content it gets the first answer, with another Conflict.
        """
        given = {"id": id, "symbol": symbol, "side": side, "type": type, "price": price, "quantity": quantity}
        body = {name: value for name, value in (given | {"account": account}).items() if value is not None}
        return await self._write("POST", "/v1/orders", body, idempotency_key)

    async def place_orders(self, orders: Sequence[dict[str, Any]], *, idempotency_key: str | None = None) -> Answer:
        """Place many in one request: `accepted`, `rejected` by line, and `results` in order."""
        return await self._write("POST", "/v1/orders:batch", list(orders), idempotency_key)

    async def cancel_order(self, id: str, *, idempotency_key: str | None = None) -> Answer:
        """Cancel what is left of an order; Conflict when it is not open any more."""
        headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
        found: Answer = await self._transport.json("DELETE", _at("orders", id), {}, headers=headers)
        return found

    async def replace_order(
        self, id: str, *, price: str | None = None, quantity: str | None = None, idempotency_key: str | None = None
    ) -> Answer:
        """Change price or total quantity. Less at the same price keeps the order's place; all else arrives anew."""
        body = {name: value for name, value in (("price", price), ("quantity", quantity)) if value is not None}
        return await self._write("POST", _at("orders", id) + ":replace", body, idempotency_key)

    async def get_order(self, id: str, *, consistency: str | None = None) -> Answer | None:
        """The order as it is now, or None."""
        try:
            found: Answer = await self._transport.json("GET", _at("orders", id), _consistency(consistency))
        except NotFound:
            return None
        return found

    async def get_order_book(self, symbol: str, depth: int = 10, *, consistency: str | None = None) -> Answer:
        """`bids` and `asks` as [price, quantity], best first. Linearizable unless `consistency` is eventual."""
        query = {"depth": str(depth), **_consistency(consistency)}
        found: Answer = await self._transport.json("GET", _at("books", symbol), query)
        return found

    async def match_orders(self, symbol: str) -> list[Answer]:
        """The trades that a call book's crossing orders would make; for `execute_trades`."""
        found: list[Answer] = (await self._transport.json("GET", _at("books", symbol) + ":match", {}))["trades"]
        return found

    async def execute_trades(self, trades: Sequence[Answer], *, idempotency_key: str | None = None) -> Answer:
        """Execute what `match_orders` answered, all or none; Conflict when the book has moved."""
        return await self._write("POST", "/v1/trades:execute", {"trades": list(trades)}, idempotency_key)

    async def trades(self, symbol: str) -> AsyncGenerator[Answer, None]:
        """All trades of a symbol that are kept, oldest first, up to the newest."""
        cursor, found = "", [Answer()]
        while found:
            query = {"limit": str(PAGE_TRADES), **({"cursor": cursor} if cursor else {})}
            page = await self._transport.json("GET", _at("trades", symbol), query)
            cursor, found = page["cursor"], page["trades"]
            for each in found:
                yield each

    async def put_account(
        self, account: str, balances: dict[str, str], *, idempotency_key: str | None = None
    ) -> Answer:
        """Set the balances named; others stay. Conflict when open orders hold more."""
        return await self._write("PUT", _at("accounts", account), {"balances": balances}, idempotency_key)

    async def get_account(self, account: str, *, consistency: str | None = None) -> Answer:
        """`balances`, `held` and `available`, by asset; NotFound."""
        found: Answer = await self._transport.json("GET", _at("accounts", account), _consistency(consistency))
        return found

    async def subscribe_book(
        self, symbol: str, *, after: int | None = None, give_up_s: float = GIVE_UP_S
    ) -> AsyncGenerator[tuple[str, Answer], None]:
        """("snapshot", the book), then ("book", what a record changed), without end; from an `offset` on with `after`.

        It reconnects and goes on after the last one: nothing is missed, nothing comes twice. Conflict: what comes after
        `after` is not kept any more. Unavailable: no contact for `give_up_s`.
        """
        last, failures, contact_s = "" if after is None else str(after), 0, time.monotonic()
        patience = Patience(give_up_s, min(give_up_s, CONNECT_S))
        while True:
            try:
                async with contextlib.aclosing(self._transport.events(_at("books", symbol), {}, last)) as stream:
                    async for position, kind, data in stream:
                        contact_s, failures = time.monotonic(), 0
                        if kind == "error":
                            body = orjson.loads(data)
                            raise error_of(int(body["status"]), body)
                        last = position or last  # also of a mark, which says how far a quiet book is known
                        if data:
                            yield kind, orjson.loads(data)
            except (StreamsError, aiohttp.ClientError, TimeoutError, OSError) as error:
                if isinstance(error, StreamsError) and not error.retriable:
                    raise
                if time.monotonic() - contact_s > patience.give_up_s:
                    raise Unavailable(f"the feed cannot be had: {error}", fix="is the region up?") from error
            await asyncio.sleep(patience.pause_s(failures))
            failures += 1

    async def _write(self, method: str, path: str, body: Any, key: str | None) -> Answer:
        headers = {"Idempotency-Key": key or uuid.uuid4().hex, "Content-Type": "application/json"}
        found: Answer = await self._transport.json(method, path, {}, headers=headers, body=dump(body))
        return found


class SyncTradingCalls:
    """The same, synchronous; part of Client."""

    _edge: TradingCalls

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        raise NotImplementedError

    def put_symbol(self, symbol: str, *, tick: str, lot: str, **terms: str) -> Answer:
        """See TradingCalls.put_symbol."""
        return self._run(self._edge.put_symbol(symbol, tick=tick, lot=lot, **terms))

    def place_order(self, **order: Any) -> Answer:
        """See TradingCalls.place_order."""
        return self._run(self._edge.place_order(**order))

    def place_orders(self, orders: Sequence[dict[str, Any]], *, idempotency_key: str | None = None) -> Answer:
        """See TradingCalls.place_orders."""
        return self._run(self._edge.place_orders(orders, idempotency_key=idempotency_key))

    def cancel_order(self, id: str, *, idempotency_key: str | None = None) -> Answer:
        """See TradingCalls.cancel_order."""
        return self._run(self._edge.cancel_order(id, idempotency_key=idempotency_key))

    def replace_order(
        self, id: str, *, price: str | None = None, quantity: str | None = None, idempotency_key: str | None = None
    ) -> Answer:
        """See TradingCalls.replace_order."""
        work = self._edge.replace_order(id, price=price, quantity=quantity, idempotency_key=idempotency_key)
        return self._run(work)

    def get_order(self, id: str, *, consistency: str | None = None) -> Answer | None:
        """See TradingCalls.get_order."""
        return self._run(self._edge.get_order(id, consistency=consistency))

    def get_order_book(self, symbol: str, depth: int = 10, *, consistency: str | None = None) -> Answer:
        """See TradingCalls.get_order_book."""
        return self._run(self._edge.get_order_book(symbol, depth, consistency=consistency))

    def match_orders(self, symbol: str) -> list[Answer]:
        """See TradingCalls.match_orders."""
        return self._run(self._edge.match_orders(symbol))

    def execute_trades(self, trades: Sequence[Answer], *, idempotency_key: str | None = None) -> Answer:
        """See TradingCalls.execute_trades."""
        return self._run(self._edge.execute_trades(trades, idempotency_key=idempotency_key))

    def put_account(self, account: str, balances: dict[str, str], *, idempotency_key: str | None = None) -> Answer:
        """See TradingCalls.put_account."""
        return self._run(self._edge.put_account(account, balances, idempotency_key=idempotency_key))

    def get_account(self, account: str, *, consistency: str | None = None) -> Answer:
        """See TradingCalls.get_account."""
        return self._run(self._edge.get_account(account, consistency=consistency))


def _at(what: str, name: str) -> str:
    return f"/v1/{what}/{quote(str(name), safe='')}"


def _consistency(wanted: str | None) -> dict[str, str]:
    return {} if wanted is None else {"consistency": wanted}
