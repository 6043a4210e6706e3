"""A real worker process on a real broker: events in, rows, markers and dead letters out; restore; rebalance."""

from __future__ import annotations

import asyncio
import random
import shutil
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from streams.kafka.admin import Admin
from streams.kafka.producer import EventProducer, RecordMeta
from streams.model.keyspace import BUILTIN
from streams.model.row import MergeType, decode_row, number_of
from streams.processing.topics import ensure_keyspace_topics, keyspace_topics
from streams.region.kafka_server import KafkaServer
from streams.serde import encode, load_builtin
from tests.support.polling import eventually
from tests.support.records import records_of
from tests.support.worker_process import (
    TableState,
    WorkerProcess,
    add_value,
    all_committed,
    fresh_topics,
    local_counters,
    produce_adds,
    read_table,
)

pytestmark = pytest.mark.kafka
SCHEMAS = load_builtin()


@pytest.fixture
async def broker(kafka: KafkaServer) -> AsyncIterator[str]:
    """The broker's address, with empty topics for the built-in keyspaces."""
    await fresh_topics(kafka.bootstrap_servers)
    yield kafka.bootstrap_servers


async def put(producer: EventProducer, key: str, schema: str, body: object) -> RecordMeta:
    keyspace = key.partition(":")[0]
    return await producer.put(f"events.{keyspace}", key.encode(), encode(SCHEMAS[schema], body))


