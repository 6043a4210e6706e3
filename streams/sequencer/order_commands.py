"""Commands of the orders' log and their results: the bytes that `wasm_udfs/order_book` reads and writes.

Decimals are texts outside and whole numbers with a count of digits inside: nothing is ever a float.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from streams.model.errors import BadInput
from streams.sequencer.commands import Code
from streams.sequencer.packed import joined

ORDERS_MAX = 4_000
"""Orders of one command, at most."""
NAME_BYTES_MAX = 64
DIGITS_MAX = 18
MONEY_DIGITS = 18
WHOLE_MAX = 10**18

ORDERS, SYMBOL, ACCOUNT, EXECUTE = 1, 4, 5, 6
PLACE, CANCEL, REPLACE = 0, 1, 2
SIDES = ("buy", "sell")
TYPES = ("limit", "market", "ioc", "fok")
MODES = ("continuous", "call")
POLICIES = ("cancel_newest", "cancel_oldest", "cancel_both", "allow")
STATUSES = ("", "open", "partially_filled", "filled", "cancelled")

META_KEY, SYMBOL_PREFIX, ACCOUNT_PREFIX = b"\x01m", b"\x01s", b"\x01a"
OPEN_PREFIX, CLOSED_PREFIX, NOTE_PREFIX = b"\x01o", b"\x01c", b"\x01n"
TRADES_PREFIX, LEVELS_PREFIX = b"\x01t", b"\x01d"

_HEAD = struct.Struct("<BBHI16s16s")
_OPERATION = struct.Struct("<BBBBBBBBqq")
_SYMBOL = struct.Struct("<BBBBBBBBqq")
_DEAL = struct.Struct("<BBBBIqq")
_MONEY = struct.Struct("<QQ")
_RESULT = struct.Struct("<BBHIQq")
_OUTCOME = struct.Struct("<BBBBIQqqq")
_META = struct.Struct("<QQQQQ")
_ORDER = struct.Struct("<BBBBBBBBqqqqQQqqQBBBB")
_FEED = struct.Struct("<BBBBIq")
_LEVEL = struct.Struct("<Bqq")
_TRADE = struct.Struct("<qqBBBB")
_DEPTH = struct.Struct("<BBBB4xQqII")
_PAIR = struct.Struct("<qq")
_DECIMAL = re.compile(r"(\d{1,40})(?:\.(\d{1,40}))?\Z", re.ASCII)


class Why(IntEnum):
    """What became of one order, symbol, account or execution."""

    GOOD = 0
    NO_SYMBOL = 1
    BAD_TICK = 2
    BAD_LOT = 3
    TOO_LARGE = 4
    NO_ACCOUNT = 5
    ACCOUNT_NEEDED = 6
    NO_FUNDS = 7
    OTHER_CONTENT = 8
    NO_ORDER = 9
    NOT_OPEN = 10
    FILLED_ALREADY = 11
    CALL_TYPE = 12
    FULL = 13
    IN_USE = 14
    CROSSED = 15
    HELD = 16
    NOT_HOLDING = 17


@dataclass(frozen=True, slots=True)
class Fixed:
    """A decimal: `whole` · 10^-`digits`, without zeros at the end of its fraction."""

    whole: int
    digits: int


NONE = Fixed(-1, 0)


def parse_decimal(text: object, field: str, *, zero: bool = False, digits_max: int = DIGITS_MAX) -> Fixed:
    """A decimal in a text (or a whole number), above 0 unless `zero`; BadInput names `field`."""
    if type(text) is int:
        text = str(text)
    if type(text) is not str:
        raise BadInput("is no decimal in a text", field=field, fix='use a text such as "10.25": a float is not exact')
    found = _DECIMAL.match(text)
    if found is None:
        raise BadInput(f"{text[:40]!r} is no decimal", field=field, fix='use digits and a point, such as "10.25"')
    fraction = (found[2] or "").rstrip("0")
    whole = int(found[1] + fraction)
    if whole == 0 and not zero:
        raise BadInput("must be above 0", field=field, fix='use a decimal such as "10.25"')
    if len(fraction) > digits_max or whole > WHOLE_MAX:
        raise BadInput(f"{text[:40]!r} has too many digits", field=field, fix=f"use at most {DIGITS_MAX} digits")
    return Fixed(whole, len(fraction))


def text_of(whole: int, digits: int) -> str:
    """The decimal as a text, without zeros at the end of its fraction."""
    if digits == 0:
        return str(whole)
    sign, text = ("-" if whole < 0 else ""), str(abs(whole)).rjust(digits + 1, "0")
    return (sign + text[:-digits] + "." + text[-digits:]).rstrip("0").rstrip(".")


@dataclass(frozen=True, slots=True)
class Operation:
    """One order's placing, cancelling or replacing, as commands have it."""

    op: int
    identity: bytes
    side: int = 0
    kind: int = 0
    symbol: bytes = b""
    account: bytes = b""
    price: Fixed = NONE
    quantity: Fixed = NONE

    def encode(self) -> bytes:
        """Its bytes within a command."""
        price, quantity = self.price, self.quantity
        return (
            _OPERATION.pack(
                self.op,
                self.side,
                self.kind,
                len(self.identity),
                len(self.symbol),
                len(self.account),
                price.digits,
                quantity.digits,
                price.whole,
                quantity.whole,
            )
            + self.identity
            + self.symbol
            + self.account
        )


