"""A long-running process' memory: few malloc arenas, freed memory given back, rare garbage collections."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import threading
import weakref
from pathlib import Path

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
ARENAS = 2
MMAP_FROM_BYTES = 2 << 20
TRIM_FROM_BYTES = 32 << 20
_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Of control groups, version 2 and 1."""
YOUNG_OBJECTS, YOUNG_ROUNDS, MIDDLE_ROUNDS = 50_000, 20, 50


def bound_malloc() -> bool:
    """Bound what glibc's malloc keeps of freed memory; before the process starts threads. False where it is not glibc.

    By default every thread gets an arena of its own, and the size from which blocks are mapped on their own (and given
    back when freed) grows to 32 MiB with use: what threads free then stays with the process, in pieces. Here there are
    `ARENAS`, blocks of `MMAP_FROM_BYTES` are always mapped, and the free end of the main arena is given back when it
    is larger than `TRIM_FROM_BYTES`.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    settings = ((_M_ARENA_MAX, ARENAS), (_M_MMAP_THRESHOLD, MMAP_FROM_BYTES), (_M_TRIM_THRESHOLD, TRIM_FROM_BYTES))
    done = [mallopt(which, value) == 1 for which, value in settings]
    return all(done)


def calm_collector() -> None:
    """What is alive now (modules, classes, tables' definitions) is never looked at again by the garbage collector, and
    it looks seldom: rows and records come by the ten thousand, short-lived and without cycles, and looking at them
    costs as much as making them.

    Call it once, when the process has started.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, YOUNG_ROUNDS, MIDDLE_ROUNDS)


def machine_bytes() -> int:
    """The memory that this process may hope for: the machine's, or its control group's if that is less; 0: unknown."""
    try:
        found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError):
        return 0
    for limit in _CGROUP_LIMITS:
        with contextlib.suppress(OSError, ValueError):  # there is none, or it is "max"
            found = min(found, int(limit.read_text()))
    return found


def machine_share(parts: int, least: int, most: int) -> int:
    """One of so many parts of the machine's memory, between two bounds: how large a cache may be."""
    return max(least, min(machine_bytes() // parts, most))


class MemoryShare:
    """A budget of one process for what many hold: each may have `most_bytes` while all together have no more than
    `total_bytes`, else `least_bytes`. From any thread.
    """

    def __init__(self, total_bytes: int, least_bytes: int, most_bytes: int) -> None:
        self._total, self._least, self._most = total_bytes, least_bytes, most_bytes
        self._held: weakref.WeakKeyDictionary[object, int] = weakref.WeakKeyDictionary()
        self._lock = threading.Lock()

    def allowed(self, holder: object, held_bytes: int) -> int:
        """How much the holder may have, that has so much now; it counts until it says another number, or is gone."""
        with self._lock:
            self._held[holder] = held_bytes
            return self._most if sum(self._held.values()) <= self._total else self._least
