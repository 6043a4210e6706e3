"""The order book machine against the obvious model: random orders, any cut of the log, restarts, money conserved."""

from __future__ import annotations

import os
import random
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from streams.sequencer.commands import Code, barrier, command_id, resolve
from streams.sequencer.order_commands import (
    CANCEL,
    EXECUTE,
    NONE,
    ORDERS,
    PLACE,
    REPLACE,
    SIDES,
    SYMBOL,
    TYPES,
    Balance,
    Deal,
    Operation,
    OrdersResult,
    SymbolTerms,
    account_command,
    account_row,
    command,
    parse_decimal,
)
from streams.sequencer.orders_state import OrdersStore
from streams.wasm.builtin import builtin_module
from streams.wasm.engine import ModuleCache
from streams.wasm.machine_host import LogCommand
from tests.support.trading_model import Answer, TradingModel, plain

TOPIC = "sequenced.orders"
ORDERS_TOTAL = int(os.environ.get("STREAMS_TEST_ORDERS", "20000"))
"""Random orders in all; `STREAMS_TEST_ORDERS=3000000 pytest tests/property/test_order_book.py` is the long run."""
PER_ROUND = 1_000
ASSETS = ("USD", "AAA", "BBB")
ACCOUNTS = ("", "ann", "bob", "cid")
CACHE = ModuleCache()


def store_in(path: Path) -> OrdersStore:
    store = OrdersStore(path, TOPIC, builtin_module("order_book"), CACHE)
    store.begin("topic")
    return store


@dataclass
class Log:
    """Commands with their offsets and times, and what the model answered to each of their operations."""

    steps: list[LogCommand] = field(default_factory=list)
    expected: list[list[Answer] | None] = field(default_factory=list)
    model: TradingModel = field(default_factory=TradingModel)
    orders: int = 0
    told: dict[int, int] = field(default_factory=dict)
    """Which steps are told again, and which they tell."""


def unit(rng: random.Random, step: str, most: int, wrong: float = 0.03) -> str:
    """A multiple of a step, now and then none."""
    value = Decimal(step) * rng.randint(1, most)
    return plain(value + Decimal(step) / 2) if rng.random() < wrong else plain(value)