def decode_operation(data: bytes) -> Operation:
    """The operation that `Operation.encode` wrote."""
    op, side, kind, i, s, a, p, q, price, quantity = _OPERATION.unpack_from(data)
    at = _OPERATION.size
    names = data[at : at + i], data[at + i : at + i + s], data[at + i + s : at + i + s + a]
    return Operation(op, names[0], side, kind, names[1], names[2], Fixed(price, p), Fixed(quantity, q))


@dataclass(frozen=True, slots=True)
class Deal:
    """A trade of a call book that is to be executed."""

    price: Fixed
    quantity: Fixed
    maker: bytes
    taker: bytes

    def encode(self) -> bytes:
        """Its bytes within a command."""
        head = _DEAL.pack(
            len(self.maker),
            len(self.taker),
            self.price.digits,
            self.quantity.digits,
            0,
            self.price.whole,
            self.quantity.whole,
        )
        return head + self.maker + self.taker


@dataclass(frozen=True, slots=True)
class SymbolTerms:
    """A symbol: what is traded, in which steps, how."""

    symbol: str
    tick: Fixed
    lot: Fixed
    mode: str = "continuous"
    self_trade: str = "cancel_newest"
    accounts: str = "optional"
    base: str = ""
    quote: str = "USD"

    def encode(self) -> bytes:
        """Its bytes within a command; also a part of its row."""
        names = [each.encode() for each in (self.symbol, self.base or self.symbol, self.quote)]
        head = _SYMBOL.pack(
            MODES.index(self.mode),
            POLICIES.index(self.self_trade),
            int(self.accounts == "required"),
            self.tick.digits,
            self.lot.digits,
            *(len(each) for each in names),
            self.tick.whole,
            self.lot.whole,
        )
        return head + b"".join(names)

    def to_json(self) -> dict[str, object]:
        """As it is answered."""
        return {
            "symbol": self.symbol,
            "tick": text_of(self.tick.whole, self.tick.digits),
            "lot": text_of(self.lot.whole, self.lot.digits),
            "mode": self.mode,
            "self_trade": self.self_trade,
            "accounts": self.accounts,
            "base": self.base or self.symbol,
            "quote": self.quote,
        }


def symbol_row(row: bytes) -> SymbolTerms:
    """The symbol that a row holds."""
    mode, policy, needs, ticks, lots, n, b, q, tick, lot = _SYMBOL.unpack_from(row, 8)
    names = row[8 + _SYMBOL.size :].decode()
    return SymbolTerms(
        names[:n],
        Fixed(tick, ticks),
        Fixed(lot, lots),
        MODES[mode],
        POLICIES[policy],
        "required" if needs else "optional",
        names[n : n + b],
        names[n + b : n + b + q],
    )


