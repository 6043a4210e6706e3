"""UDFs deployed in the whole two-region system: exact in both regions, through kills, replacement and restart."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from streams.client import AsyncClient, connect
from streams.client.udf_template import files_of
from streams.client.udfs import multipart, ready_module
from streams.kafka.admin import Admin
from streams.model.errors import BadInput, Conflict, NotFound, Timeout, Unavailable
from streams.region import status
from streams.serde import SchemaSet, load_builtin
from tests.integration.functions_system import (
    functions_answer_at_the_nearest_edge,
    functions_are_refused_by_their_field,
    functions_outlive_their_edge,
)
from tests.integration.machines_system import (
    a_machines_next_version_swaps_at_one_offset,
    machines_execute_one_log_everywhere,
)
from tests.support.polling import eventually
from tests.support.small_system import ROOT, SmallSystem
from tests.support.whole_system import FAR, HOME, PACE_S, WholeSystem, read_log

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(600)]
HOSTILE = Path(__file__).parents[1] / "unit" / "hostile_udfs" / "hostile.c"


@pytest.fixture(scope="module")
def system(whole_system: WholeSystem) -> WholeSystem:
    """The session's."""
    return whole_system


@pytest.fixture
def seeded() -> random.Random:
    """Random numbers whose seed is printed; STREAMS_TEST_SEED repeats them."""
    seed = int(os.environ.get("STREAMS_TEST_SEED") or random.SystemRandom().randrange(2**32))
    print(f"seed {seed}")
    return random.Random(seed)


