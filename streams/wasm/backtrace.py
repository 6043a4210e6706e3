"""The frames of a wasmtime trap, innermost first: names where the module has them. wasmtime keeps the innermost 20."""

from __future__ import annotations

import wasmtime

FRAMES_MAX = 32
_NAME_MAX = 120
_NOWHERE = 1 << 32
"""A function's prologue, as where the stack ran out, has no offset in the module."""


def frames_of(error: Exception) -> tuple[str, ...]:
    """`name+0x1f (function 7)` for each frame, `?` where the module has no name; empty when the error has no frames."""
    if not isinstance(error, wasmtime.Trap):
        return ()
    found = []
    for frame in error.frames[:FRAMES_MAX]:
        at = f"+{frame.func_offset:#x}" if frame.func_offset < _NOWHERE else ""
        found.append(f"{(frame.func_name or '?')[:_NAME_MAX]}{at} (function {frame.func_index})")
    return tuple(found)
