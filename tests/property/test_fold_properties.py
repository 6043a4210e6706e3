"""The C fold equals the Python model, however the input is cut into batches and whenever instances are dropped."""

from __future__ import annotations

import random
import struct
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.model.row import MergeType, Row, decode_row, encode_row
from streams.wasm.batch import Batch, Event, build
from streams.wasm.builtin import builtin_for_merge, builtin_module
from streams.wasm.engine import Limits, ModuleCache
from streams.wasm.fold_host import FoldHost, FoldOptions
from tests.property import fold_model

CACHE = ModuleCache(Path(tempfile.gettempdir()) / "streams-test-wasm")
NEVER = 2**63 - 1
KINDS = [MergeType.LWW, MergeType.COUNTER, MergeType.MAX, MergeType.MIN]
BASE_MS = 1_000_000


def value_of(kind: MergeType) -> st.SearchStrategy[bytes]:
    prefix = b"\0\0\0\0\1"
    if kind is MergeType.COUNTER:
        near = st.sampled_from([2**63 - 1, -(2**63), 2**62, -(2**62), 0])
        return st.one_of(st.integers(-300, 300), near).map(lambda n: prefix + fold_model.write_long(n))
    if kind in (MergeType.MAX, MergeType.MIN):
        return st.floats(allow_nan=True).map(lambda x: prefix + struct.pack("<d", x))
    return st.binary(max_size=60).map(lambda b: prefix + b)


@st.composite
def an_event(draw: st.DrawFn, kind: MergeType) -> Event:
    append_ms = BASE_MS + draw(st.integers(0, 8))
    op = draw(st.sampled_from([0] * 12 + [1, 2, 2]))
    hlcs = st.integers(BASE_MS - 2, BASE_MS + 12).map(lambda ms: ms << 16)
    if op == 2:
        parts = [draw(hlcs), BASE_MS + draw(st.integers(-1, 14)), draw(hlcs)]
        body = b"".join(map(fold_model.write_long, parts)) + bytes([draw(st.integers(0, 1))])
        value = b"\0\0\0\0\2" + body
    else:
        value = b"\0\0\0\0\3" if op else draw(value_of(kind))
    return Event(
        append_ms=append_ms,
        hlc=draw(hlcs) + draw(st.integers(0, 3)),
        expires_ms=draw(st.one_of(st.just(NEVER), st.integers(1, 6).map(lambda ttl: append_ms + ttl))),
        generation=draw(st.one_of(st.just(0), hlcs)),
        op=op,
        key=draw(st.sampled_from([b"k:a", b"k:b", "k:ü€𝄞".encode(), b"k:" + b"long" * 40])),
        value=value,
    )


@st.composite
def a_history(draw: st.DrawFn) -> tuple[MergeType, list[Event]]:
    kind = draw(st.sampled_from(KINDS))
    return kind, draw(st.lists(an_event(kind), max_size=60))


def model_of(kind: MergeType, events: list[Event]) -> tuple[dict[bytes, bytes], list[tuple[int, str]]]:
    rows: dict[bytes, Row] = {}
    rejects = []
    for i, event in enumerate(events):
        try:
            fold_model.fold(rows, event, kind)
        except fold_model.Rejected as error:
            rejects.append((i, str(error)))
    return {k: encode_row(r) for k, r in rows.items()}, rejects


class Table:
    """A committed table, and a FoldHost over it."""

    def __init__(self, kind: MergeType, options: FoldOptions | None = None) -> None:
        self.rows: dict[bytes, bytes] = {}
        name = builtin_for_merge(kind.label)
        self.host = FoldHost(builtin_module(name), CACHE, options or FoldOptions(merge=int(kind)))

    def load(self, keys: list[bytes]) -> list[bytes | None]:
        return [self.rows.get(k) for k in keys]

    def take(self) -> dict[bytes, bytes | None]:
        return dict(self.host.take())

    def commit(self, taken: dict[bytes, bytes | None]) -> None:
        for key, row in taken.items():
            if row is None:
                self.rows.pop(key, None)
            else:
                self.rows[key] = row[:8] + b"\x07" * 8 + row[16:]
        self.host.committed()

    def content(self) -> dict[bytes, bytes]:
        return {k: r[:8] + bytes(8) + r[16:] for k, r in self.rows.items()}


@settings(max_examples=200, deadline=None, print_blob=True)
@given(a_history(), st.data())
def test_any_split_of_the_input_gives_the_models_table(
    history: tuple[MergeType, list[Event]], data: st.DataObject
) -> None:
    kind, events = history
    want, want_rejects = model_of(kind, events)
    table = Table(kind)
    rejects, at = [], 0
    taken: dict[bytes, bytes | None] = {}
    while at < len(events):
        size = data.draw(st.integers(1, 12))
        for reject in table.host.fold(build(events[at : at + size]).raw, table.load):
            rejects.append((at + reject.index, reject.reason))
        at += size
        step = data.draw(st.sampled_from(["fold", "fold", "commit", "take", "drop"]))
        if step in ("commit", "take", "drop"):
            table.commit(taken)
            taken = table.take()
        if step in ("commit", "drop"):
            table.commit(taken)
            taken = {}
        if step == "drop":
            table.host.discard()
    table.commit(taken)
    table.commit(table.take())
    assert table.content() == want
    assert rejects == want_rejects
    for row in table.rows.values():
        decode_row(row)


