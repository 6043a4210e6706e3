"""`FunctionHost`: runs a function's module, a new instance for every request, under limits, with the host functions
that its manifest names. ABI: wasm_udfs/ABI.md.

Nothing that a request does leaves it before it has ended well: puts and log lines are collected and handed back. So a
request that was stopped may be run again.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import wasmtime
from wasmtime import _ffi as ffi

from streams.model.errors import BadInput
from streams.wasm import function_engine as engine
from streams.wasm import native
from streams.wasm.engine import (
    CompiledModule,
    EngineHost,
    Limits,
    TrapKind,
    UdfTrap,
    first_line,
)
from streams.wasm.function_abi import (
    ABI_VERSION,
    IMPORT_MODULE,
    IMPORTS,
    MARKER,
    FunctionAnswer,
    HostImport,
    check_function_module,
    decode_answer,
    encode_rows,
)
from streams.wasm.function_manifest import FunctionPart
from streams.wasm.limits import STACK_BYTES

ABSENT = -1
REFUSED = -1
RANDOM_BYTES_MAX = 64 << 10
LOG_LINES_MAX = 64
SCAN_BYTES_MAX = 4 << 20
_I32 = 0xFFFFFFFF
_RAW = {name: name.encode() for name in (MARKER, "streams_alloc", "streams_handle")}
_LARGE_BYTES = 4 << 20
_MESSAGES = {
    "STACK_OVERFLOW": f"call stack exhausted (limit {STACK_BYTES} bytes)",
    "MEMORY_OUT_OF_BOUNDS": "out of bounds memory access",
    "INTEGER_DIVISION_BY_ZERO": "integer division by zero",
    "INTEGER_OVERFLOW": "integer overflow",
    "UNREACHABLE": "unreachable executed",
}


class NotNow(Exception):
    """A host function would have to wait, and this run must not: run the request where it may."""


class FunctionServices(Protocol):
    """What a request's host functions are made of. Whatever raises ends the request; NotNow: run it elsewhere."""

    def read(self, table: str, key: bytes) -> bytes | None:
        """A row's value as JSON; None: there is none."""
        ...

    def scan(self, table: str, prefix: bytes, limit: int) -> Sequence[tuple[bytes, bytes]]:
        """Keys and values (JSON) of rows in key order."""
        ...

    def top(self, table: str, n: int, by: str | None) -> Sequence[tuple[bytes, bytes]]:
        """Keys and values (JSON) of the highest rows, highest first."""
        ...

    def check_put(self, key: bytes, value: bytes, ttl_ms: int | None) -> object:
        """A put, made ready; BadInput when it cannot be made."""
        ...

    def now_ms(self) -> int:
        """Epoch milliseconds."""
        ...

    def random(self, size: int) -> bytes:
        """Random bytes."""
        ...


@dataclass(slots=True)
class FunctionResult:
    """What a request came to: the answer, the puts to make (as `check_put` made them ready), the lines logged.

    `tables`: those that were read."""

    answer: FunctionAnswer
    puts: list[Any]
    log: list[str]
    tables: set[str]


@dataclass(slots=True)
class _Run:
    """A request under way on this thread."""

    services: FunctionServices
    part: FunctionPart
    context: Any
    memory: Any = None
    rows: int = 0
    log_bytes: int = 0
    puts: list[Any] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    tables: set[str] = field(default_factory=set)
    error: BaseException | None = None
    base: int = 0
    size: int = 0

    def address(self, ptr: int, size: int) -> int:
        """Where guest memory is; UdfTrap when a pointer lies outside it."""
        if ptr + size > self.size:
            if self.memory is None:
                raise UdfTrap("it called the host before it had started", TrapKind.MALFORMED)
            # It has grown, or this lies outside. It only grows, and a pooled memory stays in its place.
            self.base = native.memory_data(self.context, self.memory)
            self.size = native.memory_size(self.context, self.memory)
            if ptr + size > self.size:
                raise UdfTrap(f"pointer {ptr} with length {size} lies outside its memory", TrapKind.MALFORMED)
        return self.base + ptr

    def text(self, ptr: int, size: int) -> bytes:
        """A copy of guest memory."""
        return ctypes.string_at(self.address(ptr, size), size) if size else b""

    def answer(self, data: bytes, out: int, room: int) -> int:
        """Write `data` if it fits; its length."""
        if len(data) <= room:
            ctypes.memmove(self.address(out, len(data)), data, len(data))
        return len(data)

    def table(self, ptr: int, size: int, rows: int) -> str:
        """A table's name that may be read, and the rows counted."""
        name = self.text(ptr, min(size, 256)).decode(errors="replace")
        if name not in self.part.tables:
            raise UdfTrap(f"it read table {name[:80]!r}, which udf.toml does not name in tables", TrapKind.TRAP)
        self.rows += rows
        if self.rows > self.part.table_rows:
            raise UdfTrap(f"it read more than {self.part.table_rows} rows", TrapKind.OUTPUT)
        self.tables.add(name)
        return name


