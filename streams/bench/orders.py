"""The `orders` bench: the order book's machine alone, without Kafka or HTTP, beside a good book in Python; and how long
a restart with a large book takes."""

from __future__ import annotations

import heapq
import random
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from streams.bench.report import Result, at_least, at_most
from streams.bench.statistics import median
from streams.model.errors import StreamsError
from streams.sequencer.order_commands import (
    CANCEL,
    ORDERS,
    PLACE,
    SYMBOL,
    TRADES_PREFIX,
    Fixed,
    Operation,
    SymbolTerms,
    command,
    trades_row,
)
from streams.sequencer.orders_state import OrdersStore
from streams.wasm.builtin import builtin_module
from streams.wasm.engine import Limits, ModuleCache
from streams.wasm.guest import Guest
from streams.wasm.machine_host import LogCommand, encode_batch, encode_rows, taken_rows

GOAL_ORDERS_PER_S = 5_000_000
GOAL_RESTART_S = 5.0
NAME = "BENCH"
MEMORY_BYTES, OUTPUT_BYTES = 3 << 30, 256 << 20
Say = Callable[[str], None]
Asked = tuple[int, str, int, int, int]
"""(op, id, side, price, quantity)."""


@dataclass(frozen=True, slots=True)
class OrdersBench:
    """Orders of a round, of a record, and records of a batch; `resting`: open orders of the book that is restarted.
    `cancels`: the share of cancellations."""

    orders: int = 1_000_000
    record: int = 10_000
    records: int = 5
    rounds: int = 3
    resting: int = 1_000_000
    levels: int = 200
    cancels: float = 0.2
    seed: int = 1


@dataclass(slots=True)
class _Spent:
    """Seconds by what was called, and the quantity traded."""

    seconds: dict[str, float] = field(default_factory=dict)
    traded: int = 0

    def timed(self, guest: Guest, name: str, *params: int) -> int:
        """Call an export on the clock."""
        started = time.perf_counter()
        found = guest.call(name, *params)
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started
        return found


def bench_orders(options: OrdersBench, say: Say) -> list[Result]:
    """Both books take the same orders and must trade the same quantity; StreamsError when they do not."""
    say(f"making {options.orders:,} orders")
    asked = random_orders(options)
    records = [encoded(asked[at : at + options.record]) for at in range(0, len(asked), options.record)]
    plain, alone, inside = [], [], []
    for _ in range(options.rounds):
        book = PythonBook()
        started = time.perf_counter()
        for each in asked:
            book.take(*each)
        plain.append(len(asked) / (time.perf_counter() - started))
        spent = run_machine(records, options)
        if spent.traded != book.traded or not book.traded:
            raise StreamsError(f"the books traded {spent.traded} and {book.traded}", fix="this is a defect: report it")
        alone.append(len(asked) / spent.seconds["streams_apply"])
        inside.append(len(asked) / sum(spent.seconds.values()))
        say(f"matching {alone[-1]:,.0f}, all in WASM {inside[-1]:,.0f}, Python {plain[-1]:,.0f} orders/s")
    peers = {"python": median(plain)}
    matching = at_least("matching alone in WASM (streams_apply)", median(alone), "orders/s", GOAL_ORDERS_PER_S)
    found = [
        Result(matching.what, matching.value, matching.unit, peers, matching.goal, matching.met),
        Result("all of it in WASM: ids looked up, matched, rows taken out", median(inside), "orders/s", peers),
    ]
    with tempfile.TemporaryDirectory(prefix="streams-bench-") as name:
        return [*found, restart(Path(name), options, say)]


def random_orders(options: OrdersBench) -> list[Asked]:
    """Limit orders around a price that wanders; a share is cancellations of orders placed not long ago."""
    rng = random.Random(options.seed)
    found: list[Asked] = []
    middle, placed = 10_000, 0
    for _ in range(options.orders):
        if placed and rng.random() < options.cancels:
            found.append((CANCEL, f"o{rng.randrange(max(0, placed - 1_000), placed)}", 0, 0, 0))
            continue
        middle = max(1_000, middle + rng.choice((-1, 0, 0, 1)))
        side, away = rng.randrange(2), int(abs(rng.gauss(0, options.levels / 4))) - 4
        found.append((PLACE, f"o{placed}", side, middle + (away if side else -away), rng.randint(1, 100)))
        placed += 1
    return found


def encoded(asked: Sequence[Asked]) -> bytes:
    """Orders as one record of the log."""
    name, parts = NAME.encode(), []
    for op, identity, side, price, quantity in asked:
        if op == CANCEL:
            parts.append(Operation(CANCEL, identity.encode()).encode())
        else:
            amounts = Fixed(price, 0), Fixed(quantity, 0)
            parts.append(Operation(PLACE, identity.encode(), side, 0, name, b"", *amounts).encode())
    return command(ORDERS, bytes(16), parts)


