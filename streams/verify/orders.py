"""Order books: place, cancel, replace and book reads of a symbol; decimals as integers of the symbol's own scale."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Context, Decimal
from typing import Any

from streams.verify.history import Operation, refuse, shorten
from streams.verify.values import NUMBER_MAX, Fields, decimal_of, text_of, whole_of

BOOK = "book"
_TYPES = ("limit", "market", "ioc", "fok")
_STATUSES = {
    **dict.fromkeys(("open", "new", "accepted", "resting"), "live"),
    "partially_filled": "",  # live or dead: the filled quantity says the rest
    "filled": "filled",
    **dict.fromkeys(("cancelled", "canceled", "expired", "killed"), "dead"),
    "rejected": "rejected",
}
_EXACT = Context(prec=80)
Levels = list[tuple[Decimal, Decimal]]


class BookQuestion:
    """An operation on a symbol's book, decimals not yet scaled."""

    def __init__(self, operation: Operation) -> None:
        self.order: str | None = None
        self.price: Decimal | None = None
        self.quantity: Decimal | None = None
        self.filled: Decimal | None = None
        self.trades: list[tuple[Decimal, Decimal, str]] | None = None
        self.bids: Levels = []
        self.asks: Levels = []
        self.fixed: dict[str, Any] = {"applied": True}
        self.text = ""
        self._operation = operation
        if operation.f == "book":
            self._book()
        else:
            getattr(self, f"_{operation.f}")(Fields(operation, result=False))
            if operation.known:
                self._answer()
            else:
                self.text += " → ?"

    def _place(self, asked: Fields) -> None:
        self.order = asked.text("id")
        side, kind = asked.required("side"), asked.raw("type") or "limit"
        if side not in ("buy", "sell"):
            asked.refuse("side", "must be buy or sell")
        if kind not in _TYPES:
            asked.refuse("type", f"must be one of {', '.join(_TYPES)}")
        self.quantity = asked.decimal("quantity", positive=True)
        if self.quantity is None:
            asked.refuse("quantity", "is missing")
        if kind != "market":
            self.price = asked.decimal("price", positive=True)
            if self.price is None:
                asked.refuse("price", "is missing")
        self.fixed |= {"buy": side == "buy", "type": kind}
        at = "" if self.price is None else f" at {self.price}"
        self.text = f"{kind} {side} {shorten(self.order)}: {self.quantity}{at}"

    def _cancel(self, asked: Fields) -> None:
        self.order = asked.text("id")
        self.text = f"cancel {shorten(self.order)}"

    def _replace(self, asked: Fields) -> None:
        self.order = asked.text("id")
        self.price = asked.decimal("price", positive=True)
        self.quantity = asked.decimal("quantity", positive=True)
        if self.price is None and self.quantity is None:
            asked.refuse("quantity", "is missing, and the price too")
        self.text = f"replace {shorten(self.order)}: {self.quantity or 'same'} at {self.price or 'same'}"

    def _answer(self) -> None:
        answer = Fields(self._operation, result=True)
        status, filled = answer.raw("status"), answer.decimal("filled", positive=False)
        if isinstance(order := answer.raw("order"), dict):
            status = status or order.get("status")
            if filled is None and order.get("filled") is not None:
                filled = decimal_of(order["filled"], answer.line, "value.order.filled", positive=False)
        self.filled = filled
        applied = answer.flag("applied", True)
        self.fixed["applied"] = applied
        if status is not None and status not in _STATUSES:
            answer.refuse("status", f"must be one of {', '.join(_STATUSES)}")
        self.fixed["status"] = _STATUSES[status] if status is not None and self._operation.f != "cancel" else ""
        if "trades" in answer:
            self.trades = [self._trade(i, each, answer.line) for i, each in enumerate(answer.array("trades"))]
        told = [] if status is None else [str(status)]
        told += [] if filled is None else [f"filled {filled}"]
        told += [f"{quantity} at {price} of {shorten(maker)}" for price, quantity, maker in self.trades or []]
        self.text += f" → {'' if applied else 'not '}applied" if not told else f" → {', '.join(told)}"

    @staticmethod
    def _trade(i: int, each: Any, line: int) -> tuple[Decimal, Decimal, str]:
        if not isinstance(each, dict):
            refuse(line, f"value.trades[{i}]", "must be an object with price, quantity and maker")
        field = f"value.trades[{i}]."
        price = decimal_of(each.get("price"), line, field + "price", positive=True)
        quantity = decimal_of(each.get("quantity"), line, field + "quantity", positive=True)
        return price, quantity, text_of(each.get("maker"), line, field + "maker")

    def _book(self) -> None:
        line, asked = self._operation.line, self._operation.value
        depth = asked.get("depth") if isinstance(asked, dict) else asked
        self.fixed["depth"] = 0 if depth is None else whole_of(depth, line, "value.depth")
        self.text = f"book to depth {depth}" if depth else "book"
        if not self._operation.known:
            return
        answer = Fields(self._operation, result=True)
        self.bids, self.asks = (self._levels(answer, side) for side in ("bids", "asks"))
        sides = ("/".join(f"{quantity} at {price}" for price, quantity in side) for side in (self.bids, self.asks))
        self.text += " → bids {}, asks {}".format(*(side or "none" for side in sides))

    @staticmethod
    def _levels(answer: Fields, side: str) -> Levels:
        answer.required(side)
        found: Levels = []
        for i, each in enumerate(answer.array(side)):
            pair = [each.get("price"), each.get("quantity")] if isinstance(each, dict) else each
            if not isinstance(pair, list) or len(pair) != 2:
                answer.refuse(f"{side}[{i}]", "must be [price, quantity]")
            price, quantity = (decimal_of(x, answer.line, f"value.{side}[{i}]", positive=True) for x in pair)
            found.append((price, quantity))
        return found

    def decimals(self) -> tuple[list[Decimal], list[Decimal]]:
        """Every price and every quantity in it."""
        levels = [*self.bids, *self.asks, *((price, quantity) for price, quantity, _ in self.trades or [])]
        prices = [price for price in (self.price, *(p for p, _ in levels)) if price is not None]
        return prices, [q for q in (self.quantity, self.filled, *(q for _, q in levels)) if q is not None]

    def question(self, scale: Scale) -> dict[str, Any]:
        """As the checker's module takes it."""

        def price(value: Decimal | None) -> int:
            return -1 if value is None else scale.price(value, self._operation)

        def quantity(value: Decimal | None) -> int:
            return -1 if value is None else scale.quantity(value, self._operation)

        def levels(side: Levels) -> list[tuple[int, int]]:
            return [(price(p), quantity(q)) for p, q in side]

        trades = self.trades
        made = None if trades is None else [(price(p), quantity(q), scale.order(maker)) for p, q, maker in trades]
        book = self.fixed | {
            "order": 0 if self.order is None else scale.order(self.order),
            "price": price(self.price),
            "quantity": quantity(self.quantity),
            "filled": quantity(self.filled),
            "trades": made,
            "bids": levels(self.bids),
            "asks": levels(self.asks),
        }
        return {"f": self._operation.f, "text": self.text, "book": book}