# ---- host functions: (run, parameters) -> i32 or i64


def _table_get(run: _Run, args: Sequence[int]) -> int:
    table, key = run.table(args[0], args[1], 1), run.text(args[2], min(args[3], 2_000))
    found = run.services.read(table, key)
    return ABSENT if found is None else run.answer(found, args[4], args[5])


def _rows(run: _Run, rows: Sequence[tuple[bytes, bytes]], out: int, room: int) -> int:
    data = encode_rows(rows)
    if len(data) > SCAN_BYTES_MAX:
        raise UdfTrap(f"the rows that it read have over {SCAN_BYTES_MAX} bytes", TrapKind.OUTPUT)
    if len(data) > room:
        run.rows -= len(rows)  # it comes again, with more room
    return run.answer(data, out, room)


def _count(run: _Run, asked: int) -> int:
    return min(asked, max(0, run.part.table_rows - run.rows))


def _table_scan(run: _Run, args: Sequence[int]) -> int:
    table, limit = run.table(args[0], args[1], 0), _count(run, args[4])
    rows = run.services.scan(table, run.text(args[2], min(args[3], 2_000)), limit)
    run.rows += len(rows)
    return _rows(run, rows, args[5], args[6])


def _table_top(run: _Run, args: Sequence[int]) -> int:
    table, limit = run.table(args[0], args[1], 0), _count(run, args[4])
    by = run.text(args[2], min(args[3], 256)).decode(errors="replace") or None
    rows = run.services.top(table, limit, by)
    run.rows += len(rows)
    return _rows(run, rows, args[5], args[6])


def _put(run: _Run, args: Sequence[int]) -> int:
    if len(run.puts) >= run.part.events:
        raise UdfTrap(f"it put more than {run.part.events} events", TrapKind.OUTPUT)
    try:
        ready = run.services.check_put(
            run.text(args[0], min(args[1], 2_000)), run.text(args[2], args[3]), args[4] or None
        )
    except BadInput as error:
        _say(run, f"put refused: {error}")
        return REFUSED
    run.puts.append(ready)
    return 0


def _clock(run: _Run, _args: Sequence[int]) -> int:
    return run.services.now_ms()


def _random(run: _Run, args: Sequence[int]) -> int:
    if args[1] > RANDOM_BYTES_MAX:
        raise UdfTrap(f"it asked for over {RANDOM_BYTES_MAX} random bytes", TrapKind.OUTPUT)
    return run.answer(run.services.random(args[1]), args[0], args[1])


def _log(run: _Run, args: Sequence[int]) -> int:
    _say(run, run.text(args[0], min(args[1], run.part.log_bytes)).decode(errors="replace"))
    return 0


def _say(run: _Run, line: str) -> None:
    """Keep a line; what is over the limit is dropped, which the last line says."""
    run.log_bytes += len(line)
    if run.log_bytes <= run.part.log_bytes and len(run.log) < LOG_LINES_MAX:
        run.log.append(line.replace("\r", " ").replace("\n", " "))
    elif run.log[-1:] != ["…"]:
        run.log.append("…")


_HOST: dict[str, Callable[[_Run, Sequence[int]], int]] = {
    "table_get": _table_get,
    "table_scan": _table_scan,
    "table_top": _table_top,
    "put": _put,
    "clock": _clock,
    "random": _random,
    "log": _log,
}
_active = threading.local()


def _callback(name: str, host: HostImport) -> Any:
    """The C function of a host function: parameters from the raw values, the result to the first of them."""
    work, kinds = _HOST[name], host.params

    def called(_env: object, _caller: object, values: Any, _n: int) -> int:
        run: _Run = _active.run
        try:
            args = [values[i].i32 & _I32 if kind == "i" else values[i].i64 for i, kind in enumerate(kinds)]
            result = work(run, args)
        except BaseException as error:  # must not unwind through WebAssembly: kept, and raised where it was called from
            run.error = error
            return (
                ctypes.cast(ffi.wasmtime_trap_new(ctypes.create_string_buffer(b"host"), 4), ctypes.c_void_p).value or 0
            )
        if host.result == "l":
            values[0].i64 = result
        else:
            values[0].i32 = result
        return 0

    return ffi.wasmtime_func_unchecked_callback_t(called)


