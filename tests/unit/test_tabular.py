"""Tables as puts: the fast path and `to_avro` agree on every row, streams from outside are bounded, files come back."""

from __future__ import annotations

import csv
import io
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from streams.kafka.partitioner import slice_partitions
from streams.model.errors import BadInput, StreamsError
from streams.model.keyspace import BUILTIN, Keyspace
from streams.serde import Dictionary, Items, decode_frame, encode_frames, load_builtin, parse_schema, to_avro
from streams.serde.frame_columns import texts_of
from streams.tabular.files import chunks_of, writer_of
from streams.tabular.ipc import ArrowStream, decode
from streams.tabular.judge import Rejection, judge
from streams.tabular.rows import ArrowRows, Rows, csv_cell
from streams.tabular.shape import AS_IS, Shape
from streams.tabular.tables import stream_of
from streams.tabular.text import BlockCutter, CsvBlocks, NdjsonRows
from streams.tabular.texts import items_of

KEYSPACES = {keyspace.name: keyspace for keyspace in BUILTIN}
POINT = parse_schema(
    {
        "type": "record", "name": "Point", "namespace": "test",
        "fields": [{"name": "x", "type": "long"}, {"name": "ok", "type": "boolean"},
                   {"name": "note", "type": ["null", "string"], "default": None}],
    }
)  # fmt: skip
KEYSPACES["point"] = Keyspace("point", schema="test.Point")
NOW_MS = 1_700_000_000_000
CELLS: list[Any] = [
    0, 1, -5, 1.5, -0.25, 2**53, 2**53 + 1, 2**62, -(2**63), 1e300, True, False, None, "", "temp", "5", "x" * 300, "ä",
    "true", "null", " 5", "1e5", "01", "-", "2024-05-01T12:00:00Z", "2024-05-01", [1], {"a": 1}, 1_700_000_000_123,
]  # fmt: skip
FIELDS = {"score": ["add"], "best": ["value"], "device": ["metric", "value", "time"], "kv": ["value"],
          "point": ["x", "ok", "note"]}  # fmt: skip


def schema_of(keyspace: Keyspace) -> Any:
    return POINT if keyspace.name == "point" else load_builtin()[keyspace.schema]


def judged(rows: Rows | None, keyspace: Keyspace, bad: list[Rejection]) -> dict[int, bytes | str]:
    """By row number, the value in wire format or the reason."""
    found: dict[int, bytes | str] = {each.line: each.reason for each in bad}
    if rows is None:
        return found
    kept, refused = judge(rows, keyspace, schema_of(keyspace), now_ms=NOW_MS)
    found |= {each.line: each.reason for each in refused}
    for frame in encode_frames(kept.columns, schema_of(keyspace), slice_partitions(keyspace.partitions)):
        decoded = decode_frame(frame.value)
        for number, value in zip(kept.numbers[frame.rows].tolist(), decoded.values(), strict=True):
            assert number not in found
            found[number] = value
    return found


def truth(keyspace: Keyspace, body: Any) -> bytes | str:
    try:
        return to_avro(keyspace, body, schema_of(keyspace), NOW_MS)
    except BadInput as error:
        return str(error)[:300]


def bodies(name: str, seeded: random.Random, count: int, good: bool) -> list[Any]:
    right: dict[str, Any] = {
        "add": 3,
        "value": 2.5,
        "metric": "temp",
        "time": NOW_MS + 1,
        "x": 7,
        "ok": True,
        "note": "n",
    }
    made: list[Any] = []
    for _ in range(count):
        body = {
            field: right[field] if good or seeded.random() < 0.7 else seeded.choice(CELLS) for field in FIELDS[name]
        }
        if not good and seeded.random() < 0.1:
            body[seeded.choice(["other", "ttl2"])] = 1
        if not good and seeded.random() < 0.1:
            body.pop(seeded.choice(list(body)))
        made.append(body["value"] if name in ("best", "kv") and body.keys() == {"value"} else body)
    return made


@pytest.mark.parametrize("good", [True, False])
@pytest.mark.parametrize("name", list(FIELDS))
def test_json_lines_are_judged_as_single_puts_are(name: str, good: bool) -> None:
    keyspace = KEYSPACES[name]
    for seed in range(10):
        values = bodies(name, random.Random(seed), 60, good)
        block = "".join(json.dumps({"key": f"{name}:{i}", "value": v}) + "\n" for i, v in enumerate(values)).encode()
        rows, bad = NdjsonRows().parse(block)
        found = judged(rows, keyspace, bad)
        assert found == {i: truth(keyspace, value) for i, value in enumerate(values, 1)}


