"""Followers see a frame's puts one by one, and go on inside it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from streams.gateway.subscription import Cursor, Place, place_of, puts_of, token_of
from streams.kafka.partitioner import slice_partitions
from streams.kafka.records import EventRecord
from streams.model.errors import BadInput
from streams.model.token import Input, Token
from streams.serde import Columns, encode_frames, load_builtin

SOURCE = Input("us-east", "events.score", 0)
HERE = ("events.score", 0)


def frame_record(ttl_ms: Any = None) -> EventRecord:
    columns = Columns([f"score:{i % 2}" for i in range(5)], {"add": list(range(5))}, ttl_ms)
    (frame,) = encode_frames(columns, load_builtin()["streams.CounterAdd"], slice_partitions(1))
    return EventRecord("events.score", 0, 7, 99, None, frame.value, [("hlc", b"1"), ("ttl_ms", b"5000")])


def test_a_frame_is_shown_put_by_put_and_gone_on_with_inside() -> None:
    record = frame_record()
    events = puts_of(record, 0, b"")
    assert [(e.record.key, e.part, e.record.offset) for e in events] == [
        (b"score:%d" % (i % 2), i, 7) for i in range(5)
    ]
    assert [e.after for e in events] == [Place(7, 1), Place(7, 2), Place(7, 3), Place(7, 4), Place(8)]
    for number, each in enumerate(events):
        text = token_of("us-east", {HERE: each.after})
        place = place_of(Token.decode(text), SOURCE, 0)
        assert place == each.after
        rest = puts_of(record, place.part, b"") if place.offset == 7 else []
        assert rest == events[number + 1 :]
        assert Token.decode(text).positions == {SOURCE: 8}
    assert [e.part for e in puts_of(record, 1, b"score:1")] == [1, 3]


def test_ids_of_records_are_what_they_were() -> None:
    assert token_of("us-east", {HERE: Place(8)}) == Token({SOURCE: 8}).encode()
    assert place_of(Token({SOURCE: 8}), SOURCE, 3) == Place(8)
    assert place_of(Token(), SOURCE, 3) == Place(3)


def test_ids_of_a_moving_partition_are_tokens() -> None:
    for count in (1, 2, 12):
        at = {("events.score", number): Place(number, number % 3) for number in range(count)}
        for moving in at:
            cursor = Cursor('us"east', at, moving)
            for place in (Place(0), Place(9), Place(9, 4)):
                assert cursor.id_at(place) == token_of('us"east', {**at, moving: place})


def test_ttls_and_malformed_frames() -> None:
    assert [dict(e.record.headers)["ttl_ms"] for e in puts_of(frame_record(), 0, b"")] == [b"5000"] * 5
    record = frame_record(np.array([0, 1000, 0, 0, 2000]))
    ttls = [dict(e.record.headers)["ttl_ms"] for e in puts_of(record, 0, b"")]
    assert ttls == [b"5000", b"1000", b"5000", b"5000", b"2000"]
    broken = EventRecord("events.score", 0, 7, 99, None, (record.value or b"")[:-3], [])
    assert [(e.record, e.part, e.after) for e in puts_of(broken, 0, b"")] == [(broken, None, Place(8))]


def test_tokens_merge_inside_frames() -> None:
    some, more, all_of_it = Token({SOURCE: 8}, {SOURCE: 2}), Token({SOURCE: 8}, {SOURCE: 4}), Token({SOURCE: 8})
    for left, right, least in ((some, more, more), (some, all_of_it, all_of_it), (some, Token({SOURCE: 7}), some)):
        assert left.merge(right) == right.merge(left) == least
        assert Token.decode(least.encode()) == least
    assert some.restrict(["events.score"]) == some
    assert not some.missing(all_of_it) and some.missing(Token({SOURCE: 7})) == [SOURCE]
    for body in ("eyJhL2IvMCI6WzFdfQ", "eyJhL2IvMCI6WzEsLTFdfQ", "eyJhL2IvMCI6WzEsIngiXX0"):
        with pytest.raises(BadInput):
            Token.decode(body)
