"""Orders, symbols and balances as JSON: read strictly, each refusal naming its field; and what the machine refused."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from streams.model.errors import BadInput, Conflict, NotFound, StreamsError, TooManyRequests
from streams.sequencer.order_commands import (
    CANCEL,
    DIGITS_MAX,
    MODES,
    MONEY_DIGITS,
    NONE,
    PLACE,
    POLICIES,
    REPLACE,
    SIDES,
    TYPES,
    Deal,
    Fixed,
    Operation,
    Outcome,
    SymbolTerms,
    Why,
    parse_decimal,
)

_NAME = re.compile(r"[A-Za-z0-9._:@~+-]{1,64}\Z")
_SYMBOL = re.compile(r"[A-Za-z0-9._-]{1,32}\Z")
_PLACE = {"id", "symbol", "side", "type", "price", "quantity", "account"}
_OPS = ("place", "cancel", "replace")
BALANCES_MAX = 32
BALANCE_UNITS_MAX = 10**15


def name_of(value: object, field: str) -> str:
    """The id of an order or account; BadInput."""
    if type(value) is int:
        value = str(value)
    if type(value) is not str or not _NAME.match(value) or value.endswith(":replace"):
        raise BadInput(
            "is missing" if value is None else "is no id",
            field=field,
            fix="use 1 to 64 letters, digits and . _ : @ ~ + -, not ending in :replace",
        )
    return value


def is_name(value: str) -> bool:
    """Whether it may be an order's id."""
    return _NAME.match(value) is not None and not value.endswith(":replace")


def symbol_of(value: object, field: str = "symbol") -> str:
    """A symbol or asset; BadInput."""
    if type(value) is not str or not _SYMBOL.match(value):
        wrong = "is missing" if value is None else "is no symbol"
        raise BadInput(wrong, field=field, fix="use 1 to 32 letters, digits and . _ -")
    return value


def _choice(body: Mapping[str, Any], field: str, choices: tuple[str, ...], default: str | None = None) -> str:
    value = body.get(field, default)
    if type(value) is not str or value not in choices:
        raise BadInput("is missing or unknown", field=field, fix=f"use one of {', '.join(choices)}")
    return value


def _fields(body: object, known: set[str], what: str) -> dict[str, Any]:
    if type(body) is not dict:
        raise BadInput(f"the {what} is no object", field="body", fix=f"send an object with {', '.join(sorted(known))}")
    if unknown := body.keys() - known:
        raise BadInput("there is no such field", field=str(min(unknown))[:80], fix=f"use {', '.join(sorted(known))}")
    return body


def _decimal(value: object, field: str) -> Fixed:
    if value is None:
        raise BadInput("is missing", field=field, fix='give a decimal in a text, such as "10.25"')
    if type(value) is str:
        return _known_decimal(value, field)
    return parse_decimal(f"{value:f}" if isinstance(value, Decimal) else value, field)


@functools.lru_cache(maxsize=1 << 16)
def _known_decimal(text: str, field: str) -> Fixed:
    """Prices and quantities come again and again."""
    return parse_decimal(text, field)


def placing(body: object, identity: str | None = None) -> Operation:
    """The order that a body asks for; `identity`: the id that the address names. BadInput."""
    asked = _fields(body, _PLACE, "order")
    given = asked.get("id")
    if identity is None:
        identity = name_of(given, "id")
    elif given is not None and name_of(given, "id") != identity:
        raise BadInput("the id differs from the key's", field="id", fix="leave it out of the body")
    symbol = symbol_of(asked.get("symbol"))
    side, kind = _choice(asked, "side", SIDES), _choice(asked, "type", TYPES, "limit")
    if kind == "market":
        if asked.get("price") is not None:
            raise BadInput("a market order has no price", field="price", fix="leave it out, or use limit or ioc")
        price = NONE
    else:
        price = _decimal(asked.get("price"), "price")
    quantity = _decimal(asked.get("quantity"), "quantity")
    account = asked.get("account")
    owner = "" if account is None else name_of(account, "account")
    return Operation(
        PLACE,
        identity.encode(),
        SIDES.index(side),
        TYPES.index(kind),
        symbol.encode(),
        owner.encode(),
        price,
        quantity,
    )


