"""Units encoded by the module are, byte for byte, what encoding them row by row gives."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

import pytest
from aiokafka.record.default_records import DefaultRecordBatch

from streams.kafka.batches import (
    EncodedBatch,
    EncodedRecords,
    ProducerState,
    encode_batches,
    encoded_record,
    frame_batches,
)
from streams.model.errors import StreamsError, TooLarge
from streams.model.marker import InputPosition, Marker
from streams.model.row import Cell, MergeType, Row, encode_row
from streams.processing.commit import unit_records
from streams.processing.unit_encoder import ENCODED_FROM_ROWS, UnitEncoder
from streams.wasm.engine import ModuleCache
from streams.wasm.packed_rows import PackedRows, PendingRows, RowChunk, pack
from streams.wasm.row_encoder import RowEncoder

SEED = 20261130
PLAIN, TRANSACTIONAL = ProducerState(-1, -1, False), ProducerState(7, 3, True)
Given = dict[bytes, bytes | None]


def marker_of(seq: int) -> Marker:
    return Marker("commit", seq, 1_700_000_000_000, {"events.device/0": InputPosition(17, "topic")}, "hash", "owner")


def random_rows(rng: random.Random, n: int, removed: float = 0.1, longest: int = 400) -> Given:
    found: Given = {}
    while len(found) < n:
        key = bytes(rng.randrange(1, 256) for _ in range(rng.choice((1, 7, 30, 63, 64, 65, 300))))
        payload = rng.randbytes(rng.choice((0, 1, 20, 33, 100, rng.randrange(longest))))
        row = encode_row(Row(MergeType.OPAQUE, 0, 0, 5, (Cell(1, 2, 3, payload),)))
        found[key] = None if rng.random() < removed else row
    return found


@pytest.fixture(scope="module")
def cache() -> Iterator[ModuleCache]:
    yield ModuleCache()


@pytest.mark.parametrize("seed", range(SEED, SEED + 12))
@pytest.mark.parametrize("batch_bytes", [700, 5_000, 70_000, 1_000_000])
def test_a_unit_is_encoded_as_row_by_row(
    cache: ModuleCache, seed: int, batch_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    print("seed", seed)
    rng = random.Random(seed)
    monkeypatch.setattr(time, "time_ns", lambda: 1_700_000_000_123_456_789)
    rows = random_rows(rng, rng.choice((ENCODED_FROM_ROWS, 100, 3000)), longest=min(400, batch_bytes - 550))
    chunks = [pack(list(rows.items())[at : at + 700]).chunks[0] for at in range(0, len(rows), 700)]
    marker, state = marker_of(rng.randrange(1 << 40)), rng.choice((PLAIN, TRANSACTIONAL))
    # aiokafka's builder never fills a batch to its last byte.
    stamped, records = UnitEncoder(cache, batch_bytes - 1)(PackedRows(chunks), marker)
    expected_rows, expected = unit_records(rows.items(), marker)
    assert list(stamped) == expected_rows and len(stamped) == len(expected_rows)
    assert isinstance(records, EncodedRecords) and len(records) == len(expected)
    ours = frame_batches(records, state, 2**31 - 5, batch_bytes)
    assert [batch.data for batch in ours] == [
        batch.data for batch in encode_batches(expected, state, 2**31 - 5, batch_bytes)
    ]
    for batch in ours:
        read = DefaultRecordBatch(batch.data)
        assert read.validate_crc() and len(list(read)) == batch.count and len(batch.data) <= batch_bytes


def test_few_rows_are_encoded_one_by_one(cache: ModuleCache) -> None:
    rows = random_rows(random.Random(SEED), ENCODED_FROM_ROWS - 1)
    assert UnitEncoder(cache, 1_000_000)(pack(rows.items()), marker_of(3)) == unit_records(rows.items(), marker_of(3))


@pytest.mark.parametrize("seed", range(SEED, SEED + 20))
def test_of_several_takes_the_latest_row_of_each_key_counts(cache: ModuleCache, seed: int) -> None:
    print("seed", seed)
    rng = random.Random(seed)
    keys = list(random_rows(rng, 300))
    pending, truth = PendingRows(), Given()
    for _ in range(rng.randrange(1, 6)):
        some = rng.sample(keys, rng.randrange(1, 300))
        take = dict(zip(some, random_rows(rng, len(some)).values(), strict=True))
        pending.add(pack(take.items()), apart=rng.random() < 0.2)
        truth.update(take)
        found: Given = {}
        asked = [*rng.sample(keys, 50), b"no such key"]
        pending.find(asked, found)
        assert found == {key: truth[key] for key in asked if key in truth}
        assert len(truth) <= len(pending) <= pending.overlaps * len(truth)
    merged = pending.copy().merged()
    assert dict(merged) == truth and len(merged) == len(truth)
    stamped, records = UnitEncoder(cache, 20_000)(merged, marker_of(9))
    assert dict(stamped) == dict(unit_records(truth.items(), marker_of(9))[0])
    assert len(records) == len(truth) + 1
    if isinstance(records, EncodedRecords):
        values = {
            record.key: record.value
            for batch in frame_batches(records, PLAIN, 0, 20_000)
            for record in DefaultRecordBatch(batch.data)
        }
        assert {key: value for key, value in values.items() if key in truth} == dict(stamped)


def test_a_row_that_is_too_large_is_refused(cache: ModuleCache) -> None:
    rows = random_rows(random.Random(SEED), 40, removed=0)
    rows[b"large"] = encode_row(Row(MergeType.OPAQUE, 0, 0, 5, (Cell(1, 2, 3, bytes(5000)),)))
    _, records = UnitEncoder(cache, 2_000)(pack(rows.items()), marker_of(1))
    assert isinstance(records, EncodedRecords)
    with pytest.raises(TooLarge, match="record of"):
        frame_batches(records, PLAIN, 0, 2_000)


def test_the_encoder_does_not_believe_a_broken_chunk(cache: ModuleCache) -> None:
    (whole,) = pack(random_rows(random.Random(SEED), 50).items()).chunks
    for cut in (2, 30, len(whole.data) - 1):
        broken = RowChunk(whole.data[:cut], whole.keys_at, whole.key_ends, whole.rows_at, whole.row_ends, whole.present)
        with pytest.raises(StreamsError, match="refused"):
            RowEncoder(cache).encode(PackedRows([broken]), 1, 10_000)


def test_a_framed_batch_of_one_record_is_kafkas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time_ns", lambda: 1_700_000_000_123_456_789)
    for key, value in ((b"", b""), (b"k", b"v" * 63), (b"k" * 64, b"v" * 64), (b"k" * 9000, b"v" * 70_000)):
        encoded = EncodedRecords([EncodedBatch([encoded_record(0, key, value)], 1)])
        (ours,) = frame_batches(encoded, TRANSACTIONAL, 5, 1 << 20)
        (kafkas,) = encode_batches([(key, value, ())], TRANSACTIONAL, 5, 1 << 20)
        assert (ours.data, ours.count, ours.size_bytes) == (kafkas.data, kafkas.count, kafkas.size_bytes)
