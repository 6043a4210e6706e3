"""Many orders without accounts, in large records, against the plain book that the history checker is held to."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

from streams.sequencer.order_commands import (
    CANCEL,
    NONE,
    ORDERS,
    PLACE,
    REPLACE,
    SIDES,
    SYMBOL,
    TYPES,
    Fixed,
    Operation,
    Outcome,
    SymbolTerms,
    command,
)
from streams.sequencer.orders_state import OrdersStore
from streams.verify import Outcome as Verdict
from streams.wasm.builtin import builtin_module
from streams.wasm.engine import ModuleCache
from streams.wasm.machine_host import LogCommand
from tests.property.book_model import PlainBook
from tests.support.histories import Step, judge, sequence

ORDERS_TOTAL = int(os.environ.get("STREAMS_TEST_ORDERS", "40000"))
RECORD = 500
JUDGED = 200
LIVE = {"open", "partially_filled"}


def random_operation(rng: random.Random, number: int, recent: list[str]) -> tuple[str, dict[str, Any]]:
    """What is asked, as a history has it."""
    dice = rng.random()
    if recent and dice < 0.3:
        return "cancel", {"id": rng.choice(recent)}
    if recent and dice < 0.4:
        asked = {"id": rng.choice(recent), "quantity": str(rng.randint(1, 20))}
        return "replace", asked | ({"price": str(rng.randint(90, 110))} if rng.random() < 0.5 else {})
    kind = rng.choices(TYPES, (8, 1, 1, 1))[0]
    asked = {"id": f"o{number}", "side": rng.choice(SIDES), "type": kind, "quantity": str(rng.randint(1, 20))}
    return "place", asked | ({} if kind == "market" else {"price": str(rng.randint(90, 110))})


def operation(f: str, asked: dict[str, Any]) -> bytes:
    price, quantity = (Fixed(int(asked[name]), 0) if name in asked else NONE for name in ("price", "quantity"))
    name = asked["id"].encode()
    if f == "cancel":
        return Operation(CANCEL, name).encode()
    if f == "replace":
        return Operation(REPLACE, name, price=price, quantity=quantity).encode()
    side, kind = SIDES.index(asked["side"]), TYPES.index(asked["type"])
    return Operation(PLACE, name, side, kind, b"S", b"", price, quantity).encode()


def same(f: str, got: Outcome, wanted: dict[str, Any]) -> bool:
    """Whether the machine answered as the plain book."""
    applied = wanted.get("applied", True)
    if (got.why.name == "GOOD") != applied:
        return False
    if not applied:
        return True
    status = "open" if got.status in LIVE else got.status
    return got.filled == wanted["filled"] and (f == "cancel" or status == wanted["status"])


def test_many_orders_match_as_in_the_plain_book(tmp_path: Path) -> None:
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}, {ORDERS_TOTAL} orders")
    rng, plain = random.Random(seed), PlainBook()
    store = OrdersStore(tmp_path / "s", "orders", builtin_module("order_book"), ModuleCache())
    terms = SymbolTerms("S", Fixed(1, 0), Fixed(1, 0))
    store.apply([LogCommand(0, 1, command(SYMBOL, bytes(16), [terms.encode()]))], 1)
    recent: list[str] = []
    trades = 0
    for offset in range(1, ORDERS_TOTAL // RECORD + 1):
        asked = []
        for index in range(RECORD):
            asked.append(random_operation(rng, offset * RECORD + index, recent))
            if asked[-1][0] == "place":
                recent = [*recent[-60:], asked[-1][1]["id"]]
        data = command(ORDERS, bytes(16), [operation(f, each) for f, each in asked])
        result = store.apply([LogCommand(offset, offset, data)], offset + 1).results[0]
        made: list[dict[str, str]] = []
        for index, (f, each) in enumerate(asked):
            wanted = plain.apply(f, "S", each)
            made += wanted.get("trades", [])
            assert same(f, result.outcome(index), wanted), (seed, offset, f, each, result.outcome(index), wanted)
        found = [{name: str(t[name]) for name in ("price", "quantity", "maker")} for t in store.trades_at("S", offset)]
        assert found == made, (seed, offset)
        trades += len(made)
        if offset % 20 == 0:
            view, book = store.depth("S", 1_000), plain.book(None)
            assert view is not None and (view.bids, view.asks) == (book["bids"], book["asks"]), (seed, offset)
    assert trades > ORDERS_TOTAL // 10
    store.close()


def test_the_history_checker_judges_the_machine_right(tmp_path: Path) -> None:
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    store = OrdersStore(tmp_path / "s", "orders", builtin_module("order_book"), ModuleCache())
    terms = SymbolTerms("S", Fixed(1, 0), Fixed(1, 0))
    store.apply([LogCommand(0, 1, command(SYMBOL, bytes(16), [terms.encode()]))], 1)
    steps: list[Step] = []
    recent: list[str] = []
    for offset in range(1, JUDGED):
        f, asked = random_operation(rng, offset, recent)
        recent = [*recent[-20:], asked["id"]]
        outcome = store.apply(
            [LogCommand(offset, offset, command(ORDERS, bytes(16), [operation(f, asked)]))], offset + 1
        ).results[0].outcome(0)  # fmt: skip
        answer: dict[str, Any] = {"applied": outcome.why.name == "GOOD"}
        if answer["applied"]:
            made = store.trades_of("S", offset, asked["id"])
            answer |= {"status": outcome.status, "filled": outcome.filled, "trades": made}
        steps.append(("p", f, "S", asked, answer))
        if offset % 5 == 0:
            view = store.depth("S", 5)
            assert view is not None
            steps.append(("p", "book", "S", {"depth": 5}, {"bids": view.bids, "asks": view.asks}))
    store.close()
    assert judge(sequence(*steps)).outcome is Verdict.OK, seed
    wrong = next(i for i, step in enumerate(steps) if step[1] == "place" and step[4].get("trades"))
    process, f, key, asked, answer = steps[wrong]
    steps[wrong] = (process, f, key, asked, answer | {"filled": "0"})
    assert judge(sequence(*steps)).outcome is Verdict.ILLEGAL, seed
