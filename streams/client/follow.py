"""Following a stream of events over connections that break: it goes on after the last event that was seen."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Any

import aiohttp
import orjson

from streams.client.transport import Transport
from streams.client.types import Event
from streams.model.errors import StreamsError, Unavailable, error_of
from streams.model.token import CURSOR_BYTES_MAX, Token

GIVE_UP_S = 120.0
CONNECT_S = 10.0


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to try again, seconds: `connect_s` before anything was received, `give_up_s` since the last contact.

    Pauses begin at `first_s` and double up to `most_s`; each is shortened at random by up to a half.
    """

    give_up_s: float = GIVE_UP_S
    connect_s: float = CONNECT_S
    first_s: float = 0.1
    most_s: float = 5.0

    def pause_s(self, failures: int, draw: Callable[[], float] = random.random) -> float:
        """Before the next attempt, after so many failed ones in a row. `draw`: from [0, 1)."""
        return float(min(self.most_s, self.first_s * 2 ** min(failures, 30)) * (0.5 + draw() / 2))


async def follow(
    transport: Transport, path: str, query: dict[str, str], patience: Patience
) -> AsyncGenerator[Event, None]:
    """The events of `PATH:subscribe`, each once and in order, without end; closing it closes the connection.

    Holds what one read of the socket gave, at most 2 MiB and a part of an event: a slow caller slows the sender down.
    Unavailable when it cannot be resumed within `patience`; what trying again cannot mend is raised at once (Conflict:
    events were removed from the log before they were read).
    """
    last, failures, met = "", 0, False
    contact_s = time.monotonic()
    while True:
        began_s = time.monotonic()
        try:
            async with contextlib.aclosing(transport.events(path, query, last)) as stream:
                async for position, kind, data in stream:
                    if kind == "error":
                        body = orjson.loads(data)
                        raise error_of(int(body["status"]), body)
                    last, met, contact_s = position, True, time.monotonic()
                    if data:
                        failures = 0
                        yield _event(orjson.loads(data), last)
                        contact_s = time.monotonic()  # the caller's time is not the gateway's silence
            trouble: Exception = Unavailable("the gateway ended the stream")
        except (StreamsError, aiohttp.ClientError, TimeoutError, OSError) as error:
            if isinstance(error, StreamsError) and not error.retriable:
                raise
            trouble = error
        now_s = time.monotonic()
        if now_s - began_s > patience.most_s:
            failures = 0
        pause_s, left_s = patience.pause_s(failures), patience.give_up_s if met else patience.connect_s
        if now_s - contact_s + pause_s > left_s:
            raise _given_up(trouble, failures + 1, now_s - contact_s, last) from trouble
        failures += 1
        await asyncio.sleep(pause_s)


def _given_up(trouble: Exception, attempts: int, silent_s: float, last: str) -> Unavailable:
    what = trouble.detail if isinstance(trouble, StreamsError) else str(trouble) or type(trouble).__name__
    return Unavailable(
        f"the stream cannot be had: {what}; tried {attempts} times, {silent_s:.0f} s without contact",
        fix="subscribe again from the last event's token" if last else "is the region up? see `streams status`",
    )


def _event(body: dict[str, Any], position: str) -> Event:
    return Event(
        body["op"],
        body["key"],
        body["value"],
        body["partition"],
        body["offset"],
        body["timestamp"],
        body["region"],
        Token.decode(position, CURSOR_BYTES_MAX),
        body.get("part"),
    )
