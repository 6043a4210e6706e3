"""Runs a WASI program under limits: bytes in, bytes out. It sees no files, no network and no environment."""

from __future__ import annotations

import ctypes
import tempfile
from dataclasses import dataclass
from pathlib import Path

import wasmtime
from wasmtime import _ffi as ffi
from wasmtime import _wasi as outputs

from streams.model.errors import BadInput
from streams.wasm.engine import TICK_S, CompiledModule, EngineHost, Limits, TrapKind, UdfTrap, first_line

STDERR_BYTES_MAX = 64 << 10
_NO_FINALIZER = ctypes.CFUNCTYPE(None, ctypes.c_void_p)()


@dataclass(frozen=True, slots=True)
class WasiResult:
    """What a program left: its exit status, standard output, and the first 64 KiB of standard error."""

    status: int
    stdout: bytes
    stderr: str


class _Captured:
    """Collects what a stream gets, to a limit; past it the program's writes fail."""

    def __init__(self, bytes_max: int) -> None:
        self._left = bytes_max
        self._parts: list[bytes] = []
        self.overflowed = False

    def write(self, data: bytes) -> int:
        """Keep the bytes; how many, or -1 past the limit."""
        if len(data) > self._left:
            self.overflowed = True
            return -1
        self._left -= len(data)
        self._parts.append(data)
        return len(data)

    def value(self) -> bytes:
        """All that was written."""
        return b"".join(self._parts)


def _capture(config: wasmtime.WasiConfig, stream: str, to: _Captured) -> int:
    """Let the program's stream go to `to`; where that is kept until the store is closed.

    As `config.stdout_custom`, but without a finalizer: wasmtime calls that from a thread of its own some time after the
    store was closed, and a process that is ending by then is aborted (5 of 100 commands on a busy machine).
    """
    index: int = outputs.CUSTOM_OUTPUTS.allocate(to.write)
    set_stream = getattr(ffi, f"wasi_config_set_{stream}_custom")
    set_stream(config.ptr(), outputs.custom_call, index, _NO_FINALIZER)
    return index


def run_wasi(compiled: CompiledModule, stdin: bytes, limits: Limits, host: EngineHost) -> WasiResult:
    """Runs the program's `_start` once, on a store of its own; blocks, and releases the GIL meanwhile.

    `limits`: memory, deadline and output are kept; fuel is not counted. UdfTrap (DEADLINE, MEMORY, OUTPUT or TRAP) when
    the program was stopped; a status other than 0 is not an error here. The program has clocks and randomness.
    """
    if compiled.metered:
        raise BadInput("a WASI program runs on the engine without fuel", field="compiled")
    out, err = _Captured(limits.output_bytes), _Captured(STDERR_BYTES_MAX)
    with tempfile.TemporaryDirectory(prefix="streams-wasi-") as scratch:
        source = Path(scratch) / "stdin"
        source.write_bytes(stdin)
        config = wasmtime.WasiConfig()
        config.argv = ["program"]
        config.stdin_file = str(source)
        given = [_capture(config, "stdout", out), _capture(config, "stderr", err)]
        store = wasmtime.Store(host.engine(False))
        try:
            store.set_limits(
                memory_size=limits.memory_bytes, table_elements=1_000_000, instances=1, tables=4, memories=1
            )
            store.set_wasi(config)
            store.set_epoch_deadline(max(2, round(limits.deadline_s / TICK_S) + 1))
            status = _start(compiled, store, limits, host, out, err)
        finally:
            store.close()
            for index in given:
                outputs.CUSTOM_OUTPUTS.deallocate(index)
    return WasiResult(status, out.value(), err.value().decode("utf-8", "replace"))


def _start(
    compiled: CompiledModule, store: wasmtime.Store, limits: Limits, host: EngineHost, out: _Captured, err: _Captured
) -> int:
    linker = wasmtime.Linker(host.engine(False))
    linker.define_wasi()
    try:
        with host.ticking():
            exports = linker.instantiate(store, compiled.module).exports(store)
            start = exports.get("_start", None)
            if not isinstance(start, wasmtime.Func):
                raise UdfTrap("the module exports no _start", TrapKind.MALFORMED)
            start(store)
    except wasmtime.ExitTrap as exit_status:
        if out.overflowed:
            raise UdfTrap(f"more than {limits.output_bytes} bytes of output", TrapKind.OUTPUT) from None
        if exit_status.code and "out of memory" in err.value().decode("utf-8", "replace"):
            raise UdfTrap(f"memory limit of {limits.memory_bytes} bytes reached", TrapKind.MEMORY) from None
        return int(exit_status.code)
    except (wasmtime.Trap, wasmtime.WasmtimeError) as error:
        code = getattr(error, "trap_code", None)
        if code is not None and code.name == "INTERRUPT":
            raise UdfTrap("ran longer than its deadline", TrapKind.DEADLINE) from None
        if out.overflowed:
            raise UdfTrap(f"more than {limits.output_bytes} bytes of output", TrapKind.OUTPUT) from None
        raise UdfTrap(first_line(str(error)), TrapKind.TRAP) from None
    return 0