def symbol_command() -> bytes:
    """The record that defines the bench's symbol."""
    return command(SYMBOL, bytes(16), [SymbolTerms(NAME, Fixed(1, 0), Fixed(1, 0)).encode()])


def run_machine(records: Sequence[bytes], options: OrdersBench) -> _Spent:
    """Records through the machine, batch by batch, no id known from before; what Python does is not timed."""
    cache, spent = ModuleCache(), _Spent()
    limits = Limits(memory_bytes=MEMORY_BYTES, deadline_s=60.0, output_bytes=OUTPUT_BYTES)
    guest = Guest(cache.load(builtin_module("order_book")), limits, cache.host)
    try:
        guest.call("streams_restored")
        log = [LogCommand(offset, 1, data) for offset, data in enumerate([symbol_command(), *records])]
        _apply(guest, log[:1], _Spent())
        for at in range(1, len(log), options.records):
            _apply(guest, log[at : at + options.records], spent)
    finally:
        guest.close()
    return spent


def _apply(guest: Guest, batch: Sequence[LogCommand], spent: _Spent) -> None:
    asked, _ = guest.describe(spent.timed(guest, "streams_prepare", *guest.put(encode_batch(batch))))
    count = int.from_bytes(asked[:4], "little")
    ends, blob = memoryview(asked)[4 : 4 + 4 * count].cast("I"), asked[4 + 8 * count :]
    keys = [blob[start:end] for start, end in zip([0, *ends][:-1], ends, strict=True)]
    if keys:
        spent.timed(guest, "streams_load", *guest.put(encode_rows(keys, [None] * count)))
    guest.describe(spent.timed(guest, "streams_apply"))
    more = 1
    while more:
        data, more = guest.describe(spent.timed(guest, "streams_take"))
        for key, row in taken_rows(data):
            if row is not None and key.startswith(TRADES_PREFIX):
                spent.traded += sum(int(str(trade["quantity"])) for trade in trades_row(row)[1])


def restart(directory: Path, options: OrdersBench, say: Say) -> Result:
    """Seconds from opening the store of a large book to its first answer."""
    say(f"a book of {options.resting:,} open orders")
    wasm, rng = builtin_module("order_book"), random.Random(options.seed)
    store = OrdersStore(directory / "orders", "orders", wasm, ModuleCache())
    store.apply([LogCommand(0, 1, symbol_command())], 1)
    for offset, first in enumerate(range(0, options.resting, options.record), 1):
        numbers = range(first, min(first + options.record, options.resting))
        made = [(PLACE, f"o{n}", n % 2, 9_999 - rng.randrange(5_000) + 10_000 * (n % 2), 10) for n in numbers]
        store.apply([LogCommand(offset, 1, encoded(made))], offset + 1)
    before = store.depth(NAME, 10_000)
    store.close()
    started = time.perf_counter()
    store = OrdersStore(directory / "orders", "orders", wasm, ModuleCache())
    after = store.depth(NAME, 10_000)
    took = time.perf_counter() - started
    store.close()
    if before is None or before != after or not before.bids or not before.asks:
        raise StreamsError("the book came back differently", fix="this is a defect: report it")
    return at_most(f"restart with a book of {options.resting:,} open orders", took, "s", GOAL_RESTART_S)


class PythonBook:
    """A book as one would write it in Python for speed: dicts, deques of orders by price, heaps of prices."""

    def __init__(self) -> None:
        self.orders: dict[str, list[int]] = {}
        self.sides: tuple[dict[int, deque[list[int]]], ...] = ({}, {})
        self.prices: tuple[list[int], ...] = ([], [])
        self.traded = 0

    def take(self, op: int, identity: str, side: int, price: int, quantity: int) -> None:
        """Place a limit order, or cancel one."""
        if op == CANCEL:
            order = self.orders.pop(identity, None)
            if order is not None:
                order[0] = 0
            return
        other, prices, sign = self.sides[1 - side], self.prices[1 - side], -1 if side else 1
        while quantity and prices and prices[0] <= sign * price:
            level = other[prices[0]]
            while quantity and level:
                maker = level[0]
                traded = min(quantity, maker[0])
                quantity -= traded
                maker[0] -= traded
                self.traded += traded
                if not maker[0]:
                    level.popleft()
            if not level:
                del other[heapq.heappop(prices)]
        if quantity:
            key = price if side else -price
            if key not in self.sides[side]:
                self.sides[side][key] = deque()
                heapq.heappush(self.prices[side], key)
            self.orders[identity] = order = [quantity]
            self.sides[side][key].append(order)
