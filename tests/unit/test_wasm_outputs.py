"""Outputs of a fold UDF: exactly those of the events folded, in order, whatever traps in between."""

from __future__ import annotations

from pathlib import Path

import pytest

from streams.model.errors import StreamsError
from streams.model.row import MergeType
from streams.wasm import build as build_room
from streams.wasm.abi import validate_module
from streams.wasm.batch import Event, build
from streams.wasm.engine import Limits, ModuleCache
from streams.wasm.fold_host import FoldHost, FoldOptions, RejectKind

SOURCES = Path(__file__).parent / "hostile_udfs"
NEVER = 2**63 - 1
LIMITS = Limits(memory_bytes=32 << 20, deadline_s=1.0, output_bytes=8 << 20)
OPTIONS = FoldOptions(limits=LIMITS, merge=2, outputs=2)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> ModuleCache:
    return ModuleCache(tmp_path_factory.mktemp("wasm"))


@pytest.fixture(scope="module")
def talker() -> bytes:
    return build_room.compile_source(SOURCES / "talker.c", MergeType.COUNTER, {"STREAMS_OUTPUTS": 2})


def event(key: str, i: int, size: int = 0) -> Event:
    value = b"\0\0\0\0\1\2" + b"%06d" % i + bytes(size)
    return Event(1_000 + i, (1_000 + i) << 16, NEVER, 0, 0, key.encode(), value, offset=500 + i)


def absent(keys: list[bytes]) -> list[bytes | None]:
    return [None] * len(keys)


def expected(events: list[Event]) -> list[tuple[int, bytes, bytes]]:
    out = []
    for e in events:
        out.append((0, e.key, e.value))
        if e.key == b"k:both":
            out.append((1, e.key, b""))
    return out


def test_outputs_follow_the_order_of_events_and_belong_to_one_take(talker: bytes, cache: ModuleCache) -> None:
    assert validate_module(talker, cache)
    host = FoldHost(talker, cache, OPTIONS)
    events = [event(k, i) for i, k in enumerate(["k:b", "k:both", "k:a", "k:b"])]
    host.fold(build(events[:3]).raw, absent)
    assert host.take_outputs() == []
    host.take()
    host.fold(build(events[3:]).raw, absent)
    assert host.take_outputs() == host.take_outputs() == expected(events[:3])
    with pytest.raises(StreamsError):
        host.take()
    host.committed()
    assert host.take_outputs() == []
    host.take()
    assert host.take_outputs() == expected(events[3:])
    host.discard()
    host.take()
    assert host.take_outputs() == []


def test_more_outputs_than_one_answer_holds(talker: bytes, cache: ModuleCache) -> None:
    host = FoldHost(talker, cache, OPTIONS)
    events = [event(f"k:{i % 3}", i, 60_000) for i in range(150)]
    host.fold(build(events).raw, absent)
    host.take()
    assert host.take_outputs() == expected(events)


@pytest.mark.parametrize("word", ["trap", "regret", "topic", "nokey", "zero", "longkey", "huge"])
@pytest.mark.parametrize("retain_bytes", [1, 64 << 20])
def test_the_culprit_alone_is_rejected_and_no_output_is_lost_or_doubled(
    talker: bytes, cache: ModuleCache, word: str, retain_bytes: int
) -> None:
    host = FoldHost(talker, cache, FoldOptions(limits=LIMITS, merge=2, outputs=2, retain_bytes=retain_bytes))
    keys = [f"k:{i % 7}" for i in range(60)]
    keys[41], keys[17], keys[43] = f"k:{word}", "k:refuse", "k:both"
    events = [event(k, i) for i, k in enumerate(keys)]
    rejects = []
    for at, end in ((0, 30), (30, 50), (50, 60)):
        rejects += host.fold(build(events[at:end]).raw, absent)
    rows = host.take()
    found = [(r.offset, r.kind) for r in rejects] + [(x.reject.offset, x.reject.kind) for x in host.late_rejects]
    assert sorted(found) == [(517, RejectKind.UDF), (541, RejectKind.TRAP)]
    good = [e for e in events if e.key not in (f"k:{word}".encode(), b"k:refuse")]
    assert host.take_outputs() == expected(good)
    assert {k for k, _ in rows} == {e.key for e in good}
