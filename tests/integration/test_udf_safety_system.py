"""Hostile UDFs beside a good one on a running region: nobody notices, what trapped can be replayed, a pause holds."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from streams.client import AsyncClient, connect
from streams.client.udfs import ready_module
from streams.definitions.deployment import Deployment
from streams.definitions.udfs import Udfs
from streams.model.errors import BadInput, NotFound, Timeout
from streams.model.topology import Topology
from streams.processing.black_box import HEADER, decode_box
from streams.region import status
from tests.integration.test_udf_deploy_system import directory
from tests.support.polling import eventually
from tests.support.small_system import ROOT, SmallSystem
from tests.support.whole_system import PACE_S, read_log
from tests.unit.test_udf_deploy import EXPORTS, TAKE, wat

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(600)]
HOSTILE = Path(__file__).parents[1] / "unit" / "hostile_udfs" / "hostile.c"
REGION = "solo"
WORDS = ("trap", "divide", "wild", "loop", "fill", "bomb", "deep", "giant")
CAP_BYTES = 64 << 20


class OneRegion(SmallSystem):
    """One region of real processes, whose operator caps memory."""

    module = "streams.region.up"

    def __init__(self, data: Path) -> None:
        data.mkdir(parents=True)
        super().__init__(data, "--regions", REGION, env={"STREAMS_UDF_MEMORY_MAX_BYTES": str(CAP_BYTES)})

    @property
    def topology(self) -> Topology:
        """As kept in the data directory now."""
        return Topology.load(self.data)

    @property
    def url(self) -> str:
        """The gateway."""
        return self.topology.region(REGION).gateway_url

    @property
    def kafka(self) -> str:
        """The broker."""
        return self.topology.region(REGION).bootstrap_servers

    def udf_worker(self, name: str) -> dict[str, Any]:
        """The process of a UDF's worker."""
        processes = status.status(self.data)["regions"][REGION]["processes"]
        return next(each for each in processes if each["name"] == f"worker-{REGION}-udf-{name}")


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OneRegion]:
    one = OneRegion(tmp_path_factory.mktemp("one") / "data")
    try:
        one.wait_ready(240)
        yield one
    finally:
        one.stop()


def hostile_directory(place: Path, name: str, extra: str = "", version: str = "1.0.0") -> Path:
    """The hostile counter as a UDF of keyspace `h`, with small limits."""
    limits = "memory_bytes = 16777216\nfuel = 3000000\nfuel_deadline_s = 5.0\noutput_bytes = 2097152\n"
    made = directory(place, name, {'["score"]': '["h"]', "1.0.0": version})
    text = (made / "udf.toml").read_text()
    (made / "udf.toml").write_text(text.partition("[limits]")[0] + extra + "\n[limits]\ndeadline_s = 0.3\n" + limits)
    (made / f"{name}.c").write_text(HOSTILE.read_text())
    return made


async def state_of(edge: AsyncClient, name: str) -> dict[str, Any]:
    """How a UDF does in the region."""
    found = next(each for each in await edge.udfs() if each["name"] == name)
    return {**found["regions"][REGION], "deployed": found["version"]}


async def is_in(edge: AsyncClient, name: str, state: str, timeout_s: float = 90.0) -> dict[str, Any]:
    """Wait until a UDF is in a state."""

    async def there() -> dict[str, Any] | None:
        found = await state_of(edge, name)
        return found if found["state"] == state else None

    found: dict[str, Any] = await eventually(there, timeout_s, every_s=0.05)
    return found


async def shows(system: OneRegion, table: str, truth: dict[str, int], timeout_s: float = 90.0) -> None:
    """Wait until a table holds exactly this."""

    async def exact() -> bool:
        try:
            found = await _rows(system, table)
        except (NotFound, Timeout):
            return False
        assert found == truth, (table, found, truth)
        return True

    await eventually(exact, timeout_s, every_s=0.1)


