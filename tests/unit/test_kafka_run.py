"""Cutting fetch responses into committed, decompressed batches."""

from __future__ import annotations

import random

import pytest
from aiokafka.consumer.fetcher import PartitionRecords
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import DefaultRecordBatch
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.structs import TopicPartition

from streams.kafka.run import batch_header, committed_batches, split_batches
from tests.unit.kafka_samples import batch, control, emptied, run_of

ROWS = [(b"k%d" % i, b"value" * 20, [("h", b"x")]) for i in range(5)]


def decoded(batches: tuple[bytes, ...], position: int = 0) -> list[tuple[int, bytes | None]]:
    return [(r.offset, r.key) for data in batches for r in DefaultRecordBatch(data) if r.offset >= position]


def ours(data: bytes, position: int = 0, aborted: list[tuple[int, int]] | None = None) -> tuple[tuple[bytes, ...], int]:
    return committed_batches(data, position, aborted, read_committed=True, check_crcs=True)


@pytest.mark.parametrize("codec", [0, 1, 2, 3, 4])
def test_every_codec_is_decompressed(codec: int) -> None:
    batches, following = ours(batch(7, ROWS, codec=codec))
    assert following == 12
    assert batch_header(batches[0]).attributes & 7 == 0
    assert decoded(batches) == [(7 + i, b"k%d" % i) for i in range(5)]


def test_a_truncated_last_batch_waits_for_the_next_fetch() -> None:
    data = batch(0, ROWS) + batch(5, ROWS)
    batches, following = ours(data[:-1])
    assert (len(batches), following) == (1, 5)
    assert list(split_batches(b"")) == []


def test_a_position_inside_a_batch_keeps_the_batch() -> None:
    batches, following = ours(batch(0, ROWS) + batch(5, ROWS), position=7)
    assert following == 10
    assert decoded(batches, 7) == [(7, b"k2"), (8, b"k3"), (9, b"k4")]
    assert run_of(7, *batches).count == 5


def test_a_flipped_bit_is_seen() -> None:
    data = bytearray(batch(0, ROWS))
    data[-3] ^= 1
    with pytest.raises(CorruptRecordException, match="CRC"):
        ours(bytes(data))


def test_an_old_message_format_is_refused() -> None:
    data = bytearray(batch(0, ROWS))
    data[16] = 1
    with pytest.raises(CorruptRecordException, match="v2"):
        ours(bytes(data))


def test_control_batches_alone_move_the_position() -> None:
    assert ours(control(3, 9, commit=True), position=3) == ((), 4)


def test_a_control_batch_emptied_by_compaction_is_passed() -> None:
    data = emptied(control(3, 9, commit=False)) + batch(4, ROWS, producer=9, transactional=True)
    assert ours(data, 3, [(9, 0)]) == ((), 9)  # still aborted: no abort marker was seen
    assert ours(data, 3)[1] == 9


def test_read_uncommitted_sees_aborted_data_but_no_control_batch() -> None:
    data = batch(0, ROWS, producer=9, transactional=True) + control(5, 9, commit=False)
    batches, following = committed_batches(data, 0, [(9, 0)], read_committed=False, check_crcs=True)
    assert (len(batches), following) == (1, 6)
    assert ours(data, 0, [(9, 0)]) == ((), 6)


def test_any_log_reads_as_aiokafka_reads_it() -> None:
    """Random interleavings of committed, aborted and plain producers, compared with aiokafka's PartitionRecords."""
    seed = random.randrange(1 << 30)
    print("seed", seed)
    rng = random.Random(seed)
    for _ in range(200):
        data, aborted = _random_log(rng)
        position = rng.randrange(batch_header(data).records)  # a broker never sends whole batches before it
        theirs = PartitionRecords(
            TopicPartition("t", 0), MemoryRecords(data), list(aborted), position, None, None, True, 1
        )
        expected = [(record.offset, record.key) for record in theirs]
        batches, following = ours(data, position, aborted)
        assert decoded(batches, position) == expected
        assert following == max(position, theirs.next_fetch_offset)


def _random_log(rng: random.Random) -> tuple[bytes, list[tuple[int, int]]]:
    offset, parts, aborted = 0, [], []
    open_since: dict[int, int] = {}
    for _ in range(rng.randrange(1, 25)):
        producer = rng.choice([-1, 1, 2, 3])
        if producer in open_since and rng.random() < 0.4:
            commit = rng.random() < 0.5
            if not commit:
                aborted.append((producer, open_since[producer]))
            del open_since[producer]
            parts.append(control(offset, producer, commit=commit))
            offset += 1
            continue
        rows = ROWS[: rng.randrange(1, 5)]
        if producer >= 0:
            open_since.setdefault(producer, offset)
        parts.append(batch(offset, rows, producer=producer, transactional=producer >= 0, codec=rng.choice([0, 1, 4])))
        offset += len(rows)
    for producer, first in open_since.items():
        aborted.append((producer, first))  # the broker would not serve these yet; both must still agree
    return b"".join(parts), aborted


def test_run_names_its_partition() -> None:
    run = run_of(0, batch(0, ROWS))
    assert run.tp == ("table.score", 0)
    assert (run.next, run.size_bytes) == (5, len(run.batches[0]))