async def test_events_become_rows_and_markers(broker: str, tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    worker = WorkerProcess(tmp_path, broker).start()
    counters: Counter[str] = Counter()
    best: dict[str, float] = {}
    last: dict[str, str] = {}
    producer = EventProducer(broker)
    await producer.start()
    try:
        for _ in range(300):
            name = f"k{rng.randrange(20)}"
            amount, number, text = rng.randrange(-50, 50), rng.uniform(-9, 9), str(rng.random())
            await put(producer, f"score:{name}", "streams.CounterAdd", {"add": amount})
            await put(producer, f"best:{name}", "streams.Number", {"value": number})
            await put(producer, f"kv:{name}", "streams.Json", {"json": text})
            counters[f"score:{name}"] += amount
            best[f"best:{name}"] = max(best.get(f"best:{name}", number), number)
            last[f"kv:{name}"] = text
        await put(producer, "kv:k0", "streams.Delete", {})
        last.pop("kv:k0", None)
        scores = await eventually(lambda: all_committed(broker, "score"), 30)
        bests = await eventually(lambda: all_committed(broker, "best"), 30)
        kvs = await eventually(lambda: all_committed(broker, "kv"), 30)
    finally:
        await producer.stop()
        status = worker.stop()
    assert status == 0, worker.log
    assert scores.counters() == dict(counters)
    assert numbers(bests) == best
    assert texts(kvs) == last
    assert_markers(scores)
    assert local_counters(worker.data) == dict(counters), "the RocksDB partitions say the same"


def numbers(state: TableState) -> dict[str, float]:
    """Values of a `max` table."""
    return {
        key.decode(): number_of(decode_row(row).cells[-1].payload)
        for rows in state.rows.values()
        for key, row in rows.items()
    }


def texts(state: TableState) -> dict[str, str]:
    """Values of a table of JSON texts that are not deleted."""
    found = {}
    for rows in state.rows.values():
        for key, raw in rows.items():
            row = decode_row(raw)
            assert row.merge_type is MergeType.LWW
            for cell in row.cells:
                found[key.decode()] = cell.payload[5 + 1 :].decode() if len(cell.payload) < 70 else ""
    return found


def assert_markers(state: TableState) -> None:
    """One sequence number per unit, growing; positions and times never go back; rows carry known numbers."""
    for partition, markers in state.markers.items():
        seqs = [marker.seq for marker in markers]
        assert seqs == sorted(set(seqs))
        nexts = [at.next for marker in markers for at in marker.inputs.values()]
        assert nexts == sorted(nexts)
        times = [marker.time_ms for marker in markers]
        assert times == sorted(times)
        for row in state.rows.get(partition, {}).values():
            assert 1 <= decode_row(row).seq <= seqs[-1]


BAD = {
    "wrong magic byte": (b"score:bad", b"\x01\x00\x00\x00\x01\x02", []),
    "unknown schema id": (b"score:bad", b"\x00\x00\x00\x00\x63\x02", []),
    "truncated body": (b"score:bad", add_value(5)[:-1], []),
    "trailing bytes": (b"score:bad", add_value(5) + b"\x00", []),
    "null value": (b"score:bad", None, []),
    "clock more than 1000 ms ahead": (
        b"score:bad",
        add_value(5),
        [("hlc", str((int(time.time()) + 3600) * 1000 << 16).encode())],
    ),
    "unparsable header": (b"score:bad", add_value(5), [("hlc", b"soon")]),
    "ttl_ms out of range": (b"score:bad", add_value(5), [("ttl_ms", b"1")]),
    "key is not of this keyspace": (b"best:bad", add_value(5), []),
    "key is not UTF-8": (b"score:\xff\xfe", add_value(5), []),
    "empty key": (b"", add_value(5), []),
    "null key": (None, add_value(5), []),
    "key longer than 1024 bytes": (b"score:" + b"x" * 2000, add_value(5), []),
    "counter overflow": (b"score:full", add_value(2**63 - 1), []),
}


async def test_bad_records_become_dead_letters_and_the_worker_goes_on(broker: str, tmp_path: Path) -> None:
    producer = EventProducer(broker)
    await producer.start()
    worker = WorkerProcess(tmp_path, broker).start()
    try:
        await producer.put("events.score", b"score:full", add_value(2**63 - 1), partition=0)
        await producer.put("events.score", b"score:good", add_value(1), partition=0)
        offsets = {}
        for reason, (key, value, headers) in BAD.items():
            offsets[reason] = (await producer.put("events.score", key, value, headers, partition=0)).offset
        await producer.put("events.score", b"score:good", add_value(2), partition=0)
        state = await eventually(lambda: all_committed(broker, "score"), 40)
    finally:
        await producer.stop()
        status = worker.stop()
    assert status == 0, worker.log
    assert state.counters() == {"score:good": 3, "score:full": 2**63 - 1}
    letters = await records_of(broker, "dead-letter.score", 0)
    found = {}
    for record in letters:
        headers = dict(record.headers)
        assert headers["dead_letter_topic"] == b"events.score"
        assert headers["dead_letter_partition"] == b"0"
        assert len(headers["dead_letter_udf"]) == 64
        found[headers["dead_letter_reason"].decode()] = (int(headers["dead_letter_offset"]), record.key, record.value)
    assert len(letters) == len(BAD)
    for reason, (key, value, _) in BAD.items():
        matching = [what for text, what in found.items() if reason in text]
        assert matching == [(offsets[reason], key, value)], (reason, sorted(found))


async def test_restore_on_an_empty_directory_goes_on_exactly(broker: str, tmp_path: Path) -> None:
    first = [(f"score:k{i % 700}", i % 5) for i in range(20_000)]
    second = [(f"score:k{i % 900}", 1) for i in range(9_000)]
    worker = WorkerProcess(tmp_path, broker).start()
    try:
        await produce_adds(broker, "events.score", first)
        await eventually(lambda: all_committed(broker, "score"), 40)
    finally:
        worker.kill()
    shutil.rmtree(worker.data)
    worker.start()
    try:
        await produce_adds(broker, "events.score", second)
        state = await eventually(lambda: all_committed(broker, "score"), 40)
    finally:
        status = worker.stop()
    assert status == 0, worker.log
    expected: Counter[str] = Counter()
    for key, amount in first + second:
        expected[key] += amount
    assert state.counters() == dict(expected)
    assert local_counters(worker.data) == dict(expected)
    assert_markers(state)


async def test_a_rebalance_under_load_keeps_totals_exact(broker: str, tmp_path: Path) -> None:
    adds = [(f"score:k{i % 1000}", i % 7) for i in range(60_000)]
    one = WorkerProcess(tmp_path, broker, "one").start()
    two = WorkerProcess(tmp_path, broker, "two")

    async def load() -> None:
        for at in range(0, len(adds), 1000):
            await produce_adds(broker, "events.score", adds[at : at + 1000])
            await asyncio.sleep(random.uniform(0.02, 0.08))

    try:
        await eventually(lambda: "score/1: took over" in one.log, 30)
        loading = asyncio.create_task(load())
        two.start()
        await eventually(lambda: "took over" in two.log, 30)
        assert one.stop() == 0, one.log
        taken = one.log.count("took over")
        one.start()
        await loading
        await eventually(lambda: one.log.count("took over") > taken, 30)
        state = await eventually(lambda: all_committed(broker, "score"), 40)
    finally:
        statuses = one.stop(), two.stop()
    expected: Counter[str] = Counter()
    for key, amount in adds:
        expected[key] += amount
    assert state.counters() == dict(expected)
    assert_markers(state)
    assert statuses == (0, 0), one.log + two.log
    assert len({marker.owner for markers in state.markers.values() for marker in markers}) >= 2


async def test_a_marker_off_its_log_stays_a_visible_error(broker: str, tmp_path: Path) -> None:
    worker = WorkerProcess(tmp_path, broker).start()
    try:
        await produce_adds(broker, "events.score", [(f"score:k{i}", 1) for i in range(50)])
        await eventually(lambda: all_committed(broker, "score"), 40)
        assert worker.stop() == 0
        async with Admin(broker) as admin:
            await admin.delete_topics(["events.score"])
            await ensure_keyspace_topics(admin, BUILTIN)
        worker.start()
        await eventually(lambda: "but its id is" in worker.log, 30)
        before = len((await read_table(broker, "score")).markers[0])
        await produce_adds(broker, "events.kv", [])
        await eventually(lambda: "kv/1: took over" in worker.log, 30)
        assert len((await read_table(broker, "score")).markers[0]) == before, "nothing was written for it"
    finally:
        worker.stop()


def test_topic_settings_of_a_keyspace() -> None:
    events, letters, table = keyspace_topics(BUILTIN[0])
    assert (events.name, letters.name, table.name) == ("events.score", "dead-letter.score", "table.score")
    assert events.config["message.timestamp.type"] == "LogAppendTime"
    assert table.config["cleanup.policy"] == "compact" and events.partitions == table.partitions
    assert int(table.config["min.compaction.lag.ms"]) >= 60_000 and letters.partitions == 1