async def test_a_hostile_udf_beside_a_good_one(system: OneRegion, tmp_path: Path) -> None:
    async with connect(system.url) as edge:
        await edge.put_keyspace("h", merge="counter", partitions=1)
        good = directory(tmp_path, "good", {'["score"]': '["h"]', "add < 10": "add < 0"})
        hostile = hostile_directory(tmp_path, "hostile")
        with pytest.raises(BadInput) as refused:
            await edge.deploy_globally(directory(tmp_path, "greedy", {"67108864": str(CAP_BYTES + 1)}))
        assert refused.value.field == "limits.memory_bytes" and "--udf-memory-max-bytes" in str(refused.value)
        await edge.deploy_globally(good, wait_s=50)
        await edge.deploy_globally(hostile, wait_s=50)
        for name in ("good", "hostile"):
            await is_in(edge, name, "active")

        reading, reads = asyncio.Event(), [0]

        async def read() -> None:
            async with aiohttp.ClientSession(system.url) as http:
                while not reading.is_set():
                    for path in ("/v1/kv/h:0", "/v1/tables/h:top?n=3", "/v1/tables/good"):
                        async with http.get(path) as answer:
                            assert answer.status in (200, 404), (path, await answer.text())
                        reads[0] += 1
                    await asyncio.sleep(PACE_S)

        watching = asyncio.create_task(read())
        keys = [f"h:{n % 5}" for n in range(60)]
        for at, word in enumerate(WORDS):
            keys[7 * at + 3] = f"h:{word}"
        for key in keys:
            await edge.put(key, {"add": 1})
        counted = Counter(keys)
        await shows(system, "good", dict(counted))
        await shows(system, "h", dict(counted))
        tame = {key: count for key, count in counted.items() if key[2:] not in WORDS}
        await shows(system, "hostile", tame)
        reading.set()
        await watching
        assert reads[0] > 30
        await is_in(edge, "hostile", "active")
        await is_in(edge, "good", "active")

        letters = await read_log(system.kafka, "dead-letter.h")
        boxes = {}
        for record in letters:
            headers = dict(record.headers)
            assert headers["dead_letter_outcome"] == b"skipped"
            boxes[record.key.decode()[2:]] = decode_box(headers[HEADER], record.key, record.value)
        assert sorted(boxes) == sorted(WORDS) and len(letters) == len(WORDS), "each culprit once"
        assert {boxes[word].kind for word in ("loop", "bomb", "giant")} == {"fuel", "memory", "output"}
        assert all(box.info.udf == "hostile" and box.rows_whole for box in boxes.values())
        assert boxes["trap"].backtrace[0].startswith("streams_fold"), "built with names"
        await _metered(system, edge)
    _replayed(system, tmp_path, hostile)


async def _metered(system: OneRegion, edge: AsyncClient) -> None:
    async def told() -> bool:
        meters = {name: (await state_of(edge, name))["meter"] for name in ("good", "hostile")}
        said = [meter and (meter["events"], meter["lag_events"]) for meter in meters.values()]
        return said == [(60, 0), (60 - len(WORDS), 0)] or said == [(60, 0)] * 2

    await eventually(told, 30, every_s=0.2)
    meter = (await state_of(edge, "hostile"))["meter"]
    assert meter["calls"] > 60 and meter["cpu_s"] > 0 and meter["fuel"] > 3_000_000
    assert sum(meter["traps"].values()) == len(WORDS)
    assert 0 < meter["memory_high_bytes"] <= 16 << 20 and meter["dead_letters"] == len(WORDS)
    good = (await state_of(edge, "good"))["meter"]
    assert good["traps"] == {} and good["fuel"] == 0

    async def built_in() -> bool:  # another worker's, which reports in its own time
        (found,) = [each for each in (await edge.list_udfs())["builtin"] if each["table"] == "h"]
        meter = found["regions"][REGION]["meter"]
        return found["name"] == "counter" and meter is not None and meter["events"] == 60

    await eventually(built_in, 30, every_s=0.2)
    async with aiohttp.ClientSession(system.url) as http, http.get("/metrics") as answer:
        text = await answer.text()
    assert re.search(r'streams_udf_traps\{kind="fuel",table="hostile.g1",udf="hostile",version="1.0.0"\} [1-9]', text)
    assert re.search(r'streams_udf_events\{table="h",udf="counter",version="[^"]+"\} 60.0', text)
    listed = system.cli("udf", "list").stdout
    assert "60 events" in listed and "traps: " in listed and "h (counter)" in listed


def _replayed(system: OneRegion, tmp_path: Path, hostile: Path) -> None:
    listed = system.cli("udf", "traps", "hostile")
    places = dict(re.findall(r"^(dead-letter\.h/0/\d+) .* h:(\w+)  ", listed.stdout, re.M) or [])
    by_word = {word: place for place, word in places.items()}
    assert by_word.keys() == set(WORDS), listed
    file = tmp_path / "trap.json"
    for word in ("trap", "bomb"):
        done = system.cli("udf", "replay", by_word[word], "--save", str(file))
        assert done.returncode == 0 and "same trap" in done.stdout and "0: streams_fold" in done.stdout, done
    command = [sys.executable, "-m", "streams.cli.main", "udf", "replay", str(file), "--json"]
    alone = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT, check=True)
    assert json.loads(alone.stdout)["same"] is True, "the file holds all that it takes"
    other = system.cli("udf", "replay", str(file), "--module", str(hostile.parent / "good"))
    assert other.returncode == 1 and "hash" in other.stderr


