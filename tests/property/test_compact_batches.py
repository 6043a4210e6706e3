"""Compact batches say what batches v1 of the same records do: expanded they are those, section by section, and they
fold to the same rows, outputs and rejects."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streams.model.errors import BadInput
from streams.model.row import MergeType
from streams.wasm.batch import Batch
from streams.wasm.build import compile_source
from streams.wasm.builtin import builtin_module
from streams.wasm.engine import Limits, UdfTrap
from streams.wasm.fold_host import Allowance, FoldHost, FoldOptions, RejectKind
from streams.wasm.fold_instance import FoldInstance
from tests.property.decoder_oracle import Record
from tests.property.frame_builder import frame_of
from tests.property.test_decoder_properties import batch_bytes
from tests.property.test_frame_sections import (
    BASE_MS,
    CACHE,
    CONFIG,
    DECODER,
    READING,
    UDFS,
    a_frame,
    folded,
    plain,
    sections_of,
)

COMPACT = replace(CONFIG, compact=True)


def records_of(rng: np.random.Generator, how: str) -> list[list[Record]]:
    """Runs of frames, as a partition has them."""
    runs, append_ms = [], BASE_MS
    for number in range(8):
        frames = []
        for _ in range(int(rng.integers(1, 5))):
            append_ms += int(rng.choice([0, 1, 700, 4_000]))
            frames.append(a_frame(rng, append_ms, 1_000 * number + len(frames), how))
        runs.append(frames)
    return runs


def decoded(runs: list[list[Record]], *, compact: bool, first: int = 0) -> list[Batch]:
    config = COMPACT if compact else CONFIG
    found = [
        DECODER.decode([batch_bytes(run, None)], 1_000 * at + first, 1 << 40, config) for at, run in enumerate(runs)
    ]
    return [Batch.parse(each.batch) for each in found if each.n]


@pytest.mark.parametrize("how", ["even", "late", "odd"])
@pytest.mark.parametrize("seed", range(12))
def test_a_compact_batch_expands_to_the_batch_v1_of_its_records(how: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    print("seed", seed)
    runs, first = records_of(rng, how), int(rng.integers(0, 2))
    short, whole = decoded(runs, compact=True, first=first), decoded(runs, compact=False, first=first)
    assert [each.n for each in short] == [each.n for each in whole]
    for a, b in zip(short, whole, strict=True):
        assert sections_of(a.full()) == sections_of(b)
        assert (a.last_append_ms, a.has_purges) == (b.last_append_ms, b.has_purges)
        for name in ("append_ms", "hlc", "expires_ms", "generation", "op", "offset", "part", "key_end", "value_end"):
            assert a.column(name).tolist() == b.column(name).tolist()
        lengths = np.diff(b.column("value_end").astype(np.int64), prepend=0)
        assert a.value_bytes_most >= lengths.max()
        if a.is_compact:
            assert a.only_schema_id == READING.id
            assert len(a.raw) < len(b.raw)
    if how != "odd":
        assert all(a.is_compact for a in short)


@pytest.mark.parametrize("name", list(UDFS))
@pytest.mark.parametrize("how", ["even", "late", "odd"])
@pytest.mark.parametrize("seed", range(6))
def test_they_fold_as_their_events_do(name: str, how: str, seed: int) -> None:
    rng = np.random.default_rng(100 + seed)
    print("seed", 100 + seed)
    runs = records_of(rng, how)
    expected = folded(name, [plain(each) for each in decoded(runs, compact=False)])
    assert folded(name, decoded(runs, compact=True)) == expected


@pytest.mark.parametrize("name", list(UDFS))
@pytest.mark.parametrize("keys", ["PLAIN", "DICTIONARY", "both"])
def test_keys_come_by_id_or_by_event(name: str, keys: str) -> None:
    """Frames whose keys are all dictionaries, or none; a run of both is no compact batch."""

    def frame(offset: int, encoding: str) -> Record:
        names = [f"device:{(offset * 37 + i) % 90}:telemetry".encode() for i in range(300)]
        values = [np.float64(i % 7 - 0.25 * offset).tobytes() for i in range(300)]
        times = [BASE_MS + 10 * offset + i // 100 for i in range(300)]
        columns = [("BYTES", [b"t" if i % 3 else b"p" for i in range(300)]), ("DOUBLE", values), ("LONG", times)]
        calls = iter([encoding])

        def choose(options: list[str]) -> str:
            if options == ["PLAIN", "DICTIONARY"]:  # the first column of texts is the keys
                return next(calls, "DICTIONARY")
            return "DICTIONARY" if "DICTIONARY" in options else options[-1]

        return Record(offset, BASE_MS + offset, None, frame_of(READING.id, names, [0] * 300, columns, choose), [])

    runs = [[frame(at, ("PLAIN", "DICTIONARY")[at % 2] if keys == "both" else keys) for at in range(4)]]
    (short,), (whole,) = decoded(runs, compact=True), decoded(runs, compact=False)
    assert short.is_compact == (keys != "both")
    assert (12 in short._sections) == (keys == "DICTIONARY")
    assert sections_of(short.full()) == sections_of(whole)
    assert folded(name, [short]) == folded(name, [plain(whole)])


def raw_of(n: int, sections: dict[int, tuple[int, bytes]]) -> bytes:
    at, table, parts = 16 + 16 * len(sections), [], []
    for ident, (width, data) in sections.items():
        padded = data + bytes(-len(data) % 8)
        table.append(struct.pack("<IIII", ident, at, len(data), width))
        parts.append(padded)
        at += len(padded)
    return b"".join((struct.pack("<IIII", 0x32425453, n, at, len(sections)), *table, *parts))


def test_what_is_not_whole_is_refused() -> None:
    runs = records_of(np.random.default_rng(3), "even")
    batch = next(each for each in decoded(runs, compact=True) if each.is_compact and len(each._sections[13][1]) >= 8)
    sections = {ident: (width, data.tobytes()) for ident, (width, data) in batch._sections.items()}
    assert Batch.parse(raw_of(batch.n, sections)).events() == batch.events()
    for ident in (1, 2, 3, 4, 6, 7, 10, 13, 14, 128, 192, 256, 65, 66):
        with pytest.raises(BadInput):
            Batch.parse(raw_of(batch.n, {key: each for key, each in sections.items() if key != ident}))
    for ident, data in ((13, struct.pack("<II", 0, 0)), (13, struct.pack("<II", 3, 5)), (1, bytes(8)), (14, bytes(9))):
        with pytest.raises(BadInput):
            Batch.parse(raw_of(batch.n, {**sections, ident: (0, data)}))


@pytest.mark.parametrize("name", list(UDFS))
def test_a_module_refuses_ids_beyond_what_they_name(name: str) -> None:
    """The module answers that it cannot take the batch, and reads nothing outside."""
    runs = records_of(np.random.default_rng(4), "even")
    batch = next(each for each in decoded(runs, compact=True) if each.is_compact and 12 in each._sections)
    compiled = CACHE.load(builtin_module(name))
    for ident, width in ((12, 4), (128, 4)):
        sections = {key: (each, data.tobytes()) for key, (each, data) in batch._sections.items()}
        ids = np.frombuffer(sections[ident][1], "<u4").copy()
        ids[-1] = 1 << 19
        instance = FoldInstance(compiled, Limits(), CACHE.host)
        with pytest.raises(UdfTrap, match="refused"):
            raw = raw_of(batch.n, {**sections, ident: (width, ids.tobytes())})  # the host would not take it either
            instance.prepare(Batch(raw, batch.n, batch._sections, is_compact=True))
        instance.close()


TRAPS = """
#define STREAMS_COMPACT
#include "streams.h"
int streams_fold_event(const streams_event *e, streams_row *r) {
  streams_reader in = streams_body(e);
  uint32_t len;
  streams_read_bytes(&in, &len);
  double x = streams_read_double(&in);
  if (x < -30) __builtin_trap();
  if (x > 30) return streams_reject("too large");
  streams_copy(streams_payload(streams_touch(e, r, e->value_len)), e->value, e->value_len);
  return 0;
}
"""


def test_culprits_are_found_in_the_batch_v1_of_it(tmp_path: Path) -> None:
    """A module of the SDK that takes compact batches: what it refuses and what stops it have the same places."""
    source = tmp_path / "traps.c"
    source.write_text(TRAPS)
    wasm = compile_source(source, MergeType.LWW)
    runs = records_of(np.random.default_rng(5), "late")
    answers = []
    for compact in (True, False):
        host = FoldHost(wasm, CACHE, FoldOptions(merge=int(MergeType.LWW)))
        assert host.takes_compact
        found = []
        for number, batch in enumerate(decoded(runs, compact=compact)):
            assert batch.is_compact == compact
            for each in host.fold(batch, lambda keys: [None for _ in keys], Allowance()):
                found.append((number, each.index, each.kind, each.offset, batch.event(each.index)))
        answers.append((found, dict(host.take()), host.traps > 0))
        host.close()
    assert answers[0] == answers[1]
    assert {kind for _, _, kind, _, _ in answers[0][0]} == {RejectKind.TRAP, RejectKind.UDF}


@pytest.mark.parametrize("seed", range(4))
def test_an_event_is_made_alone_as_it_is_among_all(seed: int) -> None:
    rng = np.random.default_rng(seed)
    print("seed", seed)
    for batch in decoded(records_of(rng, "late"), compact=True):
        assert batch.is_compact
        whole = batch.events()
        for index in {0, batch.n - 1, *rng.integers(0, batch.n, 30).tolist()}:
            assert batch.event(index) == whole[index]
        assert batch.full_bytes_most >= len(batch.full().raw) - 1_000


def test_what_lies_outside_is_refused() -> None:
    """Ends out of order or beyond what they are of, ids of what is not there: the host refuses the batch."""
    runs = records_of(np.random.default_rng(4), "even")
    batch = next(each for each in decoded(runs, compact=True) if each.is_compact and 12 in each._sections)
    sections = {ident: (width, data.tobytes()) for ident, (width, data) in batch._sections.items()}
    for ident in (6, 192):
        ends = np.frombuffer(sections[ident][1], "<u4")
        for odd in (ends + 10_000, ends[::-1], np.append(ends[:-1], 2**32 - 1)):
            if odd.tolist() == ends.tolist():
                continue
            with pytest.raises(BadInput):
                Batch.parse(raw_of(batch.n, {**sections, ident: (0, odd.astype("<u4").tobytes())}))
    for ident in (12, 128):
        ids = np.frombuffer(sections[ident][1], "<u4").copy()
        ids[-1] = 1 << 19
        with pytest.raises(BadInput):
            Batch.parse(raw_of(batch.n, {**sections, ident: (4, ids.tobytes())}))


def test_runs_without_events_are_no_compact_batch() -> None:
    """What the decoder remembers of the frames before is not in the answer."""
    runs = records_of(np.random.default_rng(6), "even")
    assert decoded(runs, compact=True)
    raw = batch_bytes(runs[0], None)
    found = DECODER.decode([raw], 1 << 30, 1 << 40, COMPACT)
    assert found.n == 0
    assert len(found.batch) < 1_000


def test_expanding_takes_little_more_than_what_it_makes() -> None:
    """Long words in a dictionary: the memory on the way is bounded."""
    words = [b"%03d" % i + b"w" * 900 for i in range(100)]
    n = 60_000
    keys = [b"device:%d" % (i % 50) for i in range(n)]
    columns = [("BYTES", [words[i % 100] for i in range(n)]), ("DOUBLE", [bytes(8)] * n), ("LONG", [BASE_MS] * n)]

    def choose(options: Sequence[Any]) -> Any:
        return "DICTIONARY" if "DICTIONARY" in options else options[-1]

    record = Record(0, BASE_MS, None, frame_of(READING.id, keys, [0] * n, columns, choose), [])
    (batch,) = decoded([[record]], compact=True)
    assert batch.is_compact
    tracemalloc.start()
    try:
        whole = batch.full()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert whole.n == n
    assert peak < 4 * len(whole.raw)
    assert whole.event(n - 1) == batch.event(n - 1)
