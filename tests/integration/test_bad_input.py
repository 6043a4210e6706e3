"""What an attacker from outside found: bad input over HTTP is a 4xx that names the field, and costs nobody else."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import unquote

import pytest
import pytest_asyncio
from yarl import URL

from streams.edge.options import TableSpec
from streams.gateway import http as gateway_http
from streams.gateway.context import GatewayOptions
from streams.model.keyspace import Keyspace
from streams.model.token import Input, Token
from tests.support.gateway import TestGateway, running_gateway

pytestmark = pytest.mark.asyncio(loop_scope="module")
NDJSON, CSV = {"Content-Type": "application/x-ndjson"}, {"Content-Type": "text/csv"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def edge(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[TestGateway]:
    """One gateway for the module."""
    path: Path = tmp_path_factory.mktemp("edge")
    async with running_gateway(path, GatewayOptions(wait_s=1.0)) as found:
        yield found


async def raw(edge: TestGateway, request: bytes) -> tuple[int, str]:
    """Send bytes as they are; the answer's status and everything after it. The connection stays half used."""
    port = edge.gateway.region.gateway_port
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
        length = int(next((v for k, v in map(_pair, head.split(b"\r\n")) if k == b"content-length"), b"0"))
        body = await reader.readexactly(length)
        return int(head.split()[1]), (head + body).decode()
    finally:
        writer.close()


def _pair(line: bytes) -> tuple[bytes, bytes]:
    name, _, value = line.partition(b":")
    return name.lower(), value.strip()


def literal(edge: TestGateway, path: str) -> URL:
    """A URL that aiohttp does not normalise."""
    return URL(edge.url + path, encoded=True)


@pytest.mark.parametrize("key", ["kv:a%0Ab", "kv:%0A", "kv:end%0A", "kv:a%0D%0A"])
async def test_line_breaks_are_characters_of_keys(edge: TestGateway, key: str) -> None:
    for path in (f"/v1/kv/{key}", f"/v1/tables/kv/{key}"):
        put = await edge.http.put(literal(edge, f"/v1/kv/{key}"), json=1)
        assert put.status == 200, await put.text()
        got = await edge.http.get(literal(edge, path))
        assert (await got.json())["key"] == unquote(key)


@pytest.mark.parametrize("path", ["/v1/tables/kv%2Fkv:a", "/v1/tables/kv%2Fx:top", "/v1%2Fkv/kv:a", "/v1/kv%2Fkv:a"])
async def test_encoded_slashes_outside_keys_are_not_found(edge: TestGateway, path: str) -> None:
    answer = await edge.http.get(literal(edge, path))
    assert (answer.status, (await answer.json(content_type=None))["field"]) == (404, "path")


async def test_broken_framing_is_the_clients_fault(edge: TestGateway) -> None:
    head = b"PUT /v1/kv/kv:a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    status, text = await raw(edge, head + b'zz\r\n{"a"\r\n')
    assert status == 400 and '"field":"body"' in text


async def test_a_stalled_body_is_given_up(edge: TestGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_http, "BODY_IDLE_S", 0.2)
    status, text = await raw(edge, b"PUT /v1/kv/kv:a HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n12")
    assert status == 408 and '"field":"body"' in text


@pytest.mark.parametrize("expect", [b"", b"Expect: 100-continue\r\n"])
async def test_a_body_announced_over_the_limit_is_refused_unread(edge: TestGateway, expect: bytes) -> None:
    size = b"99999999999" if not expect else b"20000000"
    head = b"PUT /v1/kv/kv:a HTTP/1.1\r\nHost: x\r\n" + expect + b"Content-Length: " + size + b"\r\n\r\n"
    status, text = await raw(edge, head)
    assert status == 413 and '"field":"body"' in text


async def test_compressed_bodies_are_refused_by_name(edge: TestGateway) -> None:
    headers = {"Content-Encoding": "gzip"}
    for send, path, more in ((edge.http.put, "/v1/kv/kv:a", {}), (edge.http.post, "/v1/kv:batch", NDJSON)):
        answer = await send(path, data=gzip.compress(b"1"), headers=headers | more)
        assert (answer.status, (await answer.json(content_type=None))["field"]) == (415, "Content-Encoding")


