"""Books, their trades and their feed; calls; symbols; accounts."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

from streams.gateway.auth import authorize
from streams.gateway.context import Gateway
from streams.gateway.endpoint import Operation as Route
from streams.gateway.event_stream import IDLE, RETRY, event, mark, stream
from streams.gateway.http import Call, Reply, reply
from streams.gateway.order_batches import plain_trades
from streams.gateway.order_bodies import balances_of, deals_of, name_of, refusal, symbol_of, terms_of
from streams.gateway.params import CONSISTENCY, CURSOR, IntParam, Param
from streams.gateway.routes_orders import KEYSPACE, fresh, trading_of
from streams.gateway.routes_strong import asked_of, execute_on
from streams.gateway.trading import Trading
from streams.model.errors import BadInput, NotFound, Timeout
from streams.sequencer.order_commands import (
    EXECUTE,
    MONEY_DIGITS,
    SYMBOL,
    OrdersResult,
    Why,
    account_command,
    account_row,
    command,
    text_of,
)
from streams.sequencer.orders_state import FeedEntry
from streams.serde import parse_json

SYMBOL_PATH = Param("symbol", "path", "A symbol", {"type": "string"})
ACCOUNT_PATH = Param("id", "path", "The account's id", {"type": "string"})
LAST_EVENT_ID = Param("Last-Event-ID", "header", "Go on after this offset", {"type": "string"})
DEPTH = IntParam("depth", "How many levels a side", 1, 10_000, 10)
LIMIT = IntParam("limit", "How many trades at most", 1, 10_000, 100)
MATCH_LIMIT = IntParam("limit", "How many trades at most", 1, 10_000, 10_000)
SNAPSHOT_LEVELS = 10_000
FEED_RECORDS = 200
_TAG = "trading"
_NOTES = """First `snapshot`: `bids` and `asks`, levels of [price, quantity], best first, `offset`, and `complete`
(false when a side has more than 10,000 levels). Then `book` for each record of the log that did something to the book:
`offset`, `time` (epoch milliseconds), `bids` and `asks` that changed, with the quantity there is now ("0": the level is
gone), and `trades`. The `id` is the offset: with `Last-Event-ID` the stream goes on after it, nothing missed, nothing
twice; 409 when that is older than what is kept (a day). An event `error` is the last one: a problem document."""
_SETTINGS: dict[str, dict[str, object]] = {
    "application/json": {"description": "tick, lot, mode, self_trade, accounts, base, quote"}
}
_DEALS: dict[str, dict[str, object]] = {"application/json": {"description": "What :match answered, or its start"}}
_BALANCES: dict[str, dict[str, object]] = {"application/json": {"description": '{"balances": {"USD": "100"}}'}}
_MISSING = {404: "No such symbol"}
_REFUSED = {400: "A field is wrong", 409: "Open orders are in the way"}


class BookRoutes:
    """Handlers of books, symbols and accounts."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def operations(self) -> list[Route]:
        """The routes."""
        one_symbol, one_account, book = "/v1/symbols/{symbol}", "/v1/accounts/{id:any}", "/v1/books/{symbol}"
        name, one, reads = (SYMBOL_PATH,), (ACCOUNT_PATH,), (SYMBOL_PATH, CONSISTENCY)
        moved, late = {409: "The book has moved: the trades do not hold"}, {409: "What came after the id is gone"}
        held, nobody = {409: "Less than what open orders hold"}, {404: "No such account"}
        read, write, tag = "read", "write", _TAG
        return [
            Route("GET", "/v1/symbols", self.list_symbols, "All symbols", read, (CONSISTENCY,), tag=tag),
            Route("PUT", one_symbol, self.put_symbol, "Define a symbol", write, name, _SETTINGS, _REFUSED, tag=tag),
            Route("GET", one_symbol, self.get_symbol, "A symbol", read, reads, answers=_MISSING, tag=tag),
            Route(
                "GET",
                book + ":match",
                self.match,
                "The trades that a call would make",
                read,
                (*reads, MATCH_LIMIT),
                answers=_MISSING,
                tag=tag,
            ),
            Route(
                "GET",
                book + ":subscribe",
                self.subscribe,
                "Changes of a book and its trades, resumable",
                read,
                (SYMBOL_PATH, LAST_EVENT_ID),
                answers=_MISSING | late,
                answer_type="text/event-stream",
                tag=tag,
                notes=_NOTES,
            ),
            Route("GET", book, self.depth, "Best levels of a book", read, (*reads, DEPTH), answers=_MISSING, tag=tag),
            Route(
                "GET",
                "/v1/trades/{symbol}",
                self.trades,
                "Trades, oldest first, page by page",
                read,
                (*reads, LIMIT, CURSOR),
                answers=_MISSING,
                tag=tag,
            ),
            Route(
                "POST",
                "/v1/trades:execute",
                self.execute,
                "Execute trades of call books: all or none",
                write,
                (),
                _DEALS,
                moved,
                tag=tag,
            ),
            Route("PUT", one_account, self.put_account, "Set balances", write, one, _BALANCES, held, tag=tag),
            Route("GET", "/v1/books:digest", self.digest, "A hash of all books, equal at equal offsets", read, tag=tag),
            Route(
                "GET",
                one_account,
                self.get_account,
                "An account's balances",
                read,
                (ACCOUNT_PATH, CONSISTENCY),
                answers=nobody,
                tag=tag,
            ),
        ]

    # ---- symbols

    async def list_symbols(self, call: Call) -> Reply:
        """All of them."""
        trading = trading_of(self._gateway, call, "read")
        await fresh(trading, call)
        return reply({"symbols": [found.to_json() for _, found in sorted(trading.state.symbols.items())]})

    async def put_symbol(self, call: Call) -> Reply:
        """Define it, or change what may change."""
        authorize(call.principal, KEYSPACE, "admin")
        trading = trading_of(self._gateway, call, "write")
        terms = terms_of(parse_json(await call.body()), symbol_of(call.part("symbol")))
        asked = asked_of(call)
        result, _ = await execute_on(trading, asked, command(SYMBOL, asked.identity, [terms.encode()]))
        _settled(result)
        return reply(terms.to_json() | {"offset": result.offset}, headers=_told(result))

    async def get_symbol(self, call: Call) -> Reply:
        """Its terms."""
        trading = trading_of(self._gateway, call, "read")
        await fresh(trading, call)
        name = symbol_of(call.part("symbol"))
        if name not in trading.state.symbols:
            raise _no_symbol(name)
        return reply(trading.state.symbols[name].to_json())

    # ---- books

    async def depth(self, call: Call) -> Reply:
        """Levels as [price, quantity], best first."""
        trading = trading_of(self._gateway, call, "read")
        name, most = symbol_of(call.part("symbol")), DEPTH.read(call) or 10
        await fresh(trading, call)
        view = trading.state.depth(name, most)
        if view is None:
            raise _no_symbol(name)
        body = {"symbol": name, "mode": view.mode, "bids": view.bids, "asks": view.asks}
        return reply(body | {"offset": view.next - 1, "time": view.time_ms})

    async def digest(self, call: Call) -> Reply:
        """Where this replica stands."""
        return reply(trading_of(self._gateway, call, "read").describe())

    async def match(self, call: Call) -> Reply:
        """The trades that `execute` would take now; of a continuous book there are none."""
        trading = trading_of(self._gateway, call, "read")
        name, most = symbol_of(call.part("symbol")), MATCH_LIMIT.read(call) or 1
        await fresh(trading, call)
        view = trading.state.match(name, most)
        if view is None:
            raise _no_symbol(name)
        return reply({"symbol": name, "trades": plain_trades(view.trades), "offset": view.next - 1})

    async def execute(self, call: Call) -> Reply:
        """Execute trades, all or none."""
        trading = trading_of(self._gateway, call, "write")
        deals = deals_of(parse_json(await call.body()))
        asked = asked_of(call)
        if not deals:  # what `:match` answers when nothing crosses: there is nothing to agree on
            stands = trading.state.machine_state
            return reply({"trades": [], "offset": trading.position - 1, "timestamp": max(stands.time_ms, 0)})
        result, _ = await execute_on(
            trading, asked, command(EXECUTE, asked.identity, [each.encode() for each in deals])
        )
        _settled(result)
        made = [
            {
                "price": text_of(each.price.whole, each.price.digits),
                "quantity": text_of(each.quantity.whole, each.quantity.digits),
                "maker": each.maker.decode(),
                "taker": each.taker.decode(),
            }
            for each in deals
        ]
        return reply({"trades": made, "offset": result.offset, "timestamp": result.time_ms}, headers=_told(result))

    async def trades(self, call: Call) -> Reply:
        """A page; its cursor goes on where it ends, also when nothing has come yet."""
        trading = trading_of(self._gateway, call, "read")
        name, limit = symbol_of(call.part("symbol")), LIMIT.read(call) or 1
        offset, index = _cursor(CURSOR.text(call))
        await fresh(trading, call)
        if name not in trading.state.symbols:
            raise _no_symbol(name)
        (found, at, seen), following = trading.state.standing(lambda each: each.trades(name, offset, index, limit))
        return reply({"symbol": name, "trades": found, "cursor": f"{at}.{seen}", "offset": following - 1})

    async def subscribe(self, call: Call) -> Reply:
        """Follow a book."""
        trading = trading_of(self._gateway, call, "read")
        name, last = symbol_of(call.part("symbol")), LAST_EVENT_ID.text(call)
        if name not in trading.state.symbols:
            await trading.linearize()
        if name not in trading.state.symbols:
            raise _no_symbol(name)
        after = None
        if last:
            if not last.isascii() or not last.isdecimal() or len(last) > 18:
                raise BadInput("is no offset", field="Last-Event-ID", fix="send the id of the last event")
            after = int(last)
            if not await trading.moved(after + 1, self._gateway.options.wait_s):
                raise Timeout("this region has not come so far yet", field="Last-Event-ID", fix="try again")
            trading.state.feed(name, after, 1)  # refused now, not in the stream
        self._gateway.subscribers.check()
        return await stream(self._gateway, call, "book", self._feed(trading, name, after))

    async def _feed(self, trading: Trading, name: str, after: int | None) -> AsyncIterator[bytes]:
        yield RETRY
        if after is None:
            view = trading.state.depth(name, SNAPSHOT_LEVELS + 1)
            if view is None:
                return
            after = view.next - 1
            complete = max(len(view.bids), len(view.asks)) <= SNAPSHOT_LEVELS
            bids, asks = view.bids[:SNAPSHOT_LEVELS], view.asks[:SNAPSHOT_LEVELS]
            body = {"symbol": name, "offset": after, "bids": bids, "asks": asks, "complete": complete}
            yield event("snapshot", body, str(after))
        idle_s = self._gateway.subscribers.options.idle_s
        sent_s = time.monotonic()
        while True:
            stands = trading.position
            entries = trading.state.feed(name, after, FEED_RECORDS)
            if entries:
                yield b"".join(_entry(name, each) for each in entries)
                sent_s, after = time.monotonic(), entries[-1].offset
                continue
            after = max(after, stands - 1)
            await trading.moved(stands + 1, idle_s)
            if time.monotonic() - sent_s >= idle_s:
                # Other books move: a client of a quiet one hears of it, and resumes from here.
                yield IDLE if after < 0 else mark(str(after))
                sent_s = time.monotonic()

    # ---- accounts

    async def put_account(self, call: Call) -> Reply:
        """Set the balances named; the others stay."""
        authorize(call.principal, KEYSPACE, "admin")
        trading = trading_of(self._gateway, call, "write")
        identity = name_of(call.tail(3).decode("utf-8", "replace"), "id")
        body = parse_json(await call.body())
        balances = balances_of(body)
        for field in ("id", "account"):
            if body.get(field, identity) != identity:
                raise BadInput("the id differs from the path's", field=field, fix="leave it out of the body")
        asked = asked_of(call)
        data = account_command(asked.identity, identity.encode(), balances)
        result, _ = await execute_on(trading, asked, data)
        _settled(result)
        return reply(_account(identity, result.account, result.offset), headers=_told(result))

    async def get_account(self, call: Call) -> Reply:
        """Its balances, and how much of them is held for open orders."""
        trading = trading_of(self._gateway, call, "read")
        identity = name_of(call.tail(3).decode("utf-8", "replace"), "id")
        await fresh(trading, call)
        row, following = trading.state.standing(lambda each: each.account(identity))
        if row is None:
            raise NotFound(f"there is no account {identity}", field="id", fix="make it: PUT /v1/accounts/{id}")
        return reply(_account(identity, row, following - 1))


