"""The process's wasmtime engines, the limits of a module, and the cache of compiled modules."""

from __future__ import annotations

import hashlib
import os
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from importlib.metadata import version
from pathlib import Path
from typing import Any

import wasmtime
from wasmtime.component import Component

from streams.model.errors import BadInput, StreamsError
from streams.wasm.limits import STACK_BYTES, stack_class
from streams.wasm.limits import Limits as Limits

TICK_S = 0.01
COMPONENT = b"\0asm\x0d\0\1\0"
"""How a component begins, instead of a core module."""


class TrapKind(Enum):
    """Why a module was stopped."""

    TRAP = "trap"
    DEADLINE = "deadline"
    FUEL = "fuel"
    MEMORY = "memory"
    OUTPUT = "output"
    MALFORMED = "malformed"


class UdfTrap(StreamsError):
    """A module trapped, broke a limit or answered nonsense. Its instance must not be used again."""

    title = "UDF trapped"

    def __init__(self, detail: str, kind: TrapKind, frames: tuple[str, ...] = ()) -> None:
        super().__init__(detail)
        self.kind = kind
        self.frames = frames


def _configure(metered: bool, stack_bytes: int) -> wasmtime.Config:
    config = wasmtime.Config()
    config.epoch_interruption = True
    config.consume_fuel = metered
    config.wasm_threads = False
    config.wasm_memory64 = False
    config.wasm_multi_memory = False
    config.wasm_relaxed_simd_deterministic = True
    config.cranelift_nan_canonicalization = True
    config.max_wasm_stack = stack_bytes
    return config


class EngineHost:
    """The engines of a process (timed by epochs, or metered by fuel; one a stack size) and what advances their epochs.

    The thread runs only while a call runs and for a second after, and is stopped by `close`; it starts again by itself.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._engines: dict[tuple[bool, int], wasmtime.Engine] = {}
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._calls = 0

    def engine(self, metered: bool, stack_bytes: int = STACK_BYTES) -> wasmtime.Engine:
        """The engine of this kind, made at first use. `stack_bytes` as from `stack_class`."""
        with self._lock:
            kind = (metered, stack_bytes)
            if kind not in self._engines:
                self._engines[kind] = wasmtime.Engine(_configure(*kind))
            return self._engines[kind]

    @contextmanager
    def ticking(self) -> Iterator[None]:
        """Keeps the epochs advancing for the length of the block."""
        self.begin()
        try:
            yield
        finally:
            self.end()

    def begin(self) -> None:
        """Keep the epochs advancing until as many `end` have followed: `ticking` for what runs a few microseconds."""
        with self._lock:
            self._calls += 1
            if self._thread is None:
                self._stop = threading.Event()
                self._thread = threading.Thread(target=self._tick, args=(self._stop,), name="wasm-epochs", daemon=True)
                self._thread.start()

    def end(self) -> None:
        """See `begin`."""
        with self._lock:
            self._calls -= 1

    def _tick(self, stop: threading.Event) -> None:
        idle = 0
        while not stop.wait(TICK_S):
            with self._lock:
                engines = list(self._engines.values())
                idle = 0 if self._calls else idle + 1
                if idle * TICK_S > 1.0:
                    self._thread = None
                    return
            for engine in engines:
                engine.increment_epoch()

    def close(self) -> None:
        """Stops the thread and waits for it; at most one tick."""
        with self._lock:
            thread, self._thread = self._thread, None
            self._stop.set()
        if thread is not None:
            thread.join()


HOST = EngineHost()
"""The engines of this process."""


def module_hash(wasm: bytes) -> str:
    """SHA-256 of a module's bytes, in hex: its identity in markers and dead letters."""
    return hashlib.sha256(wasm).hexdigest()


def default_cache_dir() -> Path:
    """Where compiled modules are kept: STREAMS_CACHE, or the user's cache directory."""
    base = os.environ.get("STREAMS_CACHE")
    if base:
        return Path(base) / "wasm"
    xdg = os.environ.get("XDG_CACHE_HOME")
    return (Path(xdg) if xdg else Path.home() / ".cache") / "streams" / "wasm"


@dataclass(frozen=True, slots=True)
class CompiledModule:
    """A module ready to instantiate, with its hash. `module`: of a component (UDFs in Python) the component."""

    sha256: str
    module: Any
    metered: bool
    stack_bytes: int = STACK_BYTES

    @property
    def is_component(self) -> bool:
        """Whether it is a component (component model), not a core module."""
        return isinstance(self.module, Component)


class ModuleCache:
    """Compiles each module once per machine and wasmtime version; files are checked by digest and made again if bad."""

    def __init__(self, directory: Path | None = None, host: EngineHost = HOST) -> None:
        self._directory = directory or default_cache_dir()
        self._host = host
        self._loaded: dict[tuple[str, bool, int], CompiledModule] = {}
        self._lock = threading.Lock()

    @property
    def host(self) -> EngineHost:
        """The engines this cache compiles for."""
        return self._host

    def path(self, sha256: str, metered: bool) -> Path:
        """The file that holds the compiled module."""
        kind = "fuel" if metered else "time"
        return self._directory / f"{sha256}-{version('wasmtime')}-{platform.machine()}-{kind}1.cwasm"

    def load(self, wasm: bytes, metered: bool = False, stack_bytes: int = STACK_BYTES) -> CompiledModule:
        """The compiled module: from memory, from the cache directory, or compiled now. BadInput if it is no module.

        `stack_bytes`: what its instances may use (`Limits`); the code is the same for all.
        """
        sha256, stack_bytes = module_hash(wasm), stack_class(stack_bytes)
        with self._lock:
            found = self._loaded.get((sha256, metered, stack_bytes))
            if found is None:
                engine = self._host.engine(metered, stack_bytes)
                kind = Component if wasm[:8] == COMPONENT else wasmtime.Module
                module = self._read(engine, self.path(sha256, metered), kind)
                if module is None:
                    module = self._compile(engine, wasm, self.path(sha256, metered))
                found = CompiledModule(sha256, module, metered, stack_bytes)
                self._loaded[sha256, metered, stack_bytes] = found
            return found

    @staticmethod
    def _read(engine: wasmtime.Engine, path: Path, kind: Any) -> Any:
        try:
            data = path.read_bytes()
        except OSError:
            return None
        if len(data) < 32 or hashlib.sha256(data[32:]).digest() != data[:32]:
            return None
        try:
            return kind.deserialize(engine, data[32:])
        except wasmtime.WasmtimeError:
            return None  # another wasmtime, or a machine with other features

    @staticmethod
    def _compile(engine: wasmtime.Engine, wasm: bytes, path: Path) -> Any:
        if wasm[:4] != b"\0asm":
            raise BadInput("not a WebAssembly binary module", field="module")
        try:
            module = Component(engine, wasm) if wasm[:8] == COMPONENT else wasmtime.Module(engine, wasm)
        except wasmtime.WasmtimeError as error:
            raise BadInput(f"the module does not compile: {first_line(str(error))}", field="module") from None
        data = bytes(module.serialize())
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            partial = path.with_suffix(f".{os.getpid()}.{threading.get_ident()}")
            partial.write_bytes(hashlib.sha256(data).digest() + data)
            partial.replace(path)
        except OSError:
            return module  # a cache that cannot be written only costs the next start 100 ms
        return module


def first_line(text: str, length: int = 200) -> str:
    """The first line of `text`, shortened: wasmtime's messages carry backtraces."""
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[0].strip()[:length] if lines else ""
