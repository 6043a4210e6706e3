"""Books that are read again are kept until the next command: never longer, and boundedly."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from streams.sequencer import orders_state
from streams.sequencer.commands import barrier
from streams.sequencer.order_commands import CANCEL, ORDERS, PLACE, SYMBOL, Fixed, Operation, SymbolTerms, command
from streams.sequencer.orders_state import OrdersStore
from streams.wasm.builtin import builtin_module
from streams.wasm.engine import ModuleCache
from streams.wasm.machine_host import LogCommand


class Log:
    """A store and the end of its log."""

    def __init__(self, path: Path) -> None:
        self.store = OrdersStore(path, "orders", builtin_module("order_book"), ModuleCache())
        self.take(command(SYMBOL, bytes(16), [SymbolTerms("S", Fixed(1, 0), Fixed(1, 0)).encode()]))

    def take(self, data: bytes) -> None:
        """Append a command and apply it."""
        at = self.store.next
        self.store.apply([LogCommand(at, 1_000 + at, data)], at + 1)

    def place(self, name: str, price: int) -> None:
        """A buy order of one."""
        made = Operation(PLACE, name.encode(), 0, 0, b"S", b"", Fixed(price, 0), Fixed(1, 0))
        self.take(command(ORDERS, bytes(16), [made.encode()]))


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    found = Log(tmp_path / "s")
    yield found
    found.store.close()


def test_a_kept_book_is_never_older_than_the_last_command(log: Log) -> None:
    assert log.store.depth("S", 10) is log.store.depth("S", 10)
    for number in range(1, 4):
        log.place(f"o{number}", 10 * number)
        view = log.store.depth("S", 10)
        assert view is not None and view is log.store.depth("S", 10)
        assert view.bids == [[str(10 * n), "1"] for n in range(number, 0, -1)] and view.next == log.store.next
        best = log.store.depth("S", 1)
        assert best is not None and best.bids == view.bids[:1], "another depth is another answer"
    log.take(command(ORDERS, bytes(16), [Operation(CANCEL, b"o3").encode()]))
    view = log.store.depth("S", 10)
    assert view is not None and view.bids == [["20", "1"], ["10", "1"]]
    log.take(barrier())
    after = log.store.depth("S", 10)
    assert after is not None and (after.bids, after.next) == (view.bids, view.next + 1)
    log.store.reset()
    assert log.store.depth("S", 10) is None


def test_books_are_kept_boundedly(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orders_state, "VIEWS_MAX", 2)
    log.place("o", 10)
    deep = orders_state.VIEW_LEVELS_MAX + 1
    assert log.store.depth("S", deep) is not log.store.depth("S", deep)
    assert log.store.depth("S", deep) == log.store.depth("S", 1)
    assert log.store.depth("S", 2) is log.store.depth("S", 2)
    assert log.store.depth("S", 3) is not log.store.depth("S", 3)
    assert log.store.depth("T", 1) is None and log.store.depth("T", 1) is None