def command(kind: int, identity: bytes, parts: Sequence[bytes], count: int | None = None) -> bytes:
    """A command of the orders' log. `identity`: 16 bytes; the fingerprint is of all that it asks."""
    body = joined(parts)
    count = len(parts) if count is None else count
    fingerprint = hashlib.sha256(struct.pack("<BI", kind, count) + body).digest()[:16]
    return _HEAD.pack(1, kind, 0, count, identity, fingerprint) + body


def account_command(identity: bytes, account: bytes, balances: Sequence[tuple[bytes, int]]) -> bytes:
    """Set balances, in units of 10^-18, of an account; others stay."""
    parts = [struct.pack("<BBH", len(account), len(balances), 0) + account]
    for name, amount in balances:
        parts.append(bytes([len(name)]) + name + _MONEY.pack(amount & (2**64 - 1), amount >> 64))
    return command(ACCOUNT, identity, [b"".join(parts)], 1)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one operation. `trades`: of an execution that does not hold, the index of the trade."""

    why: Why
    status: str
    price: str
    quantity: str
    filled: str
    offset: int
    trades: int


@dataclass(frozen=True, slots=True)
class OrdersResult:
    """A command's result: `code` as strong writes', and one outcome for each operation, also when it is told again;
    `resolve` hears of one at most. `account`: the row of the account that was set, as that left it."""

    code: Code
    again: bool
    offset: int
    time_ms: int
    outcomes: bytes
    account: bytes = b""

    def outcome(self, index: int) -> Outcome:
        """One operation's."""
        why, status, p, q, trades, offset, price, quantity, filled = _OUTCOME.unpack_from(
            self.outcomes, index * _OUTCOME.size
        )
        return Outcome(
            Why(why), STATUSES[status], text_of(price, p), text_of(quantity, q), text_of(filled, q), offset, trades
        )

    def refused(self) -> list[int]:
        """Which outcomes are not GOOD."""
        found: list[int] = np.flatnonzero(np.frombuffer(self.outcomes, np.uint8)[:: _OUTCOME.size]).tolist()
        return found

    def __len__(self) -> int:
        """How many outcomes there are."""
        return len(self.outcomes) // _OUTCOME.size

    @property
    def size_bytes(self) -> int:
        """About what it takes in memory."""
        return 256 + len(self.outcomes) + len(self.account)


def decode_orders_result(data: bytes) -> OrdersResult:
    """The machine's answer to one command."""
    code, again, _, count, offset, time_ms = _RESULT.unpack_from(data)
    end = _RESULT.size + count * _OUTCOME.size
    return OrdersResult(Code(code), bool(again), offset, time_ms, data[_RESULT.size : end], data[end:])


@dataclass(frozen=True, slots=True)
class OrdersState:
    """Where the machine stands; `chain` is a hash of all that it answered and traded, equal at equal `next`."""

    time_ms: int = 0
    commands: int = 0
    chain: int = 0
    next: int = 0
    arrivals: int = 0


def decode_orders_state(data: bytes | None) -> OrdersState:
    """The machine's own row; before the first command there is none."""
    return OrdersState() if data is None else OrdersState(*_META.unpack(data))


@dataclass(frozen=True, slots=True)
class OrderRow:
    """An order as its row has it. Times are the log's, ms; `closed_ms` 0: it is open."""

    identity: str
    symbol: str
    account: str
    side: str
    kind: str
    status: str
    first_status: str
    price: str
    quantity: str
    filled: str
    first_filled: str
    offset: int
    placed_ms: int
    closed_ms: int

    def to_json(self) -> dict[str, object]:
        """As it is answered."""
        found: dict[str, object] = {
            "id": self.identity,
            "symbol": self.symbol,
            "side": self.side,
            "type": self.kind,
            "price": None if self.kind == "market" else self.price,
            "quantity": self.quantity,
            "status": self.status,
            "filled": self.filled,
        }
        return found | ({"account": self.account} if self.account else {})


def order_row(row: bytes) -> OrderRow:
    """The order that a row holds."""
    (
        _,
        status,
        side,
        kind,
        p,
        q,
        first,
        _,
        price,
        quantity,
        left,
        first_filled,
        _,
        offset,
        placed,
        closed,
        _,
        i,
        s,
        a,
        _,
    ) = _ORDER.unpack_from(row)
    names, at = row, _ORDER.size
    return OrderRow(
        names[at : at + i].decode(),
        names[at + i : at + i + s].decode(),
        names[at + i + s : at + i + s + a].decode(),
        SIDES[side],
        TYPES[kind],
        STATUSES[status],
        STATUSES[first],
        text_of(price, p),
        text_of(quantity, q),
        text_of(quantity - left, q),
        text_of(first_filled, q),
        offset,
        placed,
        closed,
    )


