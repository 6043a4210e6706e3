"""Calls of exported functions without wasmtime-py's per-call type look-ups (20-40 µs each).

Uses the same C function as `wasmtime.Func.__call__`, through wasmtime-py's own binding; wasmtime still checks
the types. The binding is not public API: pyproject pins wasmtime exactly, and the unit tests call through here.
"""

from __future__ import annotations

import ctypes
from typing import Any

import wasmtime
from wasmtime import _ffi as ffi

_SIGNATURES = {
    "streams_decode": "iill",
    "streams_take": "",
    "streams_outputs": "",
    "streams_changed": "",
    "streams_apply": "",
    "streams_restored": "",
    "streams_alloc": "i",
}
"""Parameters, i = i32 and l = i64; other exports whose name starts so: `streams_…_v1` none, the rest (ptr, len)."""


class FastFunction:
    """One exported function of one instance, answering an i32. Not thread-safe; dies with its store."""

    def __init__(self, store: wasmtime.Store, function: wasmtime.Func, name: str) -> None:
        kinds = _SIGNATURES.get(name, "" if name.endswith("_v1") else "ii")
        self._params: Any = (ffi.wasmtime_val_t * len(kinds))()
        for value, kind in zip(self._params, kinds, strict=True):
            value.kind = ffi.WASMTIME_I32 if kind == "i" else ffi.WASMTIME_I64
        self._fields = ["i32" if kind == "i" else "i64" for kind in kinds]
        self._results: Any = (ffi.wasmtime_val_t * 1)()
        self._context: Any = store._context()
        self._function = function
        self._reference = ctypes.byref(function._func)

    def __call__(self, *params: int) -> int:
        """The i32 answered, unsigned. wasmtime.Trap or WasmtimeError as from `wasmtime.Func`."""
        for value, field, param in zip(self._params, self._fields, params, strict=True):
            setattr(value.of, field, param)
        trap = ctypes.POINTER(ffi.wasm_trap_t)()
        error = ffi.wasmtime_func_call(
            self._context, self._reference, self._params, len(params), self._results, 1, ctypes.byref(trap)
        )
        if error:
            raise wasmtime.WasmtimeError._from_ptr(error)
        if trap:
            raise wasmtime.Trap._from_ptr(trap)
        return int(self._results[0].of.i32) & 0xFFFFFFFF
