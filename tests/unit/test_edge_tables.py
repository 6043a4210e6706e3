"""Edge tables: merged reads, scans, ordered reads, tokens, staleness, digests, what is ignored, what is a problem."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from streams.edge.edge_store import EdgeTables, ReplicaId
from streams.edge.watch import Position, WatchGap
from streams.model.clock import NEVER_MS
from streams.model.errors import BadInput, NotFound, Timeout
from streams.model.marker import Claim, InputPosition, Marker
from streams.model.token import Input, Token
from tests.support.edge_units import KV, NOW, SCORE, Clock, FakeUnit, Writer, named_in, rows_of, store


def ranks(found: list[object]) -> list[tuple[int, bytes, object]]:
    return [(row.rank, row.key, row.number) for row in found]  # type: ignore[attr-defined]


async def test_origins_merge_and_readers_see_whole_commits(tmp_path: Path) -> None:
    tables = store(tmp_path)
    us, eu = Writer("us"), Writer("eu")
    us.put(b"score:a", 5)
    us.put(b"score:b", 1)
    eu.put(b"score:a", 7)
    table = tables.table("score")
    assert table.get(b"score:a") is None
    assert await tables.publish(us.commit())
    assert table.get(b"score:a").value == 5  # type: ignore[union-attr]
    assert await tables.publish(eu.commit())
    merged = table.get(b"score:a")
    assert merged is not None and merged.value == 12 and merged.expires_ms == NEVER_MS
    assert [(key, row.value) for key, row in table.scan().rows] == [(b"score:a", 12), (b"score:b", 1)]
    page = table.scan(limit=1)
    assert page.cursor == b"score:a"
    assert [key for key, _ in table.scan(after=page.cursor).rows] == [b"score:b"]
    assert table.scan(b"score:b").cursor is None
    with pytest.raises(NotFound, match="score"):
        tables.table("nope")
    await tables.close()


async def test_an_old_unit_a_claim_and_an_older_row_change_nothing(tmp_path: Path) -> None:
    tables = store(tmp_path)
    us = Writer("us")
    us.put(b"score:a", 5)
    first = us.commit()
    us.put(b"score:a", 5)
    second = us.commit()
    await tables.publish(first)
    await tables.publish(second)
    assert not await tables.publish(first)
    assert not await tables.publish(FakeUnit("table.score", 0, rows_of([]), None, Claim("w", NOW), 900))
    assert tables.attach(ReplicaId("score", "us", 0)).changelog_offset() == 900
    stale = FakeUnit("table.score", 0, first.rows, Marker("commit", 9, NOW, second.marker.inputs), None, 901)  # type: ignore[union-attr]
    assert await tables.publish(stale)
    assert tables.table("score").get(b"score:a").value == 10  # type: ignore[union-attr]
    assert not tables.problems
    await tables.close()


async def test_ordered_reads_follow_publishes_expiry_and_deletes(tmp_path: Path) -> None:
    clock = Clock()
    tables = store(tmp_path, clock=clock)
    us, eu = Writer("us"), Writer("eu")
    for name, score in [(b"score:b", 5), (b"score:a", 5), (b"score:c", 9), (b"score:d", 1)]:
        us.put(name, score, expires_ms=NOW + 500 if name == b"score:c" else NEVER_MS)
    await tables.publish(us.commit())
    table = tables.table("score")
    assert ranks(await table.top(2)) == [(1, b"score:c", 9), (2, b"score:a", 5)]  # type: ignore[arg-type]
    eu.put(b"score:d", 10)
    await tables.publish(eu.commit())
    assert (await table.rank(b"score:d")).rank == 1  # type: ignore[union-attr]
    assert ranks(await table.around(b"score:a", 1)) == [(2, b"score:c", 9), (3, b"score:a", 5), (4, b"score:b", 5)]  # type: ignore[arg-type]
    clock.ms = NOW + 500
    assert table.get(b"score:c") is None and await table.rank(b"score:c") is None
    assert [row.key for row in await table.top(10)] == [b"score:d", b"score:a", b"score:b"]
    us.delete(b"score:a")
    await tables.publish(us.commit())
    assert [row.key for row in await table.top(10)] == [b"score:d", b"score:b"]
    assert await table.top(0) == [] and await table.around(b"score:zz", 3) == []
    assert table.generation_of(b"score:a") > 0 and table.generation_of(b"score:b") == 0
    await tables.close()


async def test_order_by_a_field_of_json_rows(tmp_path: Path) -> None:
    tables = store(tmp_path, specs=(KV,), indices_max=2)
    us = Writer("us", KV)
    for name, body in [
        ("a", {"x": 1}),
        ("b", {"x": 2.5}),
        ("c", {"y": 1}),
        ("d", 7),
        ("e", {"x": True}),
        ("f", {"x": "9"}),
    ]:
        us.put(b"kv:" + name.encode(), json.dumps(body).encode())
    us.put(b"kv:g", b"not json")
    await tables.publish(us.commit())
    table = tables.table("kv")
    assert [row.key for row in await table.top(9, "x")] == [b"kv:b", b"kv:a"]
    assert [row.key for row in await table.top(9)] == [b"kv:d"]
    assert [row.key for row in await table.top(9, "y")] == [b"kv:c"]
    us.put(b"kv:a", b'{"x": 3}')
    await tables.publish(us.commit())
    assert [row.key for row in await table.top(9, "x")] == [b"kv:a", b"kv:b"]
    with pytest.raises(BadInput):
        await table.top(9, "")
    await tables.close()


async def test_a_build_lets_others_run_and_sees_what_is_published_meanwhile(tmp_path: Path) -> None:
    tables = store(tmp_path)
    us = Writer("us")
    for index in range(5000):
        us.put(b"score:%05d" % index, index)
    await tables.publish(us.commit())
    table = tables.table("score")
    reading = asyncio.create_task(table.top(1))
    turns = 0
    while not reading.done():
        await asyncio.sleep(0)
        turns += 1
        if turns == 3:
            us.put(b"score:00007", 100_000)
            assert await tables.publish(us.commit())
    assert turns > 10
    assert ranks(reading.result()) == [(1, b"score:00007", 100_007)]  # type: ignore[arg-type]
    for index in range(3000):
        us.put(b"score:%05d" % index, 1_000_000)
    await tables.publish(us.commit())
    assert len(await table.top(5000)) == 5000 and (await table.top(1))[0].number == 1_100_007
    await tables.close()


async def test_tokens_wait_time_out_and_are_checked(tmp_path: Path) -> None:
    tables = store(tmp_path)
    eu = Writer("eu")
    eu.put(b"score:a", 1)
    unit = eu.commit()
    key = Input("eu", "events.score", 0)
    waiting = asyncio.create_task(tables.wait_for(Token({key: 1}), 5))
    await asyncio.sleep(0)
    assert not waiting.done()
    await tables.publish(unit)
    await waiting
    assert tables.applied == Token({key: 1})
    await tables.wait_for(Token({key: 1}), 0)
    with pytest.raises(Timeout, match="1 of 2") as late:
        await tables.wait_for(Token({key: 2}), 0.01, "score")
    assert late.value.retry_after_s >= 1 and late.value.field == "Causal-Token"
    for wrong in (Input("mars", "events.score", 0), Input("eu", "events.nope", 0), Input("eu", "events.score", 7)):
        with pytest.raises(BadInput) as bad:
            await tables.wait_for(Token({wrong: 1}), 1)
        assert bad.value.field == "Causal-Token"
    await tables.close()


async def test_staleness_names_each_origin(tmp_path: Path) -> None:
    clock = Clock(NOW + 250)
    tables = store(tmp_path, clock=clock)
    us, eu = Writer("us"), Writer("eu")
    await tables.publish(us.commit(time_ms=NOW + 200))
    assert tables.staleness_ms("score") == clock.ms, "an origin never heard from is as stale as can be"
    await tables.publish(eu.commit(time_ms=NOW))
    assert tables.staleness("score").by_origin == {"us": 50, "eu": 250} and tables.staleness_ms("score") == 250
    await tables.close()


async def test_digests_agree_across_regions_and_with_recomputation(tmp_path: Path) -> None:
    clock = Clock()
    here, there = store(tmp_path, "us", clock=clock), store(tmp_path, "eu", clock=clock)
    us, eu = Writer("us"), Writer("eu")
    us.put(b"score:a", 5)
    us.put(b"score:c", 5, expires_ms=NOW + 1000)
    eu.put(b"score:a", -2)
    units = [(us.commit(), "us"), (eu.commit(), "eu")]
    for unit, origin in units:
        await here.publish(named_in(unit, origin, SCORE, "us"))
    for unit, origin in reversed(units):
        await there.publish(named_in(unit, origin, SCORE, "eu"))
    one, two = await here.table("score").digest(NOW), await there.table("score").digest(NOW)
    assert one == two and one.rows == 2 and len(one.hex) == 32
    later = await here.table("score").digest(NOW + 1000)
    assert later.rows == 1 and later.hex != one.hex
    assert (await here.table("score").digest(NOW + 999)).hex == one.hex
    us.put(b"score:a", 1)
    await here.publish(us.commit())
    assert (await here.table("score").digest(NOW)).hex != one.hex
    await here.close()
    await there.close()


async def test_state_survives_a_restart(tmp_path: Path) -> None:
    tables = store(tmp_path)
    us = Writer("us")
    us.put(b"score:a", 5)
    await tables.publish(us.commit())
    before = await tables.table("score").digest(NOW)
    await tables.close()
    tables = store(tmp_path)
    assert await tables.table("score").digest(NOW) == before
    assert tables.applied.positions == {Input("us", "events.score", 0): 1}
    await tables.close()


async def test_a_changelog_begun_anew_and_a_recreated_input_are_visible(tmp_path: Path) -> None:
    tables = store(tmp_path)
    us = Writer("us")
    us.seq = 5
    await tables.publish(us.commit())
    again = Writer("us")
    await tables.publish(again.commit(time_ms=NOW + 1))
    assert "begun anew" in tables.problems[-1]
    inputs = {"events.score/0": InputPosition(1, "other")}
    await tables.publish(FakeUnit("table.score", 0, rows_of([]), Marker("commit", 7, NOW, inputs), None, 700))
    assert "recreated" in tables.problems[-1]
    await tables.close()


async def test_a_served_replica_is_read_again_beside_and_then_replaced(tmp_path: Path) -> None:
    tables = store(tmp_path)
    us = Writer("us")
    us.put(b"score:a", 5)
    await tables.publish(us.commit())
    table = tables.table("score")
    await table.top(1)
    replica = ReplicaId("score", "us", 0)
    fresh = tables.open_fresh(replica, "test")
    us.put(b"score:b", 6)
    unit = us.commit()
    fresh.apply([(key, row) for key, row, _ in unit.rows], unit.marker, unit.next_offset)
    assert table.get(b"score:a") is not None and "from the start" in tables.problems[-1]
    tables.attach(replica, fresh)
    assert table.get(b"score:a") is None and [row.key for row in await table.top(5)] == [b"score:b"]
    us.put(b"score:b", 1)
    assert await tables.publish(us.commit())
    assert tables.path_of(replica).exists() and not tables.path_of(replica).with_name("0.fresh").exists()
    await tables.close()


async def test_watch_resumes_and_says_when_it_cannot(tmp_path: Path) -> None:
    tables = store(tmp_path, watch_changes_max=3)
    table = tables.table("score")
    us = Writer("us")
    start = table.watch.latest
    waiting = asyncio.create_task(table.watch.wait(start, 5))
    await asyncio.sleep(0)
    us.put(b"score:a", 1)
    await tables.publish(us.commit())
    assert await waiting
    keys, position = table.watch.since(Position.parse(str(start)))
    assert keys == [b"score:a"] and not await table.watch.wait(position, 0.001)
    for index in range(4):
        us.put(b"score:%d" % index, 1)
        await tables.publish(us.commit())
    assert sorted(table.watch.since(Position(position.epoch, position.number + 1))[0]) == [
        b"score:1",
        b"score:2",
        b"score:3",
    ]
    for gone in (start, Position(1, 1)):
        with pytest.raises(WatchGap):
            table.watch.since(gone)
    with pytest.raises(WatchGap):
        Position.parse("x")
    await tables.close()


def test_corrupt_replica_starts_empty_and_is_a_problem(tmp_path: Path) -> None:
    tables: EdgeTables = store(tmp_path)
    asyncio.run(tables.close())
    path = tables.path_of(ReplicaId("score", "us", 0))
    next(path.glob("MANIFEST-*")).write_bytes(b"garbage" * 20)
    tables = store(tmp_path)
    assert "cannot be read" in tables.problems[0]
    asyncio.run(tables.close())