async def test_a_pause_holds_through_a_kill_until_it_is_resumed(system: OneRegion, tmp_path: Path) -> None:
    async with connect(system.url) as edge:
        await edge.put_keyspace("h", merge="counter", partitions=1)
        before = await _rows(system, "hostile")
        policy = 'on_trap = "pause"\ntrap_limit = 1\ntrap_window_s = 3600'
        await edge.deploy_globally(hostile_directory(tmp_path, "pauser", policy), wait_s=0)
        paused = await is_in(edge, "pauser", "paused")
        assert "h:trap" in paused["reason"] and "on_trap = pause" in paused["reason"]
        at_pause = {"h:0": 1, "h:1": 1, "h:2": 1}  # all before the first trap, and nothing after it
        await shows(system, "pauser", at_pause)
        pid = int(system.udf_worker("pauser")["pid"])
        os.kill(pid, signal.SIGKILL)
        await eventually(lambda: _restarted(system, pid), 60, every_s=0.1)
        await eventually(lambda: _said_again(edge, paused["at"]), 90, every_s=0.1)
        await edge.put("h:new", {"add": 1})
        await shows(system, "good", {**before, **{f"h:{word}": 1 for word in WORDS}, "h:new": 1})
        await is_in(edge, "pauser", "paused")
        assert await _rows(system, "pauser") == at_pause, "reads of its table go on, and nothing is folded"

        await edge.put("h:new", {"add": 1})
        for word in WORDS[1:-1]:
            again = await edge.resume_udf("pauser", wait_s=50)
            assert again["regions"][REGION]["state"] == "paused" and f"h:{word}" in again["regions"][REGION]["reason"]
        done = await asyncio.to_thread(system.cli, "udf", "resume", "pauser", "--wait", "50")
        assert done.returncode == 1 and f"h:{WORDS[-1]}" in done.stderr, done
        done = await asyncio.to_thread(system.cli, "udf", "resume", "pauser", "--wait", "50")
        assert done.returncode == 0 and "active" in done.stdout, done
        await shows(system, "pauser", {**before, "h:new": 2})
        await is_in(edge, "pauser", "active")
        with pytest.raises(NotFound):
            await edge.resume_udf("nobody")
        held = [dict(each.headers) for each in await read_log(system.kafka, "dead-letter.h")]
        outcomes = Counter(each["dead_letter_outcome"] for each in held)
        assert outcomes[b"held"] >= len(WORDS) and outcomes[b"skipped"] == 2 * len(WORDS)


def _restarted(system: OneRegion, pid: int) -> bool:
    found = system.udf_worker("pauser")
    return found["state"] == "running" and found["pid"] not in (None, pid)


async def _said_again(edge: AsyncClient, at_ms: int) -> bool:
    found = await state_of(edge, "pauser")
    return bool(found["state"] == "paused" and found["at"] > at_ms)


async def _rows(system: OneRegion, table: str) -> dict[str, int]:
    """A table, read by a session that has seen nothing else: a token of its input would wait for what is held."""
    async with connect(system.url) as fresh:
        return {row.key: row.value async for row in fresh.scan(table)}


async def test_a_module_that_cannot_run_is_reported_and_waited_for(system: OneRegion, tmp_path: Path) -> None:
    """Past the gateway's judgement, as another region's gateway with other rules would write it."""
    place = directory(tmp_path, "broken", {'["score"]': '["h"]'})
    text, module = (place / "udf.toml").read_text(), ready_module(place, (place / "udf.toml").read_bytes())
    start = wat(EXPORTS + TAKE + "(func $s unreachable) (start $s)")
    async with connect(system.url) as edge, Udfs(system.topology, REGION) as udfs:
        for version, wasm, says in (("1.0.0", module[:2000], "compile"), ("1.0.1", start, "does not start")):
            made = Deployment.make(text.replace("1.0.0", version), wasm, 1, "", REGION)
            await udfs.deploy(made, 32)
            await eventually(lambda said=says: _refused(edge, said), 60, every_s=0.05)
        place = directory(tmp_path, "broken", {'["score"]': '["h"]', "1.0.0": "1.1.0"})
        mended = await edge.deploy_globally(place, wait_s=50)
        assert mended["regions"][REGION]["state"] == "active", mended
        await is_in(edge, "good", "active")


async def _refused(edge: AsyncClient, says: str) -> bool:
    udf = next((each for each in await edge.udfs() if each["name"] == "broken"), None)
    if udf is None:
        return False
    found = (udf["candidate"] or udf)["regions"][REGION]  # another version stands beside the one before
    return bool(found["state"] == "refused" and says in found["reason"])
