"""Units in columns say what single records say: reading them, choosing the newest, and what a publish looks at."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import DefaultRecordBatch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streams.edge.row_facts import facts_of, facts_of_unit
from streams.kafka.changelog_reader import UnitBuilder
from streams.kafka.errors import CorruptLog
from streams.kafka.run import Run
from streams.model.marker import CLAIM_KEY, MARKER_KEY, Claim, InputPosition, Marker
from streams.model.row import Cell, MergeType, decode_row, encode_row, patch_seq, seq_of
from streams.model.row import Row as DecodedRow
from streams.model.unit_rows import Row, UnitRows
from streams.state.options import StoreOptions
from streams.state.partition import TablePartition
from tests.unit.kafka_samples import TOPIC, batch, run_of
from tests.unit.kafka_samples import Row as Sample

SMALL = StoreOptions(16 << 20, 16 << 20, 1 << 20)
Found = list[tuple[list[Row], object, int]]


def marker(seq: int) -> Marker:
    return Marker("commit", seq, 99, {"events.score/0": InputPosition(12, "id")}, "udf", "me")


def plain_units(runs: Sequence[Run]) -> Found:
    """The same, record by record. Raises what a builder must."""
    found: Found = []
    rows: list[Row] = []
    first = -1
    for run in runs:
        for record in (record for data in run.batches for record in DefaultRecordBatch(data)):
            key, value, offset = record.key, record.value, record.offset
            if offset < run.base:
                continue
            if key == MARKER_KEY:
                found.append((rows, Marker.decode(value or b""), offset + 1))
                rows = []
            elif key == CLAIM_KEY:
                found.append(([], Claim.decode(value or b""), first if rows else offset + 1))
            elif key is None:
                raise ValueError("no key")
            else:
                first = first if rows else offset
                seq = value[8:16] if value is not None else dict(record.headers)["seq"]
                rows.append((key, value, struct.unpack("<Q", seq or b"")[0]))
    return [*found, (rows, None, -1)]


def units_of(runs: Sequence[Run]) -> Found:
    builder = UnitBuilder(TOPIC, 1 << 30)
    units = [unit for run in runs for unit in builder.feed(run)]
    found: Found = [(list(unit.rows), unit.marker or unit.claim, unit.next_offset) for unit in units]
    for unit in units:
        assert list(unit.rows.pairs()) == [(key, row) for key, row, _ in unit.rows]
    return [*found, (list(builder.drain()), None, -1)]


keys = st.sampled_from([b"", b"\0", b"\0other", b"k:a", b"k:b", b"\xff", MARKER_KEY + b"x"])
seqs = st.integers(0, 2**64 - 1)
row_bytes = st.builds(
    lambda seq, tail: b"\1\2" + bytes(6) + struct.pack("<Q", seq) + tail, seqs, st.binary(max_size=300)
)
some_headers = st.sampled_from([[], [("other", None), ("é", b"x")]])
removals = st.builds(
    lambda key, seq, more: (key, None, [*more, ("seq", struct.pack("<Q", seq))]), keys, seqs, some_headers
)
samples: st.SearchStrategy[Any] = st.one_of(
    st.tuples(keys, row_bytes, some_headers),
    st.tuples(keys, row_bytes, st.just([])),
    removals,
    st.just((MARKER_KEY, marker(7).encode(), [])),
    st.just((CLAIM_KEY, Claim("me", 5).encode(), [])),
)
broken: st.SearchStrategy[Any] = st.sampled_from(
    [
        (None, b"x" * 30, []),
        (None, None, []),
        (b"k", b"x" * 15, []),
        (b"k", b"", []),
        (b"k", None, []),
        (b"k", None, [("seq", None)]),
        (b"k", None, [("seq", b"1234567")]),
        (b"k", None, [("sequence", b"12345678")]),
        (MARKER_KEY, b"{}", []),
        (CLAIM_KEY, None, []),
    ]
)


def cut(records: Sequence[Sample], sizes: Sequence[int], skipped: int) -> Iterator[Run]:
    """Runs of one to three batches each, with gaps between them; the first begins inside of its first batch."""
    offset, at, sizes = 5, 0, list(sizes)
    pending: list[bytes] = []
    base = offset + skipped
    while at < len(records):
        size = sizes.pop() if sizes else 3
        pending.append(batch(offset, list(records[at : at + size])))
        at, offset = at + size, offset + min(size, len(records) - at)
        if len(pending) == 1 + size % 3 or at >= len(records):
            yield run_of(base, *pending)
            offset += 2  # as a control batch would take
            pending, base = [], offset


@given(st.lists(samples, min_size=1, max_size=60), st.lists(st.integers(1, 20)), st.integers(0, 25))
@settings(max_examples=150, deadline=None)
def test_units_are_what_single_records_say(records: list[Sample], sizes: list[int], skipped: int) -> None:
    runs = list(cut(records, sizes, skipped))
    assert units_of(runs) == plain_units(runs)


@given(st.lists(samples, max_size=20), broken, st.lists(samples, max_size=5))
@settings(max_examples=80, deadline=None)
def test_what_is_no_row_is_an_error_at_its_offset(before: list[Sample], bad: Sample, after: list[Sample]) -> None:
    run = run_of(5, batch(5, [*before, bad, *after]))
    with pytest.raises((ValueError, KeyError, struct.error)):
        plain_units([run])
    with pytest.raises(CorruptLog, match=f"offset {5 + len(before)}: "):
        units_of([run])


def test_cut_off_records_are_no_rows() -> None:
    whole = batch(
        5, [(b"k:a", bytes(300), []), (b"k:b", bytes(40), [("h", b"x")]), (MARKER_KEY, marker(3).encode(), [])]
    )
    for size in range(62, len(whole)):
        with pytest.raises(CorruptRecordException):
            UnitBuilder(TOPIC, 1 << 20).feed(run_of(5, whole[:size], following=8))


def test_numbers_longer_than_they_need_be_are_read() -> None:
    body = b"\0" + b"\x80\0" + b"\x82\x80\0"  # attributes, time 0 in two bytes, offset delta 1 in three
    body += b"\x86\0k:a" + b"\xa8\x80\x80\0" + b"\1\2" + bytes(6) + struct.pack("<Q", 9) + b"rest" + b"\x80\0"
    plain = bytearray(batch(5, [(b"k:b", bytes(20), [])]))
    struct.pack_into(">i", plain, 57, 2)
    plain += bytes([0x80 | 2 * len(body) & 0x7F, 2 * len(body) >> 7]) + body
    builder = UnitBuilder(TOPIC, 1 << 20)
    assert builder.feed(run_of(5, bytes(plain), following=7)) == []
    key, row, seq = builder.drain()[1]
    assert (key, row and row[16:], seq) == (b"k:a", b"rest", 9)


def test_columns_are_a_sequence() -> None:
    rows: list[Row] = [(b"k%d" % at, None if at % 3 == 0 else bytes(8) + struct.pack("<Q", at), at) for at in range(10)]
    removed = {at: at for at in range(0, 10, 3)}
    columns = UnitRows([key for key, _, _ in rows], [row for _, row, _ in rows], removed)
    for part in (slice(None), slice(3, 7), slice(4, 6), slice(-4, None), slice(None, None, -2), slice(7, 3)):
        assert list(columns[part]) == rows[part]
        assert list(columns.pairs()[part]) == [(key, row) for key, row, _ in rows[part]]
    assert [columns[at] for at in (0, 1, -1)] == [rows[0], rows[1], rows[-1]]
    assert columns.pairs()[-2] == rows[-2][:2] and len(columns) == len(columns.pairs()) == 10
    with pytest.raises(IndexError):
        columns[10]


@pytest.fixture
def part(tmp_path: Path) -> Iterator[TablePartition]:
    """It holds rows of commits 2 to 4."""
    found = TablePartition(tmp_path / "p", SMALL)
    stored = [(b"k:" + bytes([letter]), patch_seq(bytes(20), at + 2)) for at, letter in enumerate(b"abc")]
    found.apply(stored, marker(4), 4)
    yield found
    found.close()


def plain_newer(part: TablePartition, applied: int, rows: Sequence[Row]) -> dict[bytes, bytes | None]:
    """Per key the newest of equally keyed rows, the later of two of one commit, unless a newer one is stored."""
    best: dict[bytes, tuple[bytes | None, int]] = {}
    for key, row, seq in rows:
        if key not in best or seq >= best[key][1]:
            best[key] = (row, seq)
    stored = {key: part.get(key) for key in best}
    kept = {}
    for key, (row, seq) in best.items():
        old = stored[key]
        if old is None or seq > applied or seq_of(old) <= seq:
            kept[key] = row
    return kept


@given(st.lists(st.tuples(st.sampled_from("abcde"), st.booleans(), st.integers(1, 9)), max_size=20), st.booleans())
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_newest_are_chosen_alike(part: TablePartition, steps: list[tuple[str, bool, int]], in_order: bool) -> None:
    if in_order:
        steps = sorted(steps, key=lambda step: step[2])
    rows: list[Row] = [
        (b"k:" + letter.encode(), None if gone else patch_seq(bytes(16), seq) + bytes([at]), seq)
        for at, (letter, gone, seq) in enumerate(steps)
    ]
    removed = {at: seq for at, (_, row, seq) in enumerate(rows) if row is None}
    columns = UnitRows([key for key, _, _ in rows], [row for _, row, _ in rows], removed)
    wanted = plain_newer(part, 4, rows)
    assert dict(part.newer(rows)) == wanted
    assert dict(part.newer(columns)) == wanted
    assert dict(part.newer(columns, facts_of_unit(columns).one_seq(removed))) == wanted


@pytest.mark.parametrize("count", [0, 1, 999, 1_000, 1_001, 3_500])
def test_facts_are_those_of_each_row(count: int) -> None:
    rand = random.Random(count)
    rows: list[bytes | None] = []
    for _ in range(count):
        cells = tuple(
            Cell(
                rand.randrange(1 << 64),
                rand.randrange(1 << 64),
                rand.randrange(1 << 63),
                rand.randbytes(rand.randrange(90)),
            )
            for _ in range(rand.choice((0, 1, 1, 1, 2, 16)))
        )
        whole = encode_row(DecodedRow(MergeType.LWW, *(rand.randrange(1 << 64) for _ in range(3)), cells))
        rows.append(rand.choice((whole, whole, whole, whole[: rand.randrange(16, 32)], None)))
    keys = [b"k%d" % at for at in range(count)]
    removed = {at: 1 for at, row in enumerate(rows) if row is None}
    facts = facts_of_unit(UnitRows(keys, rows, removed))
    present = [(key, row) for key, row in zip(keys, rows, strict=True) if row is not None]
    assert [*zip(facts.keys, facts.rows, strict=True)] == present
    for at, (_, row) in enumerate(present):
        known = decode_row(row) if len(row) >= 32 else DecodedRow(MergeType.LWW, 0, 0, 0, ())
        found = (facts.cells[at], facts.seqs[at], facts.deleted[at], facts.last[at], facts.is_plain[at])
        assert found == (len(known.cells), known.seq, known.deleted_hlc, known.last_hlc, len(known.cells) == 1)
        if facts.is_plain[at]:
            assert facts.expires_ms[at] == known.cells[0].expires_ms
    again = facts_of([*zip(keys, rows, strict=True)])
    assert (again.seqs == facts.seqs).all() and again.keys == facts.keys


def test_one_sequence_number() -> None:
    def one(*numbers: int, removed: tuple[int, ...] = ()) -> int | None:
        rows: list[bytes | None] = [patch_seq(bytes(40), seq) for seq in numbers]
        gone = dict(enumerate(removed, len(rows)))
        columns = UnitRows([b"k"] * (len(rows) + len(gone)), [*rows, *(None for _ in gone)], gone)
        return facts_of_unit(columns).one_seq(columns.removed)

    assert one(5, 5, 5) == one(5) == one(5, removed=(5,)) == one(removed=(5, 5)) == 5
    assert one() is None and one(5, 6) is None and one(5, 4, 5) is None
    assert one(5, removed=(6,)) is None and one(removed=(5, 6)) is None
    assert one(2**64 - 1) == 2**64 - 1
