"""Purges: what is dead goes, a delete is forgotten only when nothing is left for it to kill."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from streams.edge.edge_store import EdgeTables
from streams.edge.purge_candidates import Candidates
from streams.edge.purge_rules import all_due_ms, due_ms
from streams.edge.purger import Keyed, Purge, PurgeOptions, Purger, decide
from streams.edge.raw_merge import deleted_of, last_of
from streams.edge.row_facts import facts_of
from streams.model.clock import NEVER_MS, pack
from streams.model.row import Cell, MergeType, Row, counter_payload, encode_row
from tests.support.edge_units import NOW, SCORE, Clock, Writer, named_in, store

OPTIONS = PurgeOptions(grace_ms=1000, margin_ms=10, retry_ms=100, interval_s=0.01)


def counter(start_ms: int, expires_ms: int) -> Cell:
    return Cell(pack(start_ms), pack(start_ms), expires_ms, counter_payload(1, 0))


def row(*cells: Cell, deleted_ms: int = 0, last_ms: int = NOW) -> Row:
    return Row(MergeType.COUNTER, 1, pack(deleted_ms) if deleted_ms else 0, pack(last_ms), cells)


def test_nothing_of_a_living_key_is_purged() -> None:
    alive = row(counter(NOW, NEVER_MS))
    assert decide(MergeType.COUNTER, alive, {}, NOW + 10**9, OPTIONS) is None
    joined = row(counter(NOW, NOW + 100))
    assert (
        decide(MergeType.COUNTER, joined, {("eu", 0): row(counter(NOW + 50, NEVER_MS))}, NOW + 10**9, OPTIONS) is None
    )


def test_an_expired_row_goes_when_every_origin_has_passed_its_death() -> None:
    own, other = row(counter(NOW, NOW + 100)), row(counter(NOW, NOW + 500))
    assert decide(MergeType.COUNTER, own, {("eu", 0): other}, NOW + 505, OPTIONS) is None
    purge = decide(MergeType.COUNTER, own, {("eu", 0): other}, NOW + 511, OPTIONS)
    assert purge == Purge(0, NOW + 500, own.last_hlc, True)


def test_a_delete_is_remembered_while_it_has_something_to_kill() -> None:
    tombstone = row(deleted_ms=NOW + 5, last_ms=NOW + 5)
    killed = {("eu", 0): row(counter(NOW, NEVER_MS))}
    late = NOW + 10**9
    assert decide(MergeType.COUNTER, tombstone, killed, late, OPTIONS) is None
    purge = decide(MergeType.COUNTER, killed[("eu", 0)], {("us", 0): tombstone}, NOW, OPTIONS)
    assert purge is not None and purge.generation == pack(NOW + 5) and not purge.remove
    cleaned = {("eu", 0): row(deleted_ms=NOW + 5)}
    assert decide(MergeType.COUNTER, tombstone, cleaned, NOW + 900, OPTIONS) is None, "within the grace"
    found = decide(MergeType.COUNTER, tombstone, cleaned, late, OPTIONS)
    assert found is not None and found.remove


def test_a_short_grace_is_looked_at_often() -> None:
    assert PurgeOptions.remembering(600) == PurgeOptions()
    assert PurgeOptions.remembering(0) == PurgeOptions(grace_ms=0, retry_ms=500)


def test_rows_are_judged_together_as_one_by_one() -> None:
    print("seed 11")
    chance = random.Random(11)
    rows: list[tuple[bytes, bytes | None]] = [(b"kv:gone", None), (b"kv:none", encode_row(row()))]
    for at in range(300):
        ends = [chance.choice([NEVER_MS, NOW + 5, NOW - 5]) for _ in range(chance.randrange(4))]
        deleted_ms, last_ms = chance.choice([0, 0, 0, NOW]), NOW + chance.randrange(9)
        made = row(*(counter(NOW, end) for end in ends), deleted_ms=deleted_ms, last_ms=last_ms)
        rows.append((b"kv:%d" % at, encode_row(made)))
    facts = facts_of(rows)
    there = [(key, data) for key, data in rows if data is not None]
    assert [*zip(facts.keys, facts.rows, strict=True)] == there
    assert facts.last.tolist() == [last_of(data) for _, data in there]
    assert facts.deleted.tolist() == [deleted_of(data) for _, data in there]
    assert all_due_ms(facts).tolist() == [NEVER_MS if (due := due_ms(data)) is None else due for _, data in there]
    one_by_one, together = Candidates(OPTIONS), Candidates(OPTIONS)
    for _ in range(3):
        at_ms = [NOW + chance.choice([0, 50, 10**8]) for _ in there]
        for (key, _), due in zip(there, at_ms, strict=True):
            one_by_one.remember(due, "kv", key, NOW)
        together.remember_all(np.array(at_ms), "kv", facts.keys, NOW)
        assert (together.far, len(together)) == (one_by_one.far, len(one_by_one))
    assert together.take(NOW + 10**9, 10**6) == one_by_one.take(NOW + 10**9, 10**6)
    assert not facts_of([]).keys and not facts_of([(b"kv:gone", None)]).keys


async def settle(
    regions: dict[str, tuple[EdgeTables, Purger, Writer]], clock: Clock, until_ms: int, step_ms: int = 200
) -> int:
    """Let time pass: heartbeats and purged rows travel; returns how many rows are left in all regions' own replicas."""
    while clock.ms < until_ms:
        clock.ms += step_ms
        for _, purger, _ in regions.values():
            await purger.step(100)
        for origin, (_, _, writer) in regions.items():
            unit = writer.commit(time_ms=clock.ms)
            for name, (tables, _, _) in regions.items():
                await tables.publish(named_in(unit, origin, SCORE, name))
    return sum(len(writer.rows) for _, _, writer in regions.values())