@pytest.mark.parametrize("name", list(FIELDS))
def test_csv_cells_are_judged_as_single_puts_are(name: str) -> None:
    keyspace, names = KEYSPACES[name], FIELDS[name]
    texts = [c if isinstance(c, str) else json.dumps(c) for c in CELLS] + ["1.0", "-0", "1E5", ".5", "Infinity", "NaN"]
    for seed in range(20):
        seeded = random.Random(seed)
        right = {
            "add": "3",
            "value": "2.5",
            "metric": "temp",
            "time": "1700000000000",
            "x": "7",
            "ok": "true",
            "note": "n",
        }
        records = [[right[n] if seeded.random() < 0.6 else seeded.choice(texts) for n in names] for _ in range(60)]
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows([["key", *names], *([f"{name}:k", *row] for row in records)])
        rows, bad = CsvBlocks().parse(out.getvalue().encode())
        expected = {}
        for number, row in enumerate(records, 2):
            try:
                cells = {
                    n: csv_cell(text) for n, text in zip(names, row, strict=True) if text != "" or names == ["value"]
                }
                expected[number] = truth(keyspace, cells["value"] if names == ["value"] else cells)
            except BadInput as error:
                expected[number] = str(error)
        assert judged(rows, keyspace, bad) == expected


def test_arrow_columns_of_any_type_are_judged_as_single_puts_are() -> None:
    device = KEYSPACES["device"]
    columns: dict[str, Any] = {
        "key": pa.array([f"device:{i}" for i in range(6)] + [None, "device:"]).dictionary_encode(),
        "metric": pa.array(["a", "b", None, "", "c", "d", "e", "f"]),
        "value": pa.array([1.5, float("nan"), 2, 3, None, 4, 5, 6], pa.float32()),
        "time": pa.array([None, *range(7)], pa.timestamp("us")),
        "ttl": pa.array(["1h", None, "1h", "1h", "1h", "no", "1h", "1h"]),
    }
    rows = ArrowRows(pa.RecordBatch.from_pydict(columns))
    found = judged(rows, device, [])
    assert found[1] == truth(device, {"metric": "a", "value": 1.5, "time": NOW_MS})
    reasons = {number: text for number, text in found.items() if isinstance(text, str)}
    assert sorted(reasons) == [2, 3, 4, 5, 6, 7, 8]
    for number, word in {2: "nan", 3: "metric", 4: "metric", 5: "value", 6: "TTL", 7: "key", 8: "keyspace"}.items():
        assert word in reasons[number]


def test_texts_that_repeat_beyond_the_first_rows_go_as_a_dictionary() -> None:
    rng = np.random.default_rng(3)
    for devices, form in ((1, Dictionary), (1_000, Dictionary), (10_000, Dictionary), (200_000, Items)):
        codes = rng.integers(0, devices, 65_536)
        texts = pa.array([f"device:{code}" for code in codes], pa.large_string())
        found = items_of(texts)
        assert type(found) is form, devices
    assert type(items_of(pa.array([f"k{i}" for i in range(65_536)]))) is Items
    in_turn = pa.array([f"device:{i % 1_000}" for i in range(65_536)])
    assert type(items_of(in_turn)) is Dictionary


def test_a_column_of_one_text_is_seen_and_nothing_that_only_looks_like_one() -> None:
    one = pa.array(["cpu"] * 30, pa.large_string())
    for texts in (one, one[5:28]):
        found = items_of(texts)
        assert isinstance(found, Dictionary) and isinstance(found.uniques, Items)
        assert found.uniques.blob[found.uniques.start : found.uniques.ends[0]].tobytes() == b"cpu"
        assert len(found.indices) == len(texts) and not found.indices.any()
    for words in (["cpu"] * 20 + ["gpu"] + ["cpu"] * 9, ["cp", "ucpu"] * 15 + ["cp"], [""] * 30, ["cpu"] * 29 + ["cp"]):
        found = texts_of(items_of(pa.array(words, pa.large_string())), "metric")
        assert [found.item(int(i)).decode() for i in found.row_items(np.arange(len(words)))] == words


