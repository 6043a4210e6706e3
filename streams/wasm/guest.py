"""One running module: a store, its memory, and calls under limits. Everything it answers is checked before use."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
from typing import Protocol

import wasmtime

from streams.wasm import native
from streams.wasm.backtrace import frames_of
from streams.wasm.batch import Buffer
from streams.wasm.buffers import Make
from streams.wasm.counted import CountedCalls
from streams.wasm.engine import CompiledModule, EngineHost, Limits, TrapKind, UdfTrap, first_line
from streams.wasm.fastcall import FastFunction
from streams.wasm.meter import UdfMeter

_LARGE_BYTES = 256 << 10
_DESC = struct.Struct("<IIi")
_MESSAGES = {
    "MEMORY_OUT_OF_BOUNDS": "out of bounds memory access",
    "INTEGER_DIVISION_BY_ZERO": "integer division by zero",
    "INTEGER_OVERFLOW": "integer overflow",
    "UNREACHABLE": "unreachable executed",
    "BAD_CONVERSION_TO_INTEGER": "invalid conversion to integer",
}


class AnyGuest(Protocol):
    """What hosts need of a running module: a core module's `Guest`, or a component behind the same calls."""

    last_call: str
    """The export that was called last."""

    @property
    def memory_bytes(self) -> int:
        """Bytes of linear memory held."""
        ...

    def put(self, *parts: Buffer) -> tuple[int, int]:
        """Gives an input; what to hand over to the call that takes it."""
        ...

    def call(self, name: str, *params: int) -> int:
        """Calls an export. UdfTrap when it is stopped."""
        ...

    def describe(self, desc: int) -> tuple[bytes, int]:
        """The answer of the call that returned `desc`, and its status."""
        ...

    def exports(self, name: str) -> bool:
        """Whether there is such an export."""
        ...

    def close(self) -> None:
        """Frees the instance."""
        ...


def open_guest(compiled: CompiledModule, limits: Limits, host: EngineHost, meter: UdfMeter | None = None) -> AnyGuest:
    """A new instance of a module or component; what it uses goes to `meter`. UdfTrap when it cannot start."""
    if compiled.is_component:
        from streams.wasm.component_guest import ComponentGuest

        return ComponentGuest(compiled, limits, host, meter)
    return Guest(compiled, limits, host, meter)