class Scale:
    """How a symbol's decimals become integers, exactly: by the most digits after the point that its history has."""

    def __init__(self, questions: Iterable[BookQuestion]) -> None:
        self.price_digits = self.quantity_digits = 0
        self.orders: dict[str, int] = {}
        self._count = 1
        for each in questions:
            self._count += 1
            prices, quantities = each.decimals()
            self.price_digits = max(self.price_digits, *(_digits(p) for p in prices), 0)
            self.quantity_digits = max(self.quantity_digits, *(_digits(q) for q in quantities), 0)

    def order(self, name: str) -> int:
        """The order's number."""
        return self.orders.setdefault(name, len(self.orders))

    def price(self, value: Decimal, operation: Operation) -> int:
        """In units of the last digit."""
        return self._scaled(value, self.price_digits, NUMBER_MAX, operation, "price")

    def quantity(self, value: Decimal, operation: Operation) -> int:
        """In units of the last digit."""
        # A side adds up its quantities: all of the history's together fit 64 bits.
        return self._scaled(value, self.quantity_digits, NUMBER_MAX // self._count, operation, "quantity")

    @staticmethod
    def _scaled(value: Decimal, digits: int, most: int, operation: Operation, field: str) -> int:
        found = int(value.scaleb(digits, _EXACT))
        if found >= most:
            refuse(
                operation.line, f"value.{field}", f"has too many digits beside the symbol's {digits} after the point"
            )
        return found


def _digits(value: Decimal) -> int:
    return max(0, -int(value.as_tuple().exponent))
