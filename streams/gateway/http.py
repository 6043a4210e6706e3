"""The request and the answer, as handlers see them, and the endpoint that stands between them and ASGI.

A handler is `async (call) -> Reply`. Everything that every route needs happens once, here: limits on bodies, errors as
problem documents, idempotency keys, authorisation, metrics.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote_to_bytes

from streams.gateway.auth import ANYONE, Principal
from streams.gateway.json_text import dump
from streams.model.errors import BadInput, NotFound, RequestTimeout, TooLarge

Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Headers = tuple[tuple[bytes, bytes], ...]

JSON = b"application/json"
DRAIN_BYTES_MAX = 64 << 20
"""How much of a refused body is still read and dropped, so that the client gets to read the answer."""
DRAIN_S = 10.0
"""How long that may take."""
BODY_IDLE_S = 30.0
"""How long a client may pause within a body."""


class Disconnected(Exception):
    """The client went away, or broke HTTP, before its request was complete."""


Streamer = Callable[[Receive, Send], Awaitable[None]]
"""Writes the body of a streaming answer; ends when the client goes away or the gateway closes."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer: `body` as it goes out, or `stream`, which writes the body itself."""

    body: bytes = b""
    status: int = 200
    content_type: bytes = JSON
    headers: Headers = ()
    stream: Streamer | None = None


def reply(value: object, *, status: int = 200, headers: Headers = ()) -> Reply:
    """A JSON answer."""
    return Reply(dump(value), status, JSON, headers)


@dataclass(slots=True)
class Call:
    """One request. Texts are decoded strictly: what is not UTF-8 is BadInput, never a replacement character."""

    scope: Scope
    receive: Receive
    body_limit_bytes: int
    principal: Principal = ANYONE
    _query: dict[str, str] | None = field(default=None)
    _headers: dict[bytes, bytes] | None = field(default=None)
    _body: bytes | None = field(default=None)

    @property
    def method(self) -> str:
        """The request's method, upper case."""
        return str(self.scope["method"])

    def part(self, name: str) -> str:
        """A part of the path, decoded."""
        return str(self.scope["path_params"][name])

    def tail(self, slashes: int) -> bytes:
        """What follows the path's n-th slash, percent-decoded once, as bytes: keys hold any character."""
        raw: bytes = self.scope.get("raw_path") or str(self.scope["path"]).encode()
        parts = raw.split(b"/", slashes)
        if len(parts) <= slashes:
            raise NotFound("a slash before the key is percent-encoded", field="path", fix="write %2F only in keys")
        return unquote_to_bytes(parts[slashes])

    @property
    def query(self) -> Mapping[str, str]:
        """The query's parameters; of a repeated one the last."""
        if self._query is None:
            self._query = dict(self.query_pairs())
        return self._query

    def query_pairs(self) -> list[tuple[str, str]]:
        """The query's parameters as they came. BadInput when they are not UTF-8."""
        raw: bytes = self.scope["query_string"]
        if not raw:
            return []
        try:
            return parse_qsl(raw.decode("ascii"), keep_blank_values=True, errors="strict")
        except (UnicodeError, ValueError):
            raise BadInput("the query is not UTF-8", field="query", fix="percent-encode it as UTF-8") from None

    def header(self, name: bytes) -> str | None:
        """A header by its lower-case name."""
        if self._headers is None:
            self._headers = {bytes(key).lower(): bytes(value) for key, value in self.scope["headers"]}
        value = self._headers.get(name)
        return None if value is None else value.decode("latin-1")

    @property
    def content_type(self) -> str:
        """The body's media type, lower case, without parameters; '' when unnamed."""
        return (self.header(b"content-type") or "").partition(";")[0].strip().lower()

    async def chunks(self, limit_bytes: int) -> AsyncIterator[bytes]:
        """The body as it arrives; TooLarge as soon as it passes `limit_bytes`. Memory: one chunk."""
        if self._body is not None:
            yield self._body
            return
        self._check_length(self._declared_bytes(), limit_bytes)
        total = 0
        while True:
            message = await self._next()
            chunk = message.get("body", b"")
            total += len(chunk)
            self._check_length(total, limit_bytes)
            if chunk:
                yield chunk
            if not message.get("more_body"):
                return

    async def body(self) -> bytes:
        """The whole body, kept for a second reading. TooLarge over the gateway's limit."""
        if self._body is None and self._has_none():
            self._body = b""  # asking the server for it would cost more than a short answer
        if self._body is None:
            parts = [chunk async for chunk in self.chunks(self.body_limit_bytes)]
            self._body = parts[0] if len(parts) == 1 else b"".join(parts)
        return self._body

    async def _next(self) -> Mapping[str, Any]:
        """The next piece of the body. Disconnected; RequestTimeout when none comes within `BODY_IDLE_S`."""
        try:
            async with asyncio.timeout(BODY_IDLE_S):
                message = await self.receive()
        except TimeoutError:
            raise RequestTimeout(
                f"no more of the body came within {BODY_IDLE_S:g} s", field="body", fix="send it without pauses"
            ) from None
        if message["type"] == "http.disconnect":
            raise Disconnected
        return message

    async def drain(self) -> None:
        """Read and drop what is left of a refused body, within bounds; nothing when the client waits or sends more."""
        if self._body is not None:
            return  # all of it was read: waiting for more would be waiting for the client to leave
        declared = self._declared_bytes()
        if declared > DRAIN_BYTES_MAX or self.header(b"expect") is not None:
            return
        dropped = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_S):
                while dropped < DRAIN_BYTES_MAX:
                    message = await self.receive()
                    if message["type"] == "http.disconnect" or not message.get("more_body"):
                        return
                    dropped += len(message.get("body", b""))

    def _has_none(self) -> bool:
        """Whether the head says that no body follows, as HTTP/1 does by neither length nor encoding."""
        if not str(self.scope.get("http_version", "")).startswith("1"):
            return False
        return self._declared_bytes() == 0 and self.header(b"transfer-encoding") is None

    def _declared_bytes(self) -> int:
        text = self.header(b"content-length") or "0"
        return int(text) if text.isdecimal() else 0

    @staticmethod
    def _check_length(length: int, limit_bytes: int) -> None:
        if length > limit_bytes:
            raise TooLarge(
                f"the body is over the limit of {limit_bytes} bytes",
                field="body",
                fix="send less at once, or raise the gateway's --body-limit-mib",
            )


async def send_reply(answer: Reply, receive: Receive, send: Send, extra: Sequence[tuple[bytes, bytes]] = ()) -> None:
    """Write `answer` to the client."""
    headers = [(b"content-type", answer.content_type), *answer.headers, *extra]
    if answer.stream is not None:
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await answer.stream(receive, send)
        return
    headers.append((b"content-length", b"%d" % len(answer.body)))
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})


class Stopwatch:
    """Milliseconds since it was made, from the monotonic clock."""

    __slots__ = ("_start",)

    def __init__(self) -> None:
        self._start = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Elapsed time in seconds."""
        return time.perf_counter() - self._start
