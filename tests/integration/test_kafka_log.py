"""Writing and reading a real log: puts, batches, transactions, fencing, aborts, restore, admin."""

from __future__ import annotations

import asyncio
import struct
import uuid
from collections.abc import AsyncIterator

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from streams.kafka.admin import Admin, TopicSpec, wait_for_broker
from streams.kafka.batches import ProducerState, Record, encode_batches
from streams.kafka.changelog_reader import ChangelogReader, Unit, restore
from streams.kafka.changelog_writer import TransactionalWriter, WriterOptions
from streams.kafka.errors import Fenced, OffsetOutOfRange
from streams.kafka.link import Deadline, Link
from streams.kafka.producer import EventProducer, ProducerOptions
from streams.kafka.raw_fetch import FetchOptions, RawConsumer
from streams.kafka.run import TP, Run
from streams.model.errors import BadInput, Conflict, NotFound, StreamsError, Timeout, TooLarge, Unavailable
from streams.model.keys import partition_for
from streams.model.marker import CLAIM_KEY, MARKER_KEY, Claim, InputPosition, Marker
from streams.region.kafka_server import KafkaServer

pytestmark = pytest.mark.kafka


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


@pytest.fixture
async def producer(kafka: KafkaServer) -> AsyncIterator[EventProducer]:
    made = EventProducer(kafka.bootstrap_servers)
    await made.start()
    yield made
    await made.stop()


async def new_topic(admin: Admin, partitions: int = 1, **config: str) -> str:
    name = f"it.{uuid.uuid4().hex[:8]}"
    settings = {key.replace("_", "."): value for key, value in config.items()}
    await admin.ensure_topics([TopicSpec(name, partitions, settings)])
    return name


def row(key: bytes, seq: int) -> Record:
    return (key, b"\1\2\0\0\0\0\0\0" + struct.pack("<Q", seq) + b"x" * 50, [])


def marker(seq: int) -> Record:
    return (MARKER_KEY, Marker("commit", seq, seq, {"events.score/0": InputPosition(seq, "id")}).encode(), [])


async def read_all(kafka: KafkaServer, topic: str, options: FetchOptions | None = None) -> list[Run]:
    """Every Run of partition 0 up to its end."""
    consumer = RawConsumer(kafka.bootstrap_servers, options or FetchOptions())
    await consumer.start()
    consumer.assign({(topic, 0): 0})
    runs: list[Run] = []
    async with Admin(kafka.bootstrap_servers) as admin:
        [end] = (await admin.end_offsets([(topic, 0)])).values()
    while consumer.position((topic, 0)) < end:
        runs += await consumer.get_runs(5)
    await consumer.stop()
    return runs


async def test_put_tells_where_and_when(admin: Admin, producer: EventProducer) -> None:
    topic = await new_topic(admin, 3, message_timestamp_type="LogAppendTime")
    first = await producer.put(topic, b"score:a", b"1", [("hlc", b"5")], timestamp_ms=12)
    assert first.partition == partition_for(b"score:a", 3)
    assert first.timestamp_ms > 1_600_000_000_000, "the broker's append time, not the one we gave"
    second = await producer.put(topic, b"score:a", b"1")
    assert (second.partition, second.offset) == (first.partition, first.next_offset)
    assert (await producer.put(topic, b"score:a", None, partition=2)).partition == 2


async def test_put_refuses(admin: Admin, producer: EventProducer, kafka: KafkaServer) -> None:
    topic = await new_topic(admin)
    with pytest.raises(TooLarge):
        await producer.put(topic, b"score:a", b"x" * 1_100_000)
    with pytest.raises(BadInput):
        await producer.put(topic, b"score:a", b"x", partition=1)
    hasty = EventProducer(kafka.bootstrap_servers, ProducerOptions(timeout_s=1.0))
    await hasty.start()
    with pytest.raises(NotFound):
        await hasty.put("no.such.topic", b"score:a", b"x")
    await hasty.stop()


async def test_no_broker_is_unavailable() -> None:
    with pytest.raises(Unavailable):
        await EventProducer("127.0.0.1:1", ProducerOptions(timeout_s=2.0)).start()
    with pytest.raises(Unavailable):
        await Link("127.0.0.1:1").start()
    with pytest.raises(Timeout):
        await wait_for_broker("127.0.0.1:1", 0.3)


