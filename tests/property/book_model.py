"""A limit order book, slow and obvious: one list of orders, sorted anew whenever something comes in."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

Order = dict[str, Any]


class PlainBook:
    """Answers as a history has them; prices and quantities are texts outside, Decimals inside."""

    def __init__(self) -> None:
        self.resting: list[Order] = []
        self.seen: set[str] = set()
        self.arrivals = 0

    def apply(self, f: str, _: str, asked: Any) -> Any:
        return getattr(self, f)(asked)

    def _opposite(self, order: Order) -> list[Order]:
        side = [each for each in self.resting if each["buy"] != order["buy"]]
        side.sort(key=lambda each: (-each["price"] if each["buy"] else each["price"], each["arrival"]))
        if order["price"] is None:
            return side
        if order["buy"]:
            return [each for each in side if each["price"] <= order["price"]]
        return [each for each in side if each["price"] >= order["price"]]

    def _trade(self, order: Order) -> list[dict[str, str]]:
        trades = []
        for maker in self._opposite(order):
            quantity = min(order["left"], maker["left"])
            if quantity:
                order["left"] -= quantity
                maker["left"] -= quantity
                trades.append({"price": str(maker["price"]), "quantity": str(quantity), "maker": maker["id"]})
        self.resting = [each for each in self.resting if each["left"]]
        return trades

    def _rest(self, order: Order) -> None:
        self.arrivals += 1
        self.resting.append(order | {"arrival": self.arrivals})

    def _answer(self, order: Order, trades: list[dict[str, str]], status: str) -> Any:
        return {"status": status, "filled": str(order["total"] - order["left"]), "trades": trades}

    def place(self, asked: Any) -> Any:
        if asked["id"] in self.seen:
            return {"status": "rejected", "filled": "0", "trades": []}
        self.seen.add(asked["id"])
        total = Decimal(asked["quantity"])
        price = Decimal(asked["price"]) if "price" in asked else None
        order = {"id": asked["id"], "buy": asked["side"] == "buy", "price": price, "total": total, "left": total}
        if asked["type"] == "fok" and sum(each["left"] for each in self._opposite(order)) < total:
            return self._answer(order, [], "cancelled")
        trades = self._trade(order)
        if not order["left"]:
            return self._answer(order, trades, "filled")
        if asked["type"] != "limit":
            return self._answer(order, trades, "cancelled")
        self._rest(order)
        return self._answer(order, trades, "open")

    def cancel(self, asked: Any) -> Any:
        for each in self.resting:
            if each["id"] == asked["id"]:
                self.resting.remove(each)
                return {"applied": True, "filled": str(each["total"] - each["left"])}
        return {"applied": False}

    def replace(self, asked: Any) -> Any:
        for each in self.resting:
            if each["id"] == asked["id"]:
                break
        else:
            return {"applied": False}
        price = Decimal(asked["price"]) if "price" in asked else each["price"]
        total = Decimal(asked["quantity"]) if "quantity" in asked else each["total"]
        filled = each["total"] - each["left"]
        if total <= filled:
            return {"applied": False}
        keeps = price == each["price"] and total <= each["total"]
        if keeps:
            each["total"], each["left"] = total, total - filled
            return {"applied": True, **self._answer(each, [], "open")}
        self.resting.remove(each)
        order = each | {"price": price, "total": total, "left": total - filled}
        trades = self._trade(order)
        if order["left"]:
            self._rest(order)
        return {"applied": True, **self._answer(order, trades, "open" if order["left"] else "filled")}

    def book(self, asked: Any) -> Any:
        found = {}
        for name, buy in (("bids", True), ("asks", False)):
            sums: dict[Decimal, Decimal] = {}
            for each in self.resting:
                if each["buy"] == buy:
                    sums[each["price"]] = sums.get(each["price"], Decimal(0)) + each["left"]
            best = sorted(sums.items(), reverse=buy)[: (asked or {}).get("depth")]
            found[name] = [[str(price), str(quantity)] for price, quantity in best]
        return found
