"""The definitions store over a log in memory: one sequence of writes, the same everywhere, nothing lost or doubled."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from streams.definitions import Definitions, DefinitionsOptions, Entry, Incompatible
from streams.definitions.entries import decode_entry, keyspace_entry, schema_entry, version_entry
from streams.model.errors import BadInput, Conflict, NotFound, Timeout
from streams.model.keyspace import BUILTIN, Keyspace
from streams.model.row import MergeType
from streams.model.topology import Region, Topology
from streams.serde import AvroSchema, load_builtin, parse_schema
from tests.support.definitions import MemoryHome, MemoryLog, SilentLog
from tests.support.polling import eventually

TOPOLOGY = Topology((Region("us-east", "127.0.0.1:1"), Region("eu-west", "127.0.0.1:2")))
SHORT = DefinitionsOptions(start_s=1.0, write_s=5.0, visible_s=0.2)


def definitions(home: MemoryHome, region: str = "us-east", log: MemoryLog | None = None) -> Definitions:
    return Definitions(TOPOLOGY, region, SHORT, log=log or MemoryLog(home))


def record(*fields: dict[str, object], name: str = "R") -> AvroSchema:
    return parse_schema({"type": "record", "name": name, "fields": list(fields)})


V: dict[str, object] = {"name": "v", "type": "long"}
U: dict[str, object] = {"name": "u", "type": "string", "default": ""}


async def test_home_seeds_once_and_others_see_it() -> None:
    home = MemoryHome()
    async with definitions(home) as first:
        seeded = len(home.entries)
        assert {keyspace.name: keyspace for keyspace in BUILTIN} == dict(first.keyspaces)
        assert [version.version for version in first.versions("events.score-value")] == [1]
        async with definitions(home) as second, definitions(home, "eu-west") as third:
            assert second.subjects() == third.subjects() == first.subjects()
            assert third.schema(load_builtin()["streams.Json"].id).name == "streams.Json"
    assert len(home.entries) == seeded and home.appends == 1


async def test_two_homes_starting_at_once_seed_once() -> None:
    home = MemoryHome()
    stores = [definitions(home) for _ in range(4)]
    await asyncio.gather(*(store.start() for store in stores))
    assert len({entry.key for entry in home.entries}) == len(home.entries)
    await asyncio.gather(*(store.stop() for store in stores))


async def test_a_region_without_the_mirrored_topic_says_so() -> None:
    with pytest.raises(Timeout, match="not mirrored yet"):
        await definitions(MemoryHome(), "eu-west", SilentLog(MemoryHome())).start()
    with pytest.raises(Timeout, match="built-in definitions are not here"):
        await definitions(MemoryHome(), "eu-west").start()


async def test_versions_follow_each_other_and_the_same_schema_is_one() -> None:
    home = MemoryHome()
    async with definitions(home) as here, definitions(home, "eu-west") as there:
        one = await here.register_schema("s", record(V))
        assert one == (record(V).id, 1)
        assert await there.register_schema("s", record(V).text) == one
        assert await there.register_schema("s", record(V, U)) == (record(V, U).id, 2)
        assert await here.register_schema("s", record(V)) == one
        assert await here.register_schema("other", record(V)) == (record(V).id, 1)
        await eventually(lambda: len(here.versions("s")) == 2, 1)


async def test_what_does_not_evolve_is_refused_with_its_reasons() -> None:
    async with definitions(MemoryHome()) as store:
        await store.register_schema("s", record(V))
        with pytest.raises(Incompatible) as caught:
            await store.register_schema("s", record({"name": "v", "type": "int"}, {"name": "w", "type": "string"}))
        assert caught.value.status == 409 and len(caught.value.reasons) == 2
        assert any("w: this field is new and has no default" in reason for reason in caught.value.reasons)
        assert len(store.versions("s")) == 1
        await store.set_level("none", "s")
        assert (await store.register_schema("s", record({"name": "v", "type": "int"})))[1] == 2
        assert store.level("s") == "NONE" and store.own_level("t") is None and store.level("t") == "BACKWARD"
        await store.set_level(None, "s")
        assert store.own_level("s") is None
        with pytest.raises(BadInput, match="no compatibility level"):
            await store.set_level("SOMEHOW", "s")


@pytest.mark.parametrize("subject", ["", "a/b", "x" * 250, "a\nb"])
async def test_subjects_that_are_refused(subject: str) -> None:
    async with definitions(MemoryHome()) as store:
        with pytest.raises(BadInput, match="is not a subject"):
            await store.register_schema(subject, record(V))


async def test_a_builtin_keyspace_takes_only_what_its_udf_can_read() -> None:
    async with definitions(MemoryHome()) as store:
        add = {"name": "add", "type": "long"}
        newer = record(add, {"name": "reason", "type": "string", "default": ""}, name="streams.CounterAdd")
        assert (await store.register_schema("events.score-value", newer))[1] == 2
        for bad in (
            record({"name": "add", "type": "double"}, name="streams.CounterAdd"),
            record(V, name="streams.CounterAdd"),
        ):
            with pytest.raises(Incompatible):
                await store.register_schema("events.score-value", bad)
        await store.set_level("NONE", "events.score-value")
        with pytest.raises(Incompatible, match=r"keyspace score reads streams\.CounterAdd"):
            await store.register_schema("events.score-value", record(V, name="Other"))
        builtin = load_builtin()
        assert [(ident, op) for ident, op, _ in store.schema_table("score")] == [
            (builtin["streams.CounterAdd"].id, 0),
            (newer.id, 0),
            (builtin["streams.Delete"].id, 1),
            (builtin["streams.Purge"].id, 2),
            (builtin["streams.TablePurge"].id, 2),
        ]
        assert store.schema_table("score")[1][2] == newer.document


async def test_a_keyspace_cannot_take_the_name_of_a_built_in_table() -> None:
    async with definitions(MemoryHome()) as store:
        with pytest.raises(Conflict, match="built-in table"):
            await store.put_keyspace(Keyspace("telemetry"))


async def test_keyspaces() -> None:
    home = MemoryHome()
    async with definitions(home) as here, definitions(home, "eu-west") as there:
        made = await there.put_keyspace(Keyspace("likes", MergeType.COUNTER, partitions=3))
        assert made.schema == "streams.CounterAdd"
        assert there.from_avro(there.to_avro("likes", {"add": 2})) == {"add": 2}
        assert await here.put_keyspace(made) == made
        changed = await here.put_keyspace(replace(made, ttl_ms=5_000))
        await eventually(lambda: there.keyspace("likes") == changed, 1)
        for field, other in (
            ("partitions", replace(made, partitions=4)),
            ("merge", replace(made, merge=MergeType.LWW, schema="streams.CounterAdd")),
            ("consistency", replace(made, consistency="strong")),
        ):
            with pytest.raises(Conflict) as caught:
                await here.put_keyspace(other)
            assert caught.value.field == field and caught.value.fix
        with pytest.raises(Conflict, match="schema"):
            await here.put_keyspace(Keyspace("kv", schema="streams.Number"))
        with pytest.raises(NotFound):
            here.keyspace("nix")


async def test_keyspaces_with_schemas_of_users() -> None:
    async with definitions(MemoryHome()) as store:
        with pytest.raises(BadInput, match=r"events\.trips-value has no schema Trip"):
            await store.put_keyspace(Keyspace("trips", schema="Trip"))
        trip = record({"name": "km", "type": "double"}, name="Trip")
        assert (await store.put_keyspace(Keyspace("trips"), trip)).schema == "Trip"
        assert store.from_avro(store.to_avro("trips", {"km": 2})) == {"km": 2.0}
        newer = record({"name": "km", "type": "double"}, U, name="Trip")
        await store.register_schema("events.trips-value", newer)
        assert store.from_avro(store.to_avro("trips", {"km": 2, "u": "x"})) == {"km": 2.0, "u": "x"}
        assert [ident for ident, op, _ in store.schema_table("trips") if op == 0] == [trip.id, newer.id]
        with pytest.raises(BadInput) as caught:
            await store.put_keyspace(Keyspace("most", MergeType.MAX, "Trip"))
        assert caught.value.field == "schema"
        with pytest.raises(BadInput, match="platform's own"):
            await store.put_keyspace(Keyspace("gone", schema="streams.Delete"))


async def test_racing_writers_of_many_processes_get_one_sequence() -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = random.Random(seed)
    home = MemoryHome()
    stores = [definitions(home, rng.choice(["us-east", "eu-west"])) for _ in range(3)]
    stores.insert(0, definitions(home))
    for store in stores:
        await store.start()
    fields = [{"name": f"f{i}", "type": "string", "default": ""} for i in range(6)]
    made = await asyncio.gather(
        *(rng.choice(stores).register_schema("s", record(V, *rng.sample(fields, rng.randrange(7)))) for _ in range(40))
    )
    by_version: dict[int, set[int]] = {}
    for schema_id, version in made:
        by_version.setdefault(version, set()).add(schema_id)
    assert sorted(by_version) == list(range(1, len(by_version) + 1))
    assert all(len(ids) == 1 for ids in by_version.values())
    written = [entry.key for entry in home.entries if entry.kind == "version"]
    assert len(written) == len(set(written)), "a version was written twice: compaction would keep the wrong one"
    for store in stores:
        await store.stop()


@pytest.mark.parametrize("how", ["applied", "dropped"])
async def test_a_write_whose_answer_is_lost_takes_effect_once(how: str) -> None:
    home = MemoryHome()
    log = MemoryLog(home)
    async with definitions(home, log=log) as store:
        log.lose_next = how
        assert await store.register_schema("s", record(V)) == (record(V).id, 1)
        assert [entry.key for entry in home.entries].count("version/s/1") == 1


async def test_a_write_that_is_not_mirrored_in_time_says_so() -> None:
    home = MemoryHome()
    async with definitions(home):
        log = MemoryLog(home)
        async with definitions(home, "eu-west", log) as there:
            log.lag = 2
            with pytest.raises(Timeout, match="not yet mirrored"):
                await there.register_schema("s", record(V))
            log.lag = 0
            assert await there.register_schema("s", record(V)) == (record(V).id, 1)


async def test_callbacks_and_waiting_for_ids() -> None:
    home = MemoryHome()
    async with definitions(home) as here, definitions(home, "eu-west") as there:
        seen: list[str] = []

        def broken(entries: Sequence[Entry]) -> None:
            raise RuntimeError("not ours")

        there.on_change(broken)
        stop = there.on_change(lambda entries: seen.extend(entry.key for entry in entries))
        assert not await there.wait_for({record(V).id}, 0.01)
        waiting = asyncio.create_task(there.wait_for({record(V).id}, 2))
        await here.register_schema("s", record(V))
        assert await waiting
        await eventually(lambda: seen == [f"schema/{record(V).id}", "version/s/1"], 1)
        stop()
        await here.register_schema("t", record(V))
        await eventually(lambda: there.subjects() == here.subjects(), 1)
        assert len(seen) == 2


async def test_entries_that_make_no_sense_are_kept_aside() -> None:
    home = MemoryHome()
    async with definitions(home) as store:
        wrong = replace(schema_entry(record(V)), key="schema/5")
        home.entries += [
            wrong,
            Entry("version/s/1", {"subject": "s"}),
            Entry("keyspace/bad", {"name": "bad", "merge": "?"}),
            Entry("schema/5", None),
            Entry("udf/later", {"x": 1}),
            version_entry("s", 2, record(V).id),
            keyspace_entry(Keyspace("fine")),
        ]
        await eventually(lambda: "fine" in store.keyspaces, 1)
        assert store.versions("s") == [], "its schema never came"
        assert "bad" not in store.keyspaces


@pytest.mark.parametrize(("key", "value"), [(None, b"{}"), (b"\xff", b"{}"), (b"k", b"{"), (b"k", b"[]"), (b"", None)])
def test_records_that_are_no_entries(key: bytes | None, value: bytes | None) -> None:
    with pytest.raises(BadInput):
        decode_entry(key, value)