def system(path: Path, clock: Clock) -> dict[str, tuple[EdgeTables, Purger, Writer]]:
    regions = {}
    for name in ("us", "eu"):
        writer = Writer(name)
        tables = store(path, name, clock=clock)

        async def emit(_keyspace: str, _partition: int, purges: Sequence[Keyed], writer: Writer = writer) -> int:
            for key, purge in purges:
                writer.purge(key, purge)
            return 0

        regions[name] = (tables, Purger(tables, emit, OPTIONS), writer)
    return regions


async def test_two_regions_forget_expired_and_deleted_keys_and_only_those(tmp_path: Path) -> None:
    clock = Clock()
    regions = system(tmp_path, clock)
    us, eu = regions["us"][2], regions["eu"][2]
    for writer in (us, eu):
        writer.put(b"score:kept", 1)
        writer.put(b"score:short", 1, expires_ms=NOW + 400)
        writer.put(b"score:gone", 1)
    us.delete(b"score:gone")
    assert await settle(regions, clock, NOW + 200) == 6
    tables = regions["eu"][0].table("score")
    assert tables.get(b"score:gone") is None and tables.get(b"score:short") is not None
    assert await settle(regions, clock, NOW + 6000) == 2
    for name, (found, purger, _) in regions.items():
        assert [key for key, _ in found.table("score").scan().rows] == [b"score:kept"], name
        assert len(purger) == 0, "nothing left to look at"
        rows = [key for part in found.table("score").replicas.values() for key, _ in part.iterate()]
        assert rows == [b"score:kept"] * 2
        await found.close()


async def test_a_silent_origin_holds_every_delete(tmp_path: Path) -> None:
    clock = Clock()
    regions = system(tmp_path, clock)
    us = regions["us"][2]
    us.put(b"score:gone", 1)
    us.delete(b"score:gone")
    unit = us.commit()
    await regions["us"][0].publish(unit)
    clock.ms += 10**7
    await regions["us"][0].publish(us.commit(time_ms=clock.ms))
    assert await regions["us"][1].step(10) == 0, "eu was never heard from"
    for tables, _, _ in regions.values():
        await tables.close()


async def test_candidates_are_bounded_and_found_again_by_a_scan(tmp_path: Path) -> None:
    clock = Clock()
    tables = store(tmp_path, clock=clock)

    async def emit(_keyspace: str, _partition: int, _purges: Sequence[Keyed]) -> int:
        raise AssertionError("nothing is due")

    purger = Purger(tables, emit, PurgeOptions(candidates_max=3, rescan_s=1))
    us = Writer("us")
    for index in range(10):
        us.put(b"score:%d" % index, 1, expires_ms=NOW + 5000 + index)
    await tables.publish(us.commit())
    assert len(purger) == 3
    again = Purger(tables, emit, PurgeOptions())
    await again.scan()
    assert len(again) == 10 and await again.step(100) == 0
    await tables.close()


async def test_what_is_due_in_a_day_does_not_keep_out_what_is_due_now(tmp_path: Path) -> None:
    clock = Clock()
    tables = store(tmp_path, clock=clock)
    us, purged = Writer("us"), []

    async def emit(_keyspace: str, _partition: int, purges: Sequence[Keyed]) -> int:
        for key, purge in purges:
            purged.append(key)
            us.purge(key, purge)
        return 0

    options = PurgeOptions(grace_ms=0, margin_ms=10, candidates_max=3, rescan_s=60, horizon_s=60)
    purger = Purger(tables, emit, options)
    for index in range(10):
        us.put(b"score:%d" % index, 1, expires_ms=NOW + 86_400_000)
    us.put(b"score:soon", 1, expires_ms=NOW + 500)
    await tables.publish(us.commit())
    assert len(purger) == 1, "the far ones are left to the scans"
    clock.ms += 1_000
    await tables.publish(us.commit(time_ms=clock.ms))
    eu = Writer("eu")
    await tables.publish(named_in(eu.commit(time_ms=clock.ms), "eu", SCORE, "us"))
    await purger.step(100)
    assert purged == [b"score:soon"]
    await tables.close()
