"""Large buffers that are used again: fresh pages cost more than the copy that fills them."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Make = Callable[[int], Bytes]
"""A buffer of so many bytes, contents undefined."""

_ROUND_BYTES = 1 << 20
_WASTE_MAX = 3
"""A buffer is not used for less than a third of it."""


class Buffers:
    """Gives out buffers, and takes each back by itself when the last array over it is gone. For any thread.

    At most `idle_bytes` are kept for the next; beyond that memory goes back to the system.
    """

    def __init__(self, idle_bytes: int) -> None:
        self._limit = idle_bytes
        self._lock = threading.Lock()
        self._idle: list[Bytes] = []
        self._returned: deque[Bytes] = deque()  # a finalizer may run anywhere, also while this thread holds the lock

    @property
    def idle_bytes(self) -> int:
        """Bytes that are kept for the next."""
        with self._lock:
            self._collect()
            return sum(each.nbytes for each in self._idle)

    def take(self, size: int) -> Bytes:
        """`size` bytes, contents undefined. It is in use as long as any array refers to it."""
        with self._lock:
            self._collect()
            fits = [at for at, each in enumerate(self._idle) if size <= each.nbytes <= _WASTE_MAX * size]
            best = min(fits, key=lambda at: self._idle[at].nbytes, default=None)
            memory = None if best is None else self._idle.pop(best)
        if memory is None:
            memory = np.empty(-(-size // _ROUND_BYTES) * _ROUND_BYTES, np.uint8)
        # Not a slice: that would refer to `memory` itself, and nobody could tell when it is free.
        given: Any = np.frombuffer(memory.data, np.uint8)
        given.flags.writeable = True
        weakref.finalize(given, self._returned.append, memory).atexit = False
        return given[:size]  # type: ignore[no-any-return]

    def _collect(self) -> None:
        while self._returned:
            self._idle.append(self._returned.popleft())
        while self._idle and sum(each.nbytes for each in self._idle) > self._limit:
            self._idle.pop(0)
