"""The edge on a real broker: restore, follow, restart, late tables, recreated topics."""

from __future__ import annotations

import struct
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from streams.edge.edge_store import EdgeTables
from streams.edge.options import EdgeOptions, TableSpec
from streams.edge.tail import ChangelogTail, TailOptions
from streams.kafka.admin import Admin, TopicSpec
from streams.kafka.changelog_writer import TransactionalWriter
from streams.kafka.link import Link
from streams.model.clock import wall_ms
from streams.model.marker import CLAIM_KEY, MARKER_KEY, Claim
from streams.model.row import MergeType
from streams.model.token import Input, Token
from streams.region.kafka_server import KafkaServer
from tests.support.edge_units import FakeUnit, Writer
from tests.support.polling import eventually

pytestmark = pytest.mark.kafka
FAST = TailOptions(discovery_s=0.1, poll_s=0.05, bulk_records=1000, retry_s=0.1)
COMPACT = {"cleanup.policy": "compact"}


@pytest.fixture
async def admin(kafka: KafkaServer) -> AsyncIterator[Admin]:
    async with Admin(kafka.bootstrap_servers) as made:
        yield made


@pytest.fixture
async def link(kafka: KafkaServer) -> AsyncIterator[Link]:
    made = Link(kafka.bootstrap_servers)
    await made.start()
    yield made
    await made.stop()


def new_spec() -> TableSpec:
    name = f"t{uuid.uuid4().hex[:8]}"
    return TableSpec(name, name, MergeType.COUNTER, 1, (f"events.{name}",))


def tables_of(path: Path, *specs: TableSpec) -> EdgeTables:
    tables = EdgeTables(EdgeOptions(path / "us", "us", ("us", "eu")))
    tables.set_tables(specs)
    return tables


async def send(writer: TransactionalWriter, unit: FakeUnit) -> None:
    """Commit a unit as a worker does: rows, then the marker."""
    records = [(key, row, [] if row is not None else [("seq", struct.pack("<Q", seq))]) for key, row, seq in unit.rows]
    assert unit.marker is not None
    await writer.commit(unit.topic, unit.partition, [*records, (MARKER_KEY, unit.marker.encode(), [])])


async def test_restores_follows_resumes_and_takes_up_what_appears_later(
    kafka: KafkaServer, admin: Admin, link: Link, tmp_path: Path
) -> None:
    spec = new_spec()
    here, there = spec.topic("us", "us"), spec.topic("eu", "us")
    await admin.ensure_topics([TopicSpec(here, 1, COMPACT)])
    us, eu = Writer("us", spec, time_ms=wall_ms()), Writer("eu", spec, time_ms=wall_ms())
    log, far = TransactionalWriter(link, f"{here}/0"), TransactionalWriter(link, f"{there}/0")
    await log.start()
    await log.commit(here, 0, [(CLAIM_KEY, Claim("w", 1).encode(), [])])
    for index in range(3000):
        us.put(b"score:%d" % index, 1)
    await send(log, us.commit())
    tables = tables_of(tmp_path, spec)
    tail = ChangelogTail(tables, kafka.bootstrap_servers, FAST)
    await tail.start()
    await tail.wait_ready(20)
    table = tables.table(spec.name)
    assert table.get(b"score:2999") is not None and [str(r) for r in tail.missing()] == [f"{spec.name}/eu/0"]
    us.put(b"score:7", 5)
    us.delete(b"score:8")
    await send(log, us.commit())
    await tables.wait_for(Token({Input("us", spec.inputs[0], 0): us.next_input}), 10)
    assert table.get(b"score:7").value == 6 and table.get(b"score:8") is None  # type: ignore[union-attr]
    await admin.ensure_topics([TopicSpec(there, 1, COMPACT)])
    await far.start()
    eu.put(b"score:7", 10)
    await send(far, eu.commit())
    await tables.wait_for(Token({Input("eu", spec.inputs[0], 0): 1}), 10)
    assert table.get(b"score:7").value == 16  # type: ignore[union-attr]
    digest = await table.digest(wall_ms())
    await tail.stop()
    await tables.close()

    us.put(b"score:9", 4)
    await send(log, us.commit())
    tables = tables_of(tmp_path, spec)
    tail = ChangelogTail(tables, kafka.bootstrap_servers, FAST)
    await tail.start()
    await tail.wait_ready(20)
    assert tables.table(spec.name).get(b"score:9").value == 5, "ready means caught up"  # type: ignore[union-attr]
    assert (await tables.table(spec.name).digest(digest.as_of_ms)).rows == digest.rows
    other = new_spec()
    await admin.ensure_topics([TopicSpec(other.topic("us", "us"), 1, COMPACT)])
    tables.set_tables([other])
    second = TransactionalWriter(link, f"{other.name}/0")
    await second.start()
    writer = Writer("us", other)
    writer.put(b"score:x", 3)
    await send(second, writer.commit())
    await eventually(lambda: tables.table(other.name).get(b"score:x"), 10)
    assert not tables.problems
    await tail.stop()
    await tables.close()


