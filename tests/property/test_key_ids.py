"""Batches that say which events share a key fold to the same rows as those that do not, whatever the ids are."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest

from streams.model.row import MergeType
from streams.serde import encode, load_builtin
from streams.wasm.batch import Batch, Event, assemble, build
from streams.wasm.builtin import builtin_module
from streams.wasm.engine import ModuleCache
from streams.wasm.fold_host import FoldHost, FoldOptions

CACHE = ModuleCache(Path(tempfile.gettempdir()) / "streams-test-wasm")
SCHEMAS = load_builtin()
BASE_MS = 1_700_000_000_000
KEYS = [f"device:{name}" for name in ("a", "a:telemetry", "b:telemetry", "ccc", "d\x01", "e" * 1020)]
UDFS = {
    "kv": MergeType.LWW,
    "max": MergeType.MAX,
    "counter": MergeType.COUNTER,
    "telemetry": MergeType.OPAQUE,
    "anomaly": MergeType.LWW,
}


def put(name: str, seeded: np.random.Generator, number: int, key: str) -> Event:
    append_ms = BASE_MS + number // 5
    if name == "max":
        value = encode(SCHEMAS["streams.Number"], {"value": float(seeded.normal())})
    elif name == "counter":
        value = encode(SCHEMAS["streams.CounterAdd"], {"add": int(seeded.integers(-5, 6))})
    else:
        metric = str(seeded.choice(["t", "t", "t", "p", "m\x01", "long" * 20]))
        moment = BASE_MS + int(seeded.integers(-90_000_000, 30_000)) * int(seeded.integers(0, 2))
        value = encode(SCHEMAS["streams.Reading"], {"metric": metric, "value": float(seeded.normal()), "time": moment})
    hlc = (append_ms + int(seeded.integers(-3, 3))) << 16
    expires_ms = append_ms + int(seeded.choice([1, 5, 10_000]))
    return Event(append_ms, hlc, expires_ms, int(seeded.choice([0, 0, hlc])), 0, key.encode(), value, number, number)


def with_ids(batch: Batch, ids: np.ndarray) -> Batch:
    columns = {ident: (width, data.tobytes()) for ident, (width, data) in batch._sections.items()}
    return assemble(batch.n, {**columns, 12: (4, ids.astype("<u4").tobytes())})


def folded(
    name: str, batches: list[Batch]
) -> tuple[dict[bytes, bytes | None], list[tuple[int, bytes, bytes]], list[str]]:
    outputs = 1 if name in ("telemetry", "anomaly") else 0
    host = FoldHost(builtin_module(name), CACHE, FoldOptions(merge=int(UDFS[name]), outputs=outputs))
    rows: dict[bytes, bytes | None] = {}
    made: list[tuple[int, bytes, bytes]] = []
    reasons: list[str] = []
    for number, batch in enumerate(batches):
        reasons += [
            f"{number}/{each.index}: {each.reason}"
            for each in host.fold(batch.raw, lambda keys: [rows.get(k) for k in keys])
        ]
        if number % 2:
            rows.update(host.take())
            made += host.take_outputs()
            host.committed()
    rows.update(host.take())
    made += host.take_outputs()
    host.close()
    return rows, made, reasons


@pytest.mark.parametrize("name", list(UDFS))
@pytest.mark.parametrize("seed", range(2))
def test_key_ids_change_nothing(name: str, seed: int) -> None:
    print("seed", seed)
    seeded = np.random.default_rng(seed)
    plain, known = [], []
    for start in range(0, 400, 100):
        chosen = seeded.integers(0, len(KEYS), 100)
        batch = build([put(name, seeded, start + i, KEYS[key]) for i, key in enumerate(chosen.tolist())])
        plain.append(batch)
        frame = np.arange(100) // int(seeded.choice([7, 40, 100]))  # a key has another id in each frame
        spread = int(seeded.choice([1, 1, 1_000, 1 << 20]))  # ids of a selection are far apart; too far: not used
        known.append(with_ids(batch, (frame * len(KEYS) + chosen) * spread))
    expected, found = folded(name, plain), folded(name, known)
    assert found[0] == expected[0] and len(expected[0]) >= 3
    assert found[1:] == expected[1:]