class Guest:
    """An instance of a module without imports. After a UdfTrap only `close` may be called.

    Not thread-safe. Calls release the GIL. The memory is given back by `close` (wasmtime frees it with the store).
    """

    def __init__(
        self, compiled: CompiledModule, limits: Limits, host: EngineHost, meter: UdfMeter | None = None
    ) -> None:
        self._limits = limits
        self._meter = meter or UdfMeter()
        self._stack_bytes = compiled.stack_bytes
        self.last_call = "instantiation"
        self._store = wasmtime.Store(host.engine(compiled.metered, compiled.stack_bytes))
        self._store.set_limits(
            memory_size=limits.memory_bytes, table_elements=100_000, instances=1, tables=16, memories=1
        )
        self._calls = CountedCalls(compiled, limits, host, self._meter, self._store)
        self._memory: wasmtime.Memory | None = None
        self._meter.started()
        try:
            with self._calls.one():
                instance = wasmtime.Instance(self._store, compiled.module, [])
        except (wasmtime.Trap, wasmtime.WasmtimeError) as error:
            trap = self._trap(error)
            self._store.close()
            raise trap from None
        exports = instance.exports(self._store)
        self._exports = {n: f for n in exports if isinstance(f := exports[n], wasmtime.Func)}
        self._functions: dict[str, FastFunction] = {}
        memory = exports.get("memory", None)
        if not isinstance(memory, wasmtime.Memory):
            raise UdfTrap("the module exports no memory", TrapKind.MALFORMED)
        self._memory = memory
        self._context, self._memory_ref = self._store._context(), ctypes.byref(memory._memory)

    def _trap(self, error: Exception) -> UdfTrap:
        self._meter.holds(self.memory_bytes)
        kind, text = self._why(error)
        return UdfTrap(text, kind, frames_of(error))

    def _why(self, error: Exception) -> tuple[TrapKind, str]:
        code = getattr(error, "trap_code", None)
        name = code.name if code is not None else ""
        if name == "INTERRUPT":
            return TrapKind.DEADLINE, "ran longer than its deadline"
        if name == "OUT_OF_FUEL":
            return TrapKind.FUEL, f"used more than {self._limits.fuel} units of fuel"
        text = _MESSAGES.get(name) or first_line(str(error))
        if name == "STACK_OVERFLOW":
            text = f"call stack exhausted (limit {self._stack_bytes} bytes)"
        if self._memory is None:
            return TrapKind.TRAP, f"the module cannot be instantiated: {text}"
        if self.memory_bytes + (1 << 20) > self._limits.memory_bytes:
            return TrapKind.MEMORY, f"memory limit of {self._limits.memory_bytes} bytes reached: {text}"
        return TrapKind.TRAP, text

    def call(self, name: str, *params: int) -> int:
        """Calls an export that answers an i32 (returned unsigned). UdfTrap when it is stopped."""
        function = self._functions.get(name)
        if function is None:
            if name not in self._exports:
                raise UdfTrap(f"the module exports no {name}", TrapKind.MALFORMED)
            function = self._functions[name] = FastFunction(self._store, self._exports[name], name)
        self.last_call = name
        with self._calls.one():
            try:
                return function(*params)
            except (wasmtime.Trap, wasmtime.WasmtimeError) as error:
                raise self._trap(error) from None

    def exports(self, name: str) -> bool:
        """Whether the module exports a function of this name."""
        return name in self._exports

    @property
    def memory_bytes(self) -> int:
        """Bytes of linear memory held; it never shrinks."""
        return int(native.memory_size(self._context, self._memory_ref)) if self._memory is not None else 0

    def _address(self, ptr: int, size: int) -> int:
        assert self._memory is not None
        if ptr + size > self.memory_bytes:
            raise UdfTrap(f"pointer {ptr} with length {size} lies outside its memory", TrapKind.MALFORMED)
        return int(native.memory_data(self._context, self._memory_ref)) + ptr

    def put(self, *parts: Buffer) -> tuple[int, int]:
        """Copies an input in through `streams_alloc`; its pointer and length."""
        size = sum(len(p) for p in parts)
        ptr = self.call("streams_alloc", size)
        at = self._address(ptr, size)
        for part in parts:
            ctypes.memmove(at, part if isinstance(part, bytes) else part.ctypes.data, len(part))
            at += len(part)
        return ptr, size

    def read(self, ptr: int, size: int) -> bytes:
        """Copies `size` bytes out. UdfTrap when they lie outside the memory or are over the output limit."""
        if size > self._limits.output_bytes:
            raise UdfTrap(f"output of {size} bytes is over the limit of {self._limits.output_bytes}", TrapKind.OUTPUT)
        return ctypes.string_at(self._address(ptr, size), size)

    def read_pieces(self, pieces: Sequence[tuple[int, int]], make: Make) -> Buffer:
        """Copies several (pointer, length) out, one after the other, in one copy; limited together as one `read`.

        Into a buffer of `make` when that is large: page faults of fresh memory cost more than the copy.
        """
        size = sum(length for _, length in pieces)
        if size > self._limits.output_bytes:
            raise UdfTrap(f"output of {size} bytes is over the limit of {self._limits.output_bytes}", TrapKind.OUTPUT)
        if size < _LARGE_BYTES:
            return b"".join(self.read(ptr, length) for ptr, length in pieces)
        out, at = make(size), 0
        for ptr, length in pieces:
            ctypes.memmove(out.ctypes.data + at, self._address(ptr, length), length)
            at += length
        return out

    def describe(self, desc: int) -> tuple[bytes, int]:
        """What a descriptor {u32 ptr, u32 len, i32 status} points to, and its status (never negative)."""
        ptr, size, status = _DESC.unpack(self.read(desc, _DESC.size))
        if status < 0:
            raise UdfTrap(f"the module refused its input (status {status})", TrapKind.MALFORMED)
        return self.read(ptr, size), status

    def close(self) -> None:
        """Frees the instance and its memory."""
        self._meter.holds(self.memory_bytes)
        self._store.close()
        self._functions = {}
        self._exports = {}
        self._memory = None
