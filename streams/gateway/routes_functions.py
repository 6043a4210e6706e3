"""`/v1/functions`: run a function at this edge. Its answer goes out when what it has put is durable."""

from __future__ import annotations

import asyncio

from streams.gateway.auth import authorize
from streams.gateway.context import Gateway
from streams.gateway.endpoint import Operation
from streams.gateway.functions import Function, FunctionService, ReadyPut
from streams.gateway.http import Call, Headers, Reply, reply
from streams.gateway.json_text import dump
from streams.gateway.params import CAUSAL_TOKEN, Param
from streams.gateway.routes_kv import event_headers
from streams.model.errors import BadInput, StreamsError, Unavailable
from streams.model.token import Input, Token
from streams.serde import parse_json
from streams.wasm.function_abi import FunctionRequest
from streams.wasm.function_host import FunctionResult

NAME = Param("name", "path", "The function", {"type": "string"}, True)
USER = Param("Streams-User", "header", "The user's attributes, a JSON object", {"type": "string"})
_HEADERS = (b"content-type", b"accept", b"accept-language", b"user-agent", b"referer")
"""Besides those that begin with `x-`. Never `authorization` or `cookie`: a function is not who they are for."""
_FIELDS_MAX = 200


class FunctionRoutes:
    """Handlers of functions."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def operations(self) -> list[Operation]:
        """The routes."""
        one = "/v1/functions/{name}"
        return [
            Operation("GET", "/v1/functions", self.list_functions, "Functions that run here", tag="functions"),
            Operation(
                "GET", one, self.get_function, "One of them", "read", (NAME,), answers={404: "Unknown"}, tag="functions"
            ),
            Operation(
                "POST",
                one,
                self.invoke,
                "Run a function at this edge: request in, response out",
                "read",
                (NAME, USER, CAUSAL_TOKEN),
                {"*/*": {"description": "Whatever the function takes; query parameters reach it too"}},
                {
                    404: "Unknown",
                    413: "Over half of the function's memory",
                    429: "As many requests as it allows are under way",
                    502: "The function itself failed: `udf`, `version` and `trap` say how",
                    504: "The function ran longer than its deadline",
                },
                answer_type="*/*",
                tag="functions",
                notes="Answers with the status, headers and body that the function gives. `Streams-Puts` names the "
                "events that it has put, topic/partition@offset; all are durable. A problem without `executed` means "
                "that nothing was put.",
            ),
        ]

    @property
    def _service(self) -> FunctionService:
        if self._gateway.functions is None:
            raise Unavailable("this gateway runs no functions", fix="start it with `streams gateway`")
        return self._gateway.functions

    async def list_functions(self, call: Call) -> Reply:
        """Those loaded, by name."""
        return reply({"functions": [self._shown(each) for _, each in sorted(self._service.loaded.items())]})

    async def get_function(self, call: Call) -> Reply:
        """What it may do, and how its requests have ended here. `idempotent`: running one twice does no harm."""
        return reply(self._shown(await self._service.find(call.part("name"))))

    def _shown(self, function: Function) -> dict[str, object]:
        of, part = function.deployment, function.part
        return {
            "name": of.name,
            "version": of.manifest.version,
            "sha256": of.sha256,
            "idempotent": part.idempotent,
            "capabilities": list(part.capabilities),
            "tables": list(part.tables),
            "puts": list(part.puts),
            "region": self._gateway.region.name,
            "node": self._gateway.probes.node,
            "busy": function.busy,
            "requests": dict(function.counts),
        }

    async def invoke(self, call: Call) -> Reply:
        """Run it, make what it put durable, answer."""
        service = self._service
        function = await service.find(call.part("name"))
        part = function.part
        for table in part.tables:
            if not self._gateway.tables.is_served(table):
                raise Unavailable(f"this region does not serve table {table} yet", fix="try again, or elsewhere")
            for keyspace in self._gateway.tables.table(table).spec.keyspaces:
                authorize(call.principal, keyspace, "read")
        for keyspace in part.puts:
            authorize(call.principal, keyspace, "write")
        token = self._gateway.token_of(call)
        if token.positions:
            await asyncio.gather(*(self._gateway.await_token(token, table) for table in part.tables))
        body = await call.body()
        service.admit(function)
        try:
            result = await service.run(function, self._request(call, function, body).encode())
            receipts, token = await self._produce(call, result.puts, token)
        finally:
            function.busy -= 1
        function.say(result.log)
        return self._answered(function, result, receipts, token)

    def _request(self, call: Call, function: Function, body: bytes) -> FunctionRequest:
        of = function.deployment
        fields = {
            "method": call.method.encode(),
            "region": self._gateway.region.name.encode(),
            "node": self._gateway.probes.node.encode(),
            "function": of.name.encode(),
            "version": of.manifest.version.encode(),
        }
        for name, value in call.query_pairs():
            fields.setdefault(f"query.{name}", value.encode())
        for raw, text in call.scope["headers"]:
            header = bytes(raw).lower()
            if header in _HEADERS or header.startswith(b"x-"):
                fields.setdefault(f"header.{header.decode('latin-1')}", bytes(text))
        fields |= _attributes(USER.text(call))
        if len(fields) > _FIELDS_MAX:
            raise BadInput(f"there are over {_FIELDS_MAX} parameters and headers", field="query", fix="send fewer")
        fields["body"] = body
        return FunctionRequest(fields)

    async def _produce(self, call: Call, puts: list[ReadyPut], token: Token) -> tuple[list[str], Token]:
        """Make the puts durable, those of a keyspace in their order; where they are, and the token that covers them."""
        if not puts:
            return [], token
        gateway, identity = self._gateway, call.header(b"idempotency-key")
        by_topic: dict[str, list[tuple[bytes, bytes, list[tuple[str, bytes | None]]]]] = {}
        for put in puts:
            headers = event_headers(gateway, put.keyspace, put.key, put.ttl_ms)
            if identity is not None:
                headers.append(("idempotency_key", identity.encode()))
            by_topic.setdefault(put.keyspace.events_topic, []).append((put.key, put.value, headers))
        sending = [self._send(topic, records) for topic, records in by_topic.items()]
        found = await asyncio.gather(*sending, return_exceptions=True)
        for each in found:
            if isinstance(each, StreamsError):
                # Some of it may be in the log: whoever asks again must know that it is no fresh start.
                each.extra = {**each.extra, "executed": True}
            if isinstance(each, BaseException):
                raise each
        for put in puts:
            gateway.metrics.events.labels(put.keyspace.name).inc()
        receipts: list[str] = []
        positions: dict[Input, int] = {}
        for each in found:
            assert not isinstance(each, BaseException)
            for topic, partition, offset in each:
                receipts.append(f"{topic}/{partition}@{offset}")
                where = Input(gateway.region.name, topic, partition)
                positions[where] = max(positions.get(where, 0), offset + 1)
        return receipts, token.merge(Token(positions))

    async def _send(
        self, topic: str, records: list[tuple[bytes, bytes, list[tuple[str, bytes | None]]]]
    ) -> list[tuple[str, int, int]]:
        if len(records) == 1:
            meta = await self._gateway.events.put(topic, *records[0])
            return [(topic, meta.partition, meta.offset)]
        batch = await self._gateway.events.put_batch(topic, records)
        return [
            (topic, int(partition), int(offset))
            for partition, offset in zip(batch.partitions, batch.offsets, strict=True)
        ]

    def _answered(self, function: Function, result: FunctionResult, receipts: list[str], token: Token) -> Reply:
        gateway, answer = self._gateway, result.answer
        for table in result.tables:
            token = token.merge(gateway.tables.applied_by(table))
        own: list[tuple[bytes, bytes]] = [(b"streams-region", gateway.region.name.encode())]
        if token.positions:
            own.append((b"causal-token", token.encode().encode()))
        if function.part.idempotent:
            own.append((b"streams-idempotent", b"true"))
        if receipts:
            own.append((b"streams-puts", ", ".join(receipts).encode()))
        headers: Headers = (*answer.headers, *own)
        return Reply(answer.body, answer.status, answer.content_type, headers)


def _attributes(text: str | None) -> dict[str, bytes]:
    """`user.NAME` of a JSON object's members: strings as they are, other values as JSON."""
    if text is None:
        return {}
    found = parse_json(text.encode("latin-1"), field="Streams-User")
    if not isinstance(found, dict):
        raise BadInput("it is no JSON object", field="Streams-User", fix='as in {"id": "alice", "country": "NO"}')
    return {f"user.{name}": value.encode() if isinstance(value, str) else dump(value) for name, value in found.items()}