_CALLBACKS = {name: _callback(name, host) for name, host in IMPORTS.items()}
_TYPES = {"i": wasmtime.ValType.i32, "l": wasmtime.ValType.i64}
_NO_FINALIZER = ctypes.cast(0, ctypes.CFUNCTYPE(None, ctypes.c_void_p))


def _linker(of: wasmtime.Engine, capabilities: Sequence[str]) -> wasmtime.Linker:
    linker = wasmtime.Linker(of)
    for name, host in IMPORTS.items():
        if host.capability not in capabilities:
            continue
        kind = wasmtime.FuncType([_TYPES[p]() for p in host.params], [_TYPES[r]() for r in host.result])
        raw = name.encode()
        error = ffi.wasmtime_linker_define_func_unchecked(
            linker.ptr(),
            ctypes.create_string_buffer(IMPORT_MODULE.encode()),
            len(IMPORT_MODULE),
            ctypes.create_string_buffer(raw),
            len(raw),
            kind.ptr(),
            _CALLBACKS[name],
            None,
            _NO_FINALIZER,
        )
        if error:
            raise wasmtime.WasmtimeError._from_ptr(error)
    return linker


class FunctionHost:
    """One function, compiled and linked. `run` may be called from several threads at once."""

    def __init__(self, wasm: bytes, cache: engine.FunctionModules, part: FunctionPart, limits: Limits) -> None:
        """BadInput: it is no module of the ABI, or uses what its manifest does not name."""
        compiled: CompiledModule = cache.load(wasm, part.fuel is not None)
        check_function_module(compiled, part.capabilities)
        self.sha256 = compiled.sha256
        self.part, self.limits = part, limits
        self._host: EngineHost = cache.host
        self._engine = cache.host.engine(compiled.metered)
        self._instantiate = (
            engine.pre_instantiate if engine.starts_at_once(wasm) else ffi.wasmtime_instance_pre_instantiate
        )
        try:
            self._pre = _linker(self._engine, part.capabilities).instantiate_pre(compiled.module)
        except wasmtime.WasmtimeError as error:
            raise BadInput(f"the module cannot be linked: {first_line(str(error))}", field="module") from None

    def check(self) -> None:
        """BadInput unless an instance starts within the limits and is of this ABI."""
        try:
            with _Instance(self, _NoServices(), self.limits.deadline_s) as instance:
                answered = instance.call(MARKER, ())
        except UdfTrap as trap:
            raise BadInput(f"the module does not start: {trap.detail}", field="module") from None
        if answered != ABI_VERSION:
            raise BadInput(f"the module answers ABI version {answered}, not {ABI_VERSION}", field="module")

    def instantiate(self) -> None:
        """Start an instance and give it back: to measure what that costs."""
        with _Instance(self, _NoServices(), self.limits.deadline_s):
            pass

    def answer_alone(self, request: bytes) -> FunctionAnswer:
        """The answer to a request that asks nothing of the host; UdfTrap when it does."""
        return self.run(request, _NoServices()).answer

    def run(self, request: bytes, services: FunctionServices, deadline_s: float | None = None) -> FunctionResult:
        """One request, at most `deadline_s` (default: the manifest's) of epochs long.

        UdfTrap: it trapped, broke a limit or answered nonsense. NotNow, and whatever else `services` raise.
        """
        with _Instance(self, services, self.limits.deadline_s if deadline_s is None else deadline_s) as instance:
            ptr = instance.call("streams_alloc", (len(request),))
            ctypes.memmove(instance.run.address(ptr, len(request)), request, len(request))
            desc = instance.call("streams_handle", (ptr, len(request)))
            answer = decode_answer(instance.described(desc))
            run = instance.run
            return FunctionResult(answer, run.puts, run.log, run.tables)