class Maker:
    """Makes random commands, asks the model, and encodes them."""

    def __init__(self, rng: random.Random, call: bool) -> None:
        self.rng, self.log, self.call = rng, Log(), call
        self.offset, self.now_ms, self.number = rng.randrange(3), 1_000_000, 0
        self.placed: list[dict[str, Any]] = []
        self.tick, self.lot = rng.choice((("0.01", "1"), ("0.25", "0.001"), ("5", "10"), ("0.0000001", "0.5")))
        self.levels = rng.choice((3, 12, 60))

    def add(self, data: bytes, expected: list[Answer] | None) -> None:
        self.log.steps.append(LogCommand(self.offset, self.now_ms, data))
        self.log.expected.append(expected)
        self.offset += self.rng.choice((1, 1, 1, 2, 5))
        self.now_ms += self.rng.choice((0, 1, 5, -3))
        self.log.model.offset = self.offset

    def identity(self) -> bytes:
        self.number += 1
        return command_id("", b"%d" % self.number)

    def begin(self) -> None:
        self.log.model.offset = self.offset
        for name, base, accounts in (("AAA/USD", "AAA", "optional"), ("BBB.USD", "BBB", "required")):
            policy = self.rng.choice(("cancel_newest", "cancel_oldest", "cancel_both", "allow"))
            self.symbol(name, base, accounts, policy, "call" if self.call else "continuous")
        for account in ACCOUNTS[1:]:
            self.account(account)

    def symbol(self, name: str, base: str, accounts: str, policy: str, mode: str) -> None:
        tick, lot = parse_decimal(self.tick, "tick"), parse_decimal(self.lot, "lot")
        terms = SymbolTerms(name, tick, lot, mode, policy, accounts, base, "USD")
        fields = {"symbol": name, "tick": Decimal(self.tick), "lot": Decimal(self.lot), "mode": mode}
        answer = self.log.model.symbol(
            fields | {"self_trade": policy, "accounts": accounts, "base": base, "quote": "USD"}
        )
        self.add(command(SYMBOL, self.identity(), [terms.encode()]), [answer])

    def account(self, name: str) -> None:
        rich = self.rng.random() < 0.7
        some = {asset: Decimal(self.rng.randint(0, 10**7 if rich else 300)) / 4 for asset in self.rng.sample(ASSETS, 3)}
        raw = [(asset.encode(), int(amount * 10**18)) for asset, amount in some.items()]
        answer = self.log.model.account(name, some)
        self.add(account_command(self.identity(), name.encode(), raw), [answer])

    def order(self) -> tuple[bytes, Answer]:
        """One operation of an ORDERS command."""
        rng, model = self.rng, self.log.model
        self.log.orders += 1
        dice = rng.random()
        if dice < 0.18 and self.placed:
            known = rng.choice(self.placed[-60:])["id"] if rng.random() < 0.95 else "nobody's"
            return Operation(CANCEL, known.encode()).encode(), model.cancel(known)
        if dice < 0.3 and self.placed:
            known = rng.choice(self.placed[-40:])["id"]
            asked = {}
            if rng.random() < 0.7:
                asked["quantity"] = unit(rng, self.lot, 12)
            if not asked or rng.random() < 0.6:
                asked["price"] = unit(rng, self.tick, self.levels)
            change = Operation(
                REPLACE, known.encode(), price=self.fixed(asked, "price"), quantity=self.fixed(asked, "quantity")
            )
            return change.encode(), model.replace(known, asked)
        if dice < 0.36 and self.placed:
            asked = dict(rng.choice(self.placed[-80:]))
            if rng.random() < 0.3:
                asked["quantity"] = unit(rng, self.lot, 12)
        else:
            asked = self.fresh()
        self.placed.append(asked)
        place = Operation(
            PLACE,
            asked["id"].encode(),
            SIDES.index(asked["side"]),
            TYPES.index(asked["type"]),
            asked["symbol"].encode(),
            asked.get("account", "").encode(),
            self.fixed(asked, "price"),
            self.fixed(asked, "quantity"),
        )
        return place.encode(), model.place(asked)

    def fresh(self) -> dict[str, Any]:
        rng = self.rng
        self.number += 1
        kind = rng.choices(TYPES, (70, 10, 10, 10))[0]
        asked = {"id": f"o{self.number}", "side": rng.choice(SIDES), "type": kind, "quantity": unit(rng, self.lot, 12)}
        asked["symbol"] = rng.choices(("AAA/USD", "BBB.USD", "nothing"), (50, 48, 2))[0]
        if kind != "market":
            asked["price"] = unit(rng, self.tick, self.levels)
        account = rng.choices((*ACCOUNTS, "nobody"), (20, 26, 26, 26, 2))[0]
        if account:
            asked["account"] = account
        return asked

    @staticmethod
    def fixed(asked: dict[str, Any], name: str) -> Any:
        return parse_decimal(asked[name], name) if name in asked else NONE

    def told_before(self) -> int | None:
        """A step of not long ago that is noted under its id."""
        steps = self.log.steps
        index = len(steps) - 1 - self.rng.choice((0, self.rng.randrange(80)))
        noted = index >= 0 and self.log.expected[index] is not None and any(steps[index].value[8:24])
        return self.log.told.get(index, index) if noted else None

    def step(self) -> None:
        rng, model = self.rng, self.log.model
        dice = rng.random()
        if rng.random() < 0.1 and (known := self.told_before()) is not None:
            self.log.told[len(self.log.steps)] = known
            return self.add(self.log.steps[known].value, self.log.expected[known])
        if dice < 0.02:
            return self.add(barrier(), None)
        if dice < 0.03:
            return self.add(rng.choice((b"", rng.randbytes(60), command(ORDERS, bytes(16), [b"x" * 24]))), None)
        if dice < 0.05:
            return self.account(rng.choice(ACCOUNTS[1:]))
        if dice < 0.06:
            mode = rng.choice(("continuous", "call")) if self.call else "continuous"
            policy = rng.choice(("cancel_newest", "cancel_oldest", "cancel_both", "allow"))
            return self.symbol("AAA/USD", rng.choice(("AAA", "AAA", "CCC")), "optional", policy, mode)
        if dice < 0.14 and self.call:
            trades = model.call("AAA/USD") + model.call("BBB.USD")
            if trades and rng.random() < 0.3:
                trades = trades[: rng.randrange(1, len(trades) + 1)]
            if trades and rng.random() < 0.4:
                spoilt = rng.choice(trades)
                spoilt[rng.choice(("price", "quantity"))] = unit(rng, self.lot, 12)
            if not trades:
                trades = [{"price": "1", "quantity": "1", "maker": "a", "taker": "b"}]
            deals = [
                Deal(
                    *(parse_decimal(t[name], name) for name in ("price", "quantity")),
                    t["maker"].encode(),
                    t["taker"].encode(),
                )
                for t in trades
            ]
            answer = model.execute(trades)
            return self.add(command(EXECUTE, self.identity(), [each.encode() for each in deals]), [answer])
        made = [self.order() for _ in range(rng.choice((1, 1, 1, 2, 7)))]
        identity = self.identity() if rng.random() < 0.7 else bytes(16)
        return self.add(command(ORDERS, identity, [data for data, _ in made]), [answer for _, answer in made])


