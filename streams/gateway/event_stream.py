"""Server-sent events: the frame, and a sender that notices when the client leaves, or stops reading, or the gateway
closes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

from streams.gateway.connection import cut
from streams.gateway.context import Gateway
from streams.gateway.http import Call, Headers, Receive, Reply, Send
from streams.gateway.json_text import dump
from streams.gateway.problem import problem
from streams.model.errors import RequestTimeout, StreamsError

log = logging.getLogger(__name__)


class Abandoned(Exception):
    """The client reads nothing, not even the stream's end: its connection is cut."""


EVENT_STREAM = b"text/event-stream; charset=utf-8"
_HEADERS: Headers = ((b"cache-control", b"no-store"), (b"x-accel-buffering", b"no"))
IDLE = b": idle\n\n"
RETRY = b"retry: 1000\n\n"


def event(kind: str, value: object, position: str) -> bytes:
    """One event; a client that reconnects sends `position` back as `Last-Event-ID`."""
    return b"id: %b\nevent: %b\ndata: %b\n\n" % (position.encode(), kind.encode(), dump(value))


def mark(position: str) -> bytes:
    """No event, but a position to resume from."""
    return b"id: %b\n\n" % position.encode()


def failure(error: StreamsError) -> bytes:
    """Why the stream ends here, as its last event: a problem document. The client resumes where it was."""
    return b"event: error\ndata: %b\n\n" % problem(error).body


async def stream(gateway: Gateway, call: Call, kind: str, source: AsyncIterator[bytes]) -> Reply:
    """An answer that sends `source`'s bytes as they come; whole events at a time. `source` is closed when either side
    ends.

    What fails before the first bytes is a problem with its status, not a stream. TooManyRequests when this gateway
    serves as many streams as it may.
    """
    gateway.subscribers.check()
    if call.method == "HEAD":
        return Reply(content_type=EVENT_STREAM, headers=_HEADERS)
    first = await anext(source)

    async def write(receive: Receive, send: Send) -> None:
        pump = asyncio.create_task(_pump(gateway, kind, first, source, send))
        gone = asyncio.create_task(_gone(receive))
        closing = asyncio.create_task(gateway.closing.wait())
        try:
            await asyncio.wait({pump, gone, closing}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (pump, gone, closing):
                task.cancel()
            ended, *_ = await asyncio.gather(pump, gone, closing, return_exceptions=True)
        if isinstance(ended, Abandoned):
            host, port = call.scope["client"]
            cut(host, int(port))
            raise ended
        # Bounded: to a client that does not read, this too would wait for ever.
        with contextlib.suppress(RuntimeError, OSError):
            async with asyncio.timeout(gateway.subscribers.options.goodbye_s):
                await send({"type": "http.response.body", "body": b"", "more_body": False})

    return Reply(content_type=EVENT_STREAM, headers=_HEADERS, stream=write)


async def _pump(gateway: Gateway, kind: str, first: bytes, source: AsyncIterator[bytes], send: Send) -> None:
    limits = gateway.subscribers.options
    try:
        with gateway.subscribers.enter(kind):
            failed = await _send_all(gateway, first, source, send)
        if failed is not None:
            # The head is out, so the problem travels as an event.
            await _deliver(send, failure(failed), limits.goodbye_s)
    except RequestTimeout as error:
        raise Abandoned(str(error)) from None
    except (StreamsError, RuntimeError, OSError) as error:
        log.debug("a stream's client went away: %r", error)


async def _send_all(gateway: Gateway, first: bytes, source: AsyncIterator[bytes], send: Send) -> StreamsError | None:
    """Until the source or the client fails; the source, and what it holds, is let go of then."""
    stall_s = gateway.subscribers.options.stall_s
    try:
        await _deliver(send, first, stall_s)
        async for chunk in source:
            await _deliver(send, chunk, stall_s)
    except StreamsError as error:
        if isinstance(error, RequestTimeout):
            gateway.metrics.dropped.labels("slow").inc()
        return error
    finally:
        close = getattr(source, "aclose", None)
        if close is not None:
            await close()
    return None


async def _deliver(send: Send, chunk: bytes, stall_s: float) -> None:
    """Hand bytes to the server, which waits while the client does not read. RequestTimeout after `stall_s` of that."""
    try:
        async with asyncio.timeout(stall_s):
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
    except TimeoutError:
        error = RequestTimeout(f"nothing was read for {stall_s:g} s", fix="go on with Last-Event-ID")
        error.title = "slow consumer"
        raise error from None


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        continue
