"""The order books may be read while a thread applies: every answer is of the books between two records."""

from __future__ import annotations

import threading
from pathlib import Path

from streams.sequencer.order_commands import ORDERS, PLACE, SYMBOL, Fixed, Operation, SymbolTerms, command
from streams.sequencer.orders_state import OrdersStore
from streams.wasm.builtin import builtin_module
from streams.wasm.engine import ModuleCache
from streams.wasm.machine_host import LogCommand

PAIRS, RECORDS = 50, 60


def record(number: int) -> bytes:
    """Fifty asks of two and fifty bids that take one of each: a record leaves fifty."""
    made = []
    for each in range(PAIRS):
        name = f"{number}-{each}"
        made.append(Operation(PLACE, f"a{name}".encode(), 1, 0, b"S", b"", Fixed(5, 0), Fixed(2, 0)).encode())
        made.append(Operation(PLACE, f"b{name}".encode(), 0, 0, b"S", b"", Fixed(5, 0), Fixed(1, 0)).encode())
    return command(ORDERS, number.to_bytes(16, "big"), made)


def test_readers_see_whole_records_only(tmp_path: Path) -> None:
    store = OrdersStore(tmp_path / "s", "orders", builtin_module("order_book"), ModuleCache())
    store.apply(
        [LogCommand(0, 1, command(SYMBOL, bytes(16), [SymbolTerms("S", Fixed(1, 0), Fixed(1, 0)).encode()]))], 1
    )
    failed: list[BaseException] = []

    def apply() -> None:
        try:
            for number in range(1, RECORDS + 1):
                store.apply([LogCommand(number, number, record(number))], number + 1)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=apply)
    thread.start()
    seen = set()
    try:
        while thread.is_alive():
            view = store.depth("S", 10)
            assert view is not None
            records = view.next - 1
            seen.add(records)
            assert view.asks == ([["5", str(PAIRS * records)]] if records else []) and not view.bids
            trades, _, _ = store.trades("S", max(records, 1), 0, PAIRS)
            assert len(trades) == (PAIRS if records else len(trades))
            assert len(store.feed("S", records - 1, 1)) == (records > 0)
            if records:
                found = store.order(f"a{records}-{PAIRS - 1}")
                assert found is not None and found.placed_ms == records
            stands = store.describe()
            assert stands["commands"] == stands["offset"]
    finally:
        thread.join(60)
    assert not failed and store.next == RECORDS + 1
    print("seen at", len(seen), "positions")
    store.close()
