"""Functions of wasmtime's library that keep the GIL: for what is over sooner than another thread could use it.

Through wasmtime-py's own binding each of these calls gives the GIL away and waits for it again, beside busy threads for
up to their switch interval. The signatures are those of that binding, which pyproject pins.
"""

from __future__ import annotations

import ctypes
from typing import Any

from wasmtime import _bindings as bindings
from wasmtime import _ffi as ffi

_LIBRARY = ctypes.PyDLL(ffi.dll._name)


def without_releasing(name: str) -> Any:
    """The library's function `name`, called with the GIL held. Not for what may run WebAssembly."""
    found = getattr(_LIBRARY, name)
    like = getattr(bindings, f"_{name}")
    found.argtypes, found.restype = like.argtypes, like.restype
    return found


set_epoch_deadline = without_releasing("wasmtime_context_set_epoch_deadline")
set_fuel = without_releasing("wasmtime_context_set_fuel")
memory_data = without_releasing("wasmtime_memory_data")
memory_data.restype = ctypes.c_void_p
memory_size = without_releasing("wasmtime_memory_data_size")
