"""Hostile UDFs: whatever one event does, that event alone is rejected, and every other is folded exactly."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from streams.model.row import MergeType, counter_sums, decode_row
from streams.wasm import build as build_room
from streams.wasm.batch import Event, build
from streams.wasm.engine import Limits, ModuleCache, TrapKind, UdfTrap
from streams.wasm.fold_host import FoldHost, FoldOptions, Reject, RejectKind
from streams.wasm.fold_instance import FoldInstance

SOURCES = Path(__file__).parent / "hostile_udfs"
NEVER = 2**63 - 1
LIMITS = Limits(memory_bytes=16 << 20, deadline_s=0.2, fuel=3_000_000, fuel_deadline_s=0.6, output_bytes=2 << 20)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> ModuleCache:
    return ModuleCache(tmp_path_factory.mktemp("wasm"))


@pytest.fixture(scope="module")
def hostile() -> bytes:
    return build_room.compile_source(SOURCES / "hostile.c", MergeType.COUNTER)


def event(key: str, i: int) -> Event:
    return Event(1_000 + i, (1_000 + i) << 16, NEVER, 0, 0, key.encode(), b"\0\0\0\0\1\2", offset=500 + i)


def counts(rows: list[tuple[bytes, bytes | None]]) -> dict[str, int]:
    return {k.decode(): counter_sums(decode_row(r).cells[0].payload[:16])[0] for k, r in rows if r is not None}


def keys_with(word: str) -> list[str]:
    keys = [f"k:{i % 7}" for i in range(100)]
    keys[61] = f"k:{word}"
    return keys


def expected(keys: list[str], word: str) -> dict[str, int]:
    good = [k for k in keys if word not in k]
    return {k: good.count(k) for k in good}


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("trap", "unreachable"),
        ("divide", "integer division by zero"),
        ("wild", "out of bounds"),
        ("loop", "fuel"),
        ("fill", ""),
        ("bomb", "memory limit"),
        ("deep", ""),
        ("giant", "output"),
        ("late", "unreachable"),
    ],
)
def test_only_the_culprit_is_rejected(hostile: bytes, cache: ModuleCache, word: str, reason: str) -> None:
    host = FoldHost(hostile, cache, FoldOptions(limits=LIMITS, merge=2))
    keys = keys_with(word)
    events = [event(k, i) for i, k in enumerate(keys)]
    rejects: list[Reject] = []
    for at, end in ((0, 30), (30, 90), (90, 100)):
        rejects += host.fold(build(events[at:end]).raw, lambda ks: [None] * len(ks))
    rows = host.take()
    late = host.late_rejects
    found = [(r.offset, r.kind) for r in rejects] + [(x.reject.offset, x.reject.kind) for x in late]
    assert found == [(561, RejectKind.TRAP)]
    text = (rejects or [x.reject for x in late])[0].reason
    assert text.startswith("trap: ")
    assert reason in text
    assert counts(rows) == expected(keys, word)
    if late:
        assert late[0].event == events[61]


def test_many_culprits_and_refusals_in_one_batch(hostile: bytes, cache: ModuleCache) -> None:
    host = FoldHost(hostile, cache, FoldOptions(limits=LIMITS, merge=2))
    keys = [f"k:{i % 5}" for i in range(64)]
    for i in (0, 13, 14, 40, 63):
        keys[i] = "k:trap"
    for i in (7, 41):
        keys[i] = "k:refuse"
    rejects = host.fold(build([event(k, i) for i, k in enumerate(keys)]).raw, lambda ks: [None] * len(ks))
    assert [r.index for r in rejects if r.kind is RejectKind.TRAP] == [0, 13, 14, 40, 63]
    assert [(r.index, r.reason) for r in rejects if r.kind is RejectKind.UDF] == [(7, "refused"), (41, "refused")]
    assert [r.index for r in rejects] == sorted(r.index for r in rejects)
    assert counts(host.take()) == {k: keys.count(k) for k in keys if k not in ("k:trap", "k:refuse")}


def test_changed_rows_are_counted_until_they_are_taken(hostile: bytes, cache: ModuleCache) -> None:
    host = FoldHost(hostile, cache, FoldOptions(limits=LIMITS, merge=2))
    host.fold(build([event(f"k:{i % 7}", i) for i in range(100)]).raw, lambda ks: [None] * len(ks))
    assert host.changed_rows == 7
    host.fold(build([event("k:trap", 100), event("k:new", 101)]).raw, lambda ks: [None] * len(ks))
    assert host.changed_rows == 8, "what a lost instance had changed counts as well"
    assert len(host.take()) == 8
    assert host.changed_rows == 0
    host.committed()
    host.fold(build([event("k:0", 102)]).raw, lambda ks: [None] * len(ks))
    assert host.changed_rows == 1
    host.discard()
    assert host.changed_rows == 0


@pytest.mark.parametrize("said", [0, 6, 15, 0xFFFFFFFF])
def test_a_module_that_counts_wrongly_is_not_believed_again(
    hostile: bytes, cache: ModuleCache, monkeypatch: pytest.MonkeyPatch, said: int
) -> None:
    monkeypatch.setattr(FoldInstance, "changed", property(lambda _: said))
    host = FoldHost(hostile, cache, FoldOptions(limits=LIMITS, merge=2))
    batch = build([event(f"k:{i % 7}", i) for i in range(50)])
    host.fold(batch.raw, lambda ks: [None] * len(ks))
    assert host.changed_rows == said
    assert len(host.take()) == 7
    host.committed()
    host.fold(batch.raw, lambda ks: [None] * len(ks))
    assert host.changed_rows is None


def test_a_module_that_traps_when_it_should_count_is_not_asked_again(
    hostile: bytes, cache: ModuleCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def trap(instance: FoldInstance) -> int:
        asked.append(instance)
        raise UdfTrap("unreachable", TrapKind.TRAP)

    monkeypatch.setattr(FoldInstance, "changed", property(trap))
    host = FoldHost(hostile, cache, FoldOptions(limits=LIMITS, merge=2))
    for first in (0, 50):
        host.fold(build([event(f"k:{i % 7}", i) for i in range(first, first + 50)]).raw, lambda ks: [None] * len(ks))
        assert host.changed_rows is None
    assert len(asked) == 1
    assert sum(counts(host.take()).values()) == 100, "and nothing is lost by it"


def test_work_before_the_trap_is_kept_across_take_and_commit(hostile: bytes, cache: ModuleCache) -> None:
    host = FoldHost(hostile, cache, FoldOptions(limits=LIMITS, merge=2))
    stored: dict[bytes, bytes] = {}

    def load(keys: list[bytes]) -> list[bytes | None]:
        return [stored.get(k) for k in keys]

    host.fold(build([event("k:a", 0)]).raw, load)
    first = host.take()
    host.fold(build([event("k:a", 1), event("k:b", 2)]).raw, load)
    host.fold(build([event("k:a", 3), event("k:trap", 4), event("k:b", 5)]).raw, load)
    stored.update({k: r for k, r in first if r is not None})
    host.committed()
    second = host.take()
    assert counts(first) == {"k:a": 1}
    assert counts(second) == {"k:a": 3, "k:b": 2}
    host.fold(build([event("k:trap", 6), event("k:b", 7)]).raw, load)
    stored.update({k: r for k, r in second if r is not None})
    host.committed()
    assert counts(host.take()) == {"k:b": 3}
    assert host.traps == 2


def test_a_slow_but_honest_event_is_not_condemned_by_a_deadline(hostile: bytes, cache: ModuleCache) -> None:
    """A deadline that is far too short for the batch: judged again under fuel, nothing is rejected."""
    limits = Limits(memory_bytes=16 << 20, deadline_s=0.001, fuel=500_000_000)
    host = FoldHost(hostile, cache, FoldOptions(limits=limits, merge=2))
    keys = [f"k:{i}" for i in range(150_000)]
    raw = build([event(k, i) for i, k in enumerate(keys)]).raw
    assert host.fold(raw, lambda ks: [None] * len(ks)) == []
    assert len(host.take()) == len(keys)
    assert host.traps >= 1


@pytest.mark.parametrize(("where", "kind"), [(w, k) for w in (1, 2, 3) for k in range(8) if (w, k) != (2, 7)])
def test_malformed_output_is_contained(cache: ModuleCache, tmp_path: Path, where: int, kind: int) -> None:
    source = tmp_path / "liar.c"
    source.write_text(f"#define LIE {where}{kind}\n" + (SOURCES / "liar.c").read_text())
    host = FoldHost(build_room.compile_source(source, None), cache, FoldOptions(limits=LIMITS))
    keys = ["k:a", "k:b", "k:!", "k:c"]
    rejects = host.fold(build([event(k, i) for i, k in enumerate(keys)]).raw, lambda ks: [None] * len(ks))
    rows = host.take()
    rejects += [x.reject for x in host.late_rejects]
    assert [(r.index, r.kind) for r in rejects] == [(2, RejectKind.TRAP)]
    assert rows == []


def test_the_process_stays_usable_and_its_ticker_stops() -> None:
    code = (
        "import threading; from streams.wasm.engine import HOST\n"
        "with HOST.ticking(): assert any(t.name == 'wasm-epochs' for t in threading.enumerate())\n"
        "HOST.close(); assert not any(t.name == 'wasm-epochs' for t in threading.enumerate())\n"
    )
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
    assert time.monotonic() - started < 30
