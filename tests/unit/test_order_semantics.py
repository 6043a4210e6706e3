"""What an order book does, case by case, on the real machine. The cases are those that the published suites of
liquibook and exchange-core describe (order types, priority, cancelling, changing, depth), written anew; then self-trade
rules and funds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from streams.sequencer.order_commands import (
    CANCEL,
    NONE,
    ORDERS,
    PLACE,
    REPLACE,
    SIDES,
    SYMBOL,
    TYPES,
    Operation,
    SymbolTerms,
    account_command,
    command,
    parse_decimal,
)
from streams.sequencer.orders_state import OrdersStore
from streams.wasm.builtin import builtin_module
from streams.wasm.engine import ModuleCache
from streams.wasm.machine_host import LogCommand

LADDER = """
    a1 sell limit 100 @ 16.00 -> open
    a2 sell limit 50 @ 15.99 -> open
    a3 sell limit 25 @ 15.99 -> open
    b1 buy limit 40 @ 15.93 -> open
    b2 buy limit 20 @ 15.90 -> open
    b3 buy limit 1 @ 15.90 -> open
"""
CASES = {
    "a limit order that crosses nothing rests": """
        a sell limit 100 @ 12.51 -> open
        b buy limit 100 @ 12.50 -> open
        book 100@12.5 | 100@12.51
    """,
    "an equal order fills both, at the resting price": """
        a sell limit 100 @ 12.50 -> open
        b buy limit 100 @ 12.55 -> filled 100: 100@12.5 a
        book |
    """,
    "what is left of a crossing limit order rests": f"""{LADDER}
        x buy limit 77 @ 15.99 -> partially_filled 75: 50@15.99 a2, 25@15.99 a3
        book 2@15.99 40@15.93 21@15.9 | 100@16
    """,
    "better prices go first, then earlier orders": f"""{LADDER}
        x buy limit 77 @ 16 -> filled 77: 50@15.99 a2, 25@15.99 a3, 2@16 a1
        book 40@15.93 21@15.9 | 98@16
    """,
    "bids: the highest goes first": f"""{LADDER}
        x sell limit 61 @ 1 -> filled 61: 40@15.93 b1, 20@15.9 b2, 1@15.9 b3
        book | 75@15.99 100@16
    """,
    "a part of the best order is taken, and it keeps its place": f"""{LADDER}
        x buy ioc 10 @ 20 -> filled 10: 10@15.99 a2
        y buy ioc 45 @ 20 -> filled 45: 40@15.99 a2, 5@15.99 a3
        book 40@15.93 21@15.9 | 20@15.99 100@16
    """,
    "ioc without a match is cancelled": f"""{LADDER}
        x buy ioc 10 @ 15.98 -> cancelled 0
        book 40@15.93 21@15.9 | 75@15.99 100@16
    """,
    "ioc takes what there is within its price, the rest is cancelled": f"""{LADDER}
        x buy ioc 300 @ 15.99 -> cancelled 75: 50@15.99 a2, 25@15.99 a3
        book 40@15.93 21@15.9 | 100@16
    """,
    "ioc takes all there is": f"""{LADDER}
        x sell ioc 70 @ 0.01 -> cancelled 61: 40@15.93 b1, 20@15.9 b2, 1@15.9 b3
        book | 75@15.99 100@16
    """,
    "fok that cannot be filled whole does nothing": f"""{LADDER}
        x buy fok 76 @ 15.99 -> cancelled 0
        y sell fok 62 @ 0.01 -> cancelled 0
        book 40@15.93 21@15.9 | 75@15.99 100@16
    """,
    "fok that can be is filled whole, over levels": f"""{LADDER}
        x buy fok 175 @ 16 -> filled 175: 50@15.99 a2, 25@15.99 a3, 100@16 a1
        book 40@15.93 21@15.9 |
    """,
    "market takes at any price": f"""{LADDER}
        x buy market 80 -> filled 80: 50@15.99 a2, 25@15.99 a3, 5@16 a1
        book 40@15.93 21@15.9 | 95@16
    """,
    "market in an empty book is cancelled": """
        x sell market 5 -> cancelled 0
        book |
    """,
    "what a market order could not get is cancelled": f"""{LADDER}
        x sell market 100 -> cancelled 61: 40@15.93 b1, 20@15.9 b2, 1@15.9 b3
        book | 75@15.99 100@16
    """,
    "cancelling takes the rest away, and the level with its last order": f"""{LADDER}
        x buy ioc 10 @ 20 -> filled 10: 10@15.99 a2
        cancel a2 -> cancelled 10
        book 40@15.93 21@15.9 | 25@15.99 100@16
        cancel a3 -> cancelled 0
        book 40@15.93 21@15.9 | 100@16
    """,
    "cancelling what is unknown or gone changes nothing": f"""{LADDER}
        cancel zz -> NO_ORDER
        x buy ioc 25 @ 16 -> filled 25: 25@15.99 a2
        y buy ioc 25 @ 16 -> filled 25: 25@15.99 a2
        cancel a2 -> NOT_OPEN
        replace zz 5 @ 1 -> NO_ORDER
        replace a2 5 @ 1 -> NOT_OPEN
    """,
    "a smaller quantity keeps the place": f"""{LADDER}
        replace a2 30 -> open 0
        x buy ioc 31 @ 16 -> filled 31: 30@15.99 a2, 1@15.99 a3
    """,
    "a larger quantity goes behind": f"""{LADDER}
        replace a2 60 -> open 0
        x buy ioc 31 @ 16 -> filled 31: 25@15.99 a3, 6@15.99 a2
    """,
    "a quantity counts what is filled already": f"""{LADDER}
        x buy ioc 20 @ 16 -> filled 20: 20@15.99 a2
        replace a2 20 -> FILLED_ALREADY
        replace a2 21 -> partially_filled 20
        book 40@15.93 21@15.9 | 26@15.99 100@16
    """,
    "moving to another price joins its end": f"""{LADDER}
        replace b1 40 @ 15.90 -> open 0
        x sell ioc 25 @ 1 -> filled 25: 20@15.9 b2, 1@15.9 b3, 4@15.9 b1
    """,
    "moving to a new price makes its level": f"""{LADDER}
        replace b2 20 @ 15.94 -> open 0
        book 20@15.94 40@15.93 1@15.9 | 75@15.99 100@16
    """,
    "moving into the other side trades": f"""{LADDER}
        replace b1 40 @ 16.02 -> filled 40: 40@15.99 a2
        book 21@15.9 | 35@15.99 100@16
    """,
    "moving into the other side takes all there is, and the rest rests": f"""{LADDER}
        replace b1 200 @ 17 -> partially_filled 175: 50@15.99 a2, 25@15.99 a3, 100@16 a1
        book 25@17 21@15.9 |
    """,
    "no digits are lost in large numbers": """
        a sell limit 90000000000 @ 0.01 -> open
        b buy limit 130000000000 @ 0.02 -> partially_filled 90000000000: 90000000000@0.01 a
        book 40000000000@0.02 |
    """,
    "an order off the tick is refused, and leaves no trace": """
        a sell limit 1 @ 0.005 -> BAD_TICK
        b sell limit 0.5 @ 1 -> BAD_LOT
        a sell limit 1 @ 0.01 -> open
    """,
    "orders of one account: the newer is cancelled": """
        policy cancel_newest
        m sell limit 5 @ 10 by me -> open
        o sell limit 5 @ 11 by other -> open
        x buy limit 8 @ 11 by me -> cancelled 0
        book | 5@10 5@11
    """,
    "what came before its own order is traded": """
        policy cancel_newest
        o sell limit 5 @ 10 by other -> open
        m sell limit 5 @ 11 by me -> open
        x buy limit 8 @ 11 by me -> cancelled 5: 5@10 o
        book | 5@11
    """,
    "orders of one account: the older is cancelled": """
        policy cancel_oldest
        m sell limit 5 @ 10 by me -> open
        o sell limit 5 @ 11 by other -> open
        x buy limit 8 @ 11 by me -> partially_filled 5: 5@11 o
        book 3@11 |
    """,
    "orders of one account: both are cancelled": """
        policy cancel_both
        m sell limit 5 @ 10 by me -> open
        o sell limit 5 @ 11 by other -> open
        x buy limit 8 @ 11 by me -> cancelled 0
        book | 5@11
    """,
    "orders of one account: they trade where that is allowed": """
        policy allow
        m sell limit 5 @ 10 by me -> open
        x buy limit 8 @ 11 by me -> partially_filled 5: 5@10 m
    """,
    "fok counts no order of its own account": """
        policy cancel_oldest
        m sell limit 5 @ 10 by me -> open
        o sell limit 5 @ 11 by other -> open
        x buy fok 6 @ 11 by me -> cancelled 0
        y buy fok 5 @ 11 by me -> filled 5: 5@11 o
        book |
    """,
    "no trade without funds": """
        policy cancel_newest
        x buy limit 101 @ 10 by poor -> NO_FUNDS
        x buy limit 100 @ 10 by poor -> open
        y buy limit 1 @ 0.01 by poor -> NO_FUNDS
        replace x 101 -> NO_FUNDS
        replace x 50 -> open 0
        y buy limit 50 @ 10 by poor -> open
        s sell limit 1 @ 10 by poor -> NO_FUNDS
    """,
    "a market order needs what it would cost": """
        policy cancel_newest
        o sell limit 90 @ 10 by other -> open
        p sell limit 20 @ 11 by other -> open
        x buy market 101 by poor -> NO_FUNDS
        y buy market 99 by poor -> filled 99: 90@10 o, 9@11 p
        z buy limit 1 @ 1 by poor -> open
        w buy limit 1 @ 0.01 by poor -> NO_FUNDS
    """,
    "a market order whose cost is more than can be counted is refused": """
        policy cancel_newest
        o sell limit 1000000 @ 1000000 -> open
        p sell limit 1000000 @ 1000000 -> open
        x buy market 2000000 by rich -> TOO_LARGE
        y buy market 1000000 by rich -> filled 1000000: 1000000@1000000 o
    """,
}


class Table:
    """Runs a case, line by line."""

    def __init__(self, store: OrdersStore) -> None:
        self.store, self.at = store, 0

    def send(self, data: bytes) -> tuple[str, str]:
        """Outcome and fill of one command."""
        self.at += 1
        outcome = self.store.apply([LogCommand(self.at, 1, data)], self.at + 1).results[0].outcome(0)
        return outcome.status if outcome.why.name == "GOOD" else outcome.why.name, outcome.filled

    def symbol(self, policy: str) -> None:
        """The symbol, and four accounts."""
        terms = SymbolTerms("T", parse_decimal("0.01", ""), parse_decimal("1", ""), self_trade=policy)
        self.send(command(SYMBOL, bytes(16), [terms.encode()]))
        for name, usd, stock in (
            ("me", 10**6, 10**6),
            ("other", 10**6, 10**6),
            ("poor", 1_000, 0),
            ("rich", 15 * 10**11, 0),
        ):
            self.send(account_command(bytes(16), name.encode(), [(b"USD", usd * 10**18), (b"T", stock * 10**18)]))

    def line(self, line: str) -> None:
        """One line of a case, and what it must give."""
        asked, _, wanted = line.partition(" -> ")
        words = asked.split()
        if words[0] == "policy":
            return self.symbol(words[1])
        if words[0] == "book":
            view = self.store.depth("T", 100)
            assert view is not None
            sides = [" ".join(f"{q}@{p}" for p, q in side) for side in (view.bids, view.asks)]
            assert sides == [each.strip() for each in line.removeprefix("book").split("|")], line
            return None
        identity = words[1] if words[0] in ("cancel", "replace") else words[0]
        account = words[words.index("by") + 1] if "by" in words else ""
        price = parse_decimal(words[words.index("@") + 1], "price") if "@" in words else NONE
        name = identity.encode()
        if words[0] == "cancel":
            operation = Operation(CANCEL, name)
        elif words[0] == "replace":
            operation = Operation(REPLACE, name, price=price, quantity=parse_decimal(words[2], "quantity"))
        else:
            quantity = parse_decimal(words[3], "quantity")
            kind, side = TYPES.index(words[2]), SIDES.index(words[1])
            operation = Operation(PLACE, name, side, kind, b"T", account.encode(), price, quantity)
        status, filled = self.send(command(ORDERS, bytes(16), [operation.encode()]))
        trades = self.store.trades_of("T", self.at, identity)
        told, _, made = wanted.partition(": ")
        assert told in (status, f"{status} {filled}"), (line, status, filled)
        assert ", ".join(f"{t['quantity']}@{t['price']} {t['maker']}" for t in trades) == made, line
        return None


@pytest.fixture(scope="module")
def cache() -> Iterator[ModuleCache]:
    yield ModuleCache()


@pytest.mark.parametrize("case", CASES)
def test_case(case: str, cache: ModuleCache, tmp_path: Path) -> None:
    store = OrdersStore(tmp_path / "s", "orders", builtin_module("order_book"), cache)
    table = Table(store)
    table.symbol("cancel_newest")
    for line in CASES[case].splitlines():
        if line.strip():
            table.line(line.strip())
    store.close()
