"""What running WebAssembly costs, measured in this process: for `streams bench udf`. Times are seconds."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import wasmtime

from streams.wasm.batch import Batch
from streams.wasm.engine import EngineHost, Limits, ModuleCache, _configure
from streams.wasm.fold_host import FoldHost, FoldOptions
from streams.wasm.function_engine import FunctionModules
from streams.wasm.function_host import FunctionHost
from streams.wasm.function_manifest import FunctionPart
from streams.wasm.guest import Guest
from streams.wasm.limits import STACK_BYTES

_TAKE_EVERY = 16
LIMITS = Limits(fuel=10_000_000_000)


class _Engines(EngineHost):
    """Engines that may be without epochs, to measure what those cost."""

    def __init__(self, epochs: bool) -> None:
        super().__init__()
        self._epochs = epochs

    def engine(self, metered: bool, stack_bytes: int = STACK_BYTES) -> wasmtime.Engine:
        """The engine of this kind."""
        with self._lock:
            kind = (metered, stack_bytes)
            if kind not in self._engines:
                config = _configure(*kind)
                config.epoch_interruption = self._epochs
                self._engines[kind] = wasmtime.Engine(config)
            return self._engines[kind]


def timed(work: Callable[[], object], times: int) -> list[float]:
    """How long each call took."""
    samples = []
    for _ in range(times):
        began_s = time.perf_counter()
        work()
        samples.append(time.perf_counter() - began_s)
    return samples


def fold_inside(wasm: bytes, batch: Batch, times: int, scratch: Path, *, epochs: bool, fuel: bool) -> list[float]:
    """Of each batch, the time within the module (prepare and fold), its rows cached; under these limits."""
    cache = ModuleCache(scratch / f"epochs-{epochs}", _Engines(epochs))
    guest = Guest(cache.load(wasm, fuel), LIMITS, cache.host)
    try:
        host = FoldHost(wasm, cache)  # says what a fold module needs, before its exports are called
        host.discard()
        ptr, size = guest.put(batch.raw)
        missing, _ = guest.describe(guest.call("streams_prepare", ptr, size))
        absent, size_ = guest.put(_absent(missing))
        guest.call("streams_load", absent, size_)
        guest.describe(guest.call("streams_fold", ptr, size))
        samples = []
        for _ in range(10 + times):
            ptr, size = guest.put(batch.raw)
            began_s = time.perf_counter()
            guest.call("streams_prepare", ptr, size)
            guest.call("streams_fold", ptr, size)
            samples.append(time.perf_counter() - began_s)
        return samples[10:]
    finally:
        guest.close()
        cache.host.close()


def _absent(keys: bytes) -> bytes:
    """Rows of keys that have none, in the answer's layout: u32 n, key ends, row ends, present, keys."""
    n = int.from_bytes(keys[:4], "little")
    return keys[: 4 + 4 * n] + bytes(4 * n) + bytes(n) + keys[4 + 4 * n :]


def fold_hosted(wasm: bytes, batch: Batch, times: int, cache: ModuleCache) -> list[float]:
    """Of each batch, the whole time: copied in, folded, checked, and its part of taking rows out for a commit."""
    host = FoldHost(wasm, cache, FoldOptions())

    def some() -> None:
        for _ in range(_TAKE_EVERY):
            host.fold(batch.raw, lambda keys: [None] * len(keys))
        host.take()
        host.committed()

    some()
    samples = [each / _TAKE_EVERY for each in timed(some, max(1, times // _TAKE_EVERY))]
    host.discard()
    return samples


def function_instances(host: FunctionHost, times: int) -> list[float]:
    """Store and instance of a compiled function, started and given back."""
    timed(host.instantiate, 50)
    return timed(host.instantiate, times)


def function_cold_starts(
    wasm: bytes, part: FunctionPart, limits: Limits, request: bytes, scratch: Path, times: int
) -> list[float]:
    """From a compiled file on disk to an answer: read, checked, loaded, linked, instantiated, run. Reads no tables."""
    FunctionHost(wasm, FunctionModules(scratch), part, limits)

    def once() -> None:
        FunctionHost(wasm, FunctionModules(scratch), part, limits).answer_alone(request)

    return timed(once, times)


def function_calls(host: FunctionHost, request: bytes, times: int) -> list[float]:
    """A request each, host included, without HTTP or tables."""
    timed(lambda: host.answer_alone(request), 50)
    return timed(lambda: host.answer_alone(request), times)
