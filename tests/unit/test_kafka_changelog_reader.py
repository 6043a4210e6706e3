"""Rows wait for their marker, across batches, runs and claims."""

from __future__ import annotations

import struct

import pytest

from streams.kafka.changelog_reader import UnitBuilder
from streams.kafka.errors import ChangelogTooLarge, CorruptLog
from streams.model.marker import CLAIM_KEY, MARKER_KEY, Claim, InputPosition, Marker
from tests.unit.kafka_samples import TOPIC, Row, batch, run_of

MARKER = Marker("commit", 7, 99, {"events.score/0": InputPosition(12, "id")}, "udf", "me")
CLAIM = Claim("me", 5)


def row(key: bytes, seq: int) -> Row:
    return (key, b"\1\2\0\0\0\0\0\0" + struct.pack("<Q", seq) + b"rest", [])


def tombstone(key: bytes, seq: int) -> Row:
    return (key, None, [("seq", struct.pack("<Q", seq))])


MARKER_ROW: Row = (MARKER_KEY, MARKER.encode(), [])
CLAIM_ROW: Row = (CLAIM_KEY, CLAIM.encode(), [])


def test_a_unit_over_several_runs() -> None:
    builder = UnitBuilder(TOPIC, 1 << 20)
    assert builder.feed(run_of(0, batch(0, [row(b"a", 7)]))) == []
    assert builder.pending_rows == 1
    [unit] = builder.feed(run_of(1, batch(1, [tombstone(b"b", 7), MARKER_ROW]), following=4))
    assert [(key, seq) for key, _, seq in unit.rows] == [(b"a", 7), (b"b", 7)]
    assert unit.rows[1][1] is None
    assert (unit.marker, unit.claim, unit.next_offset, unit.tp) == (MARKER, None, 3, TOPIC)
    assert builder.pending_rows == 0


def test_rows_survive_a_claim_and_resuming_does_not_lose_them() -> None:
    builder = UnitBuilder(TOPIC, 1 << 20)
    claimed, done = builder.feed(run_of(0, batch(0, [row(b"a", 7), CLAIM_ROW, row(b"b", 7), MARKER_ROW])))
    assert (claimed.claim, claimed.marker, list(claimed.rows), claimed.next_offset) == (CLAIM, None, [], 0)
    assert [key for key, *_ in done.rows] == [b"a", b"b"]
    [claimed] = builder.feed(run_of(4, batch(4, [CLAIM_ROW])))
    assert claimed.next_offset == 5


def test_records_before_the_base_are_skipped() -> None:
    builder = UnitBuilder(TOPIC, 1 << 20)
    [unit] = builder.feed(run_of(1, batch(0, [row(b"a", 1), row(b"b", 1), MARKER_ROW])))
    assert [key for key, *_ in unit.rows] == [b"b"]


def test_a_buffer_without_a_marker_is_bounded_and_says_so() -> None:
    builder = UnitBuilder(TOPIC, 500)
    with pytest.raises(ChangelogTooLarge, match="from offset 0"):
        for i in range(100):
            builder.feed(run_of(i, batch(i, [row(b"a", 7)])))


def test_units_that_have_their_marker_are_not_counted() -> None:
    builder = UnitBuilder(TOPIC, 500)
    for i in range(0, 100, 2):
        builder.feed(run_of(i, batch(i, [row(b"a", 7), MARKER_ROW])))


@pytest.mark.parametrize(
    "bad", [(b"k", b"short", []), (b"k", None, []), (None, b"x", []), (MARKER_KEY, b"{}", []), (MARKER_KEY, None, [])]
)
def test_what_is_no_row_is_a_visible_error(bad: Row) -> None:
    with pytest.raises(CorruptLog, match="offset 3"):
        UnitBuilder(TOPIC, 1 << 20).feed(run_of(3, batch(3, [bad])))
