"""Tables into frames and back: what single puts would have been, cut by partition, in order, small."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.kafka.partitioner import slice_partitions
from streams.model.errors import BadInput
from streams.model.keys import partition_for, validate_key
from streams.model.keyspace import BUILTIN
from streams.serde import (
    Columns,
    Dictionary,
    Items,
    Raw,
    columns_for,
    decode_frame,
    encode,
    encode_frames,
    is_frame,
    load_builtin,
    parse_schema,
    to_avro,
)

KEYSPACES = {each.name: each for each in BUILTIN}
SCHEMAS = load_builtin()
READING = SCHEMAS["streams.Reading"]
NOW_MS = 1_700_000_000_000


def puts_of(frames: list[Any]) -> list[tuple[int, bytes, bytes, int | None]]:
    """(row, key, value, ttl) in the order of the frames."""
    found = []
    for frame in frames:
        columns = decode_frame(frame.value)
        assert is_frame(frame.value)
        rows = zip(frame.rows.tolist(), columns.keys(), columns.values(), strict=True)
        found += [(row, key, value, columns.ttl_of(i)) for i, (row, key, value) in enumerate(rows)]
    return found


keys = st.integers(0, 40).map(lambda n: f"device:é{n}" * (1 + n % 3))


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(keys, st.text(min_size=1, max_size=9), st.floats(-1e300, 1e300)), max_size=80),
    st.integers(1, 5),
    st.integers(1, 30),
    st.sampled_from([300, 900_000]),
)  # fmt: skip
def test_a_table_becomes_the_puts_it_says(
    rows: list[tuple[str, str, float]], partitions: int, max_puts: int, max_bytes: int
) -> None:
    table = {
        "key": [row[0] for row in rows],
        "metric": [row[1] for row in rows],
        "value": [row[2] for row in rows],
        "time": np.arange(len(rows)) * 10**6 + NOW_MS,
        "ttl": [[None, 5, "1h"][i % 3] for i in range(len(rows))],
    }
    columns, rejected = columns_for(KEYSPACES["device"], table)
    assert not rejected
    frames = encode_frames(columns, READING, slice_partitions(partitions), max_puts, max_bytes)
    assert all(len(frame.rows) <= max_puts for frame in frames)
    assert all(len(frame.value) <= max_bytes for frame in frames if len(frame.rows) > 1)
    puts = puts_of(frames)
    assert sorted(row for row, *_ in puts) == list(range(len(rows)))
    for row, key, value, ttl in puts:
        body = {"metric": rows[row][1], "value": rows[row][2], "time": int(table["time"][row])}
        assert (key.decode(), value) == (rows[row][0], to_avro(KEYSPACES["device"], body))
        assert ttl == [None, 5_000, 3_600_000][row % 3]
    for frame in frames:
        assert {partition_for(key, partitions) for key in decode_frame(frame.value).key_cells} == {frame.partition}
    for wanted in set(table["key"]):
        order = [row for row, key, *_ in puts if key.decode() == wanted]
        assert order == sorted(order)


def test_every_form_of_a_text_column_is_the_same() -> None:
    names = ["kv:a", "kv:bb", "kv:a", "kv:ccc"]
    blob = "".join(names).encode()
    ends = np.cumsum([len(name) for name in names])
    forms: list[Any] = [
        names,
        np.array(names),
        np.array(names, object),
        Items(blob, ends),
        Items(b"xy" + blob, ends + 2, 2),
        Dictionary(["kv:a", "kv:bb", "kv:ccc"], np.array([0, 1, 0, 2])),
    ]
    made = [encode_frames(Columns(f, {"json": names}), SCHEMAS["streams.Json"], slice_partitions(1)) for f in forms]
    puts = [puts_of(frames) for frames in made]
    assert all(each == puts[0] for each in puts)
    assert [key.decode() for _, key, *_ in puts[0]] == names


def test_readings_are_small_and_repetition_cannot_be_a_bomb() -> None:
    n = 10_000
    index = np.arange(n)
    columns = Columns(
        Dictionary([f"device:{i}" for i in range(250)], index % 250),
        {"metric": ["temperature"] * n, "value": np.sqrt(index), "time": NOW_MS + index},
    )
    (frame,) = encode_frames(columns, READING, slice_partitions(1))
    assert len(frame.value) / n < 12
    same = Columns(["kv:" + "k" * 900] * n, {"json": ["x" * 900] * n}, 5_000)
    frames = encode_frames(same, SCHEMAS["streams.Json"], slice_partitions(1))
    assert [put[0] for put in puts_of(frames)] == list(range(n))


def test_any_schema_goes_as_raw_bodies() -> None:
    schema = parse_schema({"type": "record", "name": "R", "fields": [{"name": "a", "type": ["null", "int"]}]})
    bodies = [encode(schema, {"a": a})[5:] for a in (None, 3, None)]
    keys = ["kv:a", "kv:b", "kv:a"]
    for value in (Raw(bodies), {"a": Raw(bodies)}):
        puts = puts_of(encode_frames(Columns(keys, value), schema, slice_partitions(1)))
        assert [put[2][5:] for put in puts] == bodies


@pytest.mark.parametrize(
    ("columns", "field"),
    [
        (Columns(["device:a"], {"metric": ["m"], "value": [1.0]}), "time"),
        (Columns(["device:a"], {"metric": ["m"], "value": [1.0], "time": [1], "x": [1]}), "x"),
        (Columns(["device:a"], {"metric": ["m"], "value": [1.0, 2.0], "time": [1]}), "value"),
        (Columns(["device:a"], {"metric": ["m"], "value": [1.0], "time": [1.5]}), "time"),
        (Columns([3], {"metric": ["m"], "value": [1.0], "time": [1]}), "keys"),  # type: ignore[list-item]
        (Columns(Dictionary(["a"], np.array([1])), {"metric": ["m"], "value": [1.0], "time": [1]}), "keys"),
        (Columns(["device:a"], {"metric": ["m"], "value": [1.0], "time": [1]}, 7), "ttl_ms"),
        (Columns(["device:a"], {"metric": Items(b"m", np.array([2])), "value": [1.0], "time": [1]}), "metric"),
    ],
)
def test_columns_that_do_not_fit_are_named(columns: Columns, field: str) -> None:
    with pytest.raises(BadInput) as caught:
        encode_frames(columns, READING, slice_partitions(1))
    assert caught.value.field == field


def test_bad_rows_are_left_out_one_by_one() -> None:
    good = ["device:a", "m", 1.0, NOW_MS, None]
    bad: list[tuple[int, Any, str]] = [
        (0, "", "key"), (0, "device:", "key"), (0, "score:a", "key"), (0, "device:" + "x" * 1018, "key"),
        (0, b"device:\xff", "key"), (1, "", "metric"), (1, "m" * 257, "metric"), (2, math.nan, "value"),
        (2, 2**53 + 1, "value"), (2, True, "value"), (2, "1", "value"), (3, -1, "time"),
        (3, 253_402_300_800_000, "time"), (3, "yesterday", "time"),
        (4, 0.5, "ttl"), (4, "soon", "ttl"), (4, 10**12, "ttl"),
    ]  # fmt: skip
    rows = [good]
    for column, cell, _ in bad:
        rows += [[cell if i == column else each for i, each in enumerate(good)], good]
    table = dict(zip(("key", "metric", "value", "time", "ttl"), map(list, zip(*rows, strict=True)), strict=True))
    columns, rejected = columns_for(KEYSPACES["device"], table)
    assert [(each.index, each.reason.partition(":")[0]) for each in rejected] == [
        (2 * i + 1, field) for i, (_, _, field) in enumerate(bad)
    ]
    puts = puts_of(encode_frames(columns, READING, slice_partitions(1)))
    assert len(puts) == len(bad) + 1 and len({put[1:] for put in puts}) == 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.text(max_size=8).map("score:{}".format), st.integers(-(2**60), 2**60)), max_size=20))
def test_checks_are_those_of_single_puts(rows: list[tuple[str, int]]) -> None:
    def fine(key: str, add: int) -> bool:
        try:
            validate_key(key)
            to_avro(KEYSPACES["score"], {"add": add})
        except (BadInput, UnicodeError):
            return False
        return True

    table = {"key": [row[0] for row in rows], "add": np.array([row[1] for row in rows], np.int64)}
    columns, rejected = columns_for(KEYSPACES["score"], table)
    assert [each.index for each in rejected] == [i for i, row in enumerate(rows) if not fine(*row)]
    puts = puts_of(encode_frames(columns, SCHEMAS["streams.CounterAdd"], slice_partitions(1)))
    wanted = [(key.encode(), to_avro(KEYSPACES["score"], {"add": add})) for key, add in rows if fine(key, add)]
    assert [put[1:3] for put in puts] == wanted


def test_free_form_and_own_schemas() -> None:
    columns, rejected = columns_for(KEYSPACES["kv"], {"key": ["kv:a", "kv:b"], "x": [1, 2], "y": ["p", None]})
    puts = puts_of(encode_frames(columns, SCHEMAS["streams.Json"], slice_partitions(1)))
    assert not rejected and puts[1][2] == to_avro(KEYSPACES["kv"], {"x": 2, "y": None})
    columns, rejected = columns_for(KEYSPACES["kv"], {"key": ["kv:a", "kv:b"], "value": [{1}, [None]]})
    assert [each.index for each in rejected] == [0]
    with pytest.raises(BadInput) as caught:
        columns_for(KEYSPACES["score"], {"key": ["score:a"], "add": [1, 2]})
    assert caught.value.field == "add"