@settings(max_examples=60, deadline=None, print_blob=True)
@given(a_history(), st.integers(1, 9))
def test_discarded_work_folded_again_gives_the_same_table(history: tuple[MergeType, list[Event]], cut: int) -> None:
    kind, events = history
    want, _ = model_of(kind, events)
    table = Table(kind, FoldOptions(merge=int(kind), cache_bytes=1, retain_bytes=cut * 100, held_bytes=cut % 2 << 28))
    for at in range(0, len(events), cut):
        raw = build(events[at : at + cut]).raw
        table.host.fold(raw, table.load)
        table.host.take()
        table.host.discard()
        table.host.fold(raw, table.load)
        table.commit(table.take())
    assert table.content() == want


@settings(max_examples=100, deadline=None, print_blob=True)
@given(a_history(), st.data())
def test_select_keeps_the_chosen_events(history: tuple[MergeType, list[Event]], data: st.DataObject) -> None:
    _, events = history
    batch = build(events)
    assert Batch.parse(batch.raw).events() == events
    chosen = data.draw(
        st.lists(st.integers(0, max(0, len(events) - 1)), max_size=len(events)) if events else st.just([])
    )
    assert batch.select(chosen).events() == [events[i] for i in chosen]


def test_sixteen_cells_are_kept() -> None:
    events = [
        Event(BASE_MS + i * 10, (BASE_MS + i * 10) << 16, BASE_MS + i * 10 + 5, 0, 0, b"k:a", b"\0\0\0\0\1\2")
        for i in range(40)
    ]
    for cut in (1, 7, 40):
        table = Table(MergeType.COUNTER)
        for at in range(0, 40, cut):
            table.host.fold(build(events[at : at + cut]).raw, table.load)
            table.commit(table.take())
        assert table.content() == model_of(MergeType.COUNTER, events)[0]
        assert len(decode_row(table.rows[b"k:a"]).cells) == 16


@pytest.mark.parametrize("kind", KINDS)
def test_a_table_larger_than_the_modules_memory_folds_exactly(kind: MergeType) -> None:
    """4 MiB of memory, or 2 held, and 60,000 keys: rows are spilled between commits, no event is condemned."""
    value = {MergeType.COUNTER: b"\0\0\0\0\1\2", MergeType.LWW: b"\0\0\0\0\1value"}.get(kind, b"\0\0\0\0\1" + bytes(8))
    events = [
        Event(BASE_MS + i, (BASE_MS + i) << 16, NEVER, 0, 0, b"k:%d" % (i * 7919 % 60_000), value)
        for i in range(90_000)
    ]
    counted = kind is MergeType.COUNTER
    held = FoldOptions(held_bytes=2 << 20, merge=int(kind))
    table = Table(kind, held if counted else FoldOptions(limits=Limits(memory_bytes=4 << 20), merge=int(kind)))
    rejects, sizes = [], []
    for at in range(0, len(events), 5_000):
        rejects += table.host.fold(build(events[at : at + 5_000]).raw, table.load)
        sizes.append(table.host.memory_bytes)
    assert max(sizes) <= 2 << 20 and 0 in sizes, "it was never dropped"
    table.commit(table.take())
    assert not rejects
    assert table.host.late_rejects == []
    assert table.content() == model_of(kind, events)[0]


def dense_history(rng: random.Random, kind: MergeType) -> list[Event]:
    """80 events on three keys within a few milliseconds: every boundary of expiry and generation is hit."""
    events = []
    for i in range(80):
        append_ms = BASE_MS + i // 8 + rng.randrange(2)
        op = rng.choice([0] * 16 + [1, 2, 2])
        value = b"\0\0\0\0\3"
        if op == 2:
            parts = [
                (BASE_MS + rng.randrange(12)) << 16,
                BASE_MS + rng.randrange(14),
                (BASE_MS + rng.randrange(12)) << 16,
            ]
            value += b"".join(map(fold_model.write_long, parts)) + bytes([rng.randrange(2)])
        elif op == 0 and kind in (MergeType.MAX, MergeType.MIN):
            value += struct.pack("<d", rng.randrange(-9, 9))
        elif op == 0:
            value += fold_model.write_long(rng.randrange(-9, 9))
        hlc = (append_ms + rng.randrange(-1, 2)) << 16
        generation = rng.choice([0, 0, 0, 0, hlc, hlc - 1])
        expires_ms = rng.choice([NEVER, append_ms + 1, append_ms + 1, append_ms + 2, append_ms + 3])
        events.append(Event(append_ms, hlc, expires_ms, generation, op, b"k:%d" % rng.randrange(3), value))
    return events


@pytest.mark.parametrize("kind", KINDS)
def test_dense_histories_equal_the_model(kind: MergeType) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    for _ in range(40):
        events = dense_history(rng, kind)
        table = Table(kind)
        at = 0
        while at < len(events):
            size = rng.randrange(1, 30)
            table.host.fold(build(events[at : at + size]).raw, table.load)
            at += size
            if rng.random() < 0.3:
                table.commit(table.take())
        table.commit(table.take())
        table.host.close()
        assert table.content() == model_of(kind, events)[0]
