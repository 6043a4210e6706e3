"""Streams at a gateway, over HTTP: who is refused, who is cut off, and what a proxy passes on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from unittest import mock

import psutil
import pytest

from streams.gateway.auth import Authority
from streams.gateway.context import GatewayOptions
from streams.gateway.event_stream import IDLE, event
from streams.gateway.peers import NODES_MAX, Peers, region_of_topic, wall_ms
from streams.gateway.server import ServerOptions, announcement_of
from streams.gateway.subscribers import StreamOptions
from streams.gateway.subscription import feed_of, puts_of
from streams.kafka.records import EventRecord
from streams.model.errors import BadInput, NotFound, TooManyRequests
from streams.model.keyspace import BUILTIN
from streams.model.peer import TTL_MS, Announcement
from streams.model.token import Input, Token
from streams.model.topology import Region, Topology
from streams.serde import purge_frames
from tests.support.gateway import TestGateway, running_gateway
from tests.support.polling import eventually

QUICK = StreamOptions(idle_s=0.2, stall_s=0.5, goodbye_s=0.2, subscribers_max=3)
DEVICE = next(each for each in BUILTIN if each.name == "device")
TOPOLOGY = Topology((Region("us-east", "k", "http://a:8101", 8101), Region("eu-west", "k", "http://b:8102", 8102)))


def heard(node: str, time_ms: int, region: str = "eu-west", url: str = "") -> Announcement:
    return Announcement(node, region, url or f"http://{node}:1", time_ms)


# ---- who there is


def test_announced_gateways_come_before_the_topologys_and_expired_ones_last() -> None:
    now_ms = 1_000_000
    peers = Peers(TOPOLOGY, lambda: now_ms)
    assert peers.urls("eu-west") == ["http://b:8102"] and peers.regions == ("us-east", "eu-west")
    peers.hear(heard("old", now_ms - TTL_MS))
    peers.hear(heard("one", now_ms - 5))
    peers.hear(heard("two", now_ms + 10 * TTL_MS, url="http://of-a-wrong-clock:1"))
    assert peers.urls("eu-west")[:2] == ["http://one:1", "http://b:8102"]
    peers.hear(heard("two", now_ms - 1))
    assert peers.urls("eu-west") == ["http://two:1", "http://one:1", "http://b:8102", "http://old:1"]
    peers.forget("eu-west", "two")
    assert "http://two:1" not in peers.urls("eu-west")
    peers.hear(heard("far", now_ms, "ap-south"))
    assert peers.urls("ap-south") == ["http://far:1"]
    peers.know("silent")
    assert peers.urls("silent") == [] and peers.regions == ("us-east", "eu-west", "ap-south", "silent")
    with pytest.raises(NotFound, match="choose one of us-east, eu-west, ap-south, silent"):
        peers.urls("mars")


def test_what_is_remembered_of_gateways_is_bounded() -> None:
    now_ms = 10**12
    peers = Peers(TOPOLOGY, lambda: now_ms)
    for number in range(NODES_MAX + 5):
        peers.hear(heard(f"n{number}", now_ms + number))
    assert len(peers.announcements) == NODES_MAX
    assert "n0" not in {each.node for each in peers.announcements}
    now_ms += 2 * 24 * 3_600_000
    peers.hear(heard("new", now_ms))
    assert [each.node for each in peers.announcements] == ["new"]


def test_announcements_that_say_nothing_usable_are_refused() -> None:
    good = heard("a", 5).to_json()
    assert Announcement.from_json(good) == heard("a", 5)
    bad = [{"url": "ftp://x"}, {"url": "http://"}, {"url": "http://a:99999999"}, {"url": 5}, {"node": ""}]
    bad += [{"node": "a b"}, {"time_ms": -1}, {"ttl_ms": "1"}, {"latitude": 91, "longitude": 0}, {"latitude": 1}]
    for change in bad:
        with pytest.raises(BadInput):
            Announcement.from_json({**good, **change})
    assert [region_of_topic(name, "us-east") for name in ("gateways", "eu-west.gateways", "a.b.gateways", "x")] == [
        "us-east",
        "eu-west",
        None,
        None,
    ]


def test_a_gateway_announces_where_others_reach_it(tmp_path: Path) -> None:
    def of(region: Region = TOPOLOGY.home, **options: object) -> tuple[str, str]:
        found = announcement_of(ServerOptions(region.name, tmp_path, **options), region)  # type: ignore[arg-type]
        return found.node, found.url

    assert of() == ("gateway-us-east", "http://a:8101")
    assert of(host="0.0.0.0") == ("gateway-us-east", "http://a:8101")
    assert of(port=9) == ("gateway-us-east-127.0.0.1:9", "http://127.0.0.1:9")
    assert of(advertised_url="https://edge.example/", node="n") == ("n", "https://edge.example")
    assert of(Region("x", "k"), port=7) == ("gateway-x", "http://127.0.0.1:7")
    for wrong in ({"advertised_url": "nonsense"}, {"node": "a b"}, {"location": (91.0, 0.0)}):
        with pytest.raises(BadInput):
            of(**wrong)


def test_purges_are_nobodys_events() -> None:
    purges = [(b"device:a:telemetry", 0, 1_000, 7, True), (b"device:b:telemetry", 0, 1_000, 7, False)]
    for table in ("", "telemetry"):
        (frame,) = purge_frames(purges, table)
        assert puts_of(EventRecord("events.device", 0, 5, 1_000, None, frame, []), 0, b"") == []


def test_outputs_of_udfs_are_streams_of_their_keyspace() -> None:
    assert feed_of(DEVICE, None).topic == feed_of(DEVICE, "events").topic == "events.device"
    assert (feed_of(DEVICE, "alerts").topic, feed_of(DEVICE, "late").topic) == ("alerts.device", "late.device")
    with pytest.raises(NotFound, match="choose one of events, late, alerts"):
        feed_of(DEVICE, "nonsense")


# ---- refusals, before a stream begins


@pytest.fixture
async def edge(tmp_path: Path) -> AsyncIterator[TestGateway]:
    async with running_gateway(tmp_path, GatewayOptions(streams=QUICK)) as found:
        yield found


async def test_bad_requests_are_told_what_is_wrong(edge: TestGateway) -> None:
    elsewhere = Token({Input("eu-west", "events.device", 0): 1}).encode()
    telemetry, device = "/v1/telemetry/iot:region:us-east:subscribe", "/v1/keyspaces/device:subscribe"
    known = "iot:region:us-east, iot:region:eu-west"
    cases = [
        (f"{telemetry}?from=%25%25", {}, 400, "from", "neither a token"),
        (telemetry, {"Last-Event-ID": "5"}, 400, "Last-Event-ID", "neither a token"),
        (f"{device}?from={elsewhere}", {}, 400, "from", "this is us-east's"),
        ("/v1/telemetry/iot:region:mars:subscribe", {}, 404, "partition", known),
        ("/v1/telemetry/us-east:subscribe", {}, 404, "partition", known),
        ("/v1/keyspaces/iot:region:mars:subscribe", {}, 404, "partition", known),
        (f"{device}?partition=nonsense", {}, 404, "partition", known),
        ("/v1/keyspaces/score:subscribe?partition=iot:region:us-east", {}, 400, "partition", "keyspace device"),
        (f"{device}?partition=iot:region:us-east&region=eu-west", {}, 400, "region", "different regions"),
        (f"{device}?region=mars", {}, 404, "region", "us-east, eu-west"),
        (f"{device}?stream=nonsense", {}, 404, "stream", "events"),
        (f"{device}?region=eu-west", {"Streams-Hop": "ap-south"}, 421, "region", "not of eu-west"),
    ]
    for target, headers, status, field, text in cases:
        async with edge.http.get(target, headers=headers) as answer:
            body = await answer.json(content_type="application/problem+json")
            assert (answer.status, body["field"]) == (status, field), (target, body)
            assert text in body["detail"] + body["fix"], (target, body)


async def test_a_region_that_does_not_answer_is_unavailable_for_now(edge: TestGateway) -> None:
    async with edge.http.get("/v1/telemetry/iot:region:eu-west:subscribe") as answer:
        assert answer.status == 503 and answer.headers["Retry-After"] == "1"
        assert "127.0.0.1:1 does not answer" in (await answer.json(content_type=None))["detail"]


async def test_openapi_describes_the_streams(edge: TestGateway) -> None:
    paths = (await (await edge.http.get("/openapi.json")).json())["paths"]
    for path in ("/v1/telemetry/{partition}:subscribe", "/v1/keyspaces/{name}:subscribe"):
        described = paths[path]["get"]
        assert "text/event-stream" in described["responses"]["200"]["content"]
        assert {"400", "404", "409", "429", "503"} <= described["responses"].keys()
        assert {"from", "prefix", "stream", "Last-Event-ID"} <= {each["name"] for each in described["parameters"]}
        assert "Last-Event-ID" in described["description"]
    assert "/v1/gateways" in paths


async def test_gateways_are_listed(edge: TestGateway) -> None:
    edge.gateway.peers.hear(heard("n", wall_ms() - TTL_MS))
    edge.gateway.peers.hear(heard("o", wall_ms()))
    body = await (await edge.http.get("/v1/gateways")).json()
    assert body["regions"] == ["us-east", "eu-west"]
    assert [(row["node"], row["url"], row["live"]) for row in body["gateways"]] == [
        ("n", "http://n:1", False),
        ("o", "http://o:1", True),
    ]


# ---- clients that do not read, and too many of them


class Source:
    """Events without end, as `follow` gives them."""

    def __init__(self, piece: bytes) -> None:
        self.piece, self.given, self.closed = piece, 0, 0

    async def follow(self, *_: object) -> AsyncIterator[bytes]:
        try:
            while True:
                self.given += len(self.piece)
                yield self.piece
                if self.piece == IDLE:
                    await asyncio.sleep(QUICK.idle_s)
        finally:
            self.closed += 1


@asynccontextmanager
async def endless(piece: bytes) -> AsyncIterator[Source]:
    source = Source(piece)
    at = "streams.gateway.routes_streams."
    positions = mock.patch(at + "start_positions", mock.AsyncMock(return_value={}))
    with positions, mock.patch(at + "follow", source.follow):
        yield source


def served(port: int) -> bool:
    """Whether this process has the server's end of the connection from a port."""
    return any(each.raddr and each.raddr.port == port for each in psutil.Process().net_connections("tcp"))


