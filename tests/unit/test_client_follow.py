"""The client's side of a stream: goes on after the last whole event, gives up in time, raises what cannot be mended."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field

import pytest

from streams.client import AsyncClient, Event, connect, connect_sync
from streams.client.follow import Patience
from streams.model.errors import Conflict, Unavailable
from streams.model.token import Input, Token
from tests.support.polling import eventually

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"


def token(position: int) -> str:
    return Token({Input("us-east", "events.device", 0): position}).encode()


def shown(number: int, size: int = 0) -> bytes:
    body = {
        "op": "put",
        "key": f"device:{number}",
        "value": {"metric": "m", "value": 1.0, "time": 7, "pad": "x" * size},
        "partition": 0,
        "offset": number,
        "timestamp": 9,
        "region": "us-east",
    }
    return f"id: {token(number + 1)}\nevent: put\ndata: {json.dumps(body)}\n\n".encode()


def refusal(status: int, detail: str) -> bytes:
    body = json.dumps({"title": "t", "status": status, "detail": detail}).encode()
    head = f"HTTP/1.1 {status} X\r\nContent-Type: application/problem+json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


@dataclass
class Script:
    """A server that answers each connection with the next of `answers`, then closes it; the last one's stay open."""

    answers: list[bytes]
    url: str = ""
    asked: list[str] = field(default_factory=list)
    open_connections: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        self.asked.append(next((x[15:] for x in head.split("\r\n") if x.lower().startswith("last-event-id")), ""))
        self.open_connections += 1
        try:
            writer.write(self.answers.pop(0) if self.answers else refusal(503, "down"))
            await writer.drain()
            if not self.answers:
                await reader.read()
        except ConnectionError:
            pass
        finally:
            self.open_connections -= 1
            writer.close()


@asynccontextmanager
async def scripted(*answers: bytes) -> AsyncIterator[tuple[Script, AsyncClient]]:
    script = Script(list(answers))
    server = await asyncio.start_server(script.serve, "127.0.0.1", 0)
    script.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        async with connect(script.url) as edge:
            yield script, edge
    finally:
        server.close()


async def take(edge: AsyncClient, count: int, **options: object) -> list[Event]:
    found: list[Event] = []
    async with aclosing(edge.subscribe_partition("iot:region:us-east", **options)) as events:  # type: ignore[arg-type]
        async for event in events:
            found.append(event)
            if len(found) == count:
                break
    return found


async def test_it_goes_on_after_the_last_whole_event() -> None:
    half = shown(2)[:-20]
    full = b'event: error\ndata: {"status": 429, "detail": "full", "title": "t"}\n\n'
    answers = (
        HEAD + b"retry: 1000\nid: a\n\n" + shown(0) + shown(1) + half,
        refusal(503, "starting"),
        HEAD + shown(2) + b": idle\n\n" + full,
        HEAD + f"id: {token(3)}\n\n".encode() + shown(3) + shown(4),
    )
    async with scripted(*answers) as (script, edge):
        found = await take(edge, 5)
        assert [event.offset for event in found] == [0, 1, 2, 3, 4]
        assert script.asked == ["", token(2), token(2), token(3)]
        assert (found[0].time, found[0].timestamp, found[0].token) == (7, 9, token(1))
        await eventually(lambda: script.open_connections == 0)


async def test_what_cannot_be_mended_is_raised_at_once() -> None:
    gone = b'event: error\ndata: {"status": 409, "detail": "removed", "title": "conflict"}\n\n'
    for answers in ((refusal(409, "removed"),), (HEAD + shown(0) + gone, refusal(200, ""))):
        async with scripted(*answers) as (script, edge):
            with pytest.raises(Conflict, match="removed"):
                await take(edge, 9)
            assert len(script.asked) == 1


@pytest.mark.parametrize("answers", [(), (HEAD + shown(0), refusal(503, "down"))], ids=["never", "no more"])
async def test_it_gives_up_in_time_and_says_so(answers: tuple[bytes, ...]) -> None:
    async with scripted(*answers) as (script, edge):
        script.answers += [refusal(503, "down")] * 50
        with pytest.raises(Unavailable, match="tried") as failure:
            async with asyncio.timeout(30):
                await take(edge, 9, give_up_s=1.0)
        assert "down" in str(failure.value) and 3 <= len(script.asked) <= 12


async def test_a_stream_that_always_breaks_at_once_is_not_asked_for_without_pauses() -> None:
    async with scripted(*[HEAD + b"id: x\n\n"] * 100) as (script, edge):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(2):
                await take(edge, 1)
        assert 2 <= len(script.asked) <= 15


async def test_leaving_the_loop_closes_the_connection() -> None:
    async with scripted(HEAD + shown(0)) as (script, edge):
        async for _ in edge.subscribe_partition("iot:region:us-east"):
            assert script.open_connections == 1
            break
        await eventually(lambda: script.open_connections == 0)


async def test_a_slow_caller_slows_the_sender_down() -> None:
    """The client takes no more from the socket than its buffer holds, however much there is."""
    count, size = 400, 100_000
    everything = HEAD + b"".join(shown(i, size) for i in range(count))
    async with (
        scripted(everything, refusal(503, "")) as (_, edge),
        aclosing(edge.subscribe_partition("iot:region:us-east")) as events,
    ):
        await anext(events)
        (connection,) = edge._transport._http._connector._acquired  # type: ignore[union-attr]
        await eventually(lambda: connection._reading_paused)
        for number in range(1, count):
            assert (await anext(events)).offset == number


async def test_the_synchronous_twin_is_bounded() -> None:
    async with scripted(HEAD + shown(0) + shown(1) + shown(2)) as (script, _):

        def read(**bounds: float) -> list[int]:
            with connect_sync(script.url) as edge:
                return [each.offset for each in edge.subscribe_partition("iot:region:us-east", **bounds)]  # type: ignore[arg-type]

        script.answers *= 3
        script.answers.append(b"")
        assert await asyncio.to_thread(read, limit=2) == [0, 1]
        script.answers = [HEAD + shown(0) + shown(1) + shown(2)]
        assert await asyncio.to_thread(read, quiet_s=1.0) == [0, 1, 2]


def test_pauses_grow_to_a_bound_and_differ() -> None:
    patience = Patience(first_s=0.1, most_s=5.0)
    draws: list[Callable[[], float]] = [lambda: 0.0, lambda: 1.0]
    low, high = ([patience.pause_s(n, draw) for n in range(1000)] for draw in draws)
    assert high[:3] == pytest.approx([0.1, 0.2, 0.4]) and low[:3] == pytest.approx([0.05, 0.1, 0.2])
    assert max(high) == 5.0 and low[-1] == 2.5
