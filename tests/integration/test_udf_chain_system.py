"""A chain of deployed UDFs on real Kafka: a flat_map feeds a keyspace's table, a fold and a filter, through kills."""

from __future__ import annotations

import json
import os
import random
import re
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from streams.client import AsyncClient, connect
from streams.client.udf_template import files_of
from streams.model.errors import BadInput, Conflict, NotFound, Timeout
from streams.model.topology import Topology
from streams.processing.black_box import BlackBox
from streams.processing.replay import DeadLetter, replay
from streams.region import status
from streams.wasm.build import write_modules
from streams.wasm.engine import ModuleCache
from tests.support.polling import eventually
from tests.support.small_system import SmallSystem
from tests.support.whole_system import read_log

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(600)]
REGION = "us-east"
WORDS = ("to", "be", "or", "not", "that", "is", "the", "question")


class OneRegion(SmallSystem):
    """`streams up` with one region."""

    module = "streams.region.up"

    @property
    def url(self) -> str:
        """Its gateway."""
        return Topology.load(self.data).region(REGION).gateway_url

    @property
    def kafka(self) -> str:
        """Its broker."""
        return Topology.load(self.data).region(REGION).bootstrap_servers

    async def kill(self, name: str) -> None:
        """SIGKILL exactly this process, once it runs."""
        pid = await eventually(lambda: self._pid(name), 60, every_s=0.05)
        os.kill(int(pid), signal.SIGKILL)

    def _pid(self, name: str) -> object:
        rows = status.status(self.data)["regions"][REGION]["processes"]
        return next((row["pid"] for row in rows if row["name"] == name), None)


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OneRegion]:
    """The system of this file."""
    one = OneRegion(tmp_path_factory.mktemp("chain") / "data", "--regions", REGION)
    try:
        one.wait_ready(240.0)
        yield one
    finally:
        one.stop()


def directory(place: Path, name: str, kind: str, changes: dict[str, str] | None = None) -> Path:
    """The scaffold of `streams udf new`, with some of its text replaced."""
    place = place / name
    place.mkdir(parents=True, exist_ok=True)
    for file, text in files_of(name, "c", kind).items():
        for old, new in (changes or {}).items():
            text = text.replace(old, new)
        (place / file).write_text(text)
    return place


def custom_section(data: bytes) -> bytes:
    """A section that engines pass over (WebAssembly 1.0, 5.5.3), named `x`."""
    size, leb = len(data) + 2, bytearray()
    while size > 0x7F:
        leb.append(size & 0x7F | 0x80)
        size >>= 7
    return b"\0" + bytes([*leb, size]) + b"\1x" + data


async def rows(edge: AsyncClient, table: str) -> dict[str, Any]:
    """A table; nothing while it is not there or not caught up."""
    try:
        return {row.key: row.value async for row in edge.scan(table)}
    except (NotFound, Timeout):
        return {}


async def shows(edge: AsyncClient, table: str, truth: dict[str, Any]) -> None:
    """The table has exactly these rows, by the deadline."""

    async def exact() -> bool:
        found = await rows(edge, table)
        assert found == truth, (table, found, truth)
        return True

    await eventually(exact, 90.0, every_s=0.1)


async def trap_of(system: OneRegion, topic: str, key: bytes) -> BlackBox:
    """The black box of the only dead letter, once it is there."""

    async def there() -> BlackBox:
        letters = await read_log(system.kafka, topic)
        assert len(letters) == 1, letters
        letter = letters[0]
        headers = {name: value or b"" for name, value in letter.headers}
        return DeadLetter(topic, letter.partition, letter.offset, letter.key, letter.value, headers).box()

    box = await eventually(there, 60.0, every_s=0.1)
    assert isinstance(box, BlackBox) and box.event.key == key
    return box


