"""Server-sent events: the frame, and a sender that notices when the client leaves or the gateway closes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

from streams.gateway.context import Gateway
from streams.gateway.http import Headers, Receive, Reply, Send
from streams.gateway.json_text import dump
from streams.gateway.problem import problem
from streams.model.errors import StreamsError

log = logging.getLogger(__name__)

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


def stream(gateway: Gateway, kind: str, source: AsyncIterator[bytes]) -> Reply:
    """An answer that sends `source`'s bytes as they come. `source` is closed when either side ends."""

    async def write(receive: Receive, send: Send) -> None:
        pump = asyncio.create_task(_pump(source, send))
        gone = asyncio.create_task(_gone(receive))
        closing = asyncio.create_task(gateway.closing.wait())
        gateway.metrics.streams.labels(kind).inc()
        try:
            await asyncio.wait({pump, gone, closing}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gateway.metrics.streams.labels(kind).dec()
            for task in (pump, gone, closing):
                task.cancel()
            await asyncio.gather(pump, gone, closing, return_exceptions=True)
            with contextlib.suppress(RuntimeError, OSError):
                await send({"type": "http.response.body", "body": b"", "more_body": False})

    return Reply(content_type=EVENT_STREAM, headers=_HEADERS, stream=write)


async def _pump(source: AsyncIterator[bytes], send: Send) -> None:
    try:
        async for chunk in source:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
    except StreamsError as error:
        # The head is out, so the problem travels as an event; the client resumes where it was.
        frame = b"event: error\ndata: %b\n\n" % problem(error).body
        await send({"type": "http.response.body", "body": frame, "more_body": True})
    except (RuntimeError, OSError) as error:
        log.debug("a stream's client went away: %r", error)
    finally:
        close = getattr(source, "aclose", None)
        if close is not None:
            await close()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        continue