async def test_put_batch_keeps_order_and_tells_offsets(
    admin: Admin, producer: EventProducer, kafka: KafkaServer
) -> None:
    topic = await new_topic(admin, 3)
    rows: list[Record] = [(b"score:k%d" % (i % 50), b"%d" % i + b"x" * 100, []) for i in range(20_000)]
    meta = await producer.put_batch(topic, rows)
    consumer = AIOKafkaConsumer(bootstrap_servers=kafka.bootstrap_servers, group_id=None, auto_offset_reset="earliest")
    await consumer.start()
    consumer.assign([TopicPartition(topic, p) for p in range(3)])
    found: dict[tuple[int, int], bytes] = {}
    while len(found) < len(rows):
        for tp, records in (await consumer.getmany(timeout_ms=5000)).items():
            found.update({(tp.partition, record.offset): record.value for record in records})
    await consumer.stop()
    for i, (partition, offset) in enumerate(zip(meta.partitions.tolist(), meta.offsets.tolist(), strict=True)):
        assert found[partition, offset] == rows[i][1]
        assert partition == partition_for(rows[i][0] or b"", 3)
    assert sum(meta.next_offsets().values()) == len(rows)


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
async def test_compressed_by_any_client(admin: Admin, kafka: KafkaServer, codec: str) -> None:
    topic = await new_topic(admin)
    async with AIOKafkaProducer(bootstrap_servers=kafka.bootstrap_servers, compression_type=codec) as client:
        await asyncio.gather(*[await client.send(topic, b"value" * 50, b"k%d" % i) for i in range(500)])
    runs = await read_all(kafka, topic)
    assert sum(run.count for run in runs) == 500
    assert sum(run.size_bytes for run in runs) > 500 * 250


async def test_aborted_transactions_are_not_seen_and_gaps_advance(admin: Admin, kafka: KafkaServer) -> None:
    topic = await new_topic(admin)
    name = uuid.uuid4().hex
    async with AIOKafkaProducer(bootstrap_servers=kafka.bootstrap_servers, transactional_id=name) as client:
        for i in range(20):
            await client.begin_transaction()
            await client.send_and_wait(topic, b"kept" if i % 2 else b"gone", b"k")
            await (client.commit_transaction() if i % 2 else client.abort_transaction())
    runs = await read_all(kafka, topic)
    assert sum(run.count for run in runs) == 10
    assert b"gone" not in b"".join(batch for run in runs for batch in run.batches)
    assert [run.base for run in runs] == [0, *(run.next for run in runs[:-1])]
    assert runs[-1].next == 40
    dirty = await read_all(kafka, topic, FetchOptions(read_committed=False))
    assert sum(run.count for run in dirty) == 20


async def test_a_position_out_of_range_is_an_error(admin: Admin, producer: EventProducer, kafka: KafkaServer) -> None:
    topic = await new_topic(admin)
    for _ in range(5):
        await producer.put(topic, b"k", b"x")
    assert await admin.delete_records({(topic, 0): 3}) == {(topic, 0): 3}
    assert await admin.start_offsets([(topic, 0)]) == {(topic, 0): 3}
    consumer = RawConsumer(kafka.bootstrap_servers)
    await consumer.start()
    consumer.assign({(topic, 0): 1})
    with pytest.raises(OffsetOutOfRange):
        await consumer.get_runs(5)
    consumer.seek((topic, 0), 3)
    [run] = await consumer.get_runs(5)
    assert (run.base, run.next, run.count) == (3, 5, 2)
    await consumer.stop()