def random_log(seed: int, orders: int, call: bool) -> Log:
    maker = Maker(random.Random(seed), call)
    maker.begin()
    while maker.log.orders < orders:
        maker.step()
    return maker.log


def run(store: OrdersStore, steps: list[LogCommand], cuts: list[int]) -> list[OrdersResult]:
    found: list[OrdersResult] = []
    for start, stop in zip([0, *cuts], [*cuts, len(steps)], strict=True):
        if piece := steps[start:stop]:
            found += store.apply(piece, piece[-1].offset + 1).results
    return found


def check(log: Log, found: list[OrdersResult], store: OrdersStore, seed: int) -> None:
    """Every answer, and everything that is left, is the model's."""
    answers_are_the_models(log, found, seed)
    state_is_the_models(log, store, seed)


def answers_are_the_models(log: Log, found: list[OrdersResult], seed: int) -> None:
    for index, (step, expected, got) in enumerate(zip(log.steps, log.expected, found, strict=True)):
        first = found[log.told.get(index, index)]
        assert got.again == (index in log.told), (seed, step.offset)
        assert replace(got, again=False) == replace(first, again=False), (seed, step.offset)
        if expected is None:
            assert got.code in (Code.PASSED, Code.MALFORMED), (seed, step.offset)
            continue
        outcomes = [got.outcome(index) for index in range(len(got))]
        assert [each.why.name for each in outcomes] == [each.why for each in expected], (seed, step.offset)
        for one, wanted in zip(outcomes, expected, strict=True):
            if wanted.status:
                assert (one.status, one.filled, one.offset) == (wanted.status, wanted.filled, wanted.offset), (
                    seed,
                    step,
                )
            if wanted.why == "NOT_HOLDING":
                assert one.trades == wanted.trades[0]["index"], (seed, step.offset)


def state_is_the_models(log: Log, store: OrdersStore, seed: int) -> None:
    model = log.model
    for symbol in model.symbols:
        view = store.depth(symbol, 10_000)
        assert view is not None and (view.bids, view.asks) == model.book(symbol), (seed, symbol)
        traded, at, index = store.trades(symbol, 0, 0, 10**6)
        wanted = [{**trade, "offset": offset} for offset, name, trade in model.trades if name == symbol]
        names = ("price", "quantity", "maker", "taker", "offset")
        assert [{name: each[name] for name in names} for each in traded] == wanted, (seed, symbol)
        assert store.trades(symbol, at, index, 10) == ([], at, index)
        if model.symbols[symbol]["mode"] == "call":
            called = store.match(symbol, 10_000)
            assert called is not None
            found = [{name: each[name] for name in names[:-1]} for each in called.trades]
            assert found == model.call(symbol), (seed, symbol)
        levels: dict[str, dict[str, str]] = {"bids": {}, "asks": {}}
        for entry in store.feed(symbol, -1, 10**6):
            for side, changes in (("bids", entry.bids), ("asks", entry.asks)):
                levels[side].update(dict(changes))  # type: ignore[arg-type]
        for side, rows in (("bids", view.bids), ("asks", view.asks)):
            assert {p: q for p, q in levels[side].items() if q != "0"} == dict(rows), (seed, symbol)  # type: ignore[arg-type]
    for order in model.orders.values():
        row = store.order(order.identity)
        assert row is not None
        assert (row.status, row.filled, row.first_status, row.first_filled) == (
            order.shown, plain(order.filled), *order.first,
        ), (seed, order)  # fmt: skip
    for account, has in model.totals.items():
        data = store.account(account)
        assert data is not None
        for asset, balance in account_row(data).items():
            assert balance.total == int(has.get(asset, Decimal(0)) * 10**18), (seed, account, asset)
            assert balance.held == int(model.held(account, asset) * 10**18), (seed, account, asset)
            assert balance.total >= balance.held >= 0