def _account(identity: str, row: bytes, offset: int) -> dict[str, object]:
    found = account_row(row)
    parts = {
        "balances": {asset: text_of(each.total, MONEY_DIGITS) for asset, each in found.items()},
        "held": {asset: text_of(each.held, MONEY_DIGITS) for asset, each in found.items()},
        "available": {asset: text_of(each.total - each.held, MONEY_DIGITS) for asset, each in found.items()},
    }
    return {"account": identity, **parts, "offset": offset}


def _entry(symbol: str, entry: FeedEntry) -> bytes:
    trades = plain_trades(entry.trades)
    body = {"symbol": symbol, "offset": entry.offset, "time": entry.time_ms, "bids": entry.bids, "asks": entry.asks}
    return event("book", body | {"trades": trades}, str(entry.offset))


def _settled(result: OrdersResult) -> None:
    outcome = result.outcome(0)
    if outcome.why is not Why.GOOD:
        raise refusal(outcome)


def _told(result: OrdersResult) -> tuple[tuple[bytes, bytes], ...]:
    return ((b"idempotent-replayed", b"true"),) if result.again else ()


def _no_symbol(name: str) -> NotFound:
    return NotFound(f"there is no symbol {name}", field="symbol", fix="define it: PUT /v1/symbols/{symbol}")


def _cursor(text: str | None) -> tuple[int, int]:
    if not text:
        return 0, 0
    offset, _, index = text.partition(".")
    if not all(part.isascii() and part.isdecimal() and len(part) <= 18 for part in (offset, index)):
        raise BadInput("is no cursor", field="cursor", fix="send back the `cursor` of the last answer")
    return int(offset), int(index)
