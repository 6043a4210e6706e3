"""`/v1/kv` over real HTTP: answers, tokens, TTLs, bad input, idempotency."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import quote

import aiohttp
import pytest
import pytest_asyncio

from streams.gateway.context import GatewayOptions
from streams.model.errors import Unavailable
from streams.model.token import Input, Token
from tests.support.gateway import TestGateway, running_gateway


@pytest_asyncio.fixture
async def edge(tmp_path: Path) -> AsyncIterator[TestGateway]:
    async with running_gateway(tmp_path, GatewayOptions(wait_s=0.3)) as found:
        yield found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def steady(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[TestGateway]:
    """One gateway for the many tests of refusals."""
    async with running_gateway(tmp_path_factory.mktemp("steady"), GatewayOptions(wait_s=0.3)) as found:
        yield found


async def problem_of(answer: aiohttp.ClientResponse, status: int, field: str | None = None) -> dict[str, object]:
    assert answer.status == status, await answer.text()
    assert answer.content_type == "application/problem+json"
    body: dict[str, object] = await answer.json(content_type=None)
    assert body["status"] == status and body["title"] and body["detail"] and body["type"]
    if field is not None:
        assert body["field"] == field, body
    return body


async def test_a_put_answers_where_the_event_is(edge: TestGateway) -> None:
    answer = await edge.http.put("/v1/kv/score:alice", json={"add": 5})
    assert answer.status == 200, await answer.text()
    body = await answer.json()
    assert set(body) == {"key", "topic", "partition", "offset", "region", "timestamp", "token"}
    assert (body["key"], body["topic"], body["offset"], body["region"]) == ("score:alice", "events.score", 0, "us-east")
    assert abs(body["timestamp"] / 1000 - __import__("time").time()) < 60
    token = Token.decode(body["token"])
    assert token.positions == {Input("us-east", "events.score", body["partition"]): 1}
    assert answer.headers["Causal-Token"] == body["token"]


async def test_get_answers_the_merged_value(edge: TestGateway) -> None:
    for _ in range(3):
        put = await edge.http.put("/v1/kv/score:alice", json={"add": 5})
    answer = await edge.http.get("/v1/kv/score:alice", headers={"Causal-Token": put.headers["Causal-Token"]})
    body = await answer.json()
    assert (body["key"], body["value"], body["expires_at"], body["region"]) == ("score:alice", 15, None, "us-east")
    assert int(answer.headers["Staleness-Ms"]) >= 0
    assert not Token.decode(put.headers["Causal-Token"]).missing(Token.decode(answer.headers["Causal-Token"]))


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("key", ["kv:a/b//c", "kv:ü: %2F?&#", "kv:..", "kv:\u2028\x00", "kv:" + "x" * 1021, "kv:a b+c"])
async def test_keys_hold_any_character(steady: TestGateway, key: str) -> None:
    path = aiohttp.client.URL(f"{steady.url}/v1/kv/{quote(key, safe='')}", encoded=True)
    assert (await steady.http.put(path, json=[1, {"x": None}])).status == 200
    assert (await (await steady.http.get(path)).json())["value"] == [1, {"x": None}]
    assert (await (await steady.http.get(path)).json())["key"] == key
    row = aiohttp.client.URL(f"{steady.url}/v1/tables/kv/{quote(key, safe='')}", encoded=True)
    assert (await (await steady.http.get(row)).json())["key"] == key


async def test_a_delete_is_an_event_that_answers_like_a_put(edge: TestGateway) -> None:
    await edge.http.put("/v1/kv/score:bob", json={"add": 7})
    gone = await edge.http.delete("/v1/kv/score:bob")
    assert (await gone.json())["offset"] == 1
    missing = await edge.http.get("/v1/kv/score:bob")
    await problem_of(missing, 404, "key")
    assert "Causal-Token" in missing.headers and "Staleness-Ms" in missing.headers
    await edge.http.put("/v1/kv/score:bob", json={"add": 2})
    assert (await (await edge.http.get("/v1/kv/score:bob")).json())["value"] == 2


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("ttl", ["60", "1h", "1.5d", "3155760000"])
async def test_ttls_are_counted_from_acceptance(steady: TestGateway, ttl: str) -> None:
    put = await (await steady.http.put(f"/v1/kv/kv:t?ttl={ttl}", json=1)).json()
    got = await (await steady.http.get("/v1/kv/kv:t")).json()
    seconds = {"60": 60, "1h": 3600, "1.5d": 129600, "3155760000": 3155760000}[ttl]
    assert got["expires_at"] == put["timestamp"] + seconds * 1000


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("ttl", ["0", "-1", "0.5", "3155760001", "1e9", "", "soon", "1h1m", "NaN", "9" * 400])
async def test_bad_ttls(steady: TestGateway, ttl: str) -> None:
    await problem_of(await steady.http.put(f"/v1/kv/kv:t?ttl={ttl}", json=1), 400, "ttl")


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/kv/", 400),
        ("/v1/kv/nokeyspace", 400),
        ("/v1/kv/:x", 400),
        ("/v1/kv/kv:", 400),
        ("/v1/kv/UPPER:x", 400),
        ("/v1/kv/kv:%FF%FE", 400),
        ("/v1/kv/kv:" + "x" * 2000, 400),
        ("/v1/kv/unknown:x", 404),
    ],
)
async def test_bad_keys(steady: TestGateway, path: str, status: int) -> None:
    url = aiohttp.client.URL(steady.url + path, encoded=True)
    for call in (steady.http.put(url, json=1), steady.http.get(url), steady.http.delete(url)):
        await problem_of(await call, status, "key")


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("key", "body", "field"),
    [
        ("score:a", "", "body"),
        ("score:a", "{", "body"),
        ("score:a", b"\xff", "body"),
        ("score:a", '{"add": NaN}', "body"),
        ("score:a", '{"add": 1e400}', "body"),
        ("score:a", '{"add": 123456789012345678901234567890}', "body"),
        ("score:a", '{"add": 9223372036854775807}', "add"),
        ("score:a", '{"add": 1.5}', "add"),
        ("score:a", '{"add": "1"}', "add"),
        ("score:a", '{"add": true}', "add"),
        ("score:a", "{}", "add"),
        ("score:a", "5", "add"),
        ("score:a", '{"add": 1, "set": 2}', "set"),
        ("best:a", '{"value": null}', "value"),
        ("device:a", '{"metric": "t"}', "value"),
        ("kv:a", "[" * 5000 + "]" * 5000, "body"),
        ("kv:a", '{"a":1,"a":2}', "body"),
    ],
)
async def test_bad_values(steady: TestGateway, key: str, body: str | bytes, field: str) -> None:
    await problem_of(await steady.http.put(f"/v1/kv/{key}", data=body), 400, field)


async def test_bodies_up_to_the_limit(edge: TestGateway) -> None:
    text = json.dumps("x" * ((16 << 20) - 2))
    assert (await edge.http.put("/v1/kv/kv:big", data=text)).status == 200
    await problem_of(await edge.http.put("/v1/kv/kv:big", data=text + " " * 10), 413, "body")

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield b" " * (1 << 20)

    await problem_of(await edge.http.put("/v1/kv/kv:big", data=chunks()), 413, "body")


async def test_what_only_strong_keyspaces_do_is_refused_with_the_reason(edge: TestGateway) -> None:
    await problem_of(await edge.http.put("/v1/kv/kv:a", json=1, headers={"If-Match": "3"}), 409, "If-Match")
    refused = await problem_of(await edge.http.get("/v1/kv/kv:a?consistency=strong"), 409, "consistency")
    assert "eventual" in str(refused["detail"])
    await problem_of(await edge.http.get("/v1/kv/kv:a?consistency=perfect"), 400, "consistency")


async def test_a_token_waits_and_then_gives_up_with_retry_after(edge: TestGateway) -> None:
    edge.log.hold = True
    put = await edge.http.put("/v1/kv/kv:slow", json=1)
    token = {"Causal-Token": put.headers["Causal-Token"]}
    late = await edge.http.get("/v1/kv/kv:slow", headers=token)
    await problem_of(late, 504, "Causal-Token")
    assert int(late.headers["Retry-After"]) >= 1
    waiting = asyncio.create_task(edge.http.get("/v1/kv/kv:slow", headers=token))
    await asyncio.sleep(0)
    edge.log.publish()
    assert (await (await waiting).json())["value"] == 1


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("token", ["x", "e30x!", "bnVsbA", "eyJhIjoxfQ", "A" * 5000])
async def test_unreadable_tokens(steady: TestGateway, token: str) -> None:
    await problem_of(await steady.http.get("/v1/kv/kv:a", headers={"Causal-Token": token}), 400, "Causal-Token")


async def test_tokens_of_other_systems(edge: TestGateway) -> None:
    for where in (
        Input("mars", "events.kv", 0),
        Input("us-east", "events.nothing", 0),
        Input("us-east", "events.kv", 9),
    ):
        token = Token({where: 1}).encode()
        await problem_of(await edge.http.get("/v1/kv/kv:a", headers={"Causal-Token": token}), 400, "Causal-Token")


async def test_staleness_is_bounded_on_demand(edge: TestGateway) -> None:
    await edge.http.put("/v1/kv/kv:a", json=1)
    late = await edge.http.get("/v1/kv/kv:a?max_staleness=50")
    await problem_of(late, 504, "max_staleness")
    assert "Retry-After" in late.headers
    await problem_of(await edge.http.get("/v1/kv/kv:a?max_staleness=-1"), 400, "max_staleness")


async def test_idempotency_keys(edge: TestGateway) -> None:
    key = {"Idempotency-Key": "k-1"}
    first = await edge.http.put("/v1/kv/score:i", json={"add": 1}, headers=key)
    again = await edge.http.put("/v1/kv/score:i", json={"add": 1}, headers=key)
    assert await first.json() == await again.json()
    assert "Idempotent-Replayed" not in first.headers and again.headers["Idempotent-Replayed"] == "true"
    assert first.headers["Causal-Token"] == again.headers["Causal-Token"]
    await problem_of(await edge.http.put("/v1/kv/score:i", json={"add": 2}, headers=key), 422, "Idempotency-Key")
    await problem_of(await edge.http.put("/v1/kv/score:j", json={"add": 1}, headers=key), 422, "Idempotency-Key")
    assert (await (await edge.http.get("/v1/kv/score:i")).json())["value"] == 1
    many = [edge.http.put("/v1/kv/score:c", json={"add": 1}, headers={"Idempotency-Key": "k-2"}) for _ in range(20)]
    answers = [await answer.json() for answer in await asyncio.gather(*many)]
    assert all(answer == answers[0] for answer in answers)
    assert (await (await edge.http.get("/v1/kv/score:c")).json())["value"] == 1
    too_long = {"Idempotency-Key": "x" * 256}
    await problem_of(await edge.http.put("/v1/kv/score:i", json={"add": 1}, headers=too_long), 400, "Idempotency-Key")


async def test_a_failed_request_is_not_remembered(edge: TestGateway) -> None:
    key = {"Idempotency-Key": "k-3"}
    edge.log.refuse = Unavailable("no broker")
    failed = await edge.http.put("/v1/kv/score:f", json={"add": 1}, headers=key)
    await problem_of(failed, 503)
    assert "Retry-After" in failed.headers
    assert (await edge.http.put("/v1/kv/score:f", json={"add": 1}, headers=key)).status == 200


async def test_unknown_paths_and_methods(edge: TestGateway) -> None:
    await problem_of(await edge.http.get("/v2/none"), 404, "path")
    await problem_of(await edge.http.post("/v1/kv/kv:a", json=1), 405, "method")
    assert (await edge.http.head("/healthz")).status == 200