async def test_a_unit_and_its_outputs_are_one(admin: Admin, link: Link, kafka: KafkaServer) -> None:
    topic, outputs = await new_topic(admin, cleanup_policy="compact"), await new_topic(admin, 3)
    writer = TransactionalWriter(link, f"{topic}/0")
    await writer.start()
    assert await writer.commit(topic, 0, [(CLAIM_KEY, Claim("me", 1).encode(), [])]) == 1
    rows = [row(b"k%d" % i, 1) for i in range(30_000)]
    keyed: list[Record] = [(b"k%d" % i, b"out", ()) for i in range(10)]
    end = await writer.commit(topic, 0, [*rows, marker(1)], [(outputs, None, keyed), (outputs, 2, keyed)])
    assert end == 2 + 30_001, "the claim, its control batch, the rows in several batches, the marker"
    assert writer.last_commit is not None and writer.last_commit.records == 30_001 + 20
    assert sum((await admin.end_offsets([(outputs, p) for p in range(3)], committed=False)).values()) >= 20
    reader = ChangelogReader(kafka.bootstrap_servers)
    await reader.start({(topic, 0): 0})
    units: list[Unit] = []
    while len(units) < 2:
        units += await reader.units(5)
    assert units[0].claim == Claim("me", 1)
    assert units[1].marker is not None and units[1].marker.seq == 1
    assert [(key, seq) for key, _, seq in units[1].rows] == [(b"k%d" % i, 1) for i in range(30_000)]
    assert (units[1].next_offset, reader.pending_rows((topic, 0))) == (end, 0)
    while reader.position((topic, 0)) < end + 1:
        assert await reader.units(5) == []
    await reader.stop()
    with pytest.raises(Conflict):
        await writer.commit(topic, 0, [])
    assert await writer.commit(topic, 0, [row(b"k", 2), marker(2)]) > end, "a refused commit leaves the writer usable"


async def test_a_zombie_is_fenced_by_the_broker(admin: Admin, link: Link, kafka: KafkaServer) -> None:
    topic = await new_topic(admin)
    zombie, owner = (TransactionalWriter(link, f"{topic}/0") for _ in range(2))
    await zombie.start()
    await zombie.commit(topic, 0, [row(b"a", 1), marker(1)])
    await owner.start()
    end = await owner.commit(topic, 0, [row(b"a", 2), marker(2)])
    with pytest.raises(Fenced):
        await zombie.commit(topic, 0, [row(b"a", 3), marker(3)])
    with pytest.raises(Conflict):
        await zombie.commit(topic, 0, [row(b"a", 3), marker(3)])
    assert await owner.commit(topic, 0, [row(b"a", 4), marker(4)]) == end + 3
    units = [unit async for chunk in restore(kafka.bootstrap_servers, (topic, 0), 0, end + 3) for unit in chunk]
    assert [unit.marker.seq for unit in units if unit.marker] == [1, 2, 4]
    await zombie.start()
    assert await zombie.commit(topic, 0, [row(b"a", 5), marker(5)]) > end, "start() makes it the owner again"


async def test_a_single_record_needs_no_transaction_and_is_fenced_too(
    admin: Admin, link: Link, kafka: KafkaServer
) -> None:
    topic = await new_topic(admin)
    zombie, owner = (TransactionalWriter(link, f"{topic}/0") for _ in range(2))
    await zombie.start()
    assert await zombie.append(topic, 0, [marker(1)]) == 1
    assert await zombie.commit(topic, 0, [row(b"a", 2), marker(2)]) == 3
    assert await zombie.append(topic, 0, [marker(3)]) == 5
    assert await zombie.append(topic, 0, [marker(4)]) == 6
    await owner.start()
    await owner.commit(topic, 0, [(CLAIM_KEY, Claim("me", 1).encode(), [])])
    with pytest.raises(Fenced):
        await zombie.append(topic, 0, [marker(5)])
    end = await owner.append(topic, 0, [marker(6)])
    units = [unit async for chunk in restore(kafka.bootstrap_servers, (topic, 0), 0, end) for unit in chunk]
    assert [unit.marker.seq for unit in units if unit.marker] == [1, 2, 3, 4, 6]


async def test_an_open_transaction_of_a_dead_owner_is_ended_by_the_next(admin: Admin, link: Link) -> None:
    topic = await new_topic(admin)
    dead = TransactionalWriter(link, f"{topic}/0")
    await dead.start()

    async def stop_here(*_: object) -> None:
        raise asyncio.CancelledError

    dead._end = stop_here  # type: ignore[method-assign]
    with pytest.raises(asyncio.CancelledError):
        await dead.commit(topic, 0, [row(b"a", 1), marker(1)])
    assert await admin.end_offsets([(topic, 0)]) == {(topic, 0): 0}, "the last stable offset waits for the transaction"
    owner = TransactionalWriter(link, f"{topic}/0")
    await owner.start()
    assert await owner.commit(topic, 0, [row(b"b", 2), marker(2)]) == 5
    with pytest.raises(Conflict):
        await dead.commit(topic, 0, [row(b"a", 1), marker(1)])


