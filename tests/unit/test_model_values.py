"""Clock, token, row, marker and topology: round trips, order, and refusal of what is malformed."""

from __future__ import annotations

from pathlib import Path

import pytest

from streams.model.clock import HybridClock, ms_of, pack
from streams.model.errors import BadInput, NotFound
from streams.model.keyspace import BUILTIN, Keyspace
from streams.model.marker import Claim, InputPosition, Marker
from streams.model.row import Cell, MergeType, Row, counter_payload, decode_row, encode_row, patch_seq, seq_of
from streams.model.token import Input, Token
from streams.model.topology import Region, Topology


def test_clock_never_repeats_nor_goes_back_even_when_the_wall_clock_does() -> None:
    now = [1_000]
    clock = HybridClock(lambda: now[0])
    first = clock.tick()
    now[0] = 900
    second = clock.tick()
    now[0] = 2_000
    third = clock.tick()
    assert first < second < third and ms_of(third) == 2_000


def test_clock_follows_others_but_not_one_from_the_far_future() -> None:
    clock = HybridClock(lambda: 1_000)
    clock.observe(pack(1_500, 3))
    assert clock.tick() == pack(1_500, 4)
    clock.observe(pack(9_000))
    assert ms_of(clock.tick()) == 1_500


def test_tokens_merge_and_say_what_is_missing() -> None:
    a, b = Input("us-east", "events.score", 0), Input("eu-west", "events.score", 1)
    left, right = Token({a: 5}), Token({a: 3, b: 7})
    merged = left.merge(right)
    assert merged.positions == {a: 5, b: 7} == right.merge(left).positions
    assert Token.decode(merged.encode()) == merged
    assert merged.missing(Token({a: 5, b: 6})) == [b] and not merged.missing(merged)
    assert merged.restrict(["events.kv"]).positions == {}
    assert Token.decode(None) == Token() == Token.decode("")


@pytest.mark.parametrize(
    "text", ["%%%", "e30x", "bm9wZQ", "eyJhIjoxfQ", "eyJhL2IvMCI6LTF9", "eyJhL2IvMCI6dHJ1ZX0", "x" * 5000, "\ud800"]
)
def test_malformed_tokens_name_the_header(text: str) -> None:
    with pytest.raises(BadInput) as caught:
        Token.decode(text)
    assert caught.value.field == "Causal-Token"


def test_rows_round_trip_and_take_their_seq() -> None:
    row = Row(MergeType.COUNTER, 0, 7, 9, (Cell(8, 9, 1234, counter_payload(5, 2)), Cell(9, 9, 2**63 - 1, b"")))
    data = patch_seq(encode_row(row), 42)
    assert seq_of(data) == 42 and decode_row(data) == Row(MergeType.COUNTER, 42, 7, 9, row.cells)


def test_damaged_rows_are_refused() -> None:
    data = encode_row(Row(MergeType.LWW, 1, 0, 1, (Cell(1, 1, 5, b"abc"),)))
    for damaged in (data[:-1], data + b"x", data[:20], b"", b"\x02" + data[1:]):
        with pytest.raises(ValueError):
            decode_row(damaged)


def test_markers_and_claims_round_trip() -> None:
    marker = Marker("commit", 3, 99, {"events.score/0": InputPosition(12, "id")}, "abc", "me")
    assert Marker.decode(marker.encode()) == marker
    claim = Claim("me", 5)
    assert Claim.decode(claim.encode()) == claim
    for damaged in (b"{}", b"[]", b"null", b"x", b'{"v":2}'):
        with pytest.raises(ValueError):
            Marker.decode(damaged)


def test_topology_is_kept_in_the_data_directory(tmp_path: Path) -> None:
    topology = Topology((Region("us-east", "127.0.0.1:1"), Region("eu-west", "127.0.0.1:2")))
    topology.save(tmp_path)
    assert Topology.load(tmp_path) == topology
    assert topology.home.name == "us-east" and [r.name for r in topology.others("us-east")] == ["eu-west"]
    with pytest.raises(NotFound, match="us-east, eu-west"):
        topology.region("mars")
    with pytest.raises(NotFound, match="streams up"):
        Topology.load(tmp_path / "nothing")
    (tmp_path / "topology.json").write_text("{")
    with pytest.raises(BadInput):
        Topology.load(tmp_path)


def test_keyspaces_round_trip_and_bad_settings_name_the_field() -> None:
    for keyspace in BUILTIN:
        assert Keyspace.from_json(keyspace.to_json()) == keyspace
    bad = {"merge": "sum", "partitions": 0, "ttl_ms": 0, "consistency": "best", "mirror": "all", "name": "Up"}
    for field, value in bad.items():
        with pytest.raises(BadInput) as caught:
            Keyspace.from_json({"name": "ok", field: value})
        assert caught.value.field == field
