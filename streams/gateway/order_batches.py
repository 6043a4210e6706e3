"""Many orders in one request: read in three forms, cut into records of the log, answered line by line or in sum."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import numpy as np

from streams.gateway.order_bodies import batch_operation, order_json, refusal
from streams.gateway.order_columns import encode_columns
from streams.model.errors import BadInput, NotFound, StreamsError, Unavailable
from streams.sequencer.order_commands import (
    CANCEL,
    ORDERS_MAX,
    PLACE,
    Operation,
    OrdersResult,
    Outcome,
    Trade,
    Why,
    decode_operation,
)
from streams.sequencer.orders_state import OrdersStore
from streams.sequencer.packed import Packed
from streams.serde import parse_json
from streams.tabular.ipc import ArrowStream, check_batch, decode
from streams.tabular.orders import order_columns

NDJSON, ARROW = "application/x-ndjson", "application/vnd.apache.arrow.stream"
CHUNK_BYTES = 512 << 10
REJECTED_MAX = 1_000
SLICE_ROWS = 65_536
_TRADE_FIELDS = ("price", "quantity", "maker", "taker")


@dataclass(slots=True)
class Lines:
    """A batch's good lines, encoded, with their numbers from 1; and the first `REJECTED_MAX` of those
    that are refused before anything is sent."""

    numbers: list[int] | range = field(default_factory=list)
    parts: list[bytes] | Packed = field(default_factory=list)
    refused: list[tuple[int, StreamsError]] = field(default_factory=list)
    refused_count: int = 0

    def add(self, number: int, row: Any) -> None:
        """Judge one line: bytes of JSON, or what they would be."""
        try:
            part = batch_operation(parse_json(row) if isinstance(row, bytes) else row).encode()
        except StreamsError as error:
            self.refused_count += 1
            if len(self.refused) < REJECTED_MAX:
                self.refused.append((number, error.with_traceback(None)))
            return
        numbers, parts = self._lists()
        numbers.append(number)
        parts.append(part)

    def _lists(self) -> tuple[list[int], list[bytes]]:
        if isinstance(self.numbers, range):
            self.numbers = list(self.numbers)
        if isinstance(self.parts, Packed):
            self.parts = self.parts.tolist()
        return self.numbers, self.parts

    def add_packed(self, first: int, parts: Packed) -> None:
        """Take good lines, which are numbered from `first` on."""
        if not self.parts:
            self.numbers, self.parts = range(first, first + len(parts)), parts
            return
        numbers, before = self._lists()
        numbers += range(first, first + len(parts))
        before += parts.tolist()

    def chunks(self) -> Iterator[tuple[Sequence[int], Sequence[bytes]]]:
        """Stretches that are a record of the log each: equal ones of equal lines."""
        if isinstance(self.parts, Packed):
            first, ends = 0, self.parts.ends
            while first < len(ends):
                size = (int(ends[first - 1]) if first else self.parts.start) + CHUNK_BYTES
                last = min(first + ORDERS_MAX, int(np.searchsorted(ends, size)) + 1, len(ends))
                yield self.numbers[first:last], self.parts[first:last]
                first = last
            return
        first = size = 0
        for index, part in enumerate(self.parts):
            size += len(part)
            if index + 1 - first == ORDERS_MAX or size >= CHUNK_BYTES or index + 1 == len(self.parts):
                yield self.numbers[first : index + 1], self.parts[first : index + 1]
                first, size = index + 1, 0


def parse_batch(content_type: str, body: bytes) -> Lines:
    """The lines of a body; BadInput when it has none."""
    lines = Lines()
    if content_type in (NDJSON, "application/ndjson", "application/jsonl"):
        for number, line in enumerate(body.split(b"\n"), 1):
            if line.strip():
                lines.add(number, line)
    elif content_type == "application/json":
        rows = parse_json(body)
        if type(rows) is not list:
            raise BadInput("is no array of orders", field="body", fix=f"send an array, or {NDJSON}")
        for number, row in enumerate(rows, 1):
            lines.add(number, row)
    elif content_type == ARROW:
        _read_arrow(lines, body)
    else:
        raise BadInput(
            f"{content_type[:80]!r} is no batch format",
            field="Content-Type",
            fix=f"send {NDJSON}, application/json or {ARROW}",
        )
    if not lines.parts and not lines.refused:
        raise BadInput("there are no orders in it", field="body", fix="send at least one")
    return lines


def _read_arrow(lines: Lines, body: bytes) -> None:
    stream, number = ArrowStream(), 0
    packed: list[Packed] = []  # of record batches that follow on one another

    def take_packed() -> None:
        if packed:
            lines.add_packed(number + 1 - sum(map(len, packed)), Packed.chained(packed))
            packed.clear()

    for piece in stream.feed(body):
        for batch in decode(piece, SLICE_ROWS):
            check_batch(batch)
            columns = order_columns(batch)
            parts = None if columns is None else encode_columns(columns)
            if parts is not None:
                packed.append(parts)
            else:
                take_packed()
                for index, row in enumerate(batch.to_pylist(), number + 1):
                    lines.add(index, row)
            number += len(batch)
    take_packed()
    stream.finish()


class UnknownBatch(Unavailable):
    """Of several records that a batch became, some are placed; what became of the others is not known. There is no one
    command to resolve: the same request under its key places what is missing, and nothing twice."""

    title = "outcome unknown"

    def __init__(self, detail: str, key: str, accepted: int) -> None:
        super().__init__(
            f"{accepted} orders were placed, the others may be: {detail}",
            fix="send the same request again with this Idempotency-Key",
        )
        self.extra = {"idempotency_key": key, "accepted": accepted}


class NoOrder(NotFound):
    """No such order. Its title is that of a key without a value."""

    title = "no value"


def plain_trades(trades: Sequence[Trade]) -> list[Trade]:
    """Trades with the four fields that say which they are."""
    return [{name: trade[name] for name in _TRADE_FIELDS} for trade in trades]


def made_by(store: OrdersStore, operation: Operation, outcome: Outcome) -> list[Trade]:
    """The trades that an order made as it was placed."""
    if outcome.filled == "0":
        return []
    return store.trades_of(operation.symbol.decode(), outcome.offset, operation.identity.decode())


def changed_json(
    store: OrdersStore, identity: str, outcome: Outcome, trades: list[Trade] | None, offset: int, time_ms: int
) -> dict[str, object]:
    """The order as this change left it, and the trades that the change made; None: all that it made at `offset`."""
    row = store.order(identity)
    if row is None:
        raise NoOrder(f"there is no order {identity}", field="id")
    shown = row.to_json() | {"status": outcome.status, "filled": outcome.filled, "quantity": outcome.quantity}
    if row.kind != "market":
        shown["price"] = outcome.price
    if trades is None:
        trades = plain_trades(store.trades_of(row.symbol, offset, identity))
    return {"order": shown, "trades": trades, "offset": offset, "timestamp": time_ms}


class BatchAnswer:
    """The answer to a batch as it grows."""

    def __init__(self, store: OrdersStore, summary: bool) -> None:
        self._store, self._summary = store, summary
        self._accepted = self._rejected_count = 0
        self._rejected: list[dict[str, object]] = []
        self._results: list[dict[str, object]] = []
        self._offset = -1

    def refuse(self, number: int, error: StreamsError, identity: str | None = None) -> None:
        """A line was not taken."""
        self._rejected_count += 1
        if len(self._rejected) < REJECTED_MAX:
            found: dict[str, object] = {"line": number, "reason": str(error), "field": error.field}
            self._rejected.append(found | ({} if identity is None else {"id": identity}))

    def refuse_lines(self, lines: Lines) -> None:
        """Those that were refused before anything was sent."""
        for number, error in lines.refused:
            self.refuse(number, error)
        self._rejected_count += lines.refused_count - len(lines.refused)

    @property
    def accepted(self) -> int:
        """How many were taken so far."""
        return self._accepted

    def take(self, numbers: Sequence[int], parts: Sequence[bytes], result: OrdersResult) -> None:
        """What a record did, the first time too when it is told again."""
        self._offset = result.offset
        if self._summary:
            refused = result.refused()
            self._accepted += len(parts) - len(refused)
            for index in refused:
                identity = decode_operation(parts[index]).identity.decode()
                self.refuse(numbers[index], refusal(result.outcome(index)), identity)
            return
        made: dict[tuple[str, int], dict[str, list[Trade]]] = {}
        for index, (number, part) in enumerate(zip(numbers, parts, strict=True)):
            operation = decode_operation(part)
            outcome = result.outcome(index)
            if outcome.why is not Why.GOOD:
                self.refuse(number, refusal(outcome), operation.identity.decode())
                continue
            self._accepted += 1
            self._results.append(self._one(number, operation, outcome, result, made))

    def _one(
        self,
        number: int,
        operation: Operation,
        outcome: Outcome,
        result: OrdersResult,
        made: dict[tuple[str, int], dict[str, list[Trade]]],
    ) -> dict[str, object]:
        identity = operation.identity.decode()
        if operation.op == CANCEL:
            return {"line": number, **changed_json(self._store, identity, outcome, [], result.offset, result.time_ms)}
        if operation.op == PLACE:
            trades: list[Trade] = []
            if outcome.filled != "0":
                trades = self._next_trades(made, (operation.symbol.decode(), outcome.offset), identity, outcome.filled)
            return {"line": number, "order": order_json(operation, outcome), "trades": trades, "offset": outcome.offset}
        row = self._store.order(identity)
        trades = [] if row is None else self._next_trades(made, (row.symbol, result.offset), identity, None)
        return {"line": number, **changed_json(self._store, identity, outcome, trades, result.offset, result.time_ms)}

    def _next_trades(
        self,
        made: dict[tuple[str, int], dict[str, list[Trade]]],
        where: tuple[str, int],
        taker: str,
        filled: str | None,
    ) -> list[Trade]:
        """The trades of a record that an order made, each told once: those that fill it to `filled`, None: the rest."""
        if where not in made:
            by_taker = made[where] = {}
            for trade in self._store.trades_at(*where):
                by_taker.setdefault(str(trade["taker"]), []).append(trade)
        left, told = made[where].get(taker, []), 0
        wanted = None if filled is None else Decimal(filled)
        while told < len(left) and (wanted is None or wanted > 0):
            if wanted is not None:
                wanted -= Decimal(str(left[told]["quantity"]))
            told += 1
        found, made[where][taker] = left[:told], left[told:]
        return plain_trades(found)

    def body(self) -> dict[str, object]:
        """The whole."""
        body: dict[str, object] = {"accepted": self._accepted, "rejected": self._rejected}
        body |= {"rejected_count": self._rejected_count, "offset": self._offset}
        return body if self._summary else body | {"results": self._results}
