"""What batches of frames say beyond sections 1 to 9 (ids of keys and items, runs) changes no row, output or reject."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streams.model.row import MergeType
from streams.serde import FRAME, encode, load_builtin
from streams.wasm.avro_program import avro_program
from streams.wasm.batch import OP_PUT, Batch, Event, assemble, build
from streams.wasm.builtin import builtin_module
from streams.wasm.decoder import DecoderConfig, RecordDecoder, SchemaProgram
from streams.wasm.engine import ModuleCache
from streams.wasm.fold_host import FoldHost, FoldOptions
from tests.property import fold_model
from tests.property.decoder_oracle import Record
from tests.property.frame_builder import frame_of
from tests.property.test_decoder_properties import batch_bytes

CACHE = ModuleCache(Path(tempfile.gettempdir()) / "streams-test-wasm")
DECODER = RecordDecoder(CACHE)
SCHEMAS = load_builtin()
READING = SCHEMAS["streams.Reading"]
BASE_MS = 1_700_000_000_000
GRACE_MS = 86_400_000
PROGRAMS = {READING.id: SchemaProgram(OP_PUT, avro_program(READING.document))}
CONFIG = DecoderConfig("device", PROGRAMS, 5_000, frame_schema_id=SCHEMAS[FRAME].id)
UDFS = {"kv": MergeType.LWW, "telemetry": MergeType.OPAQUE, "anomaly": MergeType.LWW}
KEYS = [f"device:{name}".encode() for name in ("a", "a:telemetry", "b:telemetry", "ccc", "d\x01", "é", "e" * 1015)]
KEY_IDS, RUNS, ITEMS = 12, 13, 128
Made = tuple[dict[bytes, bytes | None], list[tuple[int, bytes, bytes]], list[str]]


def a_frame(rng: np.random.Generator, append_ms: int, offset: int, how: str) -> Record:
    """A frame of readings of a few devices. `even`: as clients write them; `late`: with any times, keys and metrics;
    `odd`: in any encoding, too.
    """
    even, odd = how == "even", how == "odd"
    n = int(rng.choice([1, 3, 30, 200] if odd else [3, 200, 200, 1_500]))
    keys = [KEYS[i] for i in rng.integers(0, 4 if even or rng.random() < 0.7 else len(KEYS), n)]
    names = [b"t"] if rng.random() < 0.5 else [b"t", b"p"] if even else [b"t", b"p", b"", b"long" * 30]
    if odd and rng.random() < 0.3:
        names.append(b"m\1")
    metrics = [names[i] for i in rng.integers(0, len(names), n)]
    values = rng.normal(20, 5, n).round(int(rng.integers(0, 9))) * rng.choice([1, 1, 1, 1, 1, -0.0, -1, 1e280], n)
    spread = int(rng.choice([5, 900, 25_000] if even else [5, 25_000, GRACE_MS - 7_000, GRACE_MS + 30_000]))
    times = append_ms - rng.integers(0, spread, n)
    if not even:
        times -= int(rng.choice([0, 0, GRACE_MS - 3_000, GRACE_MS + 9_000]))
    if odd and rng.random() < 0.1:
        times[0] = 2**60
    each = odd and rng.random() < 0.2
    ttls = rng.choice([0, 1_000, 60_000], n).tolist() if each else [int(rng.choice([0, 1_000, 60_000]))] * n

    def choose(options: Sequence[Any]) -> Any:
        if not odd:
            return "DICTIONARY" if "DICTIONARY" in options else options[-1]
        return options[int(rng.integers(0, len(options)))]

    columns = [("BYTES", metrics), ("DOUBLE", [value.tobytes() for value in values]), ("LONG", times.tolist())]
    hlc = (append_ms - int(rng.integers(0, 3))) << 16
    headers: list[tuple[str, bytes | None]] = [("hlc", b"%d" % hlc)]
    if rng.random() < 0.2:
        headers.append(("generation", b"%d" % (hlc - int(rng.integers(0, 1 << 18)))))
    return Record(offset, append_ms, None, frame_of(READING.id, keys, ttls, columns, choose), headers)


def between(rng: np.random.Generator, append_ms: int) -> list[Event]:
    """Now and then: a delete, a purge of a row, a reading alone."""
    made = [Event(append_ms, append_ms << 16, append_ms + 9_000, 0, 1, KEYS[int(rng.integers(0, 4))], b"\0\0\0\0\3")]
    row = [KEYS[0], b"device:a\x1f", b"device:\x1ft\x1f%010x" % (2**39 + BASE_MS // 10_000)][int(rng.integers(0, 3))]
    body = fold_model.write_long(0) + fold_model.write_long(append_ms) + fold_model.write_long(5)
    made.append(Event(append_ms, append_ms << 16, append_ms + 9_000, 0, 2, row, b"\0\0\0\0\2" + body + b"\0"))
    value = encode(READING, {"metric": "t", "value": 1.5, "time": append_ms})
    made.append(Event(append_ms, append_ms << 16, append_ms + 9_000, 0, 0, KEYS[0], value))
    return [each for each in made if rng.random() < 0.5]


def batches_of(rng: np.random.Generator, how: str) -> list[Batch]:
    batches, append_ms = [], BASE_MS
    for number in range(8):
        frames = []
        for _ in range(int(rng.integers(1, 5))):
            append_ms += int(rng.choice([0, 1, 700, 4_000]))
            frames.append(a_frame(rng, append_ms, 1_000 * number + len(frames), how))
        decoded = DECODER.decode([batch_bytes(frames, None)], 0, 1 << 40, CONFIG)
        if decoded.n:
            batches.append(Batch.parse(decoded.batch))
        if rng.random() < 0.3 and (others := between(rng, append_ms)):
            batches.append(build(others))
    return batches


def sections_of(batch: Batch) -> dict[int, tuple[int, bytes]]:
    return {ident: (width, data.tobytes()) for ident, (width, data) in batch._sections.items()}


def plain(batch: Batch) -> Batch:
    return build(batch.events())


def folded(name: str, batches: list[Batch], wasm: bytes | None = None) -> Made:
    outputs = 0 if name == "kv" else 1
    host = FoldHost(wasm or builtin_module(name), CACHE, FoldOptions(merge=int(UDFS[name]), outputs=outputs))
    rows: dict[bytes, bytes | None] = {}
    made: list[tuple[int, bytes, bytes]] = []
    reasons: list[str] = []
    at = 0
    for batch in batches:
        found = host.fold(batch, lambda keys: [rows.get(key) for key in keys])
        assert host.traps == 0
        reasons += [f"{at + each.index}: {each.reason}" for each in found]
        if at // 300 != (at + batch.n) // 300:
            rows.update(host.take())
            made += host.take_outputs()
            host.committed()
        at += batch.n
    rows.update(host.take())
    made += host.take_outputs()
    host.close()
    return rows, made, reasons


def cut(rng: np.random.Generator, batch: Batch) -> list[Batch]:
    """The batch in pieces, as the host makes them to find a culprit."""
    ends = sorted({batch.n, *rng.integers(1, batch.n + 1, 3).tolist()})
    return [batch.select(np.arange(start, end)) for start, end in zip([0, *ends[:-1]], ends, strict=True)]


@pytest.mark.parametrize("name", list(UDFS))
@pytest.mark.parametrize("how", ["even", "late", "odd"])
@pytest.mark.parametrize("seed", range(6))
def test_frames_fold_as_their_events_do(name: str, how: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    print("seed", seed)
    batches = batches_of(rng, how)
    expected = folded(name, [plain(batch) for batch in batches])
    assert folded(name, batches) == expected
    pieces = [piece for batch in batches for piece in (cut(rng, batch) if rng.random() < 0.5 else [batch])]
    assert folded(name, pieces) == expected
    if how == "late" and name == "telemetry":
        assert expected[1]
    if how != "odd":
        assert sum({KEY_IDS, RUNS, ITEMS} <= set(batch._sections) for batch in batches) >= 4


def test_runs_are_dropped_and_ids_kept_in_a_selection() -> None:
    batch = next(b for b in batches_of(np.random.default_rng(0), "even") if RUNS in b._sections and b.n > 30)
    chosen = [batch.n - 1, 0, 7]
    part = batch.select(chosen)
    assert RUNS not in part._sections
    for ident in (KEY_IDS, ITEMS):
        whole, few = (each._sections[ident][1].view("<u4") for each in (batch, part))
        assert few.tolist() == whole[chosen].tolist()
    starts = batch._sections[RUNS][1].view("<u4").tolist()
    for name in ("append_ms", "hlc", "expires_ms", "generation", "op"):
        changes = np.flatnonzero(np.diff(batch.column(name))) + 1
        assert set(changes.tolist()) <= set(starts)


@pytest.mark.parametrize("name", list(UDFS))
def test_sections_that_do_not_fit_are_refused_or_left_alone(name: str) -> None:
    """Runs out of order, ids far apart: the rows are as without. Too short: the module refuses the batch, no more."""
    batch = next(b for b in batches_of(np.random.default_rng(1), "even") if RUNS in b._sections and b.n > 30)
    expected, sections = folded(name, [plain(batch)]), sections_of(batch)
    for starts in ([], [1], [0, 5, 5], [0, batch.n], [0, 2**32 - 1], [5, 0]):
        odd = np.array(starts, "<u4").tobytes()
        assert folded(name, [assemble(batch.n, {**sections, RUNS: (0, odd)})]) == expected
    for ident in (KEY_IDS, ITEMS):
        ids = batch._sections[ident][1].view("<u4")
        for factor in (1 << 12, 1 << 20, (2**32 - 1) // max(1, int(ids.max()))):
            far = (ids * np.uint32(factor)).astype("<u4")
            assert folded(name, [assemble(batch.n, {**sections, ident: (4, far.tobytes())})]) == expected
        last = np.full(batch.n, 2**32 - 1, "<u4") if len(set(ids.tolist())) == 1 else ids
        assert folded(name, [assemble(batch.n, {**sections, ident: (4, last.tobytes())})]) == expected