@pytest.mark.parametrize("call", [False, True], ids=["continuous", "call"])
def test_any_cut_gives_the_models_answers_and_equal_state(call: bool, tmp_path: Path) -> None:
    seeds = random.SystemRandom()
    total = 0
    while total < ORDERS_TOTAL // 2:
        seed = seeds.getrandbits(32)
        print(f"seed {seed}")
        log = random_log(seed, PER_ROUND, call)
        rng = random.Random(seed + 1)
        steps, chains = log.steps, set()
        single = list(range(1, len(steps)))
        for number, cuts in enumerate(([], single[: len(single) // 3], sorted(rng.sample(single, 20)))):
            store = store_in(tmp_path / f"{total}-{number}")
            found = run(store, steps, cuts)
            if number:
                answers_are_the_models(log, found, seed)
            else:
                check(log, found, store, seed)
            chains.add((store.machine_state.chain, store.machine_state.next, store.machine_state.commands))
            store.close()
        assert len(chains) == 1, seed
        total += log.orders
    print(f"{total} orders")


def test_restarts_and_lost_instances_change_nothing(tmp_path: Path) -> None:
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")
    log = random_log(seed, 1_500, call=bool(seed % 2))
    found: list[OrdersResult] = []
    third = len(log.steps) // 6 + 1
    for start in range(0, len(log.steps), third):
        store = store_in(tmp_path / "again")
        assert store.next == (log.steps[start - 1].offset + 1 if start else 0)
        for piece in (log.steps[start : start + third // 2], log.steps[start + third // 2 : start + third]):
            found += run(store, piece, [])
            store._machine.forget()  # as after a trap: made anew from the rows
        if start + third < len(log.steps):
            store.close()
    check(log, found, store, seed)
    through = store_in(tmp_path / "through")
    run(through, log.steps, [])
    assert through.machine_state == store.machine_state
    rows = [{k: v for k, v in each.store.iterate() if not k.startswith(b"\x00")} for each in (store, through)]
    assert rows[0] == rows[1], seed
    store.close()
    through.close()


def test_money_is_conserved_where_accounts_are_required(tmp_path: Path) -> None:
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")
    maker = Maker(random.Random(seed), call=False)
    maker.begin()
    deposits = {asset: sum(has.get(asset, Decimal(0)) for has in maker.log.model.totals.values()) for asset in ASSETS}
    while maker.log.orders < 2_000:
        data, answer = maker.order()
        if b"BBB.USD" in data or data[0] != PLACE:
            maker.add(command(ORDERS, bytes(16), [data]), [answer])
    store = store_in(tmp_path / "s")
    run(store, maker.log.steps, [])
    balances = [account_row(store.account(name) or b"") for name in ACCOUNTS[1:]]
    for asset in ASSETS:
        held = sum(each[asset].total for each in balances if asset in each)
        assert held == int(deposits[asset] * 10**18), (seed, asset)
    assert store.trades("BBB.USD", 0, 0, 1)[0], "nothing was traded"
    store.close()


def test_ids_answer_once_and_resolve_is_final(tmp_path: Path) -> None:
    store = store_in(tmp_path / "s")
    at = iter(range(100))

    def apply(data: bytes) -> OrdersResult:
        offset = next(at)
        return store.apply([LogCommand(offset, 1_000 + offset, data)], offset + 1).results[0]

    def place(name: bytes, key: bytes, quantity: str = "2") -> bytes:
        one = parse_decimal("1", "price")
        made = Operation(PLACE, name, 0, 0, b"S", b"", one, parse_decimal(quantity, "quantity"))
        return command(ORDERS, command_id("", key), [made.encode()])

    def account(key: bytes, units: int) -> bytes:
        return account_command(command_id("", key), b"ann", [(b"USD", units)])

    apply(
        command(
            SYMBOL, command_id("", b"s"), [SymbolTerms("S", parse_decimal("1", ""), parse_decimal("1", "")).encode()]
        )
    )
    first = apply(place(b"a", b"k1"))
    again = apply(place(b"a", b"k1"))
    assert again.again and (again.code, again.offset, again.outcomes) == (first.code, first.offset, first.outcomes)
    assert apply(place(b"a", b"k1", "3")).code is Code.MISMATCH
    before = account_row(apply(account(b"k5", 7)).account)
    assert apply(account(b"k6", 9)).account != (again := apply(account(b"k5", 7))).account
    assert again.again and account_row(again.account) == before == {"USD": Balance(7, 0)}
    other_key = apply(place(b"a", b"k2"))
    assert not other_key.again and other_key.outcome(0).offset == first.offset, "the same order under another key"
    assert apply(resolve(command_id("", b"k1"))).code is Code.APPLIED
    assert apply(resolve(command_id("", b"k3"))).code is Code.CANCELLED
    assert apply(place(b"c", b"k3")).code is Code.CANCELLED and store.order("c") is None
    assert apply(place(b"a", b"k4", "5")).outcome(0).why.name == "OTHER_CONTENT"
    later = LogCommand(next(at), 1_000 + 86_400_001 + 50, place(b"a", b"k1"))
    assert store.apply([later], later.offset + 1).results[0].code is Code.SPENT
    store.close()
