"""The `languages` bench: what the same counter costs in C, Zig and Python, in the UDF and with its host around it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from streams.bench.report import Result
from streams.bench.statistics import median
from streams.client.udf_template import LANGUAGES, files_of
from streams.model.clock import NEVER_MS
from streams.serde import encode, load_builtin
from streams.wasm.batch import Batch, Event, build
from streams.wasm.build import build_directory
from streams.wasm.engine import ModuleCache
from streams.wasm.fold_host import FoldHost, FoldOptions
from streams.wasm.fold_instance import FoldInstance
from streams.wasm.manifest import Manifest, read_manifest

EVENTS, KEYS = 10_000, 1_000
_LEAST_S, _LEAST_ROUNDS = 1.0, 5
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class _Module:
    manifest: Manifest
    wasm: bytes
    build_s: float


def bench_languages(say: Say) -> list[Result]:
    """Build the scaffold's fold in each language and fold batches of 10,000 events over 1,000 keys with it."""
    batch = _batch()
    found = []
    with tempfile.TemporaryDirectory() as scratch:
        cache = ModuleCache()
        for lang in LANGUAGES:
            say(f"{lang}: building")
            module = _built(Path(scratch) / lang, lang)
            began_s = time.perf_counter()
            cache.load(module.wasm)
            compile_s = time.perf_counter() - began_s
            say(f"{lang}: folding")
            found += [
                Result(f"{lang}: fold of {EVENTS} events, in the UDF", _inside(module, cache, batch), "events/s"),
                Result(f"{lang}: the same, host included", _hosted(module, cache, batch), "events/s"),
                Result(f"{lang}: module", len(module.wasm) / 1024, "KiB"),
                Result(f"{lang}: build", module.build_s, "s"),
                Result(f"{lang}: compile, or load what was compiled before", compile_s, "s"),
            ]
    return found


def _built(place: Path, lang: str) -> _Module:
    place.mkdir()
    for name, text in files_of("bench", lang).items():
        (place / name).write_text(text)
    began_s = time.perf_counter()
    wasm = build_directory(place)["bench.wasm"]
    return _Module(read_manifest(place), wasm, time.perf_counter() - began_s)


def _batch() -> Batch:
    value = encode(load_builtin()["streams.CounterAdd"], {"add": 10})
    return build(
        [
            Event(1_000 + at, (1_000 + at) << 16, NEVER_MS, 0, 0, f"score:player-{at % KEYS}".encode(), value, at)
            for at in range(EVENTS)
        ]
    )


def _rate(once: Callable[[], float]) -> float:
    once()  # the first one loads the rows
    times: list[float] = []
    while sum(times) < _LEAST_S or len(times) < _LEAST_ROUNDS:
        times.append(once())
    return EVENTS / median(times)


def _inside(module: _Module, cache: ModuleCache, batch: Batch) -> float:
    """The calls of the ABI for a batch, its copy into the module included."""
    merge = int(module.manifest.merges[0])
    instance = FoldInstance(cache.load(module.wasm), module.manifest.limits, cache.host, merge)

    def once() -> float:
        began_s = time.perf_counter()
        missing = instance.prepare(batch)
        if missing:
            instance.load(missing, [None] * len(missing))
        instance.fold()
        return time.perf_counter() - began_s

    rate = _rate(once)
    instance.close()
    return rate


def _hosted(module: _Module, cache: ModuleCache, batch: Batch) -> float:
    """A batch from its bytes to the changed rows, taken out and checked, as each commit does."""
    host = FoldHost(module.wasm, cache, FoldOptions(module.manifest.limits, merge=int(module.manifest.merges[0])))
    stored: dict[bytes, bytes | None] = {}

    def once() -> float:
        began_s = time.perf_counter()
        host.fold(batch.raw, lambda keys: [stored.get(key) for key in keys])
        rows = host.take()
        host.committed()
        took_s = time.perf_counter() - began_s
        stored.update(rows)
        return took_s

    rate = _rate(once)
    host.close()
    return rate
