"""Routes as declarations, and the ASGI application that each path becomes."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from starlette.convertors import Convertor, register_url_convertor
from starlette.routing import Route

from streams.gateway.auth import Authority, authorize
from streams.gateway.http import Call, Disconnected, Receive, Reply, Scope, Send, Stopwatch, send_reply
from streams.gateway.idempotency import IdempotencyStore, fingerprint
from streams.gateway.metrics import Metrics
from streams.gateway.params import IDEMPOTENCY_KEY, AnyParam
from streams.gateway.problem import InternalError, MethodNotAllowed, problem
from streams.model.errors import BadInput, StreamsError, TooLarge, Unavailable, UnsupportedMedia


class _AnyText(Convertor[str]):
    """The rest of a path, line breaks included: keys hold any character."""

    regex = "(?s:.*)"

    def convert(self, value: str) -> str:
        """As it is."""
        return value

    def to_string(self, value: str) -> str:
        """As it is."""
        return value


register_url_convertor("any", _AnyText())
log = logging.getLogger(__name__)

HASHED_INLINE_BYTES = 256 << 10
"""Larger bodies are hashed in a thread, which lets the event loop go on."""

Handler = Callable[[Call], Awaitable[Reply]]


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path: what is served and what is documented, in one place.

    `action`: `open` (no token needed), `read`, `write` or `admin`. `bodies`: JSON Schema by media type. `answers`:
    description by status, of what is particular to this operation; `answer`: JSON Schema of a good one. `notes`:
    what else to document. PUT and POST honour `Idempotency-Key`.
    """

    method: str
    path: str
    handler: Handler
    summary: str
    action: str = "read"
    params: Sequence[AnyParam] = ()
    bodies: dict[str, dict[str, object]] = field(default_factory=dict)
    answers: dict[int, str] = field(default_factory=dict)
    answer_type: str = "application/json"
    answer: dict[str, object] = field(default_factory=dict)
    tag: str = "tables"
    notes: str = ""

    @property
    def idempotent_by_key(self) -> bool:
        """Whether `Idempotency-Key` is honoured."""
        return self.method in ("PUT", "POST")


class EndpointServices(Protocol):
    """What every endpoint needs from the gateway."""

    authority: Authority
    idempotency: IdempotencyStore
    metrics: Metrics
    started: bool

    @property
    def body_limit_bytes(self) -> int:
        """Largest body that is read into memory."""
        ...


class Endpoint:
    """The ASGI application of one path."""

    def __init__(self, services: EndpointServices, operations: Sequence[Operation]) -> None:
        self._services = services
        self._operations = {operation.method: operation for operation in operations}
        if "GET" in self._operations:
            self._operations.setdefault("HEAD", self._operations["GET"])
        self._route = operations[0].path
        self._counts: dict[tuple[str, int], Any] = {}
        self._timers = {
            method: services.metrics.seconds.labels(method, self._route) for method in (*self._operations, "other")
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request: problems become documents, and nothing else escapes."""
        watch = Stopwatch()
        call = Call(scope, receive, self._services.body_limit_bytes)
        extra: tuple[tuple[bytes, bytes], ...] = ()
        try:
            answer, replayed = await self._answer(call)
            if replayed:
                extra = ((b"idempotent-replayed", b"true"),)
        except StreamsError as error:
            answer = problem(error)
            if isinstance(error, TooLarge):
                await call.drain()
        except Disconnected:
            answer = problem(BadInput("the body broke off", field="body", fix="send it whole, framed as HTTP/1.1 says"))
        except Exception:
            # The last resort: a defect must cost one request, not the process. The traceback goes to the log.
            log.exception("%s %s failed", call.method, scope.get("path"))
            answer = problem(InternalError("the gateway failed on this request", fix="see the gateway's log"))
        if call.method == "HEAD":
            answer = Reply(b"", answer.status, answer.content_type, answer.headers)
        self._count(call.method, answer.status)
        await send_reply(answer, receive, send, extra)
        if answer.stream is None:
            self._timers.get(call.method, self._timers["other"]).observe(watch.seconds)

    async def _answer(self, call: Call) -> tuple[Reply, bool]:
        operation = self._operations.get(call.method)
        if operation is None:
            allowed = ", ".join(self._operations)
            raise MethodNotAllowed(f"{call.method} is not served here", allowed)
        if operation.action != "open":
            if not self._services.started:
                raise Unavailable("the gateway is starting", fix="wait until /readyz answers 200")
            call.principal = self._services.authority.authenticate(call.header(b"authorization"))
            if operation.action == "admin":
                authorize(call.principal, "", "admin")
        if operation.idempotent_by_key and (call.header(b"content-encoding") or "identity").lower() != "identity":
            raise UnsupportedMedia(
                "compressed bodies are not read", field="Content-Encoding", fix="send the body as it is"
            )
        key = call.header(b"idempotency-key") if operation.idempotent_by_key else None
        if key is None:
            return await operation.handler(call), False
        target = bytes(call.scope.get("raw_path") or b"") + b"?" + bytes(call.scope["query_string"])
        target += repr((call.header(b"if-match"), call.header(b"if-none-match"))).encode()
        body = await call.body()
        facts = (call.method, target, call.content_type, call.principal.name, body)
        large = len(body) >= HASHED_INLINE_BYTES
        print_ = await asyncio.to_thread(fingerprint, *facts) if large else fingerprint(*facts)
        return await self._services.idempotency.run(key, print_, lambda: self._settled(operation, call))

    @staticmethod
    async def _settled(operation: Operation, call: Call) -> Reply:
        """The handler's answer, where a refusal (4xx) is an answer too, to be kept like any other."""
        try:
            return await operation.handler(call)
        except StreamsError as error:
            return problem(error)

    def _count(self, method: str, status: int) -> None:
        child = self._counts.get((method, status))
        if child is None:
            child = self._services.metrics.requests.labels(method, self._route, status)
            self._counts[method, status] = child
        child.inc()


def routes_of(services: EndpointServices, operations: Sequence[Operation]) -> list[Route]:
    """One Starlette route per path, in the order of the paths' first operations."""
    by_path: dict[str, list[Operation]] = {}
    for operation in operations:
        by_path.setdefault(operation.path, []).append(operation)
    return [Route(path, Endpoint(services, group)) for path, group in by_path.items()]


def openapi_path(path: str) -> str:
    """A route's path as OpenAPI writes it: convertors dropped."""
    return re.sub(r"\{(\w+):\w+\}", r"{\1}", path)


def described_params(operation: Operation) -> list[dict[str, object]]:
    """Every parameter of the operation, those that all PUTs and POSTs share included."""
    shared = (IDEMPOTENCY_KEY,) if operation.idempotent_by_key else ()
    return [param.to_openapi() for param in (*operation.params, *shared)]
