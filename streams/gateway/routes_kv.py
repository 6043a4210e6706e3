"""`/v1/kv`: put, get, delete. A put is an event; its answer comes when Kafka has it on disk (`acks=all`)."""

from __future__ import annotations

from streams.gateway.context import Gateway, refuse_strong
from streams.gateway.endpoint import Operation
from streams.gateway.http import Call, Reply, reply
from streams.gateway.params import CAUSAL_TOKEN, CONSISTENCY, IF_MATCH, IF_NONE_MATCH, KEY_PATH, MAX_STALENESS, TTL
from streams.gateway.routes_orders import OrderKeys
from streams.gateway.routes_strong import StrongKeys
from streams.kafka.producer import RecordMeta
from streams.model.errors import NotFound
from streams.model.keys import keyspace_of, validate_key
from streams.model.keyspace import Keyspace
from streams.model.token import Input, Token
from streams.model.ttl import parse_ttl_ms
from streams.serde import delete_value, parse_json

PATH = "/v1/kv/{key:any}"
_SLASHES = 3


class KeyValueRoutes:
    """Handlers of single keys."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._delete_value = delete_value()
        self._strong = StrongKeys(gateway)
        self._orders = OrderKeys(gateway)

    def operations(self) -> list[Operation]:
        """The routes."""
        json_body: dict[str, dict[str, object]] = {
            "application/json": {"description": "The value; for a counter an object with `add`"}
        }
        asked = {
            404: "No such keyspace or key",
            409: "Only a strong keyspace can do this",
            504: "Not caught up in time",
        }
        return [
            Operation(
                "PUT",
                PATH,
                self.put_value,
                "Put a value: answers once the event is durable",
                "write",
                (KEY_PATH, TTL, CAUSAL_TOKEN, IF_MATCH, IF_NONE_MATCH),
                json_body,
                {
                    400: "Bad key, value or TTL",
                    409: asked[409],
                    412: "The version has moved",
                    413: "Body over the limit",
                },
                tag="keys",
            ),
            Operation(
                "GET",
                PATH,
                self.get_value,
                "The merged value of a key",
                "read",
                (KEY_PATH, CAUSAL_TOKEN, MAX_STALENESS, CONSISTENCY),
                answers=asked,
                tag="keys",
            ),
            Operation(
                "DELETE",
                PATH,
                self.delete_value,
                "Delete a key: an event too, answers like a put",
                "write",
                (KEY_PATH, CAUSAL_TOKEN, IF_MATCH, IF_NONE_MATCH),
                answers={400: "Bad key", 409: asked[409], 412: "The version has moved"},
                tag="keys",
            ),
        ]

    async def put_value(self, call: Call) -> Reply:
        """Append a put of the body."""
        if (order := self._orders.addressed(call, _SLASHES)) is not None:
            return await self._orders.put(call, order)
        key, keyspace = await self._addressed(call, "write")
        if keyspace.is_strong:
            return await self._strong.put(call, key, keyspace)
        text = call.query.get("ttl")
        ttl_ms = None if text is None else parse_ttl_ms(text)
        body = parse_json(await call.body())
        value = self._gateway.definitions.to_avro(keyspace, body)
        return await self._append(call, keyspace, key, value, ttl_ms)

    async def delete_value(self, call: Call) -> Reply:
        """Append a delete."""
        if (order := self._orders.addressed(call, _SLASHES)) is not None:
            return await self._orders.delete(call, order)
        key, keyspace = await self._addressed(call, "write")
        if keyspace.is_strong:
            return await self._strong.delete(call, key, keyspace)
        return await self._append(call, keyspace, key, self._delete_value, None)

    async def get_value(self, call: Call) -> Reply:
        """Read the merged row."""
        if (order := self._orders.addressed(call, _SLASHES)) is not None:
            return await self._orders.get(call, order)
        key, keyspace = await self._addressed(call, "read")
        if keyspace.is_strong:
            return await self._strong.get(call, key)
        return await point_read(self._gateway, call, keyspace.name, key)

    async def _addressed(self, call: Call, action: str) -> tuple[bytes, Keyspace]:
        key = validate_key(call.tail(_SLASHES))
        name = keyspace_of(key)
        await self._gateway.learn(call, name)
        keyspace = self._gateway.keyspace(call, name, action)
        if not keyspace.is_strong:
            refuse_strong(call, keyspace)
        return key, keyspace

    async def _append(self, call: Call, keyspace: Keyspace, key: bytes, value: bytes, ttl_ms: int | None) -> Reply:
        gateway = self._gateway
        token = gateway.token_of(call)
        headers = event_headers(gateway, keyspace, key, ttl_ms)
        identity = call.header(b"idempotency-key")
        if identity is not None:
            headers.append(("idempotency_key", identity.encode()))
        meta = await gateway.events.put(keyspace.events_topic, key, value, headers)
        gateway.metrics.events.labels(keyspace.name).inc()
        return self._accepted(key, meta, token)

    def _accepted(self, key: bytes, meta: RecordMeta, session: Token) -> Reply:
        region = self._gateway.region.name
        written = Token({Input(region, meta.topic, meta.partition): meta.next_offset})
        token = session.merge(written).encode()
        body = {
            "key": key.decode(),
            "topic": meta.topic,
            "partition": meta.partition,
            "offset": meta.offset,
            "region": region,
            "timestamp": meta.timestamp_ms,
            "token": token,
        }
        return reply(body, headers=((b"causal-token", token.encode()),))


def event_headers(
    gateway: Gateway, keyspace: Keyspace, key: bytes, ttl_ms: int | None
) -> list[tuple[str, bytes | None]]:
    """The headers of a new event: clock, origin, TTL, and the latest delete of the key that this gateway has seen."""
    headers: list[tuple[str, bytes | None]] = [
        ("hlc", b"%d" % gateway.clock.tick()),
        ("origin", gateway.region.name.encode()),
    ]
    ttl_ms = keyspace.ttl_ms if ttl_ms is None else ttl_ms
    if ttl_ms is not None:
        headers.append(("ttl_ms", b"%d" % ttl_ms))
    generation = gateway.tables.table(keyspace.name).generation_of(key)
    if generation:
        headers.append(("generation", b"%d" % generation))
    return headers


async def point_read(gateway: Gateway, call: Call, table: str, key: bytes) -> Reply:
    """The row of `key` in `table`, once the request's token and staleness are met; NotFound."""
    await gateway.learn(call, table)
    edge = gateway.table(call, table)
    token = gateway.token_of(call)
    if token.positions or "max_staleness" in call.query:
        token, _ = await gateway.settle(call, table)
    merged = edge.get(key)
    headers = gateway.read_headers(token, table)
    if merged is None:
        raise Absent(key, headers)
    return reply(gateway.row_of(key, merged), headers=headers)


class Absent(NotFound):
    """No value: never put, deleted or expired. The answer carries the token and staleness of the read."""

    title = "no value"

    def __init__(self, key: bytes, headers: tuple[tuple[bytes, bytes], ...]) -> None:
        super().__init__(
            f"{key.decode()[:200]} has no value", field="key", fix="it was never put here, was deleted, or has expired"
        )
        self.headers = headers