async def test_too_large_is_refused_before_anything_is_sent(admin: Admin, link: Link) -> None:
    topic = await new_topic(admin)
    writer = TransactionalWriter(link, f"{topic}/0", WriterOptions(batch_bytes=10_000))
    await writer.start()
    with pytest.raises(TooLarge):
        await writer.commit(topic, 0, [(b"k", b"x" * 20_000, []), marker(1)])
    assert await writer.commit(topic, 0, [row(b"a", 1), marker(1)]) == 2


async def test_restore_gives_committed_units_only_and_says_when_stuck(
    admin: Admin, link: Link, kafka: KafkaServer
) -> None:
    topic = await new_topic(admin)
    writer = TransactionalWriter(link, f"{topic}/0")
    await writer.start()
    for seq in range(1, 6):
        end = await writer.commit(topic, 0, [*(row(b"k%d" % i, seq) for i in range(1000)), marker(seq)])
    units = [unit async for chunk in restore(kafka.bootstrap_servers, (topic, 0), 0, end) for unit in chunk]
    assert [(len(unit.rows), unit.marker and unit.marker.seq) for unit in units] == [(1000, s) for s in range(1, 6)]
    again = restore(kafka.bootstrap_servers, (topic, 0), units[2].next_offset, end)
    assert [unit.marker and unit.marker.seq async for chunk in again for unit in chunk] == [4, 5]
    with pytest.raises(Timeout):
        async for _ in restore(kafka.bootstrap_servers, (topic, 0), 0, end + 100, timeout_s=1.0):
            pass


async def test_topics_are_created_checked_and_deleted(admin: Admin) -> None:
    name = f"it.{uuid.uuid4().hex[:8]}"
    spec = TopicSpec(name, 2, {"cleanup.policy": "compact", "min.compaction.lag.ms": "60000"})
    first = await admin.ensure_topics([spec])
    assert first == await admin.ensure_topics([spec])
    assert await admin.topic_ids([name]) == {name: first[name].topic_id}
    assert await admin.partition_count(name) == 2
    with pytest.raises(Conflict, match=r"has 2 partitions, not 3.*cleanup\.policy=compact, not delete"):
        await admin.ensure_topics([TopicSpec(name, 3, {"cleanup.policy": "delete"})])
    await admin.delete_topics([name, "it.never-was"])
    with pytest.raises(NotFound):
        await admin.topic_ids([name])
    with pytest.raises(NotFound):
        await admin.partition_count(name)
    again = await admin.ensure_topics([spec])
    assert again[name].topic_id != first[name].topic_id, "a topic made anew is another topic"
    with pytest.raises(StreamsError, match="nonsense"):
        await admin.ensure_topics([TopicSpec(f"{name}x", 1, {"nonsense": "1"})])


async def test_what_was_just_created_takes_the_first_put(admin: Admin, link: Link) -> None:
    (batch,) = encode_batches([row(b"k", 1)], ProducerState(-1, -1, False), 0, 1 << 20)
    for _ in range(10):
        topic = await new_topic(admin, 8)
        nodes = [await link.leader(topic, partition, Deadline(10.0)) for partition in range(8)]
        put = (link.produce(node, TP(topic, at), batch.data, 10_000) for at, node in enumerate(nodes))
        assert await asyncio.gather(*put) == [(0, 0)] * 8, "refused: its leader did not know yet"


async def test_committed_and_uncommitted_ends_differ_while_a_transaction_is_open(
    admin: Admin, kafka: KafkaServer
) -> None:
    topic = await new_topic(admin)
    async with AIOKafkaProducer(bootstrap_servers=kafka.bootstrap_servers, transactional_id=uuid.uuid4().hex) as client:
        await client.begin_transaction()
        await client.send_and_wait(topic, b"v", b"k")
        assert await admin.end_offsets([(topic, 0)]) == {(topic, 0): 0}
        assert await admin.end_offsets([(topic, 0)], committed=False) == {(topic, 0): 1}
        await client.abort_transaction()
