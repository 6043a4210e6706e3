"""Trading over real HTTP, with the real machine on a log of one process: orders, books, calls, accounts, refusals."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pyarrow as pa
import pytest
import pytest_asyncio

from streams.client import connect
from streams.gateway.context import GatewayOptions
from streams.gateway.subscribers import StreamOptions
from streams.model.errors import Conflict, NotFound, Unavailable
from streams.sequencer.replica import OutcomeUnknown
from tests.support.gateway import TestGateway, running_gateway
from tests.unit.test_gateway_keys import problem_of

LINES = "application/x-ndjson"


@pytest_asyncio.fixture
async def edge(tmp_path: Path) -> AsyncIterator[TestGateway]:
    async with running_gateway(tmp_path, GatewayOptions(wait_s=0.3), orders=True) as found:
        for name, mode in (("AAPL", "continuous"), ("CALL", "call")):
            await answer(await found.http.put(f"/v1/symbols/{name}", json={"tick": "0.01", "lot": "1", "mode": mode}))
        yield found


async def answer(response: aiohttp.ClientResponse) -> Any:
    body = await response.json(content_type=None)
    assert response.status == 200, body
    return body


def order(
    identity: str, side: str, price: str | None, quantity: str, kind: str = "limit", **more: str
) -> dict[str, Any]:
    found: dict[str, Any] = {"id": identity, "symbol": "AAPL", "side": side, "type": kind, "quantity": quantity}
    return found | ({} if price is None else {"price": price}) | more


async def place(edge: TestGateway, *asked: Any, **more: str) -> Any:
    return await answer(await edge.http.post("/v1/orders", json=order(*asked, **more)))


async def test_an_order_trades_and_rests(edge: TestGateway) -> None:
    first = await place(edge, "a", "sell", "10.50", "5")
    assert first["order"] == {
        "id": "a", "symbol": "AAPL", "side": "sell", "type": "limit", "price": "10.5", "quantity": "5",
        "status": "open", "filled": "0",
    }  # fmt: skip
    assert first["trades"] == [] and type(first["offset"]) is int
    second = await place(edge, "b", "buy", "11", "7")
    assert second["trades"] == [{"price": "10.5", "quantity": "5", "maker": "a", "taker": "b"}]
    assert (second["order"]["status"], second["order"]["filled"]) == ("partially_filled", "5")
    book = await answer(await edge.http.get("/v1/books/AAPL?depth=5"))
    assert (book["bids"], book["asks"], book["mode"]) == ([["11", "2"]], [], "continuous")
    assert book["offset"] == second["offset"]
    found = await answer(await edge.http.get("/v1/orders/a"))
    assert (found["order"]["status"], found["order"]["filled"]) == ("filled", "5")
    for kind, status, filled in (("ioc", "cancelled", "0"), ("fok", "cancelled", "0")):
        none = await place(edge, kind, "sell", "11.01", "1", kind)
        assert (none["order"]["status"], none["order"]["filled"]) == (status, filled)
    swept = await place(edge, "m", "sell", None, "9", "market")
    assert (swept["order"]["status"], swept["order"]["filled"], swept["order"]["price"]) == ("cancelled", "2", None)
    page = await answer(await edge.http.get("/v1/trades/AAPL?limit=1"))
    assert [each["taker"] for each in page["trades"]] == ["b"]
    rest = await answer(await edge.http.get("/v1/trades/AAPL", params={"cursor": page["cursor"]}))
    assert [(each["taker"], each["offset"]) for each in rest["trades"]] == [("m", swept["offset"])]
    more = await answer(await edge.http.get("/v1/trades/AAPL", params={"cursor": rest["cursor"]}))
    assert more["trades"] == [] and more["cursor"] == rest["cursor"]


async def test_the_same_order_again_gets_its_first_answer(edge: TestGateway) -> None:
    await place(edge, "s", "sell", "10", "3")
    asked = order("x", "buy", "10.00", "5")
    first = await answer(await edge.http.post("/v1/orders", json=asked))
    await place(edge, "t", "sell", "10", "2")
    again = await edge.http.post("/v1/orders", json=asked | {"price": "10"})
    assert again.headers["Idempotent-Replayed"] == "true"
    same = await answer(again)
    assert {name: same[name] for name in ("order", "trades", "offset")} == {
        name: first[name] for name in ("order", "trades", "offset")
    }
    await problem_of(await edge.http.post("/v1/orders", json=asked | {"quantity": "6"}), 409, "id")
    now = await answer(await edge.http.get("/v1/orders/x"))
    assert now["order"]["status"] == "filled"


async def test_cancel_and_replace(edge: TestGateway) -> None:
    for identity in ("a", "b"):
        await place(edge, identity, "buy", "10", "5")
    less = await answer(await edge.http.post("/v1/orders/a:replace", json={"quantity": "3"}))
    assert (less["order"]["quantity"], less["order"]["status"]) == ("3", "open")
    hit = await place(edge, "c", "sell", "10", "1")
    assert [trade["maker"] for trade in hit["trades"]] == ["a"], "less at the same price keeps its place"
    await problem_of(await edge.http.post("/v1/orders/a:replace", json={"quantity": "1"}), 409, "quantity")
    await answer(await edge.http.post("/v1/orders/a:replace", json={"quantity": "9"}))
    hit = await place(edge, "d", "sell", "10", "1")
    assert [trade["maker"] for trade in hit["trades"]] == ["b"], "more arrives anew"
    await place(edge, "e", "sell", "12", "2")
    crossing = await answer(
        await edge.http.post("/v1/orders/b:replace", json={"price": "12"}, headers={"Idempotency-Key": "r"})
    )
    assert crossing["trades"] == [{"price": "12", "quantity": "2", "maker": "e", "taker": "b"}]
    gone = await answer(await edge.http.delete("/v1/orders/b"))
    assert (gone["order"]["status"], gone["order"]["filled"]) == ("cancelled", "3")
    twice = await problem_of(await edge.http.delete("/v1/orders/b"), 409, "id")
    assert twice["order"]["status"] == "cancelled"
    await problem_of(await edge.http.delete("/v1/orders/nobody"), 404, "id")
    await problem_of(await edge.http.post("/v1/orders/e:replace", json={"price": "1"}), 409, "id")
    await problem_of(await edge.http.post("/v1/orders/a:replace", json={}), 400, "quantity")


BAD = [
    ({"symbol": "NONE"}, 404, "symbol"),
    ({"symbol": "a/b"}, 400, "symbol"),
    ({"symbol": None}, 400, "symbol"),
    ({"side": "hold"}, 400, "side"),
    ({"type": "stop"}, 400, "type"),
    ({"type": ["limit"]}, 400, "type"),
    ({"price": "10.005"}, 400, "price"),
    ({"price": 10.25}, 400, "price"),
    ({"price": "1e3"}, 400, "price"),
    ({"price": "-1"}, 400, "price"),
    ({"price": "0"}, 400, "price"),
    ({"price": "٣"}, 400, "price"),
    ({"price": "1" * 40}, 400, "price"),
    ({"price": None}, 400, "price"),
    ({"type": "market"}, 400, "price"),
    ({"quantity": "1.5"}, 400, "quantity"),
    ({"quantity": "0"}, 400, "quantity"),
    ({"quantity": True}, 400, "quantity"),
    ({"quantity": "999999999999999999"}, 400, "quantity"),
    ({"account": "nobody"}, 404, "account"),
    ({"account": ""}, 400, "account"),
    ({"id": ""}, 400, "id"),
    ({"id": "a" * 65}, 400, "id"),
    ({"id": "x:replace"}, 400, "id"),
    ({"stop": "1"}, 400, "stop"),
]


async def test_bad_orders_change_nothing(edge: TestGateway) -> None:
    for change, status, field in BAD:
        await problem_of(await edge.http.post("/v1/orders", json=order("x", "buy", "10", "5") | change), status, field)
    await problem_of(await edge.http.get("/v1/orders/x"), 404, "id")
    book = await answer(await edge.http.get("/v1/books/AAPL"))
    assert book["bids"] == book["asks"] == []


async def test_bad_addresses_and_bodies(edge: TestGateway) -> None:
    http = edge.http
    await problem_of(await http.post("/v1/orders", data=b"{"), 400, "body")
    await problem_of(await http.post("/v1/orders", json=[]), 400, "body")
    await problem_of(await http.get("/v1/orders/%00"), 400, "id")
    await problem_of(await http.get("/v1/books/NONE"), 404, "symbol")
    await problem_of(await http.get("/v1/books/AAPL?depth=0"), 400, "depth")
    await problem_of(await http.get("/v1/books/AAPL?consistency=some"), 400, "consistency")
    await problem_of(await http.get("/v1/books/NONE:match"), 404, "symbol")
    await problem_of(await http.get("/v1/books/NONE:subscribe"), 404, "symbol")
    await problem_of(await http.get("/v1/books/AAPL:subscribe", headers={"Last-Event-ID": "x"}), 400, "Last-Event-ID")
    await problem_of(
        await http.get("/v1/books/AAPL:subscribe", headers={"Last-Event-ID": "99999"}), 504, "Last-Event-ID"
    )
    await problem_of(await http.get("/v1/trades/NONE"), 404, "symbol")
    await problem_of(await http.get("/v1/trades/AAPL?cursor=1"), 400, "cursor")
    await problem_of(await http.get("/v1/symbols/NONE"), 404, "symbol")
    for body, field in (
        ({"lot": "1"}, "tick"),
        ({"tick": "0", "lot": "1"}, "tick"),
        ({"tick": "0.01", "lot": "x"}, "lot"),
        ({"tick": "0.0000000001", "lot": "0.0000000001"}, "lot"),
        ({"tick": "1", "lot": "1", "mode": "open"}, "mode"),
        ({"tick": "1", "lot": "1", "self_trade": "x"}, "self_trade"),
        ({"tick": "1", "lot": "1", "base": "USD"}, "quote"),
        ({"tick": "1", "lot": "1", "symbol": "B"}, "symbol"),
    ):
        await problem_of(await http.put("/v1/symbols/NEW", json=body), 400, field)
    await problem_of(await http.get("/v1/accounts/none"), 404, "id")
    await problem_of(await http.put("/v1/accounts/a", json={"balances": {"USD": "-1"}}), 400, "balances.USD")
    await problem_of(await http.put("/v1/accounts/a", json={"balances": {"USD": 1.5}}), 400, "balances.USD")
    await problem_of(await http.put("/v1/accounts/a", json={"balances": []}), 400, "balances")
    await problem_of(
        await http.post("/v1/orders:batch", data=b"", headers={"Content-Type": "text/html"}), 400, "Content-Type"
    )
    await problem_of(await http.post("/v1/trades:execute", json={"symbol": "A"}), 400, "trades")
    assert (await answer(await http.post("/v1/trades:execute", json={"trades": []})))["trades"] == []
    await problem_of(await http.post("/v1/trades:execute", json=[{"price": "1"}]), 400, "trades[0].quantity")


async def test_accounts_hold_and_never_overdraw(edge: TestGateway) -> None:
    for name, balances in (("ann", {"USD": "1000.5"}), ("bob", {"AAPL": "10", "USD": "0"})):
        await answer(await edge.http.put(f"/v1/accounts/{name}", json={"balances": balances}))
    await problem_of(
        await edge.http.post("/v1/orders", json=order("x", "buy", "100.06", "10", account="ann")), 409, "account"
    )
    await place(edge, "a", "buy", "100", "10", account="ann")
    ann = await answer(await edge.http.get("/v1/accounts/ann"))
    assert (ann["balances"], ann["held"], ann["available"]) == ({"USD": "1000.5"}, {"USD": "1000"}, {"USD": "0.5"})
    await problem_of(await edge.http.put("/v1/accounts/ann", json={"balances": {"USD": "999"}}), 409, "balances")
    await problem_of(
        await edge.http.post("/v1/orders", json=order("y", "sell", "99", "11", account="bob")), 409, "account"
    )
    sold = await place(edge, "b", "sell", "99", "4", account="bob")
    assert sold["order"]["account"] == "bob" and sold["trades"][0]["price"] == "100"
    await answer(await edge.http.delete("/v1/orders/a"))
    ann, bob = [await answer(await edge.http.get(f"/v1/accounts/{name}")) for name in ("ann", "bob")]
    assert ann["balances"] == {"USD": "600.5", "AAPL": "4"} and ann["held"] == {"USD": "0", "AAPL": "0"}
    assert bob["balances"] == {"AAPL": "6", "USD": "400"}
    await place(edge, "s1", "sell", "50", "1", account="bob")
    own = await place(edge, "s2", "buy", "50", "2", account="bob")
    assert own["trades"] == [] and own["order"]["status"] == "cancelled", "it does not trade with itself"
    await answer(await edge.http.put("/v1/symbols/STRICT", json={"tick": "1", "lot": "1", "accounts": "required"}))
    await problem_of(
        await edge.http.post("/v1/orders", json=order("z", "buy", "1", "1", symbol="STRICT")), 400, "account"
    )


async def test_a_call_is_executed_whole_or_not(edge: TestGateway) -> None:
    for asked in (
        ("b1", "buy", "10.5", "4"),
        ("s1", "sell", "10", "3"),
        ("s2", "sell", "10.2", "3"),
        ("b2", "buy", "10.3", "1"),
    ):
        placed = await place(edge, *asked, symbol="CALL")
        assert placed["trades"] == [] and placed["order"]["status"] == "open"
    await problem_of(
        await edge.http.post("/v1/orders", json=order("m", "buy", None, "1", "market", symbol="CALL")), 409, "type"
    )
    matched = await answer(await edge.http.get("/v1/books/CALL:match"))
    assert matched["trades"] == [
        {"price": "10.5", "quantity": "3", "maker": "b1", "taker": "s1"},
        {"price": "10.5", "quantity": "1", "maker": "b1", "taker": "s2"},
        {"price": "10.2", "quantity": "1", "maker": "s2", "taker": "b2"},
    ]
    await problem_of(await edge.http.put("/v1/symbols/CALL", json={"tick": "0.01", "lot": "1"}), 409, "mode")
    await answer(await edge.http.delete("/v1/orders/b2"))
    await problem_of(await edge.http.post("/v1/trades:execute", json={"trades": matched["trades"]}), 409, "trades[2]")
    assert (await answer(await edge.http.get("/v1/trades/CALL")))["trades"] == [], "none were executed"
    matched = await answer(await edge.http.get("/v1/books/CALL:match"))
    done = await answer(await edge.http.post("/v1/trades:execute", json=matched, headers={"Idempotency-Key": "e"}))
    assert done["trades"] == matched["trades"]
    book = await answer(await edge.http.get("/v1/books/CALL"))
    assert (book["bids"], book["asks"]) == ([], [["10.2", "2"]])
    assert (await answer(await edge.http.get("/v1/orders/b1")))["order"]["status"] == "filled"
    await problem_of(await edge.http.post("/v1/trades:execute", json=matched), 409, "trades[0]")


async def test_batches_in_three_forms(edge: TestGateway) -> None:
    rows = [
        order("n1", "sell", "5", "2"),
        {"id": "bad"},
        order("n2", "buy", "5.001", "1"),
        order("n3", "buy", "6", "3"),
    ]
    lines = b"\n".join(json.dumps(row).encode() for row in rows) + b"\nnot json\n"
    found = await answer(await edge.http.post("/v1/orders:batch", data=lines, headers={"Content-Type": LINES}))
    assert (found["accepted"], found["rejected_count"]) == (2, 3)
    assert sorted((each["line"], each["field"]) for each in found["rejected"]) == [
        (2, "symbol"),
        (3, "price"),
        (5, "body"),
    ]
    assert [(each["order"]["id"], each["order"]["status"]) for each in found["results"]] == [
        ("n1", "open"), ("n3", "partially_filled"),
    ]  # fmt: skip
    assert found["results"][1]["trades"] == [{"price": "5", "quantity": "2", "maker": "n1", "taker": "n3"}]
    key = {"Content-Type": "application/json", "Idempotency-Key": "batch"}
    mixed = [order("j1", "buy", "6", "1"), {"op": "cancel", "id": "n3"}, {"op": "replace", "id": "j1", "quantity": "4"}]
    edge.orders.lose = True
    lost = await problem_of(await edge.http.post("/v1/orders:batch", json=mixed, headers=key), 503)
    assert lost["idempotency_key"] == "batch"
    found = await answer(await edge.http.post("/v1/orders:batch", json=mixed, headers=key))
    assert (found["accepted"], [each["order"]["id"] for each in found["results"]]) == (3, ["j1", "n3", "j1"])
    assert found["results"][1]["order"]["status"] == "cancelled"
    columns = {
        "id": ["w1", "w2"],
        "symbol": ["AAPL"] * 2,
        "side": ["buy", "sell"],
        "price": ["6", "6"],
        "quantity": ["1", "5"],
    }
    table = pa.table(columns)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    arrow = {"Content-Type": "application/vnd.apache.arrow.stream"}
    body = sink.getvalue().to_pybytes()
    found = await answer(await edge.http.post("/v1/orders:batch?answer=summary", data=body, headers=arrow))
    assert found["accepted"] == 2 and "results" not in found
    book = await answer(await edge.http.get("/v1/books/AAPL?consistency=eventual"))
    assert (book["bids"], book["asks"]) == ([], [])


def stream_of(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    found: bytes = sink.getvalue().to_pybytes()
    return found


async def test_batches_that_cannot_be_read(edge: TestGateway) -> None:
    arrow = {"Content-Type": "application/vnd.apache.arrow.stream"}
    good = stream_of(pa.table({"id": ["w1"], "symbol": ["AAPL"], "side": ["buy"], "price": ["6"], "quantity": ["1"]}))
    huge = pa.DictionaryArray.from_arrays(pa.array([0] * 65_536, pa.int8()), ["x" * 8_192])
    for body, headers in (
        (b"", {"Content-Type": LINES}),
        (b"[]", {"Content-Type": "application/json"}),
        (good.replace(b"AAPL", b"A\xff\xfeL"), arrow),
        (good.replace(b"quantity", b"quant\xff\xfey"), arrow),
        (stream_of(pa.table({"id": huge})), arrow),
    ):
        await problem_of(await edge.http.post("/v1/orders:batch", data=body, headers=headers), 400, "body")
    many = await answer(await edge.http.post("/v1/orders:batch", data=b"1\n" * 5_000, headers={"Content-Type": LINES}))
    assert (many["accepted"], many["rejected_count"], len(many["rejected"])) == (0, 5_000, 1_000)


async def test_a_batch_told_again_accepts_no_more_than_the_first_time(edge: TestGateway) -> None:
    await place(edge, "taken", "buy", "3", "1")
    await place(edge, "m", "sell", "9", "2")
    key = {"Content-Type": "application/json", "Idempotency-Key": "again"}
    batch = [
        order("t", "buy", "9", "3"), {"op": "cancel", "id": "t"}, order("taken", "sell", "90", "1"),
        {"op": "cancel", "id": "m"}, {"op": "replace", "id": "taken", "quantity": "5", "price": "2"},
    ]  # fmt: skip
    first = await answer(await edge.http.post("/v1/orders:batch", json=batch, headers=key))
    assert [len(each["trades"]) for each in first["results"]] == [1, 0, 0], "each trade is told once"
    assert [each["line"] for each in first["rejected"]] == [3, 4]
    await answer(await edge.http.post("/v1/orders/taken:replace", json={"price": "3"}))
    await answer(await edge.http.delete("/v1/orders/taken"))
    again = await edge.http.post("/v1/orders:batch", json=batch, headers=key)
    assert await answer(again) == first, "also what was replaced, cancelled or refused, and has changed since"
    edge.orders.lose = True
    other = {**key, "Idempotency-Key": "lost"}
    batch = [order("t2", "buy", "1", "1"), order("taken", "sell", "90", "1"), {"op": "cancel", "id": "m"}]
    await problem_of(await edge.http.post("/v1/orders:batch", json=batch, headers=other), 503)
    told = await answer(await edge.http.post("/v1/orders:batch", json=batch, headers=other))
    assert (told["accepted"], [each["line"] for each in told["rejected"]]) == (1, [2, 3])


async def test_a_batch_that_ends_in_the_middle_says_so(edge: TestGateway) -> None:
    lines = b"\n".join(json.dumps(order(f"n{i}", "buy", "1", "1")).encode() for i in range(4_100))
    headers = {"Content-Type": LINES, "Idempotency-Key": "half"}
    edge.orders.spared = 1
    edge.orders.refuse = Unavailable("the home region is not heard of: this attempt sent nothing")
    half = await problem_of(await edge.http.post("/v1/orders:batch?answer=summary", data=lines, headers=headers), 503)
    assert (half["idempotency_key"], half["accepted"]) == ("half", 4_000) and ":resolve" not in half["fix"]
    whole = await answer(await edge.http.post("/v1/orders:batch?answer=summary", data=lines, headers=headers))
    assert (whole["accepted"], whole["rejected_count"]) == (4_100, 0)


async def test_an_unknown_outcome_is_resolved(edge: TestGateway) -> None:
    asked, key = order("u", "buy", "10", "1"), {"Idempotency-Key": "key-1"}
    edge.orders.lose = True
    lost = await problem_of(await edge.http.post("/v1/orders", json=asked, headers=key), 503)
    assert lost["idempotency_key"] == "key-1"
    resolved = await answer(await edge.http.post("/v1/commands/key-1:resolve"))
    assert (resolved["outcome"], resolved["status"]) == ("applied", 200)
    assert resolved["result"]["order"]["status"] == "open"
    refused = {"Idempotency-Key": "key-2"}
    await problem_of(await edge.http.post("/v1/orders", json=asked | {"quantity": "9"}, headers=refused), 409, "id")
    resolved_too = await answer(await edge.http.post("/v1/commands/key-2:resolve"))
    assert (resolved_too["outcome"], resolved_too["result"]["reason"]) == ("failed", "other_content")
    balances, paid = {"balances": {"USD": "10"}}, {"Idempotency-Key": "key-4"}
    before = await answer(await edge.http.put("/v1/accounts/ann", json=balances, headers=paid))
    await answer(await edge.http.put("/v1/accounts/ann", json={"balances": {"USD": "20", "AAPL": "1"}}))
    assert await answer(await edge.http.put("/v1/accounts/ann", json=balances, headers=paid)) == before
    changed = {"Idempotency-Key": "key-5"}
    before = await answer(await edge.http.post("/v1/orders/u:replace", json={"price": "9"}, headers=changed))
    await answer(await edge.http.post("/v1/orders/u:replace", json={"price": "8", "quantity": "2"}))
    assert await answer(await edge.http.post("/v1/orders/u:replace", json={"price": "9"}, headers=changed)) == before
    cancelled = {"Idempotency-Key": "key-3"}
    first = await answer(await edge.http.delete("/v1/orders/u", headers=cancelled))
    assert await answer(await edge.http.delete("/v1/orders/u", headers=cancelled)) == first
    again = await answer(await edge.http.post("/v1/orders", json=asked, headers=key))
    assert again["offset"] == resolved["result"]["offset"]
    edge.orders.refuse = OutcomeUnknown("no acknowledgement")
    await problem_of(
        await edge.http.post("/v1/orders", json=order("v", "buy", "10", "1"), headers={"Idempotency-Key": "k2"}), 503
    )
    assert (await answer(await edge.http.post("/v1/commands/k2:resolve")))["outcome"] == "cancelled"
    never = await edge.http.post("/v1/orders", json=order("v", "buy", "10", "1"), headers={"Idempotency-Key": "k2"})
    await problem_of(never, 409, "Idempotency-Key")
    strong = await answer(await edge.http.put("/v1/kv/strong:a", json=1, headers={"Idempotency-Key": "k3"}))
    resolved = await answer(await edge.http.post("/v1/commands/k3:resolve"))
    assert resolved["outcome"] == "applied" and resolved["result"]["version"] == strong["version"]


async def test_orders_as_keys(edge: TestGateway) -> None:
    body = {name: value for name, value in order("", "buy", "10", "5").items() if name != "id"}
    put = await answer(await edge.http.put("/v1/kv/order:9", json=body))
    assert (put["key"], put["topic"], put["version"]) == ("order:9", "sequenced.orders", put["offset"] + 1)
    assert put["order"]["id"] == "9" and put["trades"] == []
    row = await answer(await edge.http.get("/v1/kv/order:9"))
    assert row["value"]["status"] == "open" and row["version"] == put["version"]
    await problem_of(await edge.http.put("/v1/kv/order:9", json=body | {"id": "8"}), 400, "id")
    await problem_of(await edge.http.put("/v1/kv/order:9?ttl=5", json=body), 400, "ttl")
    await problem_of(await edge.http.put("/v1/kv/order:9", json=body, headers={"If-Match": "1"}), 409, "If-Match")
    gone = await answer(await edge.http.delete("/v1/kv/order:9"))
    assert gone["order"]["status"] == "cancelled"
    await problem_of(await edge.http.get("/v1/kv/order:none"), 404, "key")


async def events(response: aiohttp.ClientResponse, count: int) -> list[tuple[str, str, Any]]:
    """The next events: id, kind, data."""
    found: list[tuple[str, str, Any]] = []
    fields: dict[str, str] = {}
    async for raw in response.content:
        line = raw.decode().rstrip("\n")
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif "data" in fields:
            found.append((fields["id"], fields["event"], json.loads(fields["data"])))
            fields = {}
            if len(found) == count:
                break
    return found


async def test_the_feed_misses_nothing(edge: TestGateway) -> None:
    await place(edge, "a", "buy", "10", "5")
    async with edge.http.get("/v1/books/AAPL:subscribe") as live:
        ((_, kind, snapshot),) = await events(live, 1)
        assert kind == "snapshot" and snapshot["bids"] == [["10", "5"]] and snapshot["complete"]
        await place(edge, "b", "sell", "10", "2")
        await place(edge, "other", "buy", "1", "1", symbol="CALL")
        await place(edge, "c", "sell", "11", "1")
        seen = await events(live, 2)
    assert [(data["bids"], data["asks"], len(data["trades"])) for _, _, data in seen] == [
        ([["10", "3"]], [], 1), ([], [["11", "1"]], 0),
    ]  # fmt: skip
    await place(edge, "d", "buy", "11", "1")
    async with edge.http.get("/v1/books/AAPL:subscribe", headers={"Last-Event-ID": seen[0][0]}) as again:
        rest = await events(again, 2)
    assert rest[0] == seen[1] and rest[1][2]["asks"] == [["11", "0"]]


async def test_a_quiet_feed_moves_on(tmp_path: Path) -> None:
    options = GatewayOptions(wait_s=0.3, streams=StreamOptions(idle_s=0.05))
    async with running_gateway(tmp_path, options, orders=True) as edge:
        for name in ("QUIET", "BUSY"):
            await answer(await edge.http.put(f"/v1/symbols/{name}", json={"tick": "0.01", "lot": "1"}))
        async with edge.http.get("/v1/books/QUIET:subscribe") as live:
            await events(live, 1)
            made = await place(edge, "a", "buy", "10", "5", symbol="BUSY")
            async with asyncio.timeout(20):
                while (await live.content.readline()).strip() != b"id: %d" % made["offset"]:
                    pass


async def test_the_client(edge: TestGateway) -> None:
    async with connect(edge.url) as client:
        await client.put_account("ann", {"USD": "100"})
        placed = await client.put_strong("order:1", order("1", "buy", "10", "5", account="ann"))
        assert placed.order is not None and placed.order["status"] == "open" and placed.trades == ()
        assert (await client.get_account("ann"))["held"] == {"USD": "50"}
        assert (await client.get_order_book("AAPL"))["bids"] == [["10", "5"]]
        made = await client.place_order(id="2", symbol="AAPL", side="sell", type="ioc", price="10", quantity="2")
        assert made["trades"][0]["maker"] == "1"
        changed = await client.replace_order("1", quantity="4")
        assert changed["order"]["quantity"] == "4"
        assert (await client.cancel_order("1"))["order"]["filled"] == "2"
        with pytest.raises(Conflict):
            await client.cancel_order("1")
        assert (await client.get_order("1"))["order"]["status"] == "cancelled"  # type: ignore[index]
        assert await client.get_order("nobody") is None
        await client.put_symbol("OPEN", tick="0.5", lot="1", mode="call")
        for identity, side in (("x", "buy"), ("y", "sell")):
            await client.place_order(id=identity, symbol="OPEN", side=side, price="3.5", quantity="1")
        trades = await client.match_orders("OPEN")
        assert (await client.execute_trades(trades))["trades"] == trades
        with pytest.raises(Conflict):
            await client.execute_trades(trades)
        with pytest.raises(NotFound):
            await client.get_order_book("NONE")
        assert [each["taker"] async for each in client.trades("AAPL")] == ["2"]
        many = await client.place_orders([order(f"m{n}", "buy", "9", "1") for n in range(3)])
        assert many["accepted"] == 3
        feed = client.subscribe_book("AAPL")
        kind, snapshot = await anext(feed)
        assert kind == "snapshot" and snapshot["bids"] == [["9", "3"]]
        await client.place_order(id="z", symbol="AAPL", side="buy", price="9", quantity="1")
        kind, change = await anext(feed)
        assert (kind, change["bids"]) == ("book", [["9", "4"]])
        await feed.aclose()
        edge.orders.refuse = OutcomeUnknown("no acknowledgement")
        with pytest.raises(Unavailable) as unknown:
            await client.place_order(id="q", symbol="AAPL", side="buy", price="9", quantity="1", idempotency_key="mine")
        assert unknown.value.extra["idempotency_key"] == "mine"
