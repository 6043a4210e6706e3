"""The frames of a wasmtime trap, innermost first: names where the module has them, and not more than a screenful."""

from __future__ import annotations

from ctypes import byref

import wasmtime
from wasmtime import _ffi as ffi
from wasmtime._trap import Frame, FrameList

FRAMES_MAX = 24
_NAME_MAX = 120


def frames_of(error: Exception) -> tuple[str, ...]:
    """`name+0x1f (function 7)` for each frame; empty when the error carries none.

    Reads the first frames alone: a runaway recursion has tens of thousands, and wasmtime-py's `frames` makes all.
    """
    if not isinstance(error, wasmtime.Trap):
        return ()
    found = FrameList(error)
    ffi.wasm_trap_trace(error.ptr(), byref(found.vec))
    size = int(found.vec.size)
    lines = [_line(Frame._from_ptr(found.vec.data[at], found)) for at in range(min(size, FRAMES_MAX))]
    return (*lines, f"… {size - FRAMES_MAX} more") if size > FRAMES_MAX else tuple(lines)


def _line(frame: Frame) -> str:
    name, index = frame.func_name, frame.func_index
    at = f"+{frame.func_offset:#x} (function {index})"
    return f"{name[:_NAME_MAX]}{at}" if name else f"?{at}"
