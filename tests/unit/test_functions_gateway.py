"""`/v1/functions` over HTTP: answers, durable puts, tokens, idempotency, hostile functions beside other requests."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from streams.client import connect
from streams.gateway.auth import Authority
from streams.gateway.functions import FunctionService
from streams.model.errors import Unavailable
from streams.model.token import Token
from tests.support.functions import handle_request, hostile, serve
from tests.support.gateway import TestGateway, running_gateway
from tests.support.polling import eventually

DEPLOYED = (handle_request(), hostile())


@dataclass
class Served:
    """A gateway with both functions. Tests leave it as they found it."""

    at: TestGateway
    service: FunctionService


@pytest.fixture(scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    async with running_gateway(tmp_path_factory.mktemp("gateway")) as at:
        service = await serve(at.gateway, tmp_path_factory.mktemp("functions"), *DEPLOYED)
        yield Served(at, service)
        await service.close()


async def ask(at: TestGateway, what: str, **others: Any) -> tuple[int, bytes, dict[str, str]]:
    async with at.http.post("/v1/functions/hostile", params={"do": what}, **others) as answer:
        return answer.status, await answer.read(), {name.lower(): value for name, value in answer.headers.items()}


async def test_a_page_is_served_with_what_the_region_knows(served: Served) -> None:
    at = served.at
    async with connect(at.url) as edge:
        await edge.put("prefs:alice", {"name": "Alice", "theme": "dark"})
        await edge.put("score:alice", {"add": 42})
        headers = {"Causal-Token": edge.token.encode()}
        body = {"user": "alice", "city": "Paris"}
        async with at.http.post("/v1/functions/handle_request", json=body, headers=headers) as answer:
            page = await answer.text()
            assert (answer.status, answer.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
        for text in ("Hello, Alice", "Points: 42", "Served by us-east", 'class="dark"', "You are in Paris"):
            assert text in page
        topic, _, place = answer.headers["Streams-Puts"].partition("/")
        partition, _, offset = place.partition("@")
        assert topic == "events.kv"
        token = Token.decode(answer.headers["Causal-Token"])
        positions = {(each.topic, each.partition): at_ for each, at_ in token.positions.items()}
        assert positions["events.kv", int(partition)] == int(offset) + 1, "whoever has the token reads the visit"
        assert any(each.topic == "events.score" for each in token.positions)
        edge.observe(token)
        visit = await edge.get("kv:visit:alice")
        assert visit is not None and (visit.value["region"], visit.value["city"]) == ("us-east", "Paris")
        for raw in (b"", b"\xff\xfe", b"[1]", b'{"user": {}}', b"{" * 5000, b'{"user":"' + b"x" * 300_000 + b'"}'):
            async with at.http.post("/v1/functions/handle_request", data=raw) as answer:
                assert answer.status in (200, 400), raw[:20]
        async with at.http.post("/v1/functions/handle_request", data=bytes(9 << 20)) as answer:
            assert answer.status == 413 and (await answer.json(content_type=None))["field"] == "body"


async def test_what_a_function_is_told_and_answers(served: Served) -> None:
    at = served.at
    async with connect(at.url) as edge:
        headers = {"X-Seen": "yes", "Authorization": "Bearer secret"}
        assert (await ask(at, "headers-seen", headers=headers))[:2] == (200, b"yes")
        attributes = {"Streams-User": json.dumps({"id": "ann", "tags": [1, 2]})}
        assert (await ask(at, "user", headers=attributes))[:2] == (200, b"ann[1,2]")
        status, body, _ = await ask(at, "user", headers={"Streams-User": "[]"})
        assert status == 400 and json.loads(body)["field"] == "Streams-User"
        for number in (3, 1, 2):
            await edge.put(f"kv:s{number}", number)
            await edge.put(f"score:p{number}", {"add": 100 * number})
        assert (await ask(at, "scan"))[1] == b"kv:s1=1 kv:s2=2 kv:s3=3 "
        assert (await ask(at, "top"))[1] == b"score:p3=300 score:p2=200 ", "the order is built in a thread's wait"
        assert (await ask(at, "top"))[1] == b"score:p3=300 score:p2=200 "
        assert (await ask(at, "echo", data=b"\x00\xffraw"))[1] == b"\x00\xffraw"
        assert abs(int((await ask(at, "clock"))[1]) - time.time() * 1000) < 60_000
        assert (await ask(at, "refused"))[1] == b"-1-1-1"
        assert (await ask(at, "past"))[1] == b"-1", "a time to live that is no time"
        async with at.http.get("/v1/functions/hostile") as answer:
            shown = await answer.json()
        assert (shown["version"], shown["idempotent"], shown["puts"]) == ("1.0.0", False, ["kv", "best"])
        async with at.http.get("/v1/functions") as answer:
            assert [each["name"] for each in (await answer.json())["functions"]] == ["handle_request", "hostile"]
        for method, path, status in (("POST", "nothing", 404), ("GET", "nothing", 404), ("PUT", "hostile", 405)):
            async with at.http.request(method, f"/v1/functions/{path}") as answer:
                problem = await answer.json(content_type=None)
                assert answer.status == status and answer.content_type == "application/problem+json", problem


async def test_puts_are_durable_ordered_and_made_once_a_key(served: Served) -> None:
    at = served.at
    async with connect(at.url) as edge:
        before = dict(at.log.offsets)
        headers = {"Idempotency-Key": "once"}
        first = await ask(at, "two-puts", headers=headers)
        again = await ask(at, "two-puts", headers=headers)
        assert first[0] == 200 and again[1] == first[1] and again[2]["idempotent-replayed"] == "true"
        made = {topic: n - before.get((topic, part), 0) for (topic, part), n in at.log.offsets.items()}
        assert {topic: n for topic, n in made.items() if n} == {"events.kv": 2, "events.best": 1}
        assert first[2]["streams-puts"].count("@") == 3
        row = await edge.get("kv:two")
        assert row is not None and row.value == {"n": 2}
        at.log.refuse = Unavailable("no broker")
        status, body, _ = await ask(at, "two-puts")
        assert status == 503 and json.loads(body)["executed"] is True
        for what in ("trap-after-put", "loop-with-put"):
            assert (await ask(at, what))[0] in (502, 504)
        assert await edge.get("kv:never") is None, "a request that ends badly puts nothing"


async def test_a_functions_own_failure_names_it(served: Served) -> None:
    for what, status, trap in [
        ("trap", 502, "trap"),
        ("bomb", 502, "memory"),
        ("deep", 502, "trap"),
        ("giant", 502, "output"),
        ("wild-key", 502, "malformed"),
        ("split", 502, "malformed"),
        ("loop", 504, "deadline"),
    ]:
        got, body, _ = await ask(served.at, what)
        problem = json.loads(body)
        assert (got, problem["udf"], problem["version"], problem["trap"]) == (status, "hostile", "1.0.0", trap), problem
        assert (await ask(served.at, ""))[:2] == (200, b"fine")


async def test_a_loop_holds_up_nobody_else_and_no_more_than_its_share(served: Served) -> None:
    """While more endless loops come than it may run, other requests are answered, and the surplus is sent away."""
    at = served.at
    service = served.service
    looping = [asyncio.create_task(ask(at, "loop")) for _ in range(12)]
    gaps, done = [], 0
    while not all(each.done() for each in looping):
        began = time.monotonic()
        async with at.http.post("/v1/functions/handle_request") as answer:
            assert answer.status == 200
        async with at.http.get("/v1/tables") as answer:
            assert answer.status == 200
        gaps.append(time.monotonic() - began)
        done += 1
    statuses = [(await each)[0] for each in looping]
    assert set(statuses) <= {429, 504} and statuses.count(504) >= 2 and 429 in statuses, statuses
    assert done > 10 and max(gaps) < 5, (done, max(gaps))
    assert (await ask(at, "work"))[0] in (200, 504), "long work is done, or stopped, in a thread"
    assert service.loaded["hostile"].busy == 0
    assert await eventually(lambda: _fine(at))


async def _fine(at: TestGateway) -> bool:
    return (await ask(at, ""))[:2] == (200, b"fine")


async def test_who_may_invoke(served: Served, tmp_path: Path) -> None:
    at = served.at
    file = tmp_path / "tokens.json"
    scopes = {"all": ["*:*"], "reads": ["*:read"], "part": ["kv:read", "kv:write", "prefs:read"]}
    tokens = [{"name": name, "token": name, "scopes": each} for name, each in scopes.items()]
    file.write_text(json.dumps({"tokens": tokens}))
    before, at.gateway.authority = at.gateway.authority, Authority.load(file)
    try:
        for token, status in (("all", 200), ("reads", 403), ("part", 403), ("none", 401)):
            headers = {"Authorization": f"Bearer {token}"}
            async with at.http.post("/v1/functions/handle_request", headers=headers) as answer:
                assert answer.status == status, token
    finally:
        at.gateway.authority = before


async def test_versions_are_replaced_when_the_next_is_ready(served: Served) -> None:
    at = served.at
    service = served.service
    said: list[tuple[str, str, str]] = []

    async def report(of: Any, state: str, reason: str) -> None:
        said.append((of.manifest.version, state, reason))

    service._report = report
    next_ = hostile({"1.0.0": "1.1.0"})
    service.follow({"hostile": next_})
    assert (await ask(at, ""))[0] == 200
    await eventually(lambda: service.loaded["hostile"].deployment.manifest.version == "1.1.0")
    async with at.http.post("/v1/functions/handle_request") as answer:
        assert answer.status == 404, "it is no longer deployed"
    bad = replace(hostile({"1.0.0": "1.2.0"}), module=b"\0asm\x01\0\0\0")
    service.follow({"hostile": replace(bad, sha256="0")})
    await eventually(lambda: [each[:2] for each in said] == [("1.1.0", "active"), ("1.2.0", "refused")])
    assert "streams_function_v1" in said[1][2]
    assert (await ask(at, ""))[0] == 200, "the last good version goes on"
    service.follow({})
    assert (await ask(at, ""))[0] == 404
    service.follow({each.name: each for each in DEPLOYED})
    assert (await ask(at, ""))[0] == 200


async def test_a_session_reads_its_own_writes_through_functions(served: Served) -> None:
    at = served.at
    async with connect(at.url) as edge:
        at.log.hold = True
        await edge.put("prefs:bob", {"name": "Bob"})
        headers = {"Causal-Token": edge.token.encode()}

        async def page() -> str:
            async with at.http.post("/v1/functions/handle_request", json={"user": "bob"}, headers=headers) as answer:
                return await answer.text()

        waiting = asyncio.create_task(page())
        done, _ = await asyncio.wait([waiting], timeout=0.2)
        assert not done, "what the session has written is not here yet"
        at.log.hold = False
        at.log.publish()
        assert "Hello, Bob" in await waiting


async def test_openapi_has_the_routes(served: Served) -> None:
    at = served.at
    async with at.http.get("/openapi.json") as answer:
        paths = (await answer.json())["paths"]
        assert {"get", "post"} <= paths["/v1/functions/{name}"].keys()
        assert {"404", "429", "502", "504"} <= paths["/v1/functions/{name}"]["post"]["responses"].keys()