def replacing(body: object, identity: str) -> Operation:
    """The change that a body asks for: a price, a new total quantity, or both. BadInput."""
    asked = _fields(body, {"id", "price", "quantity"}, "change")
    if asked.get("price") is None and asked.get("quantity") is None:
        raise BadInput("nothing is changed", field="quantity", fix="give a price, a quantity, or both")
    price, quantity = (
        NONE if asked.get(name) is None else _decimal(asked[name], name) for name in ("price", "quantity")
    )
    return Operation(REPLACE, identity.encode(), price=price, quantity=quantity)


def batch_operation(body: object) -> Operation:
    """A line of a batch: an order, or with `op` the cancelling or replacing of one. BadInput."""
    if type(body) is not dict:
        raise BadInput("the line is no object", field="body", fix="send an order as an object")
    given = {name: value for name, value in body.items() if value is not None}
    op = _choice(given, "op", _OPS, "place")
    given.pop("op", None)
    if op == "place":
        return placing(given)
    identity = name_of(given.get("id"), "id")
    if op == "replace":
        return replacing(given, identity)
    _fields(given, {"id"}, "cancelling")
    return Operation(CANCEL, identity.encode())


def terms_of(body: object, symbol: str) -> SymbolTerms:
    """A symbol's terms. BadInput."""
    known = {"symbol", "tick", "lot", "mode", "self_trade", "accounts", "base", "quote"}
    asked = _fields(body, known, "symbol")
    if asked.get("symbol", symbol) != symbol:
        raise BadInput("the symbol differs from the path's", field="symbol", fix="leave it out of the body")
    tick, lot = _decimal(asked.get("tick"), "tick"), _decimal(asked.get("lot"), "lot")
    if tick.digits + lot.digits > DIGITS_MAX:
        raise BadInput(
            f"tick and lot have more than {DIGITS_MAX} digits after their points together",
            field="lot",
            fix="use a coarser lot or tick: money is exact to 18 digits",
        )
    base, quote = symbol_of(asked.get("base", symbol), "base"), symbol_of(asked.get("quote", "USD"), "quote")
    if base == quote:
        raise BadInput("an asset is not traded for itself", field="quote", fix="name another asset, such as USD")
    return SymbolTerms(
        symbol,
        tick,
        lot,
        _choice(asked, "mode", MODES, "continuous"),
        _choice(asked, "self_trade", POLICIES, "cancel_newest"),
        _choice(asked, "accounts", ("optional", "required"), "optional"),
        base,
        quote,
    )


def balances_of(body: object) -> list[tuple[bytes, int]]:
    """The balances that a body sets, in units of 10^-18. BadInput."""
    asked = _fields(body, {"id", "account", "balances"}, "account")
    balances = asked.get("balances", {})
    if type(balances) is not dict or len(balances) > BALANCES_MAX:
        raise BadInput(
            f"is no object of at most {BALANCES_MAX} assets", field="balances", fix='use {"balances": {"USD": "100"}}'
        )
    found = []
    for asset, value in balances.items():
        field = f"balances.{str(asset)[:40]}"
        amount = parse_decimal(value, field, zero=True)
        units = amount.whole * 10 ** (MONEY_DIGITS - amount.digits)
        if units > BALANCE_UNITS_MAX * 10**MONEY_DIGITS:
            raise BadInput("is too much", field=field, fix=f"use at most {BALANCE_UNITS_MAX}")
        found.append((symbol_of(asset, field).encode(), units))
    return found


DEALS_MAX = 10_000
"""Trades that are executed at once, at most: as many as `:match` answers."""


