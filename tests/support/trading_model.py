"""The obvious model of `wasm_udfs/order_book`: lists sorted anew for every order, Decimals, one thing at a time."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from decimal import Context, Decimal
from typing import Any

EXACT = Context(prec=120)
Trade = dict[str, Any]


def plain(value: Decimal) -> str:
    """As the system writes decimals."""
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


@dataclass(eq=False)
class Order:
    """An order, its place in time, and its first answer."""

    identity: str
    symbol: str
    buy: bool
    kind: str
    price: Decimal | None
    quantity: Decimal
    account: str
    left: Decimal
    arrival: int
    offset: int
    asked: tuple[Any, ...]
    status: str = "open"
    first: tuple[str, str] = ("", "")

    @property
    def shown(self) -> str:
        return "partially_filled" if self.status == "open" and self.left < self.quantity else self.status

    @property
    def filled(self) -> Decimal:
        return self.quantity - self.left


@dataclass
class Answer:
    """What became of one operation. `trades`: made by it."""

    why: str
    status: str = ""
    filled: str = "0"
    offset: int = 0
    trades: list[Trade] = field(default_factory=list)


class TradingModel:
    """Symbols, accounts and orders. Every operation is judged alone and at once."""

    def __init__(self) -> None:
        self.symbols: dict[str, dict[str, Any]] = {}
        self.totals: dict[str, dict[str, Decimal]] = {}
        self.orders: dict[str, Order] = {}
        self.live: dict[tuple[str, bool], list[Order]] = {}
        self.arrivals = 0
        self.trades: list[tuple[int, str, Trade]] = []

    # ---- symbols and accounts

    def symbol(self, terms: dict[str, Any]) -> Answer:
        known = self.symbols.get(terms["symbol"])
        resting = self.resting(terms["symbol"])
        if known and resting:
            if any(known[name] != terms[name] for name in ("tick", "lot", "base", "quote", "accounts")):
                return Answer("IN_USE")
            bids = [each.price for each in resting if each.buy]
            asks = [each.price for each in resting if not each.buy]
            if known["mode"] == "call" and terms["mode"] == "continuous" and bids and asks and max(bids) >= min(asks):
                return Answer("CROSSED")
        self.symbols[terms["symbol"]] = terms
        return Answer("GOOD")

    def account(self, account: str, balances: dict[str, Decimal]) -> Answer:
        for asset, amount in balances.items():
            if amount < self.held(account, asset):
                return Answer("HELD")
        self.totals.setdefault(account, {}).update(balances)
        return Answer("GOOD")

    def held(self, account: str, asset: str) -> Decimal:
        """What the account's open orders hold of an asset: not kept anywhere, always added up."""
        return sum(
            (hold for side in self.live.values() for each in side if each.account == account and each.status == "open"
             for name, hold in [self.hold(each, each.price, each.left)] if name == asset),
            Decimal(0),
        )  # fmt: skip

    def hold(self, order: Order, price: Decimal | None, left: Decimal) -> tuple[str, Decimal]:
        terms = self.symbols[order.symbol]
        if not order.buy:
            return terms["base"], left
        return terms["quote"], EXACT.multiply(price or Decimal(0), left)

    def free(self, account: str, asset: str) -> Decimal:
        return self.totals[account].get(asset, Decimal(0)) - self.held(account, asset)

    # ---- the book

    def side(self, symbol: str, buy: bool) -> list[Order]:
        """Open orders, best price first, then first come."""
        found = [each for each in self.live.get((symbol, buy), []) if each.status == "open"]
        found.sort(key=lambda each: (-(each.price or 0) if buy else (each.price or 0), each.arrival))
        self.live[symbol, buy] = found
        return list(found)

    def resting(self, symbol: str) -> list[Order]:
        return self.side(symbol, True) + self.side(symbol, False)

    def opposite(self, order: Order) -> list[Order]:
        side = self.side(order.symbol, not order.buy)
        if order.kind == "market":
            return side
        return [each for each in side if (each.price <= order.price if order.buy else each.price >= order.price)]  # type: ignore[operator]

    def own(self, one: Order, other: Order) -> bool:
        allowed = self.symbols[one.symbol]["self_trade"] == "allow"
        return bool(one.account) and one.account == other.account and not allowed

    def match(self, order: Order) -> tuple[list[Trade], bool]:
        """Trades with what crosses; whether the rest of the order lives on."""
        trades: list[Trade] = []
        policy = self.symbols[order.symbol]["self_trade"]
        for maker in self.opposite(order):
            if not order.left:
                break
            if self.own(order, maker):
                if policy in ("cancel_oldest", "cancel_both"):
                    maker.status = "cancelled"
                if policy in ("cancel_newest", "cancel_both"):
                    return trades, False
                continue
            trades.append(self.trade(maker, order, min(order.left, maker.left)))
        return trades, True

    def trade(self, maker: Order, taker: Order, quantity: Decimal) -> Trade:
        assert maker.price is not None
        terms, cost = self.symbols[maker.symbol], EXACT.multiply(maker.price, quantity)
        for each in (maker, taker):
            each.left -= quantity
            if not each.left:
                each.status = "filled"
            if each.account:
                has = self.totals[each.account]
                for asset, change in ((terms["base"], quantity), (terms["quote"], -cost)):
                    has[asset] = has.get(asset, Decimal(0)) + (change if each.buy else -change)
        made = {
            "price": plain(maker.price),
            "quantity": plain(quantity),
            "maker": maker.identity,
            "taker": taker.identity,
        }
        self.trades.append((self.offset, maker.symbol, made))
        return made

    offset = 0

    def would(self, order: Order) -> tuple[Decimal, Decimal]:
        """How much of the order would be filled, and for how much: tried on a copy of the book."""
        tried, mine = TradingModel(), copy.copy(order)
        tried.symbols, tried.totals = self.symbols, {name: {} for name in self.totals}
        tried.live = {
            (order.symbol, buy): [copy.copy(each) for each in self.side(order.symbol, buy)] for buy in (True, False)
        }
        trades, _ = tried.match(mine)
        cost = sum((EXACT.multiply(Decimal(t["price"]), Decimal(t["quantity"])) for t in trades), Decimal(0))
        return mine.filled, cost

    # ---- operations

    def place(self, asked: dict[str, Any]) -> Answer:
        content = tuple(sorted(asked.items()))
        known = self.orders.get(asked["id"])
        if known is not None:
            if known.asked != content:
                return Answer("OTHER_CONTENT")
            trades = [t for o, _, t in self.trades if o == known.offset and t["taker"] == known.identity]
            return Answer("GOOD", *known.first, known.offset, trades)
        terms = self.symbols.get(asked["symbol"])
        if terms is None:
            return Answer("NO_SYMBOL")
        price = None if asked["type"] == "market" else Decimal(asked["price"])
        quantity = Decimal(asked["quantity"])
        if quantity % terms["lot"]:
            return Answer("BAD_LOT")
        if price is not None and price % terms["tick"]:
            return Answer("BAD_TICK")
        if terms["mode"] == "call" and asked["type"] != "limit":
            return Answer("CALL_TYPE")
        account = asked.get("account", "")
        if account and account not in self.totals:
            return Answer("NO_ACCOUNT")
        if not account and terms["accounts"] == "required":
            return Answer("ACCOUNT_NEEDED")
        order = Order(
            asked["id"], asked["symbol"], asked["side"] == "buy", asked["type"], price, quantity, account, quantity,
            self.arrivals + 1, self.offset, content,
        )  # fmt: skip
        can, cost = quantity, Decimal(0)
        if order.kind == "fok" or (order.kind == "market" and order.buy):
            can, cost = self.would(order)
        if account:
            asset, hold = self.hold(order, price, quantity)
            if (cost if order.kind == "market" and order.buy else hold) > self.free(account, asset):
                return Answer("NO_FUNDS")
        self.arrivals += 1
        self.orders[order.identity] = order
        trades: list[Trade] = []
        if order.kind == "fok" and can < quantity:
            order.status = "cancelled"
        else:
            trades = self.arrive(order)
        order.first = (order.shown, plain(order.filled))
        return Answer("GOOD", *order.first, self.offset, trades)

    def arrive(self, order: Order) -> list[Trade]:
        trades, lives = ([], True) if self.symbols[order.symbol]["mode"] == "call" else self.match(order)
        if order.left and not (order.kind == "limit" and lives):
            order.status = "cancelled"
        if order.status == "open":
            self.live.setdefault((order.symbol, order.buy), []).append(order)
        return trades

    def cancel(self, identity: str) -> Answer:
        order = self.orders.get(identity)
        if order is None:
            return Answer("NO_ORDER")
        was = order.status
        if was == "open":
            order.status = "cancelled"
        return Answer("GOOD" if was == "open" else "NOT_OPEN", order.shown, plain(order.filled), self.offset)

    def replace(self, identity: str, asked: dict[str, Any]) -> Answer:
        order = self.orders.get(identity)
        if order is None:
            return Answer("NO_ORDER")
        told = Answer("", order.shown, plain(order.filled), self.offset)
        if order.status != "open":
            told.why = "NOT_OPEN"
            return told
        terms = self.symbols[order.symbol]
        quantity = Decimal(asked["quantity"]) if "quantity" in asked else order.quantity
        price = Decimal(asked["price"]) if "price" in asked else order.price
        assert price is not None and order.price is not None
        left = quantity - order.filled
        if quantity % terms["lot"]:
            told.why = "BAD_LOT"
        elif price % terms["tick"]:
            told.why = "BAD_TICK"
        elif left <= 0:
            told.why = "FILLED_ALREADY"
        elif order.account:
            asset, before = self.hold(order, order.price, order.left)
            if self.hold(order, price, left)[1] - before > self.free(order.account, asset):
                told.why = "NO_FUNDS"
        if told.why:
            return told
        keeps = price == order.price and quantity <= order.quantity
        order.price, order.quantity, order.left = price, quantity, left
        trades: list[Trade] = []
        if not keeps:
            self.arrivals += 1
            order.arrival = self.arrivals
            self.live[order.symbol, order.buy].remove(order)
            trades = self.arrive(order)
        return Answer("GOOD", order.shown, plain(order.filled), self.offset, trades)

    # ---- call books

    def call(self, symbol: str) -> list[Trade]:
        """The trades that a call would make: bids and asks best first, at the price of the earlier of the two."""
        bids, asks = self.side(symbol, True), self.side(symbol, False)
        left = {each.identity: each.left for each in bids + asks}
        found: list[Trade] = []
        while bids and asks and bids[0].price >= asks[0].price:  # type: ignore[operator]
            maker, taker = sorted((bids[0], asks[0]), key=lambda each: each.arrival)
            if self.own(maker, taker):
                (bids if taker.buy else asks).pop(0)
                continue
            quantity = min(left[maker.identity], left[taker.identity])
            for each in (maker, taker):
                left[each.identity] -= quantity
                if not left[each.identity]:
                    (bids if each.buy else asks).pop(0)
            assert maker.price is not None
            found.append(
                {
                    "price": plain(maker.price),
                    "quantity": plain(quantity),
                    "maker": maker.identity,
                    "taker": taker.identity,
                }
            )
        return found

    def execute(self, trades: list[Trade]) -> Answer:
        left: dict[str, list[Trade]] = {}
        for index, trade in enumerate(trades):
            maker = self.orders.get(trade["maker"])
            if maker is None or maker.status != "open" or self.symbols[maker.symbol]["mode"] != "call":
                return Answer("NOT_HOLDING", trades=[{"index": index}])
            expected = left.setdefault(maker.symbol, self.call(maker.symbol))
            if not expected or expected.pop(0) != trade:
                return Answer("NOT_HOLDING", trades=[{"index": index}])
        made = [
            self.trade(self.orders[each["maker"]], self.orders[each["taker"]], Decimal(each["quantity"]))
            for each in trades
        ]
        return Answer("GOOD", offset=self.offset, trades=made)

    def book(self, symbol: str) -> tuple[list[list[str]], list[list[str]]]:
        """All levels of bids and asks."""
        found = []
        for buy in (True, False):
            sums: dict[Decimal, Decimal] = {}
            for each in self.side(symbol, buy):
                assert each.price is not None
                sums[each.price] = sums.get(each.price, Decimal(0)) + each.left
            found.append([[plain(p), plain(q)] for p, q in sorted(sums.items(), reverse=buy)])
        return found[0], found[1]