async def test_a_recreated_changelog_is_a_problem_and_is_read_again(
    kafka: KafkaServer, admin: Admin, link: Link, tmp_path: Path
) -> None:
    spec = new_spec()
    topic = spec.topic("us", "us")
    await admin.ensure_topics([TopicSpec(topic, 1, COMPACT)])
    log = TransactionalWriter(link, f"{topic}/0")
    await log.start()
    us = Writer("us", spec)
    us.put(b"score:old", 1)
    us.seq = 10
    await send(log, us.commit())
    tables = tables_of(tmp_path, spec)
    tail = ChangelogTail(tables, kafka.bootstrap_servers, FAST)
    await tail.start()
    await tail.wait_ready(20)
    assert tables.table(spec.name).get(b"score:old") is not None
    await admin.delete_topics([topic])
    await admin.ensure_topics([TopicSpec(topic, 1, COMPACT)])
    log = TransactionalWriter(link, f"{topic}/again")
    await log.start()
    again = Writer("us", spec)
    again.put(b"score:new", 2)
    await send(log, again.commit())
    table = tables.table(spec.name)
    await eventually(lambda: table.get(b"score:new"), 30)
    assert table.get(b"score:old") is None
    assert any("recreated" in problem for problem in tables.problems), list(tables.problems)
    await tail.stop()
    await tables.close()


async def test_a_replica_that_was_away_for_too_long_is_read_anew(
    kafka: KafkaServer, admin: Admin, link: Link, tmp_path: Path
) -> None:
    """Its log may have forgotten the removals since; one that stands at the log's end missed nothing."""
    spec = new_spec()
    here = spec.topic("us", "us")
    await admin.ensure_topics([TopicSpec(here, 1, COMPACT)])
    us, log = Writer("us", spec, time_ms=wall_ms()), TransactionalWriter(link, f"{here}/0")
    await log.start()
    for key in (b"score:1", b"score:2", b"score:3"):
        us.put(key, 1)
    await send(log, us.commit())
    never = replace(FAST, local_age_max_s=-1.0)
    for options, missed, read_anew in ((FAST, False, False), (never, False, False), (never, True, True)):
        if missed:
            us.put(b"score:2", 4)
            us.put(b"score:4", 4)
            await send(log, us.commit())
        tables = tables_of(tmp_path, spec)
        tail = ChangelogTail(tables, kafka.bootstrap_servers, options)
        await tail.start()
        await tail.wait_ready(20)
        assert any("removals since" in each for each in tables.problems) == read_anew
        found = tables.table(spec.name).get(b"score:2")
        assert found is not None and found.value == (5 if missed else 1)
        assert tables.table(spec.name).get(b"score:3") is not None
        await tail.stop()
        await tables.close()


async def test_a_large_changelog_is_restored_in_bulk(
    kafka: KafkaServer, admin: Admin, link: Link, tmp_path: Path
) -> None:
    spec = new_spec()
    topic = spec.topic("us", "us")
    await admin.ensure_topics([TopicSpec(topic, 1, COMPACT)])
    log = TransactionalWriter(link, f"{topic}/0")
    await log.start()
    us = Writer("us", spec)
    for first in range(0, 100_000, 20_000):
        for index in range(first, first + 20_000):
            us.put(b"score:%d" % index, 1)
        await send(log, us.commit())
    tables = tables_of(tmp_path, spec)
    tail = ChangelogTail(tables, kafka.bootstrap_servers)
    started, cpu = time.monotonic(), time.process_time()
    await tail.start()
    await tail.wait_ready(60)
    took = time.monotonic() - started
    print(f"restored 100,000 rows in {took:.2f} s ({100_000 / took:,.0f}/s), {time.process_time() - cpu:.2f} s of CPU")
    assert (await tables.table(spec.name).digest()).rows == 100_000
    await tail.stop()
    await tables.close()