async def test_who_reads_nothing_is_disconnected_and_memory_does_not_grow(edge: TestGateway) -> None:
    async with endless(event("put", "x" * 60_000, "here")) as source:
        host, port = edge.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
        writer.transport.pause_reading()
        writer.write(b"GET /v1/keyspaces/device:subscribe HTTP/1.1\r\nHost: a\r\n\r\n")
        own = writer.get_extra_info("sockname")[1]
        await eventually(lambda: served(own))  # its connection is accepted in another thread
        await eventually(lambda: source.given > 0)
        await eventually(lambda: source.closed == 1, 20)
        assert edge.gateway.subscribers.count == 0 and source.given < 64 << 20
        metrics = await (await edge.http.get("/metrics")).text()
        assert 'streams_subscribers_dropped_total{reason="slow"} 1.0' in metrics
        await eventually(lambda: not served(own))
        writer.transport.resume_reading()
        async with asyncio.timeout(20):
            while await reader.read(1 << 20):
                pass
        writer.close()


async def test_streams_are_limited_and_their_end_makes_room(edge: TestGateway) -> None:
    async with endless(IDLE) as source:
        target = "/v1/keyspaces/device:subscribe"
        opened = [await edge.http.get(target) for _ in range(QUICK.subscribers_max)]
        await eventually(lambda: edge.gateway.subscribers.count == QUICK.subscribers_max)
        for refused in (target, "/v1/tables/device:watch", "/v1/keyspaces/device:subscribe?region=eu-west"):
            async with edge.http.get(refused) as answer:
                assert answer.status == 429 and "Retry-After" in answer.headers
        opened.pop().close()
        await eventually(lambda: edge.gateway.subscribers.count == QUICK.subscribers_max - 1)
        async with edge.http.head(target) as answer:
            assert answer.status == 200
        opened.append(await edge.http.get(target))
        assert opened[-1].status == 200
        for each in opened:
            each.close()
        await eventually(lambda: edge.gateway.subscribers.count == 0)
        assert source.closed == QUICK.subscribers_max + 1