def test_a_stream_of_slices_is_one_table_and_asks_for_each_when_it_is_taken() -> None:
    asked = []

    def slices() -> Iterator[dict[str, Any]]:
        for number in range(3):
            asked.append(number)
            yield {"key": [f"kv:{number}", f"kv:{number}b"], "value": np.array([number, number + 1])}

    reader = stream_of(slices())
    assert asked == [0]
    assert reader.read_next_batch().column("key").to_pylist() == ["kv:0", "kv:0b"]
    assert asked[-1] <= 1
    assert reader.read_all().column("value").to_pylist() == [1, 2, 2, 3]
    for wrong in ([], [{"value": [1]}], [{"key": ["kv:a"], "value": [{"nested": 1}]}]):
        with pytest.raises(BadInput):
            stream_of(wrong)


def stream(batch: Any, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_batch(batch)
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def test_an_arrow_stream_is_cut_wherever_its_chunks_end_and_lies_are_refused() -> None:
    keys = pa.array(["kv:a", "kv:b"] * 50).dictionary_encode()
    batch = pa.record_batch({"key": keys, "value": pa.array(range(100))})
    body = stream(batch)
    for size in (1, 7, 64, 100_000):
        source, count = ArrowStream(), 0
        for first in range(0, len(body), size):
            for piece in source.feed(body[first : first + size]):
                count += sum(len(part) for part in decode(piece, 30))
        source.finish()
        assert count == 200
    with pytest.raises(BadInput, match="compressed"):
        list(ArrowStream().feed(stream(batch, compression="zstd")))
    broken = ArrowStream()
    list(broken.feed(body[:-20]))
    with pytest.raises(BadInput, match="breaks off"):
        broken.finish()
    seeded = random.Random(1)
    for _ in range(500):
        bad = bytearray(body)
        for _ in range(seeded.randrange(1, 4)):
            bad[seeded.randrange(len(bad))] = seeded.randrange(256)
        try:
            source = ArrowStream()
            for piece in source.feed(bytes(bad)):
                for part in decode(piece, 1000):
                    judged(ArrowRows(part), KEYSPACES["kv"], [])
            source.finish()
        except StreamsError:
            continue


def test_lines_are_cut_the_same_wherever_chunks_end() -> None:
    text = b"\n".join(b"x" * n for n in (0, 5, 100, 0, 3000, 1)) + b"\nlast"
    for size in (1, 3, 50, 10_000):
        cutter = BlockCutter(block_bytes=64)
        blocks = [b for i in range(0, len(text), size) for b in cutter.feed(text[i : i + size])] + list(cutter.finish())
        assert b"".join(block or b"?" for block in blocks) == text


@pytest.mark.parametrize("kind", ["csv", "ndjson", "parquet", "arrow"])
def test_what_is_exported_loads_as_the_same_values(kind: str, tmp_path: Path) -> None:
    values: list[Any] = [{"metric": 'a"b, c', "value": 1.5, "time": 5}, {"metric": "ä\nb", "value": -2.0, "time": 0}]
    file = tmp_path / "out"
    with file.open("wb") as target:
        writer = writer_of(target, kind)
        writer.write(["device:1", "device:2"], values)
        writer.close()
    with file.open("rb") as source:
        chunks = [chunk for chunk in chunks_of(source, kind, "device", AS_IS) if chunk.rows is not None]
    assert [key for chunk in chunks for key in chunk.rows.keys.to_pylist()] == ["device:1", "device:2"]
    found = [body for chunk in chunks for body in chunk.rows.bodies(np.arange(len(chunk.rows.numbers)))]
    assert found == values


def test_keys_are_made_of_columns() -> None:
    shape = Shape("device:{id}:{room}", {"t": "value"})
    source = io.BytesIO(b"id,room,metric,t\n1,a,temp,2.5\n")
    chunk = next(chunks_of(source, "csv", "device", shape))
    assert chunk.rows is not None and chunk.rows.keys.to_pylist() == ["device:1:a"]
    assert chunk.rows.bodies(np.array([0])) == [{"metric": "temp", "value": 2.5}]
    source = io.BytesIO(b'{"id": 1, "room": "a", "metric": "temp", "t": 2.5}\n{"id": 1}\n')
    chunk = next(chunks_of(source, "ndjson", "device", shape))
    assert chunk.rows is not None and chunk.rows.keys.to_pylist() == ["device:1:a"]
    assert [bad.line for bad in chunk.rejections] == [2] and "room" in chunk.rejections[0].reason
    with pytest.raises(BadInput, match="no column 'x'"):
        next(chunks_of(io.BytesIO(b"id\n1\n"), "csv", "device", Shape("{x}")))


def test_a_client_starts_without_arrow() -> None:
    code = "import sys, streams.cli.main; from streams import connect; print('pyarrow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
