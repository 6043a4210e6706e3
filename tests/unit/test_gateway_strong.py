"""Strong keyspaces over real HTTP, with the real machine on a log of one process: versions, conditions, refusals."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from streams.client import connect
from streams.gateway.context import GatewayOptions
from streams.model.errors import PreconditionFailed, Unavailable
from streams.sequencer.replica import OutcomeUnknown
from tests.support.gateway import TestGateway, running_gateway
from tests.unit.test_gateway_keys import problem_of

A = "/v1/kv/strong:a"


@pytest_asyncio.fixture
async def edge(tmp_path: Path) -> AsyncIterator[TestGateway]:
    async with running_gateway(tmp_path, GatewayOptions(wait_s=0.3)) as found:
        yield found


async def test_versions_move_and_conditions_hold_them(edge: TestGateway) -> None:
    await problem_of(await edge.http.get(A), 404, "key")
    created = await edge.http.put(A, json={"x": 1}, headers={"If-None-Match": "*"})
    first = await created.json()
    assert first["version"] > 0 and created.headers["ETag"] == f'"{first["version"]}"'
    assert (first["topic"], first["partition"], first["region"]) == ("sequenced.strong", 0, "us-east")
    there = await problem_of(await edge.http.put(A, json=2, headers={"If-None-Match": "*"}), 412, "If-None-Match")
    assert there["version"] == first["version"]
    for written in (f'"{first["version"]}"', str(first["version"])):
        moved = await edge.http.put(A, json=[written], headers={"If-Match": written})
        if moved.status == 200:
            second = await moved.json()
        else:
            found = await problem_of(moved, 412, "If-Match")
            assert (found["version"], found["key"]) == (second["version"], "strong:a")
    read = await edge.http.get(A)
    row = await read.json()
    assert (row["value"], row["version"], row["region"]) == ([f'"{first["version"]}"'], second["version"], "us-east")
    assert read.headers["ETag"] == f'"{second["version"]}"' and edge.sequencer.barriers
    assert (await edge.http.put(A, json=3, headers={"If-Match": "*"})).status == 200
    deleted = await (await edge.http.delete(A)).json()
    assert deleted["version"] == 0
    await problem_of(await edge.http.delete(A, headers={"If-Match": "*"}), 412, "If-Match")
    assert (await edge.http.delete(A)).status == 200
    gone = await problem_of(await edge.http.get(A), 404, "key")
    assert gone["title"] == "no value" and gone["version"] == 0


@pytest.mark.parametrize(
    ("headers", "field"),
    [
        ({"If-Match": "abc"}, "If-Match"),
        ({"If-Match": "-1"}, "If-Match"),
        ({"If-Match": 'W/"3"'}, "If-Match"),
        ({"If-Match": '"3'}, "If-Match"),
        ({"If-Match": ""}, "If-Match"),
        ({"If-Match": str(2**64 - 1)}, "If-Match"),
        ({"If-Match": "9" * 30}, "If-Match"),
        ({"If-None-Match": "3"}, "If-None-Match"),
        ({"If-Match": "3", "If-None-Match": "*"}, "If-None-Match"),
        ({"Idempotency-Key": "x" * 256}, "Idempotency-Key"),
    ],
)
async def test_bad_conditions(edge: TestGateway, headers: dict[str, str], field: str) -> None:
    await problem_of(await edge.http.put(A, json=1, headers=headers), 400, field)
    await problem_of(await edge.http.delete(A, headers=headers), 400, field)
    await problem_of(await edge.http.get(A), 404, "key")


async def test_the_same_key_answers_the_first_result_also_after_a_restart(edge: TestGateway) -> None:
    key = {"Idempotency-Key": "once"}
    first = await (await edge.http.put(A, json=1, headers=key)).json()
    await edge.http.put(A, json=2)
    edge.gateway.idempotency._entries.clear()  # what a restarted gateway, or another, does not have
    again = await edge.http.put(A, json=1, headers=key)
    told = await again.json()
    assert again.headers["Idempotent-Replayed"] == "true"
    assert (told["offset"], told["version"]) == (first["offset"], first["version"])
    assert (await (await edge.http.get(A)).json())["value"] == 2
    edge.gateway.idempotency._entries.clear()
    await problem_of(await edge.http.put(A, json=9, headers=key), 422, "Idempotency-Key")
    await problem_of(await edge.http.put(A + "b", json=1, headers=key), 422, "Idempotency-Key")
    for entries in ("known here", "forgotten here"):
        await problem_of(await edge.http.put(A, json=1, headers={**key, "If-Match": "1"}), 422, "Idempotency-Key")
        if entries == "known here":
            await edge.http.put(A, json=1, headers=key)
            await problem_of(await edge.http.put(A, json=1, headers={**key, "If-Match": "1"}), 422, "Idempotency-Key")
        edge.gateway.idempotency._entries.clear()
    stale = {"If-Match": "77", "Idempotency-Key": "lost"}
    before = await problem_of(await edge.http.put(A, json=3, headers=stale), 412, "If-Match")
    await edge.http.put(A, json=4)
    edge.gateway.idempotency._entries.clear()
    after = await problem_of(await edge.http.put(A, json=3, headers=stale), 412, "If-Match")
    assert after["version"] == before["version"], "a failure is a result, and is told again too"
    deleted = [await edge.http.delete(A, headers={"Idempotency-Key": "d"}) for _ in range(2)]
    assert [each.headers.get("Idempotent-Replayed") for each in deleted] == [None, "true"]


async def test_an_old_key_is_refused_and_one_day_forgotten(edge: TestGateway) -> None:
    day_ms, edge.sequencer.now_ms = 86_400_000, 1_800_000_000_000
    key = {"Idempotency-Key": "old"}
    await edge.http.put(A, json=1, headers=key)
    edge.gateway.idempotency._entries.clear()
    edge.sequencer.now_ms += day_ms + 1
    refused = await problem_of(await edge.http.put(A, json=1, headers=key), 409, "Idempotency-Key")
    assert "too long ago" in str(refused["detail"])
    await problem_of(await edge.http.post("/v1/commands/old:resolve"), 409, "Idempotency-Key")
    edge.gateway.idempotency._entries.clear()
    edge.sequencer.now_ms += 30 * day_ms
    assert (await edge.http.put(A, json=1, headers=key)).status == 200


async def test_an_unknown_outcome_says_so_and_is_resolved(edge: TestGateway) -> None:
    edge.sequencer.refuse = OutcomeUnknown("no acknowledgement")
    lost = await edge.http.put(A, json=1)
    found = await problem_of(lost, 503)
    assert found["title"] == "outcome unknown" and lost.headers["Retry-After"]
    key = str(found["idempotency_key"])
    cancelled = await edge.http.post(f"/v1/commands/{key}:resolve")
    assert await cancelled.json() == {"idempotency_key": key, "outcome": "cancelled"}
    refused = await problem_of(await edge.http.put(A, json=1, headers={"Idempotency-Key": key}), 409, "Idempotency-Key")
    assert "cancelled" in str(refused["detail"])
    await problem_of(await edge.http.get(A), 404, "key")
    odd = 'a/b:resolve é"'
    put = await (await edge.http.put(A, json=1, headers={"Idempotency-Key": odd})).json()
    path = "/v1/commands/a%2Fb%3Aresolve%20%C3%A9%22:resolve"
    from yarl import URL

    known = await (await edge.http.post(URL(str(edge.url) + path, encoded=True))).json()
    assert known["outcome"] == "applied" and known["result"]["version"] == put["version"]
    edge.sequencer.refuse = OutcomeUnknown("again")
    await problem_of(await edge.http.post("/v1/commands/x:resolve"), 503)


async def test_a_cut_off_home_refuses_strong_reads_and_writes_and_answers_eventual_ones(edge: TestGateway) -> None:
    put = await (await edge.http.put(A, json=1)).json()
    for ask in (edge.http.get(A), edge.http.put(A, json=2)):
        edge.sequencer.refuse = Unavailable("the home region cannot be reached")
        assert "idempotency_key" not in await problem_of(await ask, 503)
    barriers = edge.sequencer.barriers
    for wanted in ("eventual", "causal"):
        row = await (await edge.http.get(A, params={"consistency": wanted})).json()
        assert (row["value"], row["version"]) == (1, put["version"])
    assert edge.sequencer.barriers == barriers
    await problem_of(await edge.http.get(A, params={"consistency": "linear"}), 400, "consistency")
    assert (await edge.http.get(A, headers={"Causal-Token": put["token"]})).status == 200


async def test_only_the_logs_time_expires(edge: TestGateway) -> None:
    edge.sequencer.now_ms = 1_000_000  # the log's clock is far behind this machine's
    put = await (await edge.http.put(A + "?ttl=5", json=1)).json()
    assert put["timestamp"] == 1_000_000
    row = await (await edge.http.get(A)).json()
    assert (row["value"], row["expires_at"], edge.sequencer.ticks) == (1, 1_005_000, 1), "the log was asked"
    edge.sequencer.now_ms = 1_005_000
    await problem_of(await edge.http.get(A), 404, "key")
    assert (await edge.http.put(A, json=2, headers={"If-None-Match": "*"})).status == 200
    await problem_of(await edge.http.put(A + "?ttl=0", json=2), 400, "ttl")


async def test_transactions_are_all_or_nothing(edge: TestGateway) -> None:
    a = await (await edge.http.put(A, json=10)).json()
    body = {
        "if": [{"key": "strong:a", "version": a["version"]}, {"key": "strong:b", "version": 0}],
        "then": [{"put": "strong:a", "value": 4, "ttl": "1h"}, {"put": "strong:b", "value": 6}, {"delete": "strong:c"}],
    }
    done = await (await edge.http.post("/v1/transactions", json=body)).json()
    assert done["versions"] == {"strong:a": done["version"], "strong:b": done["version"], "strong:c": 0}
    failed = await problem_of(await edge.http.post("/v1/transactions", json=body), 412, "if[0]")
    assert (failed["key"], failed["version"]) == ("strong:a", done["version"])
    values = [(await (await edge.http.get(f"/v1/kv/strong:{key}")).json())["value"] for key in "ab"]
    assert values == [4, 6]
    rows = (await (await edge.http.get("/v1/tables/strong")).json())["rows"]
    assert [(row["key"], row["value"]) for row in rows] == [("strong:a", 4), ("strong:b", 6)]


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ([], 400, "body"),
        ({}, 400, "then"),
        ({"then": {}}, 400, "then"),
        ({"then": [{"put": "strong:a", "value": 1}], "else": []}, 400, "else"),
        ({"then": [{"put": "strong:a"}]}, 400, "then[0]"),
        ({"then": [{"put": "strong:a", "value": 1, "delete": "strong:b"}]}, 400, "then[0]"),
        ({"then": [{"delete": 5}]}, 400, "then[0].delete"),
        ({"then": [{"delete": "strong"}]}, 400, "then[0].delete"),
        ({"then": [{"delete": "nowhere:a"}]}, 404, "then[0].delete"),
        ({"then": [{"delete": "strong:a"}, {"put": "kv:a", "value": 1}]}, 409, "then[1].put"),
        ({"then": [{"delete": "strong:a"}, {"put": "strong:a", "value": 1}]}, 400, "then[1]"),
        ({"then": [{"put": "strong:a", "value": 1, "ttl": 0}]}, 400, "then[0].ttl"),
        ({"if": [{"key": "strong:a"}]}, 400, "if[0]"),
        ({"if": [{"key": "strong:a", "version": -1}]}, 400, "if[0].version"),
        ({"if": [{"key": "strong:a", "version": "1"}]}, 400, "if[0].version"),
        ({"if": [{"key": "strong:a", "version": True}]}, 400, "if[0].version"),
        ({"if": [{"key": "score:a", "version": 1}]}, 409, "if[0].key"),
        ({"if": [{"key": "strong:a", "version": 0}] * 2}, 400, "if[1]"),
        ({"if": [{"key": f"strong:{n}", "version": 0} for n in range(129)]}, 400, "if"),
        ({"then": [{"put": "order:1", "value": 1}]}, 409, "key"),
    ],
)
async def test_bad_transactions(edge: TestGateway, body: object, status: int, field: str) -> None:
    await problem_of(await edge.http.post("/v1/transactions", json=body), status, field)
    assert edge.gateway.strong is not None and edge.gateway.strong.describe()["commands"] == 0


async def test_what_strong_keyspaces_are_not_is_refused(edge: TestGateway) -> None:
    await problem_of(await edge.http.put("/v1/kv/order:1", json={}), 409, "key")
    await problem_of(await edge.http.put("/v1/keyspaces/order", json={}), 409, "name")
    await problem_of(await edge.http.put("/v1/keyspaces/n", json={"consistency": "strong", "merge": "counter"}), 400)
    whole = {"consistency": "strong", "mirror": "events"}
    await problem_of(await edge.http.put("/v1/keyspaces/n", json=whole), 400, "mirror")
    await problem_of(await edge.http.get("/v1/keyspaces/strong:subscribe"), 409, "keyspace")
    made = await edge.http.put("/v1/keyspaces/acct", json={"consistency": "strong"})
    assert made.status == 200 and (await made.json())["consistency"] == "strong"
    edge.sequencer.strong.set_keyspaces(edge.gateway.definitions.keyspaces.values())
    body = {"then": [{"put": "acct:1", "value": 1}, {"put": "strong:1", "value": 2}]}
    assert (await edge.http.post("/v1/transactions", json=body)).status == 200
    for table in ("acct", "strong"):
        rows = (await (await edge.http.get(f"/v1/tables/{table}")).json())["rows"]
        assert [row["key"] for row in rows] == [f"{table}:1"]


async def test_the_client_and_its_digest(edge: TestGateway) -> None:
    async with connect(edge.url) as client:
        made = await client.put_strong("strong:c", 1, if_version=0, idempotency_key="k")
        assert made.version and (await client.get("strong:c")).version == made.version  # type: ignore[union-attr]
        with pytest.raises(PreconditionFailed) as moved:
            await client.put_strong("strong:c", 2, if_version=made.version + 5)
        assert moved.value.extra["version"] == made.version
        done = await client.transact(
            [{"put": "strong:d", "value": 2}], if_=[{"key": "strong:c", "version": made.version}]
        )
        assert done.versions == {"strong:d": done.version}
        assert (await client.resolve("k")).outcome == "applied" and (await client.resolve("z")).outcome == "cancelled"
        assert (await client.get("strong:d", consistency="eventual")).value == 2  # type: ignore[union-attr]
        assert (await client.delete_strong("strong:d", if_version=done.version)).version == 0
        assert await client.get("strong:d") is None
        edge.sequencer.refuse = OutcomeUnknown("no acknowledgement")
        with pytest.raises(Unavailable) as unknown:
            await client.put_strong("strong:c", 3, idempotency_key="mine")
        assert unknown.value.extra["idempotency_key"] == "mine"
    digest = await (await edge.http.get("/v1/tables/strong:digest")).json()
    assert digest["rows"] == 1 and len(digest["state"]) == 16
    assert digest["offset"] == digest["commands"] == digest["applied"]["us-east/0"]["seq"]
