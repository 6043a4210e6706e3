"""Orders: placing, cancelling, replacing, reading; many in one request; and keys `order:ID` of `/v1/kv`."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Sequence

from streams.gateway.auth import authorize
from streams.gateway.context import Gateway
from streams.gateway.endpoint import Operation as Route
from streams.gateway.http import Call, Headers, Reply, reply
from streams.gateway.order_batches import (
    ARROW,
    NDJSON,
    BatchAnswer,
    NoOrder,
    UnknownBatch,
    changed_json,
    made_by,
    parse_batch,
    plain_trades,
)
from streams.gateway.order_bodies import name_of, order_json, placing, refusal, replacing
from streams.gateway.order_pipeline import Placing, in_turn
from streams.gateway.params import CONSISTENCY, Param
from streams.gateway.routes_strong import Asked, asked_of, execute_on
from streams.gateway.trading import Trading
from streams.model.errors import BadInput, Conflict, StreamsError, Unavailable
from streams.model.keys import validate_key
from streams.sequencer.commands import command_id
from streams.sequencer.order_commands import (
    CANCEL,
    ORDERS,
    Operation,
    OrderRow,
    OrdersResult,
    Outcome,
    Why,
    command,
)
from streams.serde import parse_json

KEYSPACE = "order"
ORDER_ID = Param("id", "path", "The order's id", {"type": "string"})
ANSWER = Param(
    "answer", "query", "`full` (default), or `summary`: counts, without the single orders", {"type": "string"}
)
_BODY: dict[str, dict[str, object]] = {
    "application/json": {
        "type": "object",
        "required": ["id", "symbol", "side", "quantity"],
        "properties": {
            "id": {"type": "string"},
            "symbol": {"type": "string"},
            "side": {"enum": ["buy", "sell"]},
            "type": {"enum": ["limit", "market", "ioc", "fok"]},
            "price": {"type": "string", "description": "A decimal; a multiple of the symbol's tick"},
            "quantity": {"type": "string", "description": "A decimal; a multiple of the symbol's lot"},
            "account": {"type": "string"},
        },
    }
}
_ANSWERS = {
    400: "A field is wrong",
    404: "No such symbol, account or order",
    409: "Another order has this id, no funds, not open any more",
    503: "Not placed, or the outcome is unknown: then `idempotency_key` resolves it",
}


class OrderRoutes:
    """Handlers of orders."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def operations(self) -> list[Route]:
        """The routes."""
        one, tag = "/v1/orders/{id:any}", "trading"
        change: dict[str, dict[str, object]] = {"application/json": {"description": "price, quantity (the new total)"}}
        many: dict[str, dict[str, object]] = {
            NDJSON: {"description": "An order a line; with `op` cancel or replace another thing with one"},
            "application/json": {"description": "An array of the same"},
            ARROW: {"description": "An Arrow IPC stream of the same, as columns"},
        }
        return [
            Route("POST", "/v1/orders", self.place, "Place an order", "write", (), _BODY, _ANSWERS, tag=tag),
            Route(
                "POST",
                "/v1/orders:batch",
                self.place_many,
                "Place many orders: up to 4,000 are one record of the log",
                "write",
                (ANSWER,),
                many,
                {400: "The format is unknown", 503: _ANSWERS[503]},
                tag=tag,
            ),
            Route(
                "POST",
                one + ":replace",
                self.replace,
                "Change an order's price or total quantity; less at the same price keeps its place",
                "write",
                (ORDER_ID,),
                change,
                _ANSWERS,
                tag=tag,
            ),
            Route("GET", one, self.get, "An order", "read", (ORDER_ID, CONSISTENCY), answers=_ANSWERS, tag=tag),
            Route(
                "DELETE",
                one,
                self.cancel,
                "Cancel what is left of an order",
                "write",
                (ORDER_ID,),
                answers=_ANSWERS,
                tag=tag,
            ),
        ]

    async def place(self, call: Call) -> Reply:
        """Place the body's order."""
        return await place_order(self._gateway, call, placing(parse_json(await call.body())))

    async def cancel(self, call: Call) -> Reply:
        """Cancel the order."""
        return await cancel_order(self._gateway, call, name_of(call.tail(3).decode("utf-8", "replace"), "id"))

    async def get(self, call: Call) -> Reply:
        """The order, as of the moment of asking, or as this region has it."""
        found = await read_order(self._gateway, call, name_of(call.tail(3).decode("utf-8", "replace"), "id"))
        return reply({"order": found.to_json(), "offset": found.offset, "timestamp": found.placed_ms})

    async def replace(self, call: Call) -> Reply:
        """Replace the order's price and quantity."""
        raw = call.tail(3).decode("utf-8", "replace").removesuffix(":replace")
        identity = name_of(raw, "id")
        trading = trading_of(self._gateway, call, "write")
        change = replacing(parse_json(await call.body()), identity)
        result, outcome, headers = await one_outcome(trading, call, change)
        return _answer(trading, identity, result, outcome, headers)

    async def place_many(self, call: Call) -> Reply:
        """Place what the lines say, in their order."""
        trading = trading_of(self._gateway, call, "write")
        summary = ANSWER.text(call)
        if summary not in (None, "full", "summary"):
            raise BadInput("is unknown", field="answer", fix="use full or summary")
        lines = await asyncio.to_thread(parse_batch, call.content_type, await call.body())
        asked, batch = asked_of(call), BatchAnswer(trading.state, summary == "summary")
        batch.refuse_lines(lines)
        chunks, begun = list(lines.chunks()), 0
        place = functools.partial(_place_chunk, call, trading, asked)
        while begun < len(chunks):  # until a record is new the key may turn out to be another request's
            numbers, parts = chunks[begun]
            try:
                result = await place(begun, parts)
            except StreamsError as error:
                if not begun:
                    raise
                raise _stopped(error, asked, batch) from error
            batch.take(numbers, parts, result)
            begun += 1
            if not result.again:
                break
        results = in_turn(functools.partial(place, index, chunks[index][1]) for index in range(begun, len(chunks)))
        try:
            for numbers, parts in chunks[begun:]:
                try:
                    result = await anext(results)
                except StreamsError as error:
                    raise _stopped(error, asked, batch) from error
                batch.take(numbers, parts, result)
        finally:
            await results.aclose()
        return reply(batch.body())


