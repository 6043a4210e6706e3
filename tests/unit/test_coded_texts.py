"""Texts that repeat are judged once for each word; what comes out is what rows of plain text give, good or bad."""

from __future__ import annotations

import asyncio
import io
from collections import defaultdict
from typing import Any

import fastavro
import numpy as np
import pyarrow as pa
import pytest
from aiokafka.protocol.metadata import MetadataRequest
from aiokafka.protocol.produce import ProduceRequest

from streams.kafka.partitioner import slice_partitions
from streams.kafka.produce_request import JoinedProduceRequest, join_requests
from streams.model.errors import BadInput
from streams.model.keys import partition_for
from streams.model.keyspace import Keyspace
from streams.serde import FRAME, Columns, Dictionary, Raw, decode_frame, encode_frames, load_builtin
from streams.serde.codec import encode
from streams.serde.frame_columns import Items, long_bytes
from streams.tabular.ipc import check_batch
from streams.tabular.judge import by_keyspace, judge, key_rejections, rejected
from streams.tabular.rows import ArrowRows
from streams.tabular.tables import batches_of, join_batches, rows_of
from streams.tabular.texts import coded, decoded, is_coded, text_array

DEVICE = Keyspace.from_json({"name": "device", "schema": "streams.Reading", "partitions": 3})
READING = load_builtin()["streams.Reading"]
NOW_MS = 1_700_000_000_000
Puts = dict[int, list[tuple[int, bytes, bytes, int | None]]]


def puts_in(columns: Columns, partitions: int, **limits: int) -> Puts:
    """By partition, its puts with their rows, in order."""
    found: Puts = defaultdict(list)
    for frame in encode_frames(columns, READING, slice_partitions(partitions), **limits):
        made = decode_frame(frame.value)
        ttls = [made.ttl_of(i) for i in range(made.count)]
        found[frame.partition] += zip(frame.rows.tolist(), made.keys(), made.values(), ttls, strict=True)
    return found


def outcome(batch: Any, *, whole: bool = True) -> tuple[Any, Any]:
    """What becomes of a batch's rows: the puts by partition, and the rejections."""
    rows = ArrowRows(batch) if whole else rows_of("device", batch)
    puts, bad = None, []
    for name, mine in by_keyspace(rows):
        if name != "device":
            bad += rejected(mine, BadInput("not here")) if name else key_rejections(mine)
            continue
        judged, refused = judge(mine, DEVICE, READING, None, NOW_MS)
        bad += refused
        puts = puts_in(judged.columns, 3), judged.numbers.tolist(), decoded(judged.keys).to_pylist()
    return puts, sorted((each.line, each.reason) for each in bad)


def a_table(rng: np.random.Generator, rows: int, words: int, odd: bool) -> dict[str, list[Any]]:
    keys = [f"device:{number}" for number in range(words)]
    metrics = ["cpu", "temperature"][: rng.integers(1, 3)]
    if odd:
        keys += ["device:", "", "other:a", "device:" + "k" * 1100, "no keyspace", "device:ü"]
        metrics += ["", "m" * 300, "µ"]
    return {
        "key": [keys[i] for i in rng.integers(0, len(keys), rows)],
        "metric": [metrics[i] for i in rng.integers(0, len(metrics), rows)],
        "value": rng.integers(0, 1024, rows) * 0.25,
        "time": NOW_MS - rng.integers(0, 300, rows),
        "ttl": [["1h", "2h"][i] for i in rng.integers(0, 2, rows)],
    }


def forms(cells: list[Any], rng: np.random.Generator) -> list[Any]:
    """The same text in every shape that Arrow has for it."""
    plain = pa.array(cells, pa.string())
    words = sorted(set(cells), key=lambda word: (len(word), word))
    loose = ["never: there", *words, "nor: this", *words]  # words that no row has, and some that are there twice
    at = {word: (i + 1, i + 2 + len(words)) for i, word in enumerate(words)}
    codes = [at[cell][int(rng.integers(0, 2))] for cell in cells]
    found = [plain, plain.cast(pa.large_string()), plain.cast(pa.string_view()), plain.dictionary_encode()]
    for kind, text in ((pa.int16(), pa.string()), (pa.uint32(), pa.large_string()), (pa.int64(), pa.string())):
        found.append(pa.DictionaryArray.from_arrays(pa.array(codes, kind), pa.array(loose, text)))
    found.append(pa.concat_arrays([pa.array(["x"] * 3, pa.string()), plain])[3:])  # a slice of something larger
    return found