@dataclass(frozen=True, slots=True)
class Balance:
    """What an account has of an asset, and how much of it is held for its open orders; units of 10^-18."""

    total: int
    held: int


def account_row(row: bytes) -> dict[str, Balance]:
    """The balances that an account's row holds, by asset."""
    found, at = {}, 8
    for _ in range(int.from_bytes(row[:8], "little")):
        size = row[at]
        name = row[at + 1 : at + 1 + size].decode()
        t_low, t_high, h_low, h_high = struct.unpack_from("<QQQQ", row, at + 1 + size)
        found[name] = Balance(t_low | t_high << 64, h_low | h_high << 64)
        at += 33 + size
    return found


Trade = dict[str, object]


def trades_of(data: bytes, count: int, at: int, p: int, q: int) -> Iterator[Trade]:
    """Trades as they are answered, and which side took."""
    for _ in range(count):
        price, quantity, m, t, side, _ = _TRADE.unpack_from(data, at)
        at += _TRADE.size
        maker, taker = data[at : at + m].decode(), data[at + m : at + m + t].decode()
        at += m + t
        yield {
            "price": text_of(price, p),
            "quantity": text_of(quantity, q),
            "maker": maker,
            "taker": taker,
            "side": SIDES[side],
        }


def trades_row(row: bytes) -> tuple[int, list[Trade]]:
    """The time, and the trades, of a part of a record."""
    _, p, q, _, count, time_ms = _FEED.unpack_from(row)
    return time_ms, list(trades_of(row, count, _FEED.size, p, q))


def levels_row(row: bytes) -> tuple[int, list[list[str]], list[list[str]]]:
    """The time, and the levels of bids and asks that a record changed: price, and quantity now ("0": gone)."""
    _, p, q, _, count, time_ms = _FEED.unpack_from(row)
    sides: tuple[dict[int, int], dict[int, int]] = ({}, {})
    for index in range(count):
        side, price, total = _LEVEL.unpack_from(row, _FEED.size + index * _LEVEL.size)
        sides[side][price] = total
    bids, asks = ([[text_of(price, p), text_of(total, q)] for price, total in each.items()] for each in sides)
    return time_ms, bids, asks


def feed_key(prefix: bytes, symbol: str, offset: int) -> bytes:
    """The key of what a record did to a symbol; trades' go on with a part's number."""
    return feed_prefix(prefix, symbol) + offset.to_bytes(8, "big")


def feed_prefix(prefix: bytes, symbol: str) -> bytes:
    """What the keys of a symbol's trades or levels begin with."""
    return prefix + symbol.encode() + b"\x00"


@dataclass(frozen=True, slots=True)
class BookView:
    """A book as it stands after all before `next`. `bids`, `asks`: [price, quantity], best first."""

    next: int
    time_ms: int
    mode: str
    bids: list[list[str]]
    asks: list[list[str]]
    trades: list[Trade]


def question(kind: int, symbol: str, most: int) -> bytes:
    """A question to the machine: 1 for depth, 2 for the trades that a call would make."""
    name = symbol.encode()
    return struct.pack("<BBHI", kind, len(name), 0, most) + name


def decode_book(kind: int, data: bytes) -> BookView | None:
    """The answer to a question; None when there is no such symbol."""
    known, mode, p, q, following, time_ms, bids, asks = _DEPTH.unpack_from(data)
    if not known:
        return None
    if kind == 2:
        return BookView(following, time_ms, MODES[mode], [], [], list(trades_of(data, bids, _DEPTH.size, p, q)))
    levels = [[text_of(price, p), text_of(total, q)] for price, total in _PAIR.iter_unpack(data[_DEPTH.size :])]
    return BookView(following, time_ms, MODES[mode], levels[:bids], levels[bids : bids + asks], [])
