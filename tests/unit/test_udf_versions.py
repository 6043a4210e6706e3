"""Versions of a UDF beside each other, without Kafka: decisions, when a gateway follows, what differs, what goes."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from streams.definitions import releases
from streams.definitions.deployment import Deployment, parse_label
from streams.definitions.entries import Entry, decode_entry
from streams.definitions.releases import AUTO, BESIDE, HOLD, IN_PLACE, SHADOW, Release, Wish
from streams.definitions.udf_states import StateReader
from streams.definitions.udfs import Udfs
from streams.edge.edge_store import EdgeTables
from streams.edge.options import TableSpec
from streams.gateway.http import Call
from streams.gateway.routes_udf_versions import order_of
from streams.gateway.shadow import CompareOptions, compare
from streams.gateway.supervised import tell_workers
from streams.gateway.udf_versions import KeeperOptions, VersionKeeper
from streams.gateway.udfs import UdfService
from streams.kafka.admin import Admin
from streams.model.errors import BadInput, Conflict, NotFound, Timeout
from streams.model.keyspace import BUILTIN
from streams.model.row import MergeType
from streams.model.topology import Region, Topology
from streams.region.deployed import DeployedWorkers
from streams.region.supervisor import ProcessSpec, Supervisor
from tests.support.definitions import MemoryHome, MemoryLog
from tests.support.edge_units import Writer, store
from tests.support.gateway import running_gateway
from tests.support.polling import eventually

GOOD = """
name = "bigs"
version = "1"
abi = 1
kind = "fold"
inputs = ["score"]
merge = "counter"
"""
TOPOLOGY = Topology((Region("us", "unused"), Region("eu", "unused")))


def version(number: str = "1", module: bytes = b"one", at_ms: int = 1_000) -> Deployment:
    text = GOOD.replace('"1"', f'"{number}"', 1)
    return Deployment.make(text, module, at_ms, "ci", "us")


def udfs(home: MemoryHome | None = None, region: str = "us") -> Udfs:
    return Udfs(TOPOLOGY, region, log=MemoryLog(home or MemoryHome()))


def kept(release: Release) -> tuple[int, int, int]:
    return release.active, release.candidate, release.previous


async def test_a_version_is_built_beside_promoted_rolled_back_and_collected() -> None:
    home = MemoryHome()
    async with udfs(home) as at, udfs(home, "eu") as there:
        wish = Wish(keep_ms=60_000)
        await at.deploy(version(), 8, wish)
        await at.deploy(version("2", b"two"), 8, wish)
        assert kept(at.release("bigs")) == (1, 2, 0) and at.get("bigs").manifest.version == "1"
        assert {n: each.table for n, each in at.generations("bigs").items()} == {1: "bigs.g1", 2: "bigs.g2"}
        labels = {label: at.running(label) for label in ("bigs", "bigs.g1", "bigs.g2", "bigs.g3", "other")}
        assert [each and each.number for each in labels.values()] == [1, 1, 2, None, None]
        with pytest.raises(Conflict):
            await at.promote("bigs", 7, 2_000, "x", at_once=False)
        await there.promote("bigs", 2, 2_000, "ops", at_once=False)
        await there.promote("bigs", 2, 2_100, "another", at_once=False)
        await eventually(lambda: kept(at.release("bigs")) == (2, 0, 1))
        assert not at.release("bigs").at_once and at.release("bigs").until_ms == 62_000
        await at.rollback("bigs", 3_000, "ops")
        assert kept(at.release("bigs")) == (1, 0, 2) and at.release("bigs").at_once
        with pytest.raises(Conflict):
            await at.rollback("bigs", 3_001, "ops")
        await at.promote("bigs", 0, 4_000, "ops", at_once=False)
        assert kept(at.release("bigs")) == (2, 0, 1)
        await at.rollback("bigs", 5_000, "ops")
        await at.deploy(version("2", b"two", 6_000), 8, wish)  # the kept one comes back, at once
        assert kept(at.release("bigs")) == (2, 0, 1)
        await at.collect("bigs", 65_999)
        assert kept(at.release("bigs")) == (2, 0, 1)
        await at.collect("bigs", 66_000)
        assert kept(at.release("bigs")) == (2, 0, 0) and at.version("bigs", 1) is None
        assert at.running("bigs") is at.version("bigs", 2), "a worker without a generation follows what is there"
        assert [each["state"] for each in at.release("bigs").versions()] == ["active", "collected"]
        assert [move.what for move in at.release("bigs").moves] == [
            "deploy", "deploy", "promote", "rollback", "promote", "rollback", "deploy", "collect",
        ]  # fmt: skip
        await at.remove("bigs", "ops", 1_000, 70_000)
        assert at.every["bigs"].removed and not at.generations("bigs")
        with pytest.raises(Conflict):  # the rows are kept for a while, and with them the table's name
            await at.deploy(Deployment.make(GOOD.replace('"bigs"', '"x"\ntable = "bigs"'), b"x", 1, "", "us"), 8)
        await at.deploy(version("2", b"two", 70_500), 8, wish)
        assert at.get("bigs").generation == 2, "deployed again in time, it goes on"
        await at.remove("bigs", "ops", 1_000, 71_000)
        await at.collect("bigs", 72_000)
        assert "bigs" not in at.every and at.version("bigs", 2) is None
        other = await at.deploy(Deployment.make(GOOD.replace('"bigs"', '"x"\ntable = "bigs"'), b"x", 1, "", "us"), 8)
        assert other.table == "bigs.g3", "no generation of a table is begun twice"


async def test_how_a_version_is_deployed() -> None:
    async with udfs() as at:
        await at.deploy(version(), 8)
        limits = Deployment.make(GOOD.replace('"1"', '"1.1"') + "[limits]\ndeadline_s = 3.0\n", b"one", 2, "", "us")
        found = await at.deploy(limits, 8, Wish(AUTO))
        assert (found.number, found.generation) == (2, 1), "the same logic: nothing is built"
        assert kept(at.release("bigs")) == (2, 0, 1)
        await at.rollback("bigs", 3, "")
        assert at.running("bigs") is at.version("bigs", 1)
        await at.promote("bigs", 0, 4, "", at_once=False)
        fixed = await at.deploy(version("2", b"two", 5), 8, Wish(IN_PLACE))
        assert (fixed.number, fixed.generation, at.release("bigs").previous) == (3, 1, 2)
        shadow = await at.deploy(version("3", b"three", 6), 8, Wish(SHADOW))
        assert (shadow.generation, at.release("bigs").swap) == (4, HOLD)
        before = at.release("bigs")
        await at.deploy(version("3", b"three", 7), 8, Wish(SHADOW))
        assert at.release("bigs") == before
        for wanted, wish, field in [
            (version("3", b"other"), Wish(), "version"),
            (version("4", b"four"), Wish(IN_PLACE), ""),
            (version("2", b"two"), Wish(SHADOW), "version"),
            (version("1.9", b"old"), Wish(), "version"),
        ]:
            with pytest.raises(Conflict) as refused:
                await at.deploy(wanted, 8, wish)
            assert (refused.value.field or "") == field, refused.value
        await at.deploy(version("3", b"three", 8), 8, Wish())
        assert at.release("bigs").swap == releases.CAUGHT_UP
        await at.hold("bigs", 9, "")
        assert at.release("bigs").swap == HOLD
        await at.deploy(version("4", b"four", 10), 8, Wish())
        assert at.release("bigs").candidate == 5 and at.version("bigs", 4) is None, "a newer one takes its place"
        await at.rollback("bigs", 11, "")
        assert kept(at.release("bigs")) == (3, 0, 2), "what is built beside is dropped first"
        with pytest.raises(Conflict):
            await at.hold("bigs", 12, "")
        with pytest.raises(Conflict):
            await at.deploy(Deployment.make(GOOD.replace('"bigs"', '"new"'), b"n", 1, "", "us"), 8, Wish(SHADOW))
        with pytest.raises(NotFound):
            await at.rollback("nobody", 1, "")


async def test_a_log_without_its_beginning_and_outputs_are_refused() -> None:
    async with udfs() as at:
        began = {"us": {"cut": False}, "eu": {"cut": True}}
        with pytest.raises(Conflict):
            await at.deploy(replace(version(), began=began), 8, Wish(BESIDE))
        await at.deploy(replace(version(), began=began), 8)  # a first version takes what there is, unless asked
        cut = replace(version("2", b"two"), began=began)
        with pytest.raises(Conflict, match="log of eu") as refused:
            await at.deploy(cut, 8)
        assert refused.value.field == "from"
        found = await at.deploy(replace(cut, from_ms=5), 8, Wish(BESIDE, beginning=False))
        assert (found.from_ms, dict(found.began)) == (5, cut.began)
        loud = GOOD.replace('"bigs"', '"loud"') + 'outputs = ["loud.out"]\n'
        await at.deploy(Deployment.make(loud, b"one", 1, "", "us"), 8)
        second = Deployment.make(loud.replace('"1"', '"2"', 1), b"two", 2, "", "us")
        with pytest.raises(Conflict) as refused:
            await at.deploy(second, 8, Wish(BESIDE))
        assert refused.value.field == "outputs"
        assert (await at.deploy(second, 8)).generation == at.get("loud").generation, "in place, by default"


async def test_a_lost_answer_moves_once() -> None:
    home = MemoryHome()
    log = MemoryLog(home)
    async with Udfs(TOPOLOGY, "us", log=log) as at:
        await at.deploy(version(), 8)
        await at.deploy(version("2", b"two"), 8)
        for outcome, move in (("applied", "promote"), ("applied", "rollback"), ("dropped", "promote")):
            log.lose_next = outcome
            if move == "promote":
                await at.promote("bigs", 0, 1, "", at_once=False)
            else:
                await at.rollback("bigs", 2, "")
        assert [each.what for each in at.release("bigs").moves] == [
            "deploy",
            "deploy",
            "promote",
            "rollback",
            "promote",
        ]


async def test_records_of_one_version_are_still_read() -> None:
    home = MemoryHome()
    body = dict(version().entry().value or {})
    old = {name: value for name, value in body.items() if name not in ("number", "generation", "from_ms", "began")}
    gone = {**old, "name": "gone", "module": "", "removed": True, "manifest": GOOD.replace('"bigs"', '"gone"')}
    home.entries += [Entry("udf/bigs", old), Entry("udf/gone", gone)]
    async with udfs(home) as at:
        assert (at.get("bigs").table, at.get("bigs").label) == ("bigs.g1", "bigs") and "gone" not in at.live
        await at.deploy(version("2", b"two"), 8)
        assert kept(at.release("bigs")) == (1, 2, 0)
    key, value, _ = Release("a", "b", 1, 1).moved("deploy", 1, 5, "me").entry().record()
    assert Release.of(decode_entry(key, value)).moves[0].by == "me"
    assert [parse_label(each) for each in ("a", "a.g12", "a.gx", ".g1")] == [
        ("a", 0), ("a", 12), ("a.gx", 0), (".g1", 0),
    ]  # fmt: skip


def generation(number: int) -> TableSpec:
    sources = (("score", 1),)
    return TableSpec(
        f"bigs.g{number}", "score", MergeType.COUNTER, 1, ("events.score",), sources=sources, public="bigs"
    )


def service(at: Udfs, tables: EdgeTables, heard_ms: Callable[[str], int] = lambda _: 0) -> UdfService:
    states = StateReader(TOPOLOGY, "us")
    keyspaces = {each.name: each for each in BUILTIN}
    return UdfService(
        TOPOLOGY, "us", at, states, lambda: keyspaces, heard_ms,
        lambda table, region: tables.staleness(table).by_origin[region], pointed=tables.pointed,
    )  # fmt: skip


async def test_a_gateway_moves_when_the_new_rows_hold_what_readers_have_seen(tmp_path: Path) -> None:
    tables = store(tmp_path, specs=[generation(1), generation(2)])
    writers = {(n, origin): Writer(origin, generation(n)) for n in (1, 2) for origin in ("us", "eu")}
    async with udfs() as at:
        keeper = VersionKeeper(service(at, tables), tables, Admin("unused"))
        await at.deploy(version(), 8)
        await at.deploy(version("2", b"two"), 8)
        keeper.follow()
        assert tables.pointed("bigs") == "bigs.g1" and set(tables.served) == {"bigs"}
        for n, value in ((1, 1), (2, 100)):
            writers[n, "us"].put(b"score:a", value)
            writers[n, "us"].put(b"score:a", value)
        await tables.publish(writers[1, "us"].commit())
        await tables.publish(writers[1, "eu"].commit())
        watching = tables.table("bigs").watch
        seen = watching.latest
        await at.promote("bigs", 2, 1, "", at_once=False)
        keeper.follow()
        assert tables.pointed("bigs") == "bigs.g1", "its rows are not here yet"
        half = writers[2, "us"].commit()
        inputs = {name: replace(at_, next=1) for name, at_ in half.marker.inputs.items()}  # type: ignore[union-attr]
        await tables.publish(replace(half, marker=replace(half.marker, inputs=inputs)))  # type: ignore[type-var]
        keeper.follow()
        assert tables.pointed("bigs") == "bigs.g1", "one put is missing"
        assert watching.latest == seen and keeper.held == {"bigs.g1"}
        await tables.publish(writers[2, "us"].commit())
        await tables.publish(writers[2, "eu"].commit())
        assert keeper._move() and not keeper.held
        assert tables.pointed("bigs") == "bigs.g2" and watching.latest != seen, "who watches is woken"
        assert tables.table("bigs").get(b"score:a").value == 200  # type: ignore[union-attr]
        assert tables.table("bigs.g1").get(b"score:a").value == 2  # type: ignore[union-attr]
        await at.rollback("bigs", 2, "")
        keeper.follow()
        assert tables.pointed("bigs") == "bigs.g1", "at once"
        await at.remove("bigs", "", 0, 3)
        await tables.retire(["bigs.g1", "bigs.g2"])
        keeper.follow()
        with pytest.raises(NotFound):
            tables.table("bigs")
        assert (tmp_path / "us" / "bigs.g1").is_dir()
        await tables.drop("bigs.g1")
        assert not (tmp_path / "us" / "bigs.g1").exists() and (tmp_path / "us" / "bigs.g2").is_dir()
    await tables.close()


async def test_home_promotes_once_every_region_has_caught_up_and_collects(tmp_path: Path) -> None:
    heard = {"us": 0, "eu": 60_000}
    tables = store(tmp_path, specs=[generation(1), generation(2)])
    async with udfs() as at:
        serving = service(at, tables, heard.__getitem__)
        keeper = VersionKeeper(serving, tables, Admin("unused"), KeeperOptions(step_s=0.002), clock=lambda: 5_000)
        await at.deploy(version(), 8, Wish(keep_ms=0))
        await at.deploy(version("2", b"two", 4_000), 8, Wish(keep_ms=1_000))
        keeper.follow()
        assert serving.caught_up("bigs", 2) == {"us": False, "eu": False}, "no marker: nothing is known"
        for origin in ("us", "eu"):
            await tables.publish(Writer(origin, generation(2)).commit())
        assert serving.caught_up("bigs", 2) == {"us": True, "eu": False}, "a region that is not heard from"
        with pytest.raises(Conflict, match="in eu"):
            await serving.promote("bigs", "ops", force=False, wait_s=0)
        await keeper._decide()
        assert kept(at.release("bigs")) == (1, 2, 0)
        heard["eu"] = 3_000
        await keeper._decide()
        assert kept(at.release("bigs")) == (2, 0, 1) and at.release("bigs").moves[-1].by == "caught up"
        await keeper._decide()
        assert kept(at.release("bigs")) == (2, 0, 1), "kept for a second"
        later = VersionKeeper(serving, tables, Admin("unused"), clock=lambda: 6_000)
        await later._decide()
        assert kept(at.release("bigs")) == (2, 0, 0)
        assert keeper._gone() == {"bigs.g1"}
        unread = at._view.versions["bigs"].pop(2)
        assert keeper._gone() == set(), "a version that cannot be read here: nothing may be deleted"
        at._view.versions["bigs"][2] = unread
        await at.deploy(version("3", b"three", 7_000), 8, Wish(SHADOW))
        await serving.promote("bigs", "ops", force=True, wait_s=0)
        assert at.release("bigs").active == 3 and at.release("bigs").at_once
    await tables.close()


async def test_rows_differ_only_if_they_do_at_one_position(tmp_path: Path) -> None:
    tables = store(tmp_path, specs=[generation(1), generation(2)])
    one, other = Writer("us", generation(1)), Writer("us", generation(2))
    for number in range(30):
        key = b"score:%02d" % number
        one.put(key, number)
        if number not in (5, 6):
            other.put(key, number * 2 if number in (7, 8, 9) else number)
    other.put(b"score:only", 1)
    one.put(b"score:late", 1)
    one.put(b"score:hot", 1)
    await tables.publish(one.commit())
    await tables.publish(other.commit())
    pair = tables.tables["bigs.g1"], tables.tables["bigs.g2"]

    async def passing() -> None:
        """The other table gets what it was behind by; one key never stands still."""
        if b"score:late" not in other.rows:
            other.put(b"score:late", 1)
        one.put(b"score:hot", 1)
        await tables.publish(one.commit())
        await tables.publish(other.commit())

    found = await compare(*pair, passing, 4)
    assert found.rows == (32, 29) and (found.differ, found.only, found.unsettled) == (6, (2, 1), 1), found
    assert found.equal == 26 and found.complete and found.settled
    shown = [(key, *(each and each.value for each in rows)) for key, rows in found.differences]
    assert shown == [(b"score:05", 5, None), (b"score:06", 6, None), (b"score:07", 7, 14), (b"score:08", 8, 16)]
    few = await compare(*pair, passing, 4, CompareOptions(keys_max=2))
    assert not few.complete and few.unchecked == 5
    part = await compare(*pair, passing, 4, CompareOptions(rows_max=10))
    assert not part.complete and sum(part.rows) == 10

    async def never() -> None:
        raise Timeout("not caught up")

    behind = await compare(*pair, never, 4)
    assert not behind.settled and not behind.differences and behind.unsettled == 7
    await tables.close()


def asked(query: str) -> Call:
    return Call({"query_string": query.encode(), "headers": [], "path_params": {}}, _unused, 0)


async def _unused() -> dict[str, object]:
    raise AssertionError


def test_what_a_deploy_may_ask_for() -> None:
    assert (order_of(asked("")).how, order_of(asked("")).beginning) == (AUTO, True)
    assert order_of(asked("in_place=true")).how == IN_PLACE
    earliest = order_of(asked("from=earliest&keep=30m"))
    assert (earliest.how, earliest.beginning, earliest.keep_ms) == (BESIDE, False, 1_800_000)
    for text in ("2014-02-14T14:27:00Z", "2014-02-14T14:27:00", "1392388020000"):
        since = order_of(asked(f"from={text}"), SHADOW)
        assert (since.how, since.from_ms, since.beginning) == (SHADOW, 1_392_388_020_000, False)
    assert order_of(asked("keep=0")).keep_ms == 0
    for query, field in [
        ("from=yesterday", "from"), ("from=-1", "from"), ("from=99999999999999", "from"), ("from=9999-01-01", "from"),
        ("in_place=maybe", "in_place"), ("in_place=true&from=earliest", "from"), ("keep=soon", "keep"),
    ]:  # fmt: skip
        with pytest.raises(BadInput) as refused:
            order_of(asked(query))
        assert refused.value.field == field


async def test_a_replaced_version_is_kept_no_longer_than_the_operator_says(tmp_path: Path) -> None:
    tables = store(tmp_path)
    async with udfs() as at:
        serving = service(at, tables)
        assert serving.keep_ms(None) == 3_600_000 and serving.keep_ms(5) == 5
        with pytest.raises(BadInput) as refused:
            serving.keep_ms(3_600_001)
        assert refused.value.field == "keep"
    await tables.close()


async def test_the_workers_of_all_generations_run_and_their_directories_go(tmp_path: Path) -> None:
    supervisor = Supervisor(tmp_path, [])

    def spec(region: Region, udf: str) -> ProcessSpec:
        command = [sys.executable, "-c", "import time; time.sleep(600)"]
        return ProcessSpec(f"worker-{region.name}-udf-{udf}", lambda: command, tmp_path / "log")

    def running() -> set[str]:
        return {each.spec.name for each in supervisor.processes if each.identity is not None}

    places = {name: tmp_path / "worker" / "us" / name for name in ("builtin", "udf.a", "udf.a.g2", "udf.old.g7")}
    for place in places.values():
        (place / "rows").mkdir(parents=True)
    workers = DeployedWorkers(tmp_path, [TOPOLOGY.home], supervisor, spec)
    following = asyncio.create_task(workers.run())
    try:
        tell_workers(tmp_path, "us", ["a", "a.g2", "../x", "a.gg", "a.g2.g3"])
        await eventually(lambda: running() == {"worker-us-udf-a", "worker-us-udf-a.g2"})
        assert {name for name, place in places.items() if place.exists()} == {"builtin", "udf.a", "udf.a.g2"}
        tell_workers(tmp_path, "us", ["a.g2"])
        await eventually(lambda: running() == {"worker-us-udf-a.g2"} and not places["udf.a"].exists())
        assert places["udf.a.g2"].exists() and places["builtin"].exists()
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await supervisor.stop()


async def test_over_http_readers_and_watchers_get_the_generation_that_is_pointed_to(tmp_path: Path) -> None:
    async with running_gateway(tmp_path / "edge") as edge, udfs() as at:
        tables = edge.gateway.tables
        assert isinstance(tables, EdgeTables)
        tables.set_tables([generation(1), generation(2)])
        for replica in tables.replica_ids():
            if replica.table.startswith("bigs"):
                tables.attach(replica)
        edge.gateway.udfs = replace(service(at, tables, lambda _: 0), topology=edge.gateway.topology)
        await at.deploy(version(), 8)
        await at.deploy(version("2", b"two"), 8, Wish(SHADOW))
        tables.point("bigs", "bigs.g1")
        for number, value in ((1, 1), (2, 7)):
            writer = Writer("us-east", generation(number))
            writer.put(b"score:a", value)
            writer.put(b"score:both", 3)
            tables.publish_now(writer.commit("us-east"))

        async def get(path: str, method: str = "GET") -> tuple[int, dict[str, Any]]:
            async with edge.http.request(method, path) as answer:
                return answer.status, await answer.json(content_type=None)

        names = [each["name"] for each in (await get("/v1/tables"))[1]["tables"]]
        assert "bigs" in names and not [name for name in names if "." in name]
        status, report = await get("/v1/udfs/bigs:shadow?limit=5")
        assert status == 200 and (report["equal"], report["differ"], report["settled"]) == (1, 1, True), report
        assert report["differences"] == [{"key": "score:a", "active": 1, "candidate": 7}]
        for path, method, expected in [
            ("/v1/udfs/bigs:shadow?limit=-1", "GET", (400, "limit")),
            ("/v1/udfs/nobody:shadow", "GET", (404, "name")),
            ("/v1/udfs/nobody:promote", "POST", (404, "name")),
            ("/v1/udfs/nobody:rollback", "POST", (404, "name")),
            ("/v1/udfs/bigs:promote?wait=0", "POST", (409, "name")),
            ("/v1/udfs/bigs:promote?force=perhaps", "POST", (400, "force")),
        ]:
            code, problem = await get(path, method)
            assert (code, problem["field"]) == expected, problem
        heard: list[str] = []

        async def watch() -> None:
            async with edge.http.get("/v1/tables/bigs:watch?from=start") as answer:
                async for raw in answer.content:
                    if raw.startswith(b"event: reset"):
                        heard.append("reset")
                    elif raw.startswith(b"data: ") and b"score:a" in raw:
                        heard.append(json.loads(raw[6:])["value"])

        watching = asyncio.create_task(watch())
        await eventually(lambda: heard == ["reset", 1], 20)
        tables.point("bigs", "bigs.g2")
        await eventually(lambda: heard == ["reset", 1, "reset", 7], 20)
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        rows = {name: (await get(f"/v1/tables/{name}/score:a"))[1]["value"] for name in ("bigs", "bigs.g1", "bigs.g2")}
        assert rows == {"bigs": 7, "bigs.g1": 1, "bigs.g2": 7}