@pytest.mark.parametrize("odd", [False, True])
@pytest.mark.parametrize("words", [1, 5, 200, 5000])
def test_every_shape_of_text_gives_the_same_puts_and_rejections(words: int, odd: bool) -> None:
    rng = np.random.default_rng(words + odd)
    table = a_table(rng, 600, words, odd)
    row_by_row = {name: pa.array(table[name], pa.string_view()) for name in ("key", "metric", "ttl")}
    wanted = outcome(pa.RecordBatch.from_pydict({**table, **row_by_row}))
    shapes = (forms(table[name], rng) for name in ("key", "metric", "ttl"))
    for key, metric, ttl in zip(*shapes, strict=True):
        batch = pa.RecordBatch.from_pydict({**table, "key": key, "metric": metric, "ttl": ttl})
        assert outcome(batch) == wanted, (key.type, metric.type)
    assert bool(wanted[1]) == odd


def test_nulls_in_texts_are_refused_alike() -> None:
    keys = (["device:a", None, "device:b"] * 30)[:80]
    metrics = (["m", "m", "m", None] * 30)[:80]
    table = {"value": np.arange(80.0), "time": np.full(80, NOW_MS)}
    wanted = None
    for key in (pa.array(keys), pa.array(keys).dictionary_encode(), pa.array(keys).dictionary_encode("encode")):
        for metric in (pa.array(metrics), pa.array(metrics).dictionary_encode()):
            found = outcome(pa.RecordBatch.from_pydict({"key": key, "metric": metric, **table}))
            wanted = wanted or found
            assert found == wanted and len(found[1]) == 40


def broken(data: bytes, ends: list[int], wide: bool) -> Any:
    offsets = np.array([0, *ends], np.int64 if wide else np.int32)
    kind = pa.large_string() if wide else pa.string()
    return pa.Array.from_buffers(kind, len(ends), [None, pa.py_buffer(offsets.tobytes()), pa.py_buffer(data)])


@pytest.mark.parametrize("wide", [False, True])
def test_corrupt_text_is_refused_with_the_reason_of_the_whole_column(wide: bool) -> None:
    ends = list(range(8, 8 * 101, 8))
    good = b"device:a" * 100
    assert outcome(batch_with(broken(good, ends, wide)))[1] == []
    bad_word = b"device:\xff" * 100
    for texts in (
        broken(good[:792] + b"device:\xff", ends, wide),  # one row of many is not UTF-8
        broken(bad_word, ends, wide),  # so is each
        broken(good, [*ends[:-2], 900, 800], wide),  # beyond the buffer
        broken(good, [*ends[:50], 3, *ends[51:]], wide),  # offsets that go back
        pa.DictionaryArray.from_arrays(pa.array([0, 1, 7] * 33 + [0]), pa.array(["device:a", "device:b"]), safe=False),
        pa.DictionaryArray.from_arrays(pa.array([0] * 100), broken(bad_word[:8], [8], wide), safe=False),
    ):
        batch = batch_with(texts)
        with pytest.raises(BadInput) as of_rows:
            check_batch(batch)
        with pytest.raises(BadInput) as of_words:
            ArrowRows(batch)
        assert str(of_words.value) == str(of_rows.value)


def batch_with(keys: Any) -> Any:
    others = {"metric": ["m"] * 100, "value": np.arange(100.0), "time": np.full(100, NOW_MS)}
    return pa.RecordBatch.from_pydict({"key": keys, **others})


def test_a_dictionary_that_says_too_much_is_refused() -> None:
    long = pa.DictionaryArray.from_arrays(pa.array(np.zeros(300, np.int32)), pa.array(["x" * (1 << 20)]))
    with pytest.raises(BadInput, match="smaller record batches"):
        ArrowRows(pa.RecordBatch.from_pydict({"key": long, "value": np.arange(300)}))


@pytest.mark.parametrize("keys", [["a", "device:b", "c:d", "ü"] * 25, [f"k{i}" for i in range(100)], list(range(100))])
def test_bare_keys_become_whole_once_for_each_word(keys: list[Any]) -> None:
    table = {"key": keys, "metric": ["m"] * 100, "value": np.arange(100.0), "time": np.full(100, NOW_MS)}
    wanted = [outcome(batch) for batch in batches_of("device", table) or ()]
    assert [outcome(batch, whole=False) for batch in batches_of("device", table, bare=True) or ()] == wanted
    if type(keys[0]) is str:
        categorical = {**table, "key": pa.array(keys).dictionary_encode()}
        assert [outcome(batch) for batch in batches_of("device", categorical) or ()] == wanted
        assert [outcome(each, whole=False) for each in batches_of("device", categorical, bare=True) or ()] == wanted
    assert not wanted[0][1]