def _stopped(error: StreamsError, asked: Asked, batch: BatchAnswer) -> StreamsError:
    """Why a batch ended after its first record: with an outcome that is not known, or with a record that is refused."""
    if isinstance(error, Unavailable):
        return UnknownBatch(error.detail, asked.text, batch.accepted)
    error.extra = {**error.extra, "accepted": batch.accepted}
    return error


def _nothing() -> None:
    pass


async def _place_chunk(
    call: Call,
    trading: Trading,
    asked: Asked,
    index: int,
    parts: Sequence[bytes],
    placed: Callable[[], None] = _nothing,
) -> OrdersResult:
    """What became of the orders of one record of a batch; `placed` is called when it has its place in the log."""
    name = asked.text.encode("latin-1") + (b"\x00%d" % index if index else b"")
    part = Asked(asked.text, command_id(call.principal.name, name))
    result, _ = await execute_on(Placing(trading, placed), part, command(ORDERS, part.identity, parts))
    return result


class OrderKeys:
    """What `/v1/kv` does for keys of the keyspace `order`."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def addressed(self, call: Call, slashes: int) -> str | None:
        """The order's id, when the key is one of an order."""
        key = call.tail(slashes)
        if self._gateway.trading is None or not key.startswith(b"order:"):
            return None
        return name_of(validate_key(key).decode().partition(":")[2], "key")

    async def put(self, call: Call, identity: str) -> Reply:
        """Place the order."""
        self._refuse_conditions(call)
        operation = placing(parse_json(await call.body()), identity)
        return await place_order(self._gateway, call, operation, key=f"{KEYSPACE}:{identity}")

    async def delete(self, call: Call, identity: str) -> Reply:
        """Cancel the order."""
        self._refuse_conditions(call)
        return await cancel_order(self._gateway, call, identity, key=f"{KEYSPACE}:{identity}")

    async def get(self, call: Call, identity: str) -> Reply:
        """The order as a row."""
        found = await read_order(self._gateway, call, identity)
        home = trading_of(self._gateway, call, "read").home
        body = {"key": f"{KEYSPACE}:{identity}", "value": found.to_json(), "expires_at": None}
        return reply(body | {"timestamp": found.placed_ms, "region": home, "version": found.offset + 1})

    @staticmethod
    def _refuse_conditions(call: Call) -> None:
        for name in ("If-Match", "If-None-Match"):
            if call.header(name.lower().encode()) is not None:
                raise Conflict(
                    "an order is placed once under its id: it has no versions to compare",
                    field=name,
                    fix="leave it out; POST /v1/orders/{id}:replace changes an order",
                )
        if "ttl" in call.query:
            raise BadInput(
                "orders do not expire", field="ttl", fix="leave it out, and cancel the order when it is time"
            )


