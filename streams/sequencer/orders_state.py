"""`OrdersStore`: the rows of the order books on disk, the offset they stand for, and the machine made of them."""

from __future__ import annotations

import functools
import itertools
import operator
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, cast

from streams.model.errors import Conflict, StreamsError, Unavailable
from streams.sequencer.log_store import LogStore
from streams.sequencer.order_commands import (
    ACCOUNT_PREFIX,
    CLOSED_PREFIX,
    LEVELS_PREFIX,
    META_KEY,
    NOTE_PREFIX,
    OPEN_PREFIX,
    SYMBOL,
    SYMBOL_PREFIX,
    TRADES_PREFIX,
    BookView,
    OrderRow,
    OrdersResult,
    OrdersState,
    SymbolTerms,
    Trade,
    decode_book,
    decode_orders_result,
    decode_orders_state,
    feed_key,
    feed_prefix,
    levels_row,
    order_row,
    question,
    symbol_row,
    trades_row,
)
from streams.state.options import MIB, StoreOptions
from streams.wasm.engine import ModuleCache, module_hash
from streams.wasm.machine_host import LogCommand
from streams.wasm.resident_host import ResidentHost

_FLOOR, _BORN = "feed_floor", "born_ms"
KNOWN_MS = 30 * 86_400_000
"""How long, by the log's time, closed orders, trades and notes are kept. The machine was built with the same."""
FEED_MS = 86_400_000
"""How long changes of levels are kept: a feed resumes from within it."""
SWEEP_ROWS_MIN, SWEEP_ROWS_MAX = 256, 8_000
"""A walk takes twice as many rows of a kind as have come: with fewer it would never come round."""
VIEWS_MAX, VIEW_LEVELS_MAX = 256, 100
"""Books kept as they were read last, and the deepest that are kept: some megabytes at most."""
_DEPTH, _MATCH = 1, 2
_ROWS_COME_AND_GO: dict[str, Any] = {
    "removals": (10_000, 9_800),  # what a sweep leaves; not open orders' rows, each of which goes when it is closed
    "write_buffer_bytes": 64 * MIB,
    "memtable_filter": 0.02,
    "compressed_from": 2,
    "wal": False,  # the log of commands has everything
    "removals_flush_s": 600.0,  # they never end
}
"""RocksDB's part of an order was 4.2 us of CPU with what other stores have, and is 1.6 with this (2,000,000 orders)."""
_SET_SYMBOL = bytes([SYMBOL])  # no other kind of command writes a symbol's row
_KEY = operator.itemgetter(0)
_Method = TypeVar("_Method", bound=Callable[..., Any])
_Read = TypeVar("_Read")


def _alone(method: _Method) -> _Method:
    """The machine and the rows are one thing: whoever uses them has both for himself."""

    @functools.wraps(method)
    def locked(self: OrdersStore, *arguments: Any, **named: Any) -> Any:
        with self._lock:
            return method(self, *arguments, **named)

    return cast(_Method, locked)


@dataclass(frozen=True, slots=True)
class OrdersStep:
    """What a batch did: a result for each command."""

    results: list[OrdersResult]


@dataclass(frozen=True, slots=True)
class FeedEntry:
    """What one record of the log did to a book. Levels: [price, quantity now], "0" when the level is gone."""

    offset: int
    time_ms: int
    bids: list[list[str]]
    asks: list[list[str]]
    trades: list[Trade]