def test_bytes_as_keys_are_taken_as_they_are() -> None:
    table = {"key": pa.array([b"device:a", b"b"] * 20), "metric": ["m"] * 40, "value": np.arange(40.0)}
    (whole,), (bare,) = batches_of("device", table) or (), batches_of("device", table, bare=True) or ()
    assert outcome(whole) == outcome(bare, whole=False)
    assert len(outcome(whole)[1]) == 20


def test_slices_with_words_of_their_own_go_together() -> None:
    parts = [
        batch_with(coded(np.arange(100, dtype=np.int32) % len(words), text_array(words)))
        for words in (["device:a", "device:b"], ["device:c", "device:a"])
    ]
    keys = [key for part in parts for key in part.column("key").to_pylist()]
    joined = join_batches(parts)
    assert joined.column("key").to_pylist() == keys
    assert outcome(joined)[0][2] == keys


def test_more_words_than_rows_are_not_looked_at() -> None:
    words = text_array([f"device:{i}" for i in range(1000)])
    rows = ArrowRows(batch_with(coded(np.arange(100, dtype=np.int32), words)))
    assert not is_coded(rows.keys) and rows.keys.to_pylist() == words[:100].to_pylist()


@pytest.mark.parametrize("partitions", [1, 2, 16, 17, 256])
@pytest.mark.parametrize("distinct", [1, 300, 40_000])
def test_rows_of_a_partition_keep_their_order_in_every_form(partitions: int, distinct: int) -> None:
    rng = np.random.default_rng(distinct)
    rows = 2_000
    words = [b"device:%d" % i for i in range(distinct)]
    codes = rng.integers(0, distinct, rows)
    values, times = rng.integers(0, 9, rows) * 0.5, NOW_MS + rng.integers(-99, 99, rows)
    ttls = rng.integers(0, 2, rows) * 5_000
    metrics = [b"cpu" if i % 3 else b"temperature" for i in range(rows)]
    rest = {"metric": metrics, "value": values, "time": times}
    texts = [words[i] for i in codes.tolist()]
    ends = np.cumsum([len(each) for each in texts])
    wanted: Puts = defaultdict(list)
    for row, key in enumerate(texts):
        body = long_bytes(len(metrics[row])) + metrics[row] + values[row].tobytes() + long_bytes(int(times[row]))
        value = b"\0" + READING.id.to_bytes(4, "big") + body
        wanted[partition_for(key, partitions)].append((row, key, value, int(ttls[row]) or None))
    for keys in (
        texts,
        Dictionary(words, codes),
        Dictionary(words, codes.astype(np.uint16)),
        Items(b"".join(texts), ends),
    ):
        for limits in ({}, {"max_puts": 333}, {"max_bytes": 4_000}):
            assert puts_in(Columns(keys, rest, ttls), partitions, **limits) == wanted


def test_frames_are_the_avro_that_their_schema_says() -> None:
    rng = np.random.default_rng(1)
    schema = load_builtin()[FRAME]
    for ttl in (None, 60_000, np.array([0, 5_000] * 50)):
        for base in (0, -(2**63), 2**63 - 1 - 70_000):
            value = {"metric": ["cpu"] * 100, "value": rng.random(100), "time": base + rng.integers(0, 70_000, 100)}
            for given in (value, Raw([b"x" * i for i in range(100)])):
                keys = [f"device:{i % 7}" for i in range(100)]
                (frame, *_) = encode_frames(Columns(keys, given, ttl), READING, slice_partitions(1))
                read = fastavro.schemaless_reader(io.BytesIO(frame.value[5:]), schema.compiled, None)
                tagged = read["ttl_ms"]
                read["ttl_ms"] = ("streams.FrameColumn", tagged) if isinstance(tagged, dict) else tagged
                assert encode(schema, read) == frame.value


def test_a_clients_produce_requests_are_put_together_once() -> None:
    sent: list[Any] = []

    class Client:
        async def send(self, node_id: int, request: Any, *, group: int = 0) -> int:
            sent.append((node_id, request, group))
            return 7

    client = Client()
    join_requests(client)
    batches = [("events.device", [(0, b"batch"), (1, b"other")])]
    produce, other = ProduceRequest(None, -1, 9, batches), MetadataRequest(["a"])
    assert asyncio.run(client.send(1, produce)) == asyncio.run(client.send(2, other, group=1)) == 7
    assert sent[1] == (2, other, 1)
    (node, request, group) = sent[0]
    assert (node, type(request), group, request.required_acks) == (1, JoinedProduceRequest, 0, -1)
    assert request.prepare({0: (3, 7)}).encode() == produce.prepare({0: (3, 7)}).encode()