async def test_events_in_memory_are_limited_over_all_streams(edge: TestGateway) -> None:
    subscribers = edge.gateway.subscribers
    limit = subscribers.options.held_bytes_max
    with subscribers.holding(2 * limit):
        with pytest.raises(TooManyRequests), subscribers.holding(1):
            pass
        assert subscribers.held_bytes == 2 * limit
    with subscribers.holding(limit - 1), subscribers.holding(1):
        assert subscribers.held_bytes == limit
    assert subscribers.held_bytes == 0


# ---- another region's stream

Answer = Callable[[str], bytes]
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"


@asynccontextmanager
async def remote(answer: Answer) -> AsyncIterator[str]:
    """Something that answers as another region's gateway may; `answer` gets the request's head."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer((await reader.readuntil(b"\r\n\r\n")).decode()))
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


def problem(status: int, detail: str) -> bytes:
    body = json.dumps({"title": "t", "status": status, "detail": detail, "field": "from", "fix": "f"})
    return f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}".encode()


async def proxied(edge: TestGateway, answer: Answer, check: Callable[[int, bytes], Awaitable[None]]) -> None:
    async with remote(answer) as url:
        edge.gateway.peers = Peers(edge.gateway.topology)
        edge.gateway.peers.hear(replace(heard("n", 2**52), url=url))
        target = "/v1/telemetry/iot:region:eu-west:subscribe?from=start&prefix=device:a"
        headers = {"Authorization": "Bearer r", "Last-Event-ID": "abc"}
        async with edge.http.get(target, headers=headers) as got:
            await check(got.status, await got.read())


async def test_a_proxy_asks_in_the_callers_name_and_passes_on_whole_events_only(edge: TestGateway) -> None:
    first, second = event("put", {"n": 1}, "i1"), event("put", {"n": 2}, "i2")
    asked: list[str] = []

    def answer(head: str) -> bytes:
        asked.append(head)
        return HEAD + first + second[:-1]

    async def check(status: int, body: bytes) -> None:
        assert status == 200 and body.startswith(first) and b"i2" not in body
        kind, data = body[len(first) :].strip().split(b"\n")
        assert kind == b"event: error" and json.loads(data[6:])["status"] == 503

    await proxied(edge, answer, check)
    (head,) = asked
    assert head.startswith("GET /v1/keyspaces/device:subscribe?region=eu-west&prefix=device%3Aa&from=start HTTP/1.1")
    assert "Authorization: Bearer r" in head and "Last-Event-ID: abc" in head and "Streams-Hop: us-east" in head


async def test_refusals_are_passed_on_and_other_failures_are_unavailable(edge: TestGateway) -> None:
    for said, status in ((409, 409), (400, 400), (403, 403), (401, 401), (429, 429), (421, 503), (500, 503)):

        async def check(got: int, body: bytes, said: int = said, status: int = status) -> None:
            assert got == status, (said, got, body)
            assert status == 503 or json.loads(body)["detail"] == "no"

        await proxied(edge, lambda _head, said=said: problem(said, "no"), check)  # type: ignore[misc]


async def test_a_gateway_with_a_wrong_url_is_passed_over(edge: TestGateway) -> None:
    first = event("put", {"n": 1}, "i1")
    async with remote(lambda _head: HEAD + first) as good, remote(lambda _head: problem(421, "no")) as wrong:
        now_ms = wall_ms()
        edge.gateway.peers.hear(heard("good", now_ms - 1, url=good))
        edge.gateway.peers.hear(heard("wrong", now_ms, url=wrong))
        assert edge.gateway.peers.urls("eu-west")[:2] == [wrong, good]
        async with edge.http.get("/v1/telemetry/iot:region:eu-west:subscribe") as got:
            assert got.status == 200 and (await got.read()).startswith(first)


async def test_scopes_hold_for_proxied_streams_too(edge: TestGateway, tmp_path: Path) -> None:
    tokens = [{"name": "s", "token": "s", "scopes": ["score:read"]}, {"name": "r", "token": "r", "scopes": ["*:read"]}]
    (tmp_path / "tokens.json").write_text(json.dumps({"tokens": tokens}))
    edge.gateway.authority = Authority.load(tmp_path / "tokens.json")
    target = "/v1/telemetry/iot:region:eu-west:subscribe"
    for bearer, status in (("", 401), ("x", 401), ("s", 403)):
        async with edge.http.get(target, headers={"Authorization": f"Bearer {bearer}"}) as answer:
            assert answer.status == status

    async def check(status: int, body: bytes) -> None:
        assert status == 200 and b"i1" in body

    await proxied(edge, lambda _head: HEAD + event("put", {"n": 1}, "i1"), check)