class OrdersStore(LogStore):
    """Rows, position and machine of the orders' log. One RocksDB: rows and offset go into it in one write batch.

    The books themselves are in the machine's memory, made from the rows of symbols, accounts and open orders at the
    start. Old rows are dropped by the way, a few with every batch: that is this replica's business alone.

    From any thread: `apply` may run in one while others read, who then wait for its end. After a kill what was not on
    disk yet is applied again, from the log of commands.
    """

    def __init__(
        self, path: Path, topic: str, wasm: bytes, cache: ModuleCache, options: StoreOptions | None = None
    ) -> None:
        options = replace(options or StoreOptions(), **_ROWS_COME_AND_GO)
        self._lock = threading.RLock()
        super().__init__(path, topic, module_hash(wasm), options)
        self._machine = ResidentHost(wasm, cache, self._durable)
        self._views: dict[tuple[str, int], BookView] = {}
        self._load()
        self._machine.restore()

    def _load(self) -> None:
        self.machine_state: OrdersState = decode_orders_state(self.store.get(META_KEY))
        self._symbols = {(found := symbol_row(row)).symbol: found for _, row in self.store.iterate(SYMBOL_PREFIX)}
        self._floor = int(self.store.meta(_FLOOR) or 0)
        self._born_ms = int(self.store.meta(_BORN) or 0)
        self._sweep_at: dict[bytes, bytes | None] = {}
        self._unswept = 0

    def _durable(self) -> Iterator[tuple[bytes, bytes]]:
        meta = self.store.get(META_KEY)
        if meta is not None:
            yield META_KEY, meta
        for prefix in (SYMBOL_PREFIX, ACCOUNT_PREFIX, OPEN_PREFIX):
            yield from self.store.iterate(prefix)

    @property
    def memory_bytes(self) -> int:
        """What the machine holds."""
        with self._lock:
            return self._machine.memory_bytes

    @_alone
    def standing(self, read: Callable[[OrdersStore], _Read]) -> tuple[_Read, int]:
        """What `read` finds, and the log's position that it is of."""
        return read(self), self.next

    @_alone
    def reset(self) -> None:
        """Forget everything: the log is read again from its start."""
        self.wipe()
        self.store.set_meta(_FLOOR, "0")
        self.store.set_meta(_BORN, "0")
        self._machine.forget()
        self._views.clear()
        self._load()

    @_alone
    def apply(self, commands: Sequence[LogCommand], following: int) -> OrdersStep:
        """Apply commands; `following` is the log's position after them. One write batch: all or nothing.

        Conflict when they do not go on where the state stands. UdfTrap: nothing was applied.
        """
        self.check_follows(commands)
        if commands:
            self._views.clear()
        done = self._machine.apply(commands, self.store.multi_get)
        try:
            swept = self._sweep(len(done.rows)) if done.rows else []
            # By key, which for those of one key keeps their order: RocksDB takes neighbours in half of the time.
            self.store.apply(sorted([*swept, *done.rows], key=_KEY), None, following)
        except BaseException as error:
            self._machine.forget()  # it is ahead of what is on disk
            if isinstance(error, StreamsError) or not isinstance(error, Exception):
                raise
            # RocksDB's binding raises nothing more precise: as when the disk is full.
            raise Unavailable(f"the order books cannot be written: {str(error)[:200]}") from error
        if done.rows:
            self.machine_state = decode_orders_state(done.rows[-1][1])  # the machine's own row is the last
            if not self._born_ms:
                self._born_ms = self.machine_state.time_ms
                self.store.set_meta(_BORN, str(self._born_ms))
        if any(each.value[1:2] == _SET_SYMBOL for each in commands):
            for key, row in done.rows:
                if key.startswith(SYMBOL_PREFIX) and row is not None:
                    found = symbol_row(row)
                    self._symbols = {**self._symbols, found.symbol: found}
        return OrdersStep([decode_orders_result(each) for each in done.results])

    # ---- reading

    @property
    def symbols(self) -> dict[str, SymbolTerms]:
        """All symbols by name."""
        return self._symbols

    @_alone
    def order(self, identity: str) -> OrderRow | None:
        """An order, open, or closed not too long ago."""
        name = identity.encode()
        opened, closed = self.store.multi_get([OPEN_PREFIX + name, CLOSED_PREFIX + name])
        row = opened if opened is not None else closed
        if row is None:
            return None
        found = order_row(row)
        if found.closed_ms and found.closed_ms + KNOWN_MS <= self.machine_state.time_ms:
            return None
        return found

    @_alone
    def account(self, identity: str) -> bytes | None:
        """An account's row."""
        return self.store.get(ACCOUNT_PREFIX + identity.encode())

    @_alone
    def depth(self, symbol: str, most: int) -> BookView | None:
        """The best levels of a book. Not to be changed: until the next command whoever asks gets the same."""
        view = self._views.get((symbol, most))
        if view is None:
            view = decode_book(_DEPTH, self._machine.query(question(_DEPTH, symbol, most)))
            if view is not None and most <= VIEW_LEVELS_MAX and len(self._views) < VIEWS_MAX:
                self._views[symbol, most] = view
        return view

    @_alone
    def match(self, symbol: str, most: int) -> BookView | None:
        """The trades that executing a call book would make now."""
        return decode_book(_MATCH, self._machine.query(question(_MATCH, symbol, most)))

    @_alone
    def trades_at(self, symbol: str, offset: int) -> list[Trade]:
        """The trades that one record made in a symbol."""
        rows = self.store.iterate(feed_key(TRADES_PREFIX, symbol, offset))
        return [trade for _, row in rows for trade in trades_row(row)[1]]

    def trades_of(self, symbol: str, offset: int, taker: str) -> list[Trade]:
        """The trades that an order made as it came, at `offset`."""
        return [trade for trade in self.trades_at(symbol, offset) if trade["taker"] == taker]

    @_alone
    def trades(self, symbol: str, offset: int, index: int, limit: int) -> tuple[list[Trade], int, int]:
        """Trades from the `index`-th of the record at `offset` on, oldest first; and where the rest begins."""
        found: list[Trade] = []
        prefix = feed_prefix(TRADES_PREFIX, symbol)
        after = prefix + max(offset - 1, 0).to_bytes(8, "big") + b"\xff\xff\xff\xff" if offset else None
        at, seen = offset, 0
        for key, row in self.store.iterate(prefix, after):
            here = int.from_bytes(key[len(prefix) : len(prefix) + 8], "big")
            if here != at:
                at, seen = here, 0
            time_ms, made = trades_row(row)
            for trade in made:
                if here > offset or seen >= index:
                    if len(found) == limit:
                        return found, here, seen
                    found.append({**trade, "offset": here, "time": time_ms})
                seen += 1
        if not found:
            return found, offset, index
        return found, at, seen

    @_alone
    def feed(self, symbol: str, after: int, limit: int) -> list[FeedEntry]:
        """What records after offset `after` did to a book, in order; Conflict when that is not kept any more."""
        if after + 1 < self._floor:
            raise Conflict(
                f"the changes after offset {after} are not kept any more; they begin at {self._floor}",
                field="Last-Event-ID",
                fix="subscribe anew: a snapshot comes first",
            )
        prefix = feed_prefix(LEVELS_PREFIX, symbol)
        start = prefix + after.to_bytes(8, "big") if after >= 0 else None
        found = []
        for key, row in itertools.islice(self.store.iterate(prefix, start), limit):
            offset = int.from_bytes(key[len(prefix) :], "big")
            time_ms, bids, asks = levels_row(row)
            found.append(FeedEntry(offset, time_ms, bids, asks, self.trades_at(symbol, offset)))
        return found

    # ---- sweeping

    def _sweep(self, rows: int) -> list[tuple[bytes, bytes | None]]:
        """Rows that are too old, found by walking on where the last walk ended, as fast as rows come."""
        self._unswept += rows
        if self._unswept < SWEEP_ROWS_MIN:
            return []
        most, self._unswept = min(2 * self._unswept, SWEEP_ROWS_MAX), 0
        dead: list[tuple[bytes, bytes | None]] = []
        for prefix, keep_ms in (
            (CLOSED_PREFIX, KNOWN_MS),
            (NOTE_PREFIX, KNOWN_MS),
            (TRADES_PREFIX, KNOWN_MS),
            (LEVELS_PREFIX, FEED_MS),
        ):
            oldest_ms, floor = self.machine_state.time_ms - keep_ms, self._floor
            if oldest_ms < self._born_ms:
                continue  # nothing here is so old
            walked = self.store.scan(prefix, self._sweep_at.get(prefix), most)
            for key, row in walked:
                if _time_of(prefix, row) <= oldest_ms:
                    dead.append((key, None))
                    if prefix == LEVELS_PREFIX:
                        floor = max(floor, int.from_bytes(key[-8:], "big") + 1)
            self._sweep_at[prefix] = walked[-1][0] if len(walked) == most else None
            if floor != self._floor:
                self._floor = floor
                self.store.set_meta(_FLOOR, str(floor))  # before its rows go: a kill in between refuses too much
        return dead

    @_alone
    def describe(self) -> dict[str, object]:
        """Where this replica stands: `state` is equal wherever `offset` is."""
        stands = self.machine_state
        return {"offset": stands.next, "state": f"{stands.chain:016x}", "commands": stands.commands}

    @_alone
    def close(self) -> None:
        """Release the directory and the machine; idempotent."""
        self._machine.close()
        self.store.close()


def _time_of(prefix: bytes, row: bytes) -> int:
    at = 64 if prefix == CLOSED_PREFIX else 24 if prefix == NOTE_PREFIX else 8
    return int.from_bytes(row[at : at + 8], "little")