def replayed_by_command(system: OneRegion, name: str, box: BlackBox) -> None:
    """`udf traps` shows where the dead letter of a map, filter or flat_map is, and `udf replay` its trap again."""
    listed = system.cli("udf", "traps", name)
    place = re.search(rf"^(dead-letter\.\w+/\d+/\d+) .* {re.escape(box.event.key.decode())} ", listed.stdout, re.M)
    assert place is not None, listed
    done = system.cli("udf", "replay", place[1], "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["same"] is True, done
    assert "same trap" in system.cli("udf", "replay", place[1]).stdout


async def test_a_chain_is_exact_through_kills(system: OneRegion, tmp_path: Path) -> None:
    seed = int(os.environ.get("STREAMS_TEST_SEED") or random.SystemRandom().randrange(2**32))
    print(f"seed {seed}")
    seeded = random.Random(seed)
    async with connect(system.url) as edge:
        await edge.put_keyspace("seen", merge="counter", schema="streams.CounterAdd", partitions=3)
        counted = directory(tmp_path, "counted", "fold", {"add < 10": "add < 1"})
        seen = directory(tmp_path, "seen-too", "filter", {'"kv"': '"score"', '"content"': '"seen"'})
        (seen / "seen-too.c").write_text(
            '#include "streams_map.h"\nint streams_filter_event(const streams_event *e) {\n'
            "  uint32_t n;\n  if (*streams_rest(e, &n) == '!') __builtin_trap();\n"
            "  return *streams_rest(e, &n) == 't' ? STREAMS_KEEP : STREAMS_DROP;\n}\n"
        )
        words = directory(tmp_path, "words", "flat_map")
        write_modules(words)
        module = words / "words.wasm"  # as large as an interpreter is when packed; a custom section costs no compiling
        module.write_bytes(module.read_bytes() + custom_section(seeded.randbytes(5 << 20)))
        for place in (counted, seen, words):
            deployed = await edge.deploy_globally(place, wait_s=50)
            assert deployed["regions"][REGION]["state"] in ("active", "starting"), deployed
        assert deployed["table"] is None and deployed["output"] == ["score"]

        truth: Counter[str] = Counter()
        for at in range(60):
            text = [seeded.choice(WORDS) for _ in range(seeded.randint(1, 6))]
            await edge.put(f"kv:{seeded.randint(0, 9)}", " ".join(text), ttl=3600 if at % 2 else None)
            truth.update(text)
            if at in (15, 30, 45):
                await system.kill(f"worker-{REGION}-udf-{('words', 'counted', 'words')[at // 15 - 1]}")
            if at == 35:
                await system.kill(f"worker-{REGION}")
        await shows(edge, "score", {f"score:{word}": count for word, count in truth.items()})
        await shows(edge, "counted", {f"score:{word}": count for word, count in truth.items()})
        await shows(edge, "seen", {f"seen:{word}": count for word, count in truth.items() if word[0] == "t"})
        assert not {"words", "seen-too"} & {each["name"] for each in await edge.tables()}

        # A delete goes through the filter, and not through the flat_map.
        await edge.delete("kv:1")
        await edge.delete("score:to")
        truth.pop("to", 0)
        await shows(edge, "seen", {f"seen:{word}": count for word, count in truth.items() if word[0] == "t"})
        await shows(edge, "score", {f"score:{word}": count for word, count in truth.items()})

        # What stops the filter stops nobody else, and can be looked at.
        await edge.put("score:!", {"add": 1})
        truth["!"] = 1
        await shows(edge, "counted", {f"score:{word}": count for word, count in truth.items()})
        box = await trap_of(system, "dead-letter.score", b"score:!")
        assert (box.info.udf, box.info.kind, box.kind) == ("seen-too", "filter", "trap")
        assert replay(box, (seen / "seen-too.wasm").read_bytes(), ModuleCache()).same_as(box)
        replayed_by_command(system, "seen-too", box)

    puts = await read_log(system.kafka, "events.score")
    heads = [dict(record.headers) for record in puts if b"source" in {name.encode() for name, _ in record.headers}]
    events = [record for record in await read_log(system.kafka, "events.kv") if dict(record.headers).get("ttl_ms")]
    made = Counter(head["source"] for head in heads)
    assert {head["origin"] for head in heads} == {REGION.encode()}
    for record in events:
        source = f"events.kv/{record.partition}:{record.offset + 1}".encode()
        assert {head["ttl_ms"] for head in heads if head["source"] == source} == {b"3600000"}, made[source]
        assert {head["hlc"] for head in heads if head["source"] == source} == {dict(record.headers)["hlc"]}


async def test_what_does_not_fit_is_refused_by_its_field(system: OneRegion, tmp_path: Path) -> None:
    async with connect(system.url) as edge:
        for changes, kind, refusal, field in [
            ({'output = "content"': 'output = "kv"'}, "filter", Conflict, "output"),
            ({'output = "best"': 'output = "nowhere"'}, "map", BadInput, "output"),
            ({'output = "best"': 'output = "strong"'}, "map", Conflict, "output"),
            ({'output = "best"': 'output = "best"\nwrites = "streams.Json"'}, "map", BadInput, "writes"),
            ({'"content"': '"best"'}, "filter", BadInput, "output"),
            ({'output = "best"': 'output = "kv"'}, "map", Conflict, "output"),  # kv → words → score → kv
        ]:
            with pytest.raises((BadInput, Conflict)) as refused:
                await edge.deploy_globally(directory(tmp_path / kind, "wrong", kind, changes), wait_s=1)
            assert isinstance(refused.value, refusal) and refused.value.field == field, (changes, refused.value)
        assert "wrong" not in {each["name"] for each in await edge.udfs()}