def cli(system: WholeSystem, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A `streams` command on the system."""
    command = [sys.executable, "-m", "streams.cli.main", *arguments, "--data", str(system.data)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=ROOT, check=False)


def directory(place: Path, name: str, changes: dict[str, str] | None = None) -> Path:
    """The scaffold of `streams udf new`, with some of its text replaced."""
    place = place / name
    place.mkdir(parents=True, exist_ok=True)
    for file, text in files_of(name).items():
        for old, new in (changes or {}).items():
            text = text.replace(old, new)
        (place / file).write_text(text)
    return place


def processes(system: WholeSystem) -> dict[str, dict[str, Any]]:
    """All processes, by name."""
    regions = status.status(system.data)["regions"].values()
    return {each["name"]: each for region in regions for each in region["processes"]}


async def rows(edge: AsyncClient, table: str) -> dict[str, Any]:
    """A table as this gateway answers it; nothing while it is not known or not caught up here."""
    try:
        return {row.key: row.value async for row in edge.scan(table)}
    except (NotFound, Timeout):
        return {}


async def shows(system: WholeSystem, table: str, truth: dict[str, Any], timeout_s: float = 60.0) -> None:
    """Both gateways answer exactly these rows, by the deadline."""

    async def exact() -> bool:
        async with system.sessions() as sessions:
            for edge in sessions:
                found = await rows(edge, table)
                assert found == truth, (edge.url, table, found, truth)
        return True

    await eventually(exact, timeout_s, every_s=0.1)


async def runs(edge: AsyncClient, name: str, version: str, timeout_s: float = 60.0) -> dict[str, Any]:
    """The UDF once this version of it is active in both regions."""

    async def active() -> dict[str, Any]:
        found = next(each for each in await edge.udfs() if each["name"] == name)
        states = {region: each["state"] for region, each in found["regions"].items()}
        assert (found["version"], states) == (version, {HOME: "active", FAR: "active"}), found
        return found

    return await eventually(active, timeout_s, every_s=0.05)  # type: ignore[no-any-return]


async def put_in_both(system: WholeSystem, seeded: random.Random, keys: list[str], puts: int) -> Counter[str]:
    """Puts of 1 to 20 in both regions; how many of them were 10 or more, by key."""
    large: Counter[str] = Counter()
    async with system.sessions() as sessions:
        for _ in range(puts):
            key, add = seeded.choice(keys), seeded.randint(1, 20)
            await seeded.choice(sessions).put(key, {"add": add})
            large[key] += add >= 10
    return +large


async def large_deals(system: WholeSystem, place: Path) -> Path:
    """A fold of a keyspace that only these tests write, which is known in both regions."""
    async with system.sessions() as (home, far):
        await home.put_keyspace("deal", merge="counter")
        await eventually(lambda: _knows(far, {"deal"}), 30)
    return directory(place, "bigs", {'["score"]': '["deal"]'})


async def test_a_udf_deployed_by_the_cli_runs_in_both_regions_and_survives(
    system: WholeSystem, seeded: random.Random, tmp_path: Path
) -> None:
    bigs = await large_deals(system, tmp_path)
    keys = [f"deal:{n}" for n in range(6)]
    truth = await put_in_both(system, seeded, keys, 40)  # what was there before the deploy counts too
    before = processes(system)
    done = cli(system, "udf", "deploy", str(bigs), "--wait", "50")
    print(done.stdout, done.stderr)
    assert done.returncode == 0 and "bigs 1.0.0" in done.stdout
    async with system.sessions() as (home, far):
        await runs(far, "bigs", "1.0.0")
        again = await home.deploy_globally(bigs)
        assert {each["state"] for each in again["regions"].values()} == {"active"}
    after = processes(system)
    for region in (HOME, FAR):
        worker = after[f"worker-{region}-udf-bigs"]
        os.kill(worker["pid"], 0)
    assert {name: each["pid"] for name, each in before.items()} == {name: after[name]["pid"] for name in before}

    truth += await put_in_both(system, seeded, keys, 40)
    await shows(system, "bigs", truth)
    async with system.sessions() as (home, far):
        digests = [await edge.digest("bigs", as_of_ms=time.time_ns() // 10**6) for edge in (home, far)]
        assert digests[0].rows == digests[1].rows == len(truth)

    putting = asyncio.create_task(put_in_both(system, seeded, keys, 60))
    killed = system.kill(f"worker-{FAR}-udf-bigs")
    await system.back(f"worker-{FAR}-udf-bigs", killed)
    truth += await putting
    await shows(system, "bigs", truth)
    assert processes(system)[f"worker-{FAR}"]["pid"] == before[f"worker-{FAR}"]["pid"]


async def test_two_inputs_and_a_new_version_from_the_other_region(system: WholeSystem, tmp_path: Path) -> None:
    place = directory(tmp_path, "either", {'inputs = ["score"]': 'inputs = ["left", "right"]'})
    async with system.sessions() as (home, far):
        for name, partitions in (("left", 3), ("right", 1)):
            await home.put_keyspace(name, merge="counter", partitions=partitions)
        names = {"left", "right"}
        await eventually(lambda: _knows(far, names), 30)
        await far.deploy_globally(place, wait_s=50)
        await runs(home, "either", "1.0.0")
        truth = {}
        for n in range(8):
            for name in names:
                truth[f"{name}:{n}"] = 1
                await (home, far)[n % 2].put(f"{name}:{n}", {"add": 10})
        await shows(system, "either", truth)

        with pytest.raises(Conflict) as refused:
            await far.deploy_globally(directory(tmp_path, "either", {"add < 10": "add < 5", '["score"]': '["left"]'}))
        assert refused.value.field == "version"
        place = directory(
            tmp_path, "either", {"add < 10": "add < 5", "1.0.0": "1.1.0", '["score"]': '["left", "right"]'}
        )
        await far.deploy_globally(place, wait_s=50)
        await runs(home, "either", "1.1.0")
        for key in truth:
            await home.put(key, {"add": 5})
            truth[key] += 1
        await shows(system, "either", truth)
        with pytest.raises(Conflict) as refused:
            await home.put_keyspace("either")
        assert refused.value.field == "name"


async def _knows(edge: AsyncClient, names: set[str]) -> bool:
    return names <= {each["name"] for each in await edge.keyspaces()}


def sized(place: Path, version: str, least: int) -> Path:
    """A UDF that counts the puts of `least` or more."""
    changes = {"1.0.0": version, "add < 10": f"add < {least}", '["score"]': '["sized"]'}
    return directory(place / version, "counted", changes)


async def counted(system: WholeSystem, least: int, since_ms: int = 0) -> dict[str, int]:
    """What such a UDF's table must hold: from both regions' logs themselves, whatever was killed meanwhile."""
    schemas, found = SchemaSet(load_builtin().values()), Counter[str]()
    for region in (HOME, FAR):
        for record in await read_log(system.kafka(region), "events.sized"):
            large = schemas.decode_value(record.value)[1]["add"] >= least
            found[record.key.decode()] += large and record.timestamp >= since_ms
    return dict(+found)


@contextlib.asynccontextmanager
async def sizes_put(system: WholeSystem, seeded: random.Random) -> AsyncIterator[None]:
    """Puts of 1 to 20 in both regions while inside; what a killed gateway does not answer is not asked for again."""
    stop = asyncio.Event()

    async def work(region: str) -> None:
        async with connect(system.url(region)) as edge:
            while not stop.is_set():
                with contextlib.suppress(Timeout, Unavailable):
                    await edge.put(f"sized:{seeded.randrange(5)}", {"add": seeded.randint(1, 20)})
                await asyncio.sleep(PACE_S)

    tasks = [asyncio.create_task(work(region)) for region in (HOME, FAR)]
    try:
        yield
    finally:
        stop.set()
        await asyncio.gather(*tasks)


async def left_of(system: WholeSystem, table: str) -> list[str]:
    """The changelogs and directories of a UDF's generations, in both regions."""
    found = [str(path) for path in system.data.glob(f"*/*/*{table}.g*")]
    for region in (HOME, FAR):
        async with Admin(system.kafka(region)) as admin:
            found += [f"{region}: {name}" for name in await admin.topics() if f"table.{table}.g" in name]
    return sorted(found)


async def test_versions_stand_beside_each_other_through_kills(
    system: WholeSystem, seeded: random.Random, tmp_path: Path
) -> None:
    async with system.sessions() as (home, far):
        await home.put_keyspace("sized", merge="counter")
        await eventually(lambda: _knows(far, {"sized"}), 30)
        await home.deploy_globally(sized(tmp_path, "1.0.0", 10), wait_s=50)
        async with sizes_put(system, seeded):
            await far.shadow_udf("counted", sized(tmp_path, "1.1.0", 5), wait_s=0)
            name = f"worker-{FAR}-udf-counted.g2"
            await eventually(lambda: processes(system).get(name, {}).get("pid"), 30)
            await system.back(name, system.kill(name))
            await eventually(lambda: _has_caught_up(home, far), 60)
        ten, five = await counted(system, 10), await counted(system, 5)
        await shows(system, "counted", ten)
        since_ms = time.time_ns() // 10**6
        report = await eventually(lambda: _settled_report(far), 20)
        assert {each["key"]: (each["active"], each["candidate"]) for each in report["differences"]} == {
            key: (ten.get(key), five[key]) for key in five if ten.get(key) != five[key]
        }
        async with sizes_put(system, seeded):
            await far.deploy_globally(tmp_path / "1.1.0" / "counted", wait_s=0)  # now it takes over by itself
            await system.back(f"gateway-{HOME}", system.kill(f"gateway-{HOME}"), 150)
            for edge in (home, far):
                await eventually(lambda at=edge: _serves(at, "1.1.0", 2), 60)
        await shows(system, "counted", await counted(system, 5))
        before = processes(system)
        done = cli(system, "udf", "rollback", "counted")
        assert done.returncode == 0 and "counted 1.0.0" in done.stdout, done.stderr
        assert await _serves(home, "1.0.0", 1)
        await shows(system, "counted", await counted(system, 10))
        after = processes(system)
        assert {n: each["pid"] for n, each in before.items()} == {n: each["pid"] for n, each in after.items()}
        done = cli(system, "udf", "promote", "counted", "--region", FAR)
        assert done.returncode == 0 and "counted 1.1.0" in done.stdout, done.stderr
        async with Admin(system.kafka(FAR)) as admin:
            await admin.delete_records({("events.sized", 0): 1})
        with pytest.raises(Conflict, match=f"log of {FAR}") as refused:
            await home.deploy_globally(sized(tmp_path, "1.2.0", 15))
        assert refused.value.field == "from"
        found = await far.deploy_globally(tmp_path / "1.2.0" / "counted", wait_s=50, from_=since_ms, keep="1s")
        assert (found["version"], found["began"][FAR]["cut"]) == ("1.2.0", False), found
        await shows(system, "counted", await counted(system, 15, since_ms))
        await eventually(lambda: _only(system, "counted", "g3"), 60, every_s=0.2)
        states = [(each["version"], each["state"]) for each in (await home.udf("counted"))["versions"]]
        assert states == [("1.2.0", "active"), ("1.1.0", "collected"), ("1.0.0", "collected")]


async def _has_caught_up(*sessions: AsyncClient) -> bool:
    found = [(await edge.udf("counted"))["candidate"] for edge in sessions]
    return all(region["caught_up"] for each in found if each for region in each["regions"].values()) and all(found)


async def _settled_report(edge: AsyncClient) -> dict[str, Any] | None:
    report = await edge.shadow_report("counted")
    return report if report["settled"] and report["complete"] and not report["unsettled"] else None


async def _serves(edge: AsyncClient, version: str, generation: int) -> bool:
    try:
        found = await edge.udf("counted")
    except Unavailable:
        return False
    return (found["version"], found["served_here"]) == (version, generation)


async def _only(system: WholeSystem, table: str, generation: str) -> bool:
    left = await left_of(system, table)
    assert all(name.endswith(generation) for name in left), left
    return bool(left)


async def test_what_is_refused_and_why(system: WholeSystem, tmp_path: Path) -> None:
    good = directory(tmp_path, "refused")
    manifest = (good / "udf.toml").read_bytes()
    module = ready_module(good, manifest)
    cases: list[tuple[dict[str, bytes], int, str]] = [
        ({"manifest": manifest}, 400, "module"),
        ({"module": module}, 400, "manifest"),
        ({"manifest": b"\xff\xfe", "module": module}, 400, "manifest"),
        ({"manifest": manifest, "module": b"MZ"}, 400, "module"),
        ({"manifest": manifest, "module": module[:4000]}, 400, "module"),
        ({"manifest": manifest, "module": bytes(9 << 20)}, 400, "module"),
        ({"manifest": manifest.replace(b'"score"', b'"nowhere"'), "module": module}, 400, "inputs"),
        ({"manifest": manifest.replace(b'table = "refused"', b'table = "kv"'), "module": module}, 409, "table"),
        ({"manifest": manifest.replace(b"abi = 1", b"abi = 7"), "module": module}, 400, "abi"),
    ]
    before = set(processes(system))
    async with aiohttp.ClientSession(system.url(FAR)) as http:
        for parts, expected, field in cases:
            body, kind = multipart(parts)
            async with http.post("/v1/udfs", data=body, headers={"Content-Type": kind}) as answer:
                problem = await answer.json(content_type=None)
                assert (answer.status, problem["field"]) == (expected, field), problem
                assert answer.content_type == "application/problem+json"
        async with http.post("/v1/udfs", data=b"{}", headers={"Content-Type": "application/json"}) as answer:
            assert answer.status == 415
        async with http.get("/v1/udfs") as answer:
            assert "refused" not in {each["name"] for each in (await answer.json())["udfs"]}
    assert set(processes(system)) == before
    done = cli(system, "udf", "deploy", str(tmp_path))
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "udf.toml" in done.stderr


async def test_a_trap_costs_its_own_event_and_nobody_else(system: WholeSystem, tmp_path: Path) -> None:
    place = directory(tmp_path, "hostile", {'["score"]': '["r"]', "67108864": "16777216", "2.0": "0.5"})
    (place / "hostile.c").write_text(HOSTILE.read_text())
    async with system.sessions() as (home, far):
        await home.put_keyspace("r", merge="counter")
        await eventually(lambda: _knows(far, {"r"}), 30)
        await home.deploy_globally(place, wait_s=50)
        await runs(far, "hostile", "1.0.0")
        truth: dict[str, int] = {}
        for n in range(30):
            key = "r:trap" if n == 17 else f"r:{n % 5}"
            await home.put(key, {"add": 1})
            if n != 17:
                truth[key] = truth.get(key, 0) + 1
        await shows(system, "hostile", truth)
        await shows(system, "r", {**truth, "r:trap": 1})
        dead = await read_log(system.kafka(HOME), "dead-letter.r")
        assert [record.key for record in dead] == [b"r:trap"]
        await runs(home, "hostile", "1.0.0")


async def test_functions_in_both_regions(system: WholeSystem, tmp_path: Path) -> None:
    bigs = await large_deals(system, tmp_path)
    async with system.sessions() as (home, _):
        await home.deploy_globally(bigs, wait_s=0)  # a fold, which cannot be invoked
    await functions_answer_at_the_nearest_edge(system)
    await functions_are_refused_by_their_field(system)
    await functions_outlive_their_edge(system)
    assert not [name for name in processes(system) if "handle_request" in name], "a function needs no worker"


async def test_machines_in_both_regions(system: WholeSystem, tmp_path: Path) -> None:
    await machines_execute_one_log_everywhere(system, tmp_path)
    await a_machines_next_version_swaps_at_one_offset(system, tmp_path)


async def test_removal_stops_it_and_down_and_up_keep_the_rest(
    system: WholeSystem, seeded: random.Random, tmp_path: Path
) -> None:
    async with system.sessions() as (home, far):
        await home.deploy_globally(directory(tmp_path, "going"), wait_s=50)
        await home.deploy_globally(directory(tmp_path, "staying"), wait_s=50)
        await runs(far, "staying", "1.0.0")
        await home.put("score:life", {"add": 10})
        await eventually(lambda: _has(far, "going", "score:life", 1), 60)
        done = cli(system, "udf", "remove", "going", "--region", FAR)
        assert done.returncode == 0, done.stderr
        await eventually(lambda: not [name for name in processes(system) if name.endswith("udf-going")], 30)
        for edge in (home, far):
            await eventually(lambda at=edge: _gone(at, "going"), 30)
            assert "going" not in {each["name"] for each in await edge.udfs()}
        with pytest.raises(NotFound):
            await far.remove_udf("going")
        with pytest.raises(BadInput):
            await home.deploy_globally(directory(tmp_path, "Going"))
        for each in await home.udfs():  # of the other tests: a worker of each would start again
            if each["name"] != "staying":
                await home.remove_udf(each["name"])

    assert SmallSystem.stop(system) == 0  # the mirror's proxies stay
    again = await asyncio.to_thread(cli, system, "up", "--detach")
    assert again.returncode == 0, again.stdout
    await eventually(system._aim, 30)
    try:
        async with connect(system.url(FAR)) as far:
            await runs(far, "staying", "1.0.0", 90)
            assert "going" not in {each["name"] for each in await far.udfs()}
            await far.put("score:life", {"add": 10})
            await eventually(lambda: _has(far, "staying", "score:life", 2), 60)
            # Deployed again, it goes on from the rows that it had.
            await far.deploy_globally(tmp_path / "going", wait_s=50)
            await eventually(lambda: _has(far, "going", "score:life", 2), 60)
    finally:
        done = cli(system, "down")
        assert done.returncode == 0, done.stderr


async def _has(edge: AsyncClient, table: str, key: str, value: int) -> bool:
    return (await rows(edge, table)).get(key) == value


async def _gone(edge: AsyncClient, table: str) -> bool:
    return table not in {each["name"] for each in await edge.tables()}