@pytest.mark.parametrize(("method", "path", "allow"), [("POST", "/v1/kv/kv:a", "PUT"), ("GET", "/v1/kv:batch", "POST")])
async def test_a_wrong_method_is_told_the_right_ones(edge: TestGateway, method: str, path: str, allow: str) -> None:
    answer = await edge.http.request(method, path)
    assert answer.status == 405 and allow in answer.headers["Allow"]


async def test_the_registrys_wrong_methods_speak_its_form(edge: TestGateway) -> None:
    answer = await edge.http.patch("/subjects")
    assert answer.status == 405 and "GET" in answer.headers["Allow"]
    assert (await answer.json(content_type=None))["error_code"] == 405


@pytest.mark.parametrize("merge", ["set", "text", "opaque"])
async def test_a_merge_type_that_nothing_folds_is_refused(edge: TestGateway, merge: str) -> None:
    answer = await edge.http.put("/v1/keyspaces/folded", json={"merge": merge})
    assert (answer.status, (await answer.json(content_type=None))["field"]) == (400, "merge")
    assert (await edge.http.get("/v1/keyspaces/folded")).status == 404


async def test_csv_columns_beside_value_make_an_object(edge: TestGateway) -> None:
    lines = "key,metric,value,time\r\ndevice:7:t,temp,1.5,1700000000000\r\ndevice:7:t,temp,x,\r\n"
    answer = await (await edge.http.post("/v1/kv:batch", data=lines, headers=CSV)).json()
    assert answer["accepted"] == 1 and [bad["line"] for bad in answer["rejected"]] == [3]
    row = await (await edge.http.get("/v1/kv/device:7:t")).json()
    assert row["value"] == {"metric": "temp", "value": 1.5, "time": 1700000000000}


async def test_csv_with_bare_carriage_returns_is_refused(edge: TestGateway) -> None:
    answer = await edge.http.post("/v1/kv:batch", data="key,value\rkv:a,1\r", headers=CSV)
    assert (answer.status, (await answer.json(content_type=None))["field"]) == (400, "body")


async def test_a_byte_order_mark_is_no_part_of_the_first_line(edge: TestGateway) -> None:
    for lines, headers in (('{"key":"kv:bom","value":1}', NDJSON), ("key,value\nkv:bom,1", CSV)):
        answer = await edge.http.post("/v1/kv:batch", data=("\ufeff" + lines).encode(), headers=headers)
        assert (await answer.json())["accepted"] == 1


async def test_a_token_may_name_a_keyspace_that_is_on_its_way_here(edge: TestGateway) -> None:
    token = Token({Input("eu-west", "events.late", 0): 0}).encode()
    headers = {"Causal-Token": token}
    reads = [
        asyncio.create_task(edge.http.get(path, headers=headers))
        for path in ("/v1/kv/late:a", "/v1/tables/late:top", "/v1/tables/late", "/v1/kv/kv:none")
    ]
    await asyncio.wait(reads, timeout=0.1)
    assert not any(read.done() for read in reads)
    late = Keyspace("late")
    await edge.gateway.definitions.put_keyspace(late, None)
    edge.log.tables.set_tables([*(table.spec for table in edge.log.tables.tables.values()), TableSpec.of(late)])
    statuses = [(await read).status for read in reads]
    assert statuses == [404, 200, 200, 404]
    assert json.loads(await (await reads[0]).text())["title"] == "no value"


async def test_a_token_of_a_keyspace_that_never_comes_is_refused_in_bounded_time(edge: TestGateway) -> None:
    headers = {"Causal-Token": Token({Input("eu-west", "events.never", 0): 1}).encode()}
    async with asyncio.timeout(5):
        assert (await edge.http.get("/v1/kv/never:a", headers=headers)).status == 404
        assert (await edge.http.get("/v1/kv/kv:a", headers=headers)).status == 400


async def test_a_digest_waits_for_the_requests_token(edge: TestGateway) -> None:
    headers = {"Causal-Token": Token({Input("us-east", "events.score", 0): 10**6}).encode()}
    answer = await edge.http.get("/v1/tables/score:digest", headers=headers)
    assert answer.status == 504 and int(answer.headers["Retry-After"]) > 0
