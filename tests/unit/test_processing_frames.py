"""A frame through decoder and fold: each bad put is one dead letter with its part, all others are folded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from streams.kafka.partitioner import slice_partitions
from streams.model.fold_table import fold_tables
from streams.model.keyspace import Keyspace
from streams.model.row import MergeType, counter_sums, decode_row
from streams.processing.catalog import BuiltinCatalog, RulesCache
from streams.processing.dead_letter import dead_letter
from streams.processing.udf_ports import DecoderPool, RunDecoder, UdfFold
from streams.serde import FRAME, Columns, decode_body, encode, encode_frames, load_builtin
from streams.wasm import build as build_room
from streams.wasm.engine import Limits, ModuleCache
from streams.wasm.fold_host import FoldHost, FoldOptions
from tests.property.decoder_oracle import Record
from tests.property.test_decoder_properties import NOW_MS, batch_bytes
from tests.support.processing_fakes import FakeRun

HOSTILE = Path(__file__).parent / "hostile_udfs" / "hostile.c"
KEYSPACE = Keyspace("k", MergeType.COUNTER, "streams.CounterAdd")
COUNTER_ADD = load_builtin()["streams.CounterAdd"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> ModuleCache:
    return ModuleCache(tmp_path_factory.mktemp("wasm"))


def frame_of(keys: list[bytes], adds: list[int], ttl_ms: int | None = None) -> bytes:
    (frame,) = encode_frames(Columns(keys, {"add": adds}, ttl_ms), COUNTER_ADD, slice_partitions(1))
    return frame.value


def run_of(*values: bytes) -> FakeRun:
    records = [Record(offset, NOW_MS, None, value, []) for offset, value in enumerate(values)]
    return FakeRun(0, len(values), len(values), topic="events.k", batches=(batch_bytes(records, None),))


def test_bad_puts_of_a_frame_are_dead_letters_of_their_own(cache: ModuleCache) -> None:
    decoder = RunDecoder(DecoderPool(cache), RulesCache(BuiltinCatalog((KEYSPACE,))), fold_tables([KEYSPACE])[0])
    keys = [b"k:%d" % (i % 7) for i in range(100)]
    keys[13], keys[50], keys[61] = b"other:key", b"k:refuse", b"k:trap"
    run = run_of(frame_of([b"k:0"], [5]), frame_of(keys, list(range(100))), frame_of([b"k:1"], [7]))
    decoded = decoder.decode(run, 0)
    assert decoded.events == 101 and decoded.last_append_ms == NOW_MS
    limits = Limits(memory_bytes=16 << 20, deadline_s=0.2, fuel=3_000_000, fuel_deadline_s=0.6, output_bytes=2 << 20)
    hostile = build_room.compile_source(HOSTILE, MergeType.COUNTER)
    fold = UdfFold(FoldHost(hostile, cache, FoldOptions(limits=limits, merge=2)))
    refused = fold.fold(decoded, lambda missing: [None] * len(missing))
    letters = [*decoded.rejected, *refused]
    assert [(each.offset, each.part, each.key) for each in letters] == [
        (1, 13, b"other:key"),
        (1, 50, b"k:refuse"),
        (1, 61, b"k:trap"),
    ]
    assert [each.value for each in letters] == [encode(COUNTER_ADD, {"add": part}) for part in (13, 50, 61)]
    headers = dict(dead_letter("dead-letter.k", ("events.k", 0), letters[0], "hash", 1).headers)
    assert (headers["dead_letter_offset"], headers["dead_letter_part"]) == (b"1", b"13")
    rows, late = fold.take()
    assert not late
    sums = {key: counter_sums(decode_row(row).cells[0].payload)[0] for key, row in rows if row is not None}
    expected = {b"k:%d" % k: sum(i for i in range(100) if i % 7 == k and i not in (13, 50, 61)) for k in range(7)}
    expected[b"k:0"] += 5
    expected[b"k:1"] += 7
    assert sums == expected


def test_a_frame_of_an_unknown_schema_waits_for_it_as_a_record_does(cache: ModuleCache) -> None:
    decoder = RunDecoder(DecoderPool(cache), RulesCache(BuiltinCatalog((KEYSPACE,))), fold_tables([KEYSPACE])[0])
    number = load_builtin()["streams.Number"]
    (frame,) = encode_frames(Columns(["k:a", "k:b"], {"value": np.ones(2)}), number, slice_partitions(1))
    decoded = decoder.decode(run_of(frame.value), 0)
    assert decoded.unknown_schemas == {number.id} and decoded.events == 0
    (letter,) = decoded.rejected
    assert (letter.part, letter.value) == (-1, frame.value)


def test_a_frame_cannot_be_a_bomb(cache: ModuleCache) -> None:
    """Few bytes that claim to be many puts, or long ones, are one malformed frame."""
    decoder = RunDecoder(DecoderPool(cache), RulesCache(BuiltinCatalog((KEYSPACE,))), fold_tables([KEYSPACE])[0])
    schema = load_builtin()[FRAME]
    frame = decode_body(schema, frame_of([b"k:a", b"k:b"] * 5, list(range(10))))
    keys = frame["keys"]
    long = {"items": 1, "codes": bytes(5_000), "lengths": (1000).to_bytes(2, "little"), "data": b"k" * 1000}
    bombs = [
        {**frame, "count": 100_000, "keys": {**keys, "codes": b""}},
        {**frame, "count": 2**31 - 1},
        {**frame, "count": 0},
        {**frame, "count": 5_000, "keys": {**keys, **long}},
        {**frame, "values": frame["values"] * 65},
    ]  # fmt: skip
    run = run_of(*(encode(schema, bomb) for bomb in bombs), frame_of([b"k:a"], [1]))
    decoded = decoder.decode(run, 0)
    assert [(each.offset, each.part, each.reason) for each in decoded.rejected] == [
        (i, -1, "malformed frame") for i in range(len(bombs))
    ]
    assert decoded.events == 1