def deals_of(body: object) -> list[Deal]:
    """The trades that are to be executed: a list, or an object with it; maybe none. BadInput."""
    if type(body) is dict:
        body = _fields(body, {"trades", "symbol", "offset"}, "execution").get("trades")
    if type(body) is not list:
        raise BadInput("are no list of trades", field="trades", fix="send what :match answered")
    if len(body) > DEALS_MAX:
        raise BadInput(f"are over {DEALS_MAX}", field="trades", fix="send what :match answered, or its beginning")
    found = []
    for index, each in enumerate(body):
        at = f"trades[{index}]"
        if type(each) is not dict:
            raise BadInput("is no object", field=at, fix="send what :match answered")
        price, quantity = (_decimal(each.get(name), f"{at}.{name}") for name in ("price", "quantity"))
        maker, taker = (name_of(each.get(name), f"{at}.{name}") for name in ("maker", "taker"))
        found.append(Deal(price, quantity, maker.encode(), taker.encode()))
    return found


def order_json(operation: Operation, outcome: Outcome) -> dict[str, object]:
    """A placed order as it is answered."""
    found: dict[str, object] = {
        "id": operation.identity.decode(),
        "symbol": operation.symbol.decode(),
        "side": SIDES[operation.side],
        "type": TYPES[operation.kind],
        "price": None if TYPES[operation.kind] == "market" else outcome.price,
        "quantity": outcome.quantity,
        "status": outcome.status,
        "filled": outcome.filled,
    }
    return found | ({"account": operation.account.decode()} if operation.account else {})


_REFUSED: dict[Why, tuple[type[StreamsError], str, str, str]] = {
    Why.NO_SYMBOL: (NotFound, "symbol", "there is no such symbol", "define it: PUT /v1/symbols/{symbol}"),
    Why.BAD_TICK: (BadInput, "price", "is no multiple of the symbol's tick", "see GET /v1/symbols/{symbol}"),
    Why.BAD_LOT: (BadInput, "quantity", "is no multiple of the symbol's lot", "see GET /v1/symbols/{symbol}"),
    Why.TOO_LARGE: (BadInput, "quantity", "is too much, or its worth is", "use several smaller orders"),
    Why.NO_ACCOUNT: (NotFound, "account", "there is no such account", "make it: PUT /v1/accounts/{id}"),
    Why.ACCOUNT_NEEDED: (BadInput, "account", "the symbol is traded by accounts only", "name the order's account"),
    Why.NO_FUNDS: (Conflict, "account", "the account has not enough for this order", "see GET /v1/accounts/{id}"),
    Why.OTHER_CONTENT: (Conflict, "id", "another order was placed under this id", "use a new id for each order"),
    Why.NO_ORDER: (NotFound, "id", "there is no such order", "place it first"),
    Why.NOT_OPEN: (Conflict, "id", "the order is not open any more", "see GET /v1/orders/{id}"),
    Why.FILLED_ALREADY: (Conflict, "quantity", "so much is filled already", "give a larger total, or cancel the order"),
    Why.CALL_TYPE: (Conflict, "type", "a call book takes limit orders only", "use limit"),
    Why.FULL: (TooManyRequests, "id", "there are as many as there may be", "cancel some first"),
    Why.IN_USE: (
        Conflict,
        "tick",
        "the symbol has open orders: only its mode and self_trade change",
        "cancel them first",
    ),
    Why.CROSSED: (Conflict, "mode", "the book is crossed", "execute its trades first: GET /v1/books/{symbol}:match"),
    Why.HELD: (Conflict, "balances", "less than what is held for open orders", "cancel some first"),
    Why.NOT_HOLDING: (Conflict, "trades", "the book has moved: the trades do not hold any more", "match again"),
}


def refusal(outcome: Outcome) -> StreamsError:
    """The error that an outcome other than GOOD is."""
    kind, field, detail, fix = _REFUSED[outcome.why]
    if outcome.why is Why.NOT_HOLDING:
        field = f"trades[{outcome.trades}]"
    error = kind(detail, field=field, fix=fix)
    if outcome.status:
        error.extra = {"order": {"status": outcome.status, "filled": outcome.filled}}
    return error
