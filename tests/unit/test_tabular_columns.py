"""NDJSON read in columns says the same of every line as NDJSON read line by line."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from streams.kafka.partitioner import slice_partitions
from streams.model.keyspace import BUILTIN
from streams.serde import decode_frame, encode_frames, load_builtin
from streams.tabular.judge import by_keyspace, judge, key_rejections
from streams.tabular.quick_json import GIVE_UP_AFTER, ColumnRows
from streams.tabular.text import NdjsonRows

KEYSPACES = {keyspace.name: keyspace for keyspace in BUILTIN}
NOW_MS = 1_700_000_000_000
GOOD = {
    "device": lambda i: {"metric": "temp", "value": i + 0.25, "time": NOW_MS + i},
    "score": lambda i: {"add": i + 1},
    "kv": lambda i: {"n": i, "name": "x"},
}
READING = '{"key":"device:x:telemetry","value":{"metric":"temp","value":%s,"time":%s}}'
ODD = [
    *(READING % (value, NOW_MS) for value in (
        "5", "-0", "-0.0", "0", "1e5", "1E+2", "1e400", "-1e308", "9007199254740993", "9007199254740993.0", "2e53",
        "123456789012345678901234567890", "NaN", "Infinity", "-Infinity", "null", "true", '"1"', "[1]", "{}", "01",
        ".5",
        "1.", "+1", "0x1", "1 ", " 1",
    )),
    *(READING % ("1.5", time) for time in (
        "-0", "0", "-5", "1.0", "1e3", "9223372036854775807", "9223372036854775808", "18446744073709551616", "null",
        "true", '"2024-05-01T12:00:00Z"', '"2024-05-01"', '"soon"', "1700000000000000",
    )),
    '{"key":"device:x","value":{"metric":"temp","value":1}}',
    '{"key":"device:x","value":{"value":1,"time":1700000000000}}',
    '{"key":"device:x","value":{}}',
    '{"key":"device:x","value":null}',
    '{"key":"device:x","value":5}',
    '{"key":"device:x"}',
    '{"value":{"metric":"t","value":1,"time":1}}',
    '{"key":null,"value":{"metric":"t","value":1,"time":1}}',
    '{"key":5,"value":{"metric":"t","value":1,"time":1}}',
    '{"key":"","value":{"metric":"t","value":1,"time":1}}',
    '{"key":"device:","value":{"metric":"t","value":1,"time":1}}',
    '{"key":"device:\\u0000x\\u00e4","value":{"metric":"\\ud83d\\ude00","value":1,"time":1}}',
    '{"key":"device:\\ud800","value":{"metric":"t","value":1,"time":1}}',
    '{"key":"device:a","key":"device:b","value":{"metric":"t","value":1,"time":1}}',
    '{"key":"device:a","\\u006bey":"device:b","value":{"metric":"t","value":1,"time":1}}',
    '{"key":"device:a","value":{"metric":"t","value":1,"value":2,"time":1}}',
    '{"key":"device:a","value":{"metric":"t","value":1,"time":1},"value":{"metric":"t","value":2,"time":1}}',
    '{"key":"device:a","value":{"metric":"t","value":1,"time":1,"x":null}}',
    '{"key":"device:a","value":{"metric":"t","value":1,"time":1,"x":1}}',
    '{"key":"device:a","value":{"metric":"","value":1,"time":1}}',
    '{"key":"device:a","value":{"metric":"' + "m" * 300 + '","value":1,"time":1}}',
    '{"key":"device:a","value":{"metric":"t","value":1,"time":1},"ttl":60}',
    '{"key":"device:a","value":{"metric":"t","value":1,"time":1},"ttl":"1h"}',
    '{"key":"device:a","value":{"metric":"t","value":1,"time":1},"ttl":null}',
    '{"key":"device:a","value":{"metric":"t","value":1,"time":1},"more":1}',
    '{"key" : "device:a" , "value" : {"metric":"t", "value":\t1, "time":1 } }',
    '{"time":1}',
    "[]", "5", "", "  ", "{", "}", '{"key":"device:a","value":{"metric":"t","value":1,"time":1}}x',
    READING % (1, 1) + READING % (2, 2),
    '{"key":"device:a","value":{"metric":"t","value":1,"time":1},}',
    '{"key":"device:a"/**/,"value":{"metric":"t","value":1,"time":1}}',
    "{'key':'device:a'}",
    '\ufeff{"key":"device:a","value":{"metric":"t","value":1,"time":1}}',
    '{"key":"score:a","value":{"add":5}}',
    '{"key":"kv:a","value":{"n":1}}',
    '{"key":"device:a","value":{"metric":"t","value":1,"time":1}}\r',
]  # fmt: skip


def outcome(blocks: list[bytes], *, columns: bool) -> tuple[dict[int, Any], int]:
    """By line: (key, value in wire format, TTL), or the reason it was refused; how many blocks were read in columns."""
    parser = NdjsonRows()
    if not columns:
        parser._columns._vain = GIVE_UP_AFTER
    found: dict[int, Any] = {}
    in_columns = 0
    for block in blocks:
        rows, bad = parser.parse(block)
        refused = list(bad)
        in_columns += isinstance(rows, ColumnRows)
        for name, mine in by_keyspace(rows) if rows is not None else ():
            if name not in KEYSPACES:
                refused += key_rejections(mine)
                continue
            keyspace = KEYSPACES[name]
            schema = load_builtin()[keyspace.schema]
            kept, wrong = judge(mine, keyspace, schema, now_ms=NOW_MS)
            refused += wrong
            for frame in encode_frames(kept.columns, schema, slice_partitions(keyspace.partitions)):
                decoded = decode_frame(frame.value)
                puts = zip(kept.numbers[frame.rows].tolist(), decoded.keys(), decoded.values(), strict=True)
                for index, (line, key, value) in enumerate(puts):
                    assert line not in found
                    found[line] = (key, value, decoded.ttl_of(index))
        for each in refused:
            assert each.line not in found
            found[each.line] = each.reason
    return found, in_columns


def lines_of(name: str, count: int, **more: Any) -> list[bytes]:
    return [json.dumps({"key": f"{name}:{i}", "value": GOOD[name](i), **more}).encode() for i in range(count)]


@pytest.mark.parametrize("at", [0, 20, 39])
def test_one_odd_line_among_good_ones(at: int) -> None:
    read = 0
    for odd in ODD:
        lines = lines_of("device", 40)
        lines[at] = odd.encode("utf-8", "surrogatepass")
        blocks = [b"\n".join(lines) + b"\n"]
        found, in_columns = outcome(blocks, columns=True)
        assert found == outcome(blocks, columns=False)[0], odd
        read += in_columns
    assert read >= (25 if at else 10), "the columns were hardly tried"


def test_bytes_that_are_no_text() -> None:
    for odd in (b'{"key":"device:\xff","value":{"metric":"t","value":1,"time":1}}', b"\xff", b'{"key":"device:a\x01"}'):
        blocks = [b"\n".join([*lines_of("device", 20), odd])]
        assert outcome(blocks, columns=True)[0] == outcome(blocks, columns=False)[0], odd


@pytest.mark.parametrize("seed", range(12))
def test_odd_lines_together_in_many_blocks(seed: int) -> None:
    seeded = random.Random(seed)
    blocks = []
    for _ in range(4):
        lines = lines_of(seeded.choice(["device", "device", "score", "kv"]), 60, **seeded.choice([{}, {"ttl": 5}]))
        for _ in range(seeded.choice([0, 1, 3])):
            lines[seeded.randrange(60)] = seeded.choice(ODD).encode("utf-8", "surrogatepass")
        blocks.append(b"\n".join(lines) + b"\n" * seeded.randrange(2))
    found, _ = outcome(blocks, columns=True)
    assert found == outcome(blocks, columns=False)[0]


def test_good_blocks_are_read_in_columns_and_whole_objects_are_not() -> None:
    readings, counters, objects = (b"\n".join(lines_of(name, 50)) + b"\n" for name in ("device", "score", "kv"))
    assert outcome([readings] * 3, columns=True)[1] == 3
    assert outcome([counters, readings], columns=True)[1] == 2
    found, in_columns = outcome([objects] * 3, columns=True)
    assert in_columns == 1, "free-form values are wanted as they came"
    assert len(found) == 150


def test_whole_numbers_among_others_do_not_stop_it() -> None:
    lines = [b'{"key":"device:a","value":{"metric":"t","value":%d,"time":%d}}' % (i, NOW_MS) for i in range(30)]
    lines += [b'{"key":"device:a","value":{"metric":"t","value":%d.5,"time":%d}}' % (i, NOW_MS) for i in range(30)]
    blocks = [b"\n".join(lines)]
    found, in_columns = outcome(blocks, columns=True)
    assert in_columns == 1 and found == outcome(blocks, columns=False)[0]
    assert all(type(each) is tuple for each in found.values())
