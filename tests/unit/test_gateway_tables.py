"""Batches, tables, keyspaces, streams and the system's routes over real HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest_asyncio

from streams.gateway.context import GatewayOptions
from streams.gateway.endpoint import openapi_path
from streams.model.errors import Unavailable
from streams.model.token import Token
from tests.support.gateway import TestGateway, running_gateway
from tests.support.polling import eventually


@pytest_asyncio.fixture
async def edge(tmp_path: Path) -> AsyncIterator[TestGateway]:
    async with running_gateway(tmp_path, GatewayOptions(wait_s=0.3, rejects_max=5)) as found:
        yield found


async def post(edge: TestGateway, body: Any, kind: str = "application/x-ndjson", **headers: str) -> Any:
    answer = await edge.http.post("/v1/kv:batch", data=body, headers={"Content-Type": kind, **headers})
    assert answer.status == 200, await answer.text()
    return await answer.json()


async def rows(edge: TestGateway, path: str) -> list[Any]:
    answer = await edge.http.get(path)
    assert answer.status == 200, await answer.text()
    found: list[Any] = (await answer.json())["rows"]
    return found


async def problem_of(answer: aiohttp.ClientResponse, status: int, field: str) -> str:
    body = await answer.json(content_type=None)
    assert (answer.status, body.get("field")) == (status, field), body
    assert answer.content_type == "application/problem+json"
    return f"{body['detail']} {body['fix']}"


async def test_a_batch_takes_the_good_lines_and_lists_the_bad(edge: TestGateway) -> None:
    lines = [
        '{"key": "score:a", "value": {"add": 1}}',
        "not json",
        '{"key": "score:a", "value": {"add": 2}, "ttl": "1h"}',
        "",
        '{"key": "score:a", "value": {"add": 1.5}}',
        '{"key": "nokeyspace", "value": 1}',
        '{"key": "none:a", "value": 1}',
        '{"value": 1}',
        '{"key": "kv:x", "value": NaN}',
        '{"key": "kv:x", "value": {"deep": true}, "ttl": 0}',
        '{"key": "kv:x", "value": {"deep": true}, "ttl": 60}',
    ]
    body = await post(edge, "\n".join(lines))
    assert body["accepted"] == 3
    assert [each["line"] for each in body["rejected"]] == [2, 5, 6, 7, 8], "bounded by rejects_max"
    assert body["rejected_count"] == 7
    assert all(each["reason"] for each in body["rejected"])
    assert "add" in body["rejected"][1]["reason"] and "ttl" not in body["rejected"][1]["reason"]
    assert {key.topic for key in Token.decode(body["token"]).positions} == {"events.score", "events.kv"}
    got = await (await edge.http.get("/v1/kv/score:a", headers={"Causal-Token": body["token"]})).json()
    assert got["value"] == 3 and got["expires_at"] is None


async def test_csv_batches(edge: TestGateway) -> None:
    text = 'key,value,ttl\nkv:a,"{""x"": [1, 2]}",60\nkv:b,plain text,\nkv:c,"two\nlines",\nkv:d,1,2,3\nkv:e,{broken,\n'
    body = await post(edge, text, "text/csv; charset=utf-8")
    assert body["accepted"] == 3
    assert [each["line"] for each in body["rejected"]] == [6, 7]
    found = {row["key"]: row["value"] for row in await rows(edge, "/v1/tables/kv")}
    assert found == {"kv:a": {"x": [1, 2]}, "kv:b": "plain text", "kv:c": "two\nlines"}
    assert (await post(edge, "key,add\r\nscore:n1,5\r\nscore:n1,-2\r\n", "text/csv"))["accepted"] == 2
    assert (await rows(edge, "/v1/tables/score"))[0]["value"] == 3


async def test_a_batch_in_chunks_of_any_size(edge: TestGateway) -> None:
    text = "".join(f'{{"key": "score:k{i % 7}", "value": {{"add": {i}}}}}\n' for i in range(300)).encode()

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(text), 97):
            yield text[start : start + 97]

    assert (await post(edge, chunks()))["accepted"] == 300
    found = {row["key"]: row["value"] for row in await rows(edge, "/v1/tables/score")}
    assert found == {f"score:k{k}": sum(range(k, 300, 7)) for k in range(7)}


async def test_bad_batches(edge: TestGateway) -> None:
    wrong = await edge.http.post("/v1/kv:batch", data="x", headers={"Content-Type": "application/json"})
    await problem_of(wrong, 400, "Content-Type")
    headless = await edge.http.post("/v1/kv:batch", data="a,b\n1,2\n", headers={"Content-Type": "text/csv"})
    await problem_of(headless, 400, "body")
    edge.log.refuse = Unavailable("no broker")
    line = '{"key": "score:a", "value": {"add": 1}}'
    failed = await edge.http.post("/v1/kv:batch", data=line, headers={"Content-Type": "application/x-ndjson"})
    assert failed.status == 503 and "0 puts had been accepted" in (await failed.json(content_type=None))["detail"]
    again = {"Idempotency-Key": "b1"}
    assert (await post(edge, line, **again)) == (await post(edge, line, **again))
    assert (await rows(edge, "/v1/tables/score"))[0]["value"] == 1


async def test_ordered_reads(edge: TestGateway) -> None:
    adds = {"a": 5, "b": 9, "c": 5, "d": -1, "e": 7}
    await post(edge, "\n".join(json.dumps({"key": f"score:{k}", "value": {"add": n}}) for k, n in adds.items()))
    order = ["b", "e", "a", "c", "d"]
    found = await rows(edge, "/v1/tables/score:top?n=3")
    assert found == [{"rank": i + 1, "key": f"score:{k}", "value": adds[k]} for i, k in enumerate(order[:3])]
    around = await rows(edge, "/v1/tables/score:around?key=score:a&n=1")
    assert [(row["rank"], row["key"]) for row in around] == [(2, "score:e"), (3, "score:a"), (4, "score:c")]
    rank = await (await edge.http.get("/v1/tables/score:rank?key=score:c")).json()
    assert (rank["rank"], rank["key"], rank["value"]) == (4, "score:c", 5) and rank["rows"][0]["rank"] == 4
    await problem_of(await edge.http.get("/v1/tables/score:rank?key=score:none"), 404, "key")
    await problem_of(await edge.http.get("/v1/tables/score:rank"), 400, "key")
    await post(edge, "\n".join(json.dumps({"key": f"kv:{i}", "value": {"n": i, "m": -i}}) for i in range(4)))
    by = await rows(edge, "/v1/tables/kv:top?by=m&n=2")
    assert [(row["key"], row["value"]) for row in by] == [("kv:0", {"n": 0, "m": 0}), ("kv:1", {"n": 1, "m": -1})]


async def test_bad_counts_name_the_field_and_the_range(edge: TestGateway) -> None:
    for what in ("top", "around"):
        for n in ("0", "-1", "1000000000", "x", "", "1.5", "9" * 30, "²"):
            answer = await edge.http.get(f"/v1/tables/score:{what}", params={"n": n, "key": "score:a"})
            assert "10000" in await problem_of(answer, 400, "n")


async def test_scans_page_in_key_order(edge: TestGateway) -> None:
    keys = sorted(f"kv:{name}" for name in ("a", "b/c", "b:1", "ü", "z"))
    await post(edge, "\n".join(json.dumps({"key": key, "value": key}) for key in keys))
    seen, cursor = [], ""
    while cursor is not None:
        page = await (await edge.http.get("/v1/tables/kv", params={"limit": "2", "cursor": cursor})).json()
        seen += [row["key"] for row in page["rows"]]
        cursor = page["cursor"]
    assert seen == sorted(keys, key=str.encode)
    assert [row["key"] for row in await rows(edge, "/v1/tables/kv?prefix=kv:b")] == ["kv:b/c", "kv:b:1"]
    await problem_of(await edge.http.get("/v1/tables/kv?cursor=!!"), 400, "cursor")
    await problem_of(await edge.http.get("/v1/tables/kv?limit=0"), 400, "limit")
    await problem_of(await edge.http.get("/v1/tables/none"), 404, "table")
    await problem_of(await edge.http.get("/v1/tables/none:top"), 404, "table")
    await problem_of(await edge.http.get("/v1/tables/kv/kv:none"), 404, "key")


async def test_digests_tell_rows_apart(edge: TestGateway) -> None:
    before = await (await edge.http.get("/v1/tables/score:digest")).json()
    await edge.http.put("/v1/kv/score:a", json={"add": 1})
    after = await (await edge.http.get("/v1/tables/score:digest")).json()
    assert before["rows"] == 0 and after["rows"] == 1 and before["digest"] != after["digest"]
    assert set(after) >= {"digest", "rows", "applied"} and after["applied"]


async def test_keyspaces(edge: TestGateway) -> None:
    made = await edge.http.put("/v1/keyspaces/game", json={"merge": "counter", "ttl": "1d", "partitions": 3})
    assert made.status == 200, await made.text()
    assert (await made.json())["ttl_ms"] == 86_400_000
    assert (await (await edge.http.get("/v1/keyspaces/game")).json())["merge"] == "counter"
    listed = [each["name"] for each in (await (await edge.http.get("/v1/keyspaces")).json())["keyspaces"]]
    assert {"score", "best", "device", "prefs", "content", "kv", "game"} <= set(listed)
    again = await edge.http.put("/v1/keyspaces/game", json={"merge": "max"})
    await problem_of(again, 409, "merge")
    for body, field in (
        ({"merge": "nope"}, "merge"),
        ({"partitions": 0}, "partitions"),
        ({"color": 1}, "color"),
        ({"ttl": 0}, "ttl"),
        ([], "body"),
    ):
        await problem_of(await edge.http.put("/v1/keyspaces/other", json=body), 400, field)
    await problem_of(await edge.http.put("/v1/keyspaces/kv", json={"consistency": "strong"}), 409, "consistency")
    await problem_of(await edge.http.put("/v1/keyspaces/BAD", json={}), 400, "name")
    await problem_of(await edge.http.get("/v1/keyspaces/none"), 404, "name")


async def test_the_openapi_document_is_the_routes(edge: TestGateway) -> None:
    document = await (await edge.http.get("/openapi.json")).json()
    described = {(path, method.upper()) for path, methods in document["paths"].items() for method in methods}
    declared = {(openapi_path(each.path), each.method) for each in edge.app.operations}
    routed = {openapi_path(route.path) for route in edge.app.routes}
    assert declared <= described
    assert {path for path, _ in described} == routed
    names = [
        each["operationId"]
        for methods in document["paths"].values()
        for each in methods.values()
        if "operationId" in each
    ]
    assert len(names) == len(set(names)) == len(edge.app.operations)
    for path, methods in document["paths"].items():
        for each in methods.values():
            given = {param["name"] for param in each["parameters"] if param["in"] == "path"}
            assert {part[1:-1] for part in __import__("re").findall(r"\{\w+\}", path)} == given, path
    required = ("/v1/kv/{key}", "/v1/kv:batch", "/v1/tables/{table}:top", "/v1/keyspaces/{name}:subscribe", "/readyz")
    assert set(required) <= set(document["paths"])


async def test_system_routes(edge: TestGateway) -> None:
    await edge.http.put("/v1/kv/kv:a", json=1)
    for path, kind in (("/healthz", "application/json"), ("/readyz", "application/json"), ("/docs", "text/html")):
        answer = await edge.http.get(path)
        assert (answer.status, answer.content_type) == (200, kind)
    page = await (await edge.http.get("/")).text()
    assert "http" not in page.replace("http-equiv", "").replace("HTTP", ""), "the page loads nothing from elsewhere"
    metrics = await (await edge.http.get("/metrics")).text()
    assert 'streams_http_requests_total{method="PUT",route="/v1/kv/{key:any}",status="200"} 1.0' in metrics
    assert 'streams_events_accepted_total{keyspace="kv"} 1.0' in metrics


async def test_watch_sends_rows_and_resumes(edge: TestGateway) -> None:
    await edge.http.put("/v1/kv/kv:old", json=1)

    async def watch(count: int, query: str = "", **headers: str) -> list[tuple[str, str, Any]]:
        found, ident, kind = [], "", ""
        async with edge.http.get(f"/v1/tables/kv:watch{query}", headers=headers) as answer:
            assert answer.content_type == "text/event-stream"
            started.set()
            async for raw in answer.content:
                name, _, value = raw.decode().rstrip("\n").partition(": ")
                ident, kind = value if name == "id" else ident, value if name == "event" else kind
                if name == "data":
                    found.append((ident, kind, json.loads(value)))
                    if len(found) == count:
                        return found
        raise AssertionError("the stream ended")

    started = asyncio.Event()
    snapshot = await watch(2, "?from=start")
    assert [kind for _, kind, _ in snapshot] == ["reset", "row"] and snapshot[1][2]["key"] == "kv:old"
    started.clear()
    following = asyncio.create_task(watch(1))
    await started.wait()
    open_streams = edge.gateway.metrics.streams.labels("watch")
    await eventually(lambda: open_streams._value.get() == 1)
    await edge.http.put("/v1/kv/kv:new", json={"v": 2})
    ((ident, _, row),) = await following
    assert row["value"] == {"v": 2}
    await edge.http.delete("/v1/kv/kv:new")
    await edge.http.put("/v1/kv/kv:newer", json=3)
    resumed = await watch(2, **{"Last-Event-ID": ident})
    assert {row["key"]: row["value"] for _, _, row in resumed} == {"kv:new": None, "kv:newer": 3}
    lost = await watch(3, **{"Last-Event-ID": "1-1"})
    assert lost[0][1] == "reset" and {row["key"] for _, _, row in lost[1:]} == {"kv:old", "kv:newer"}