def trading_of(gateway: Gateway, call: Call, action: str) -> Trading:
    """The order books; Conflict when this gateway has none, Forbidden."""
    authorize(call.principal, KEYSPACE, action)
    if gateway.trading is None:
        raise Conflict("this gateway has no order books", field="path", fix="ask another gateway")
    return gateway.trading


async def fresh(trading: Trading, call: Call) -> None:
    """Bring the books up to the moment of asking, unless the request does with what is here. BadInput, Unavailable."""
    wanted = CONSISTENCY.text(call)
    if wanted not in (None, "strong", "eventual"):
        raise BadInput(f"{wanted[:40]!r} is no consistency", field="consistency", fix="use strong or eventual")
    if wanted != "eventual":
        await trading.linearize()


async def one_outcome(trading: Trading, call: Call, operation: Operation) -> tuple[OrdersResult, Outcome, Headers]:
    """What became of one operation; what the machine refused is raised."""
    asked = asked_of(call)
    result, offset = await execute_on(trading, asked, command(ORDERS, asked.identity, [operation.encode()]))
    outcome = result.outcome(0)
    if outcome.why is not Why.GOOD:
        raise refusal(outcome)
    again = result.again or outcome.offset != offset
    return result, outcome, ((b"idempotent-replayed", b"true"),) if again else ()


async def place_order(gateway: Gateway, call: Call, operation: Operation, key: str | None = None) -> Reply:
    """Place an order and answer it with its trades; with `key`, as a put too."""
    trading = trading_of(gateway, call, "write")
    result, outcome, headers = await one_outcome(trading, call, operation)
    gateway.metrics.events.labels(KEYSPACE).inc()
    trades = made_by(trading.state, operation, outcome)
    body = {"order": order_json(operation, outcome), "trades": plain_trades(trades), "offset": outcome.offset}
    body["timestamp"] = result.time_ms
    return reply(body if key is None else _as_put(gateway, call, trading, key, body), headers=headers)


async def cancel_order(gateway: Gateway, call: Call, identity: str, key: str | None = None) -> Reply:
    """Cancel an order and answer it as it is left."""
    trading = trading_of(gateway, call, "write")
    result, outcome, headers = await one_outcome(trading, call, Operation(CANCEL, identity.encode()))
    body = changed_json(trading.state, identity, outcome, None, result.offset, result.time_ms)
    return reply(body if key is None else _as_put(gateway, call, trading, key, body), headers=headers)


async def read_order(gateway: Gateway, call: Call, identity: str) -> OrderRow:
    """An order; NoOrder."""
    trading = trading_of(gateway, call, "read")
    await fresh(trading, call)
    found = trading.state.order(identity)
    if found is None:
        raise NoOrder(f"there is no order {identity}", field="key" if "/v1/kv/" in str(call.scope["path"]) else "id")
    return found


def _as_put(gateway: Gateway, call: Call, trading: Trading, key: str, body: dict[str, object]) -> dict[str, object]:
    offset = body["offset"]
    assert isinstance(offset, int)
    put = {"key": key, "topic": trading.topic, "partition": 0, "region": trading.home, "version": offset + 1}
    return {**put, "token": gateway.token_of(call).encode(), **body}


def _answer(trading: Trading, identity: str, result: OrdersResult, outcome: Outcome, headers: Headers) -> Reply:
    return reply(changed_json(trading.state, identity, outcome, None, result.offset, result.time_ms), headers=headers)