class _Instance:
    """A store and an instance for one request; a context manager, on one thread."""

    def __init__(self, host: FunctionHost, services: FunctionServices, deadline_s: float) -> None:
        self._host, self._deadline_s = host, deadline_s
        self._store = engine.store_new(host._engine.ptr(), None, _NO_FINALIZER)
        self._context = engine.store_context(self._store)
        self.run = _Run(services, host.part, self._context)
        self._values = (ffi.wasmtime_val_raw_t * 2)()
        self._trap = ctypes.POINTER(ffi.wasm_trap_t)()
        self._instance = ffi.wasmtime_instance_t()

    def __enter__(self) -> _Instance:
        limits = self._host.limits
        self._host._host.begin()
        _active.run = self.run
        try:
            engine.store_limiter(self._store, limits.memory_bytes, 10_000, 1, 4, 1)
            native.set_epoch_deadline(self._context, engine.ticks_of(self._deadline_s))
            if self._host.part.fuel is not None:
                native.set_fuel(self._context, self._host.part.fuel)
            error = self._host._instantiate(
                self._host._pre.ptr(), self._context, ctypes.byref(self._instance), ctypes.byref(self._trap)
            )
            self._raise(error)
            self.run.memory = ctypes.byref(self._export(b"memory").of.memory)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        _active.run = None
        run = self.run
        size = 0 if run.memory is None else native.memory_size(self._context, run.memory)
        # Giving back a memory that has grown takes long enough for others to want the interpreter meanwhile.
        (engine.store_delete if size < _LARGE_BYTES else ffi.wasmtime_store_delete)(self._store)
        self._host._host.end()

    def _export(self, name: bytes) -> Any:
        found = ffi.wasmtime_extern_t()
        if not engine.export_get(self._context, ctypes.byref(self._instance), name, len(name), ctypes.byref(found)):
            raise UdfTrap(f"the module exports no {name.decode()}", TrapKind.MALFORMED)
        return found

    def call(self, name: str, params: Sequence[int]) -> int:
        """An export that answers an i32, unsigned; their types were checked when the module was loaded."""
        function = self._export(_RAW[name]).of.func
        for i, value in enumerate(params):
            self._values[i].i32 = value
        error = ffi.wasmtime_func_call_unchecked(
            self._context, ctypes.byref(function), self._values, max(1, len(params)), ctypes.byref(self._trap)
        )
        self._raise(error)
        return int(self._values[0].i32) & _I32

    def described(self, desc: int) -> bytes:
        """What a descriptor {u32 ptr, u32 length, i32 status} points to."""
        raw = self.run.text(desc, 12)
        ptr, size = int.from_bytes(raw[:4], "little"), int.from_bytes(raw[4:8], "little")
        status = int.from_bytes(raw[8:], "little", signed=True)
        if status < 0:
            raise UdfTrap(f"the module refused the request (status {status})", TrapKind.MALFORMED)
        limit = self._host.limits.output_bytes
        if size > limit:
            raise UdfTrap(f"output of {size} bytes is over the limit of {limit}", TrapKind.OUTPUT)
        return self.run.text(ptr, size)

    def _raise(self, error: Any) -> None:
        if not error and not self._trap:
            return
        found = wasmtime.WasmtimeError._from_ptr(error) if error else wasmtime.Trap._from_ptr(self._trap)
        if self.run.error is not None:
            raise self.run.error from None
        code = getattr(found, "trap_code", None)
        name = code.name if code is not None else ""
        if name == "INTERRUPT":
            raise UdfTrap(f"ran longer than its deadline of {self._deadline_s:g} s", TrapKind.DEADLINE) from None
        if name == "OUT_OF_FUEL":
            raise UdfTrap(f"used more than {self._host.part.fuel} units of fuel", TrapKind.FUEL) from None
        text = _MESSAGES.get(name) or first_line(str(found))
        limit = self._host.limits.memory_bytes
        if self.run.memory is not None and native.memory_size(self._context, self.run.memory) + (1 << 20) > limit:
            raise UdfTrap(f"memory limit of {limit} bytes reached: {text}", TrapKind.MEMORY) from None
        raise UdfTrap(text, TrapKind.TRAP) from None


class _NoServices:
    """For a module that is only looked at."""

    def _no(self, *_: object) -> Any:
        raise UdfTrap("it called the host, which is not there", TrapKind.TRAP)

    read = scan = top = check_put = now_ms = random = _no


def check_function(wasm: bytes, part: FunctionPart, limits: Limits, cache: engine.FunctionModules | None = None) -> str:
    """The module's hash, if it is a function that its manifest describes and that starts; BadInput otherwise."""
    host = FunctionHost(wasm, cache or engine.FunctionModules(), part, limits)
    host.check()
    return host.sha256
