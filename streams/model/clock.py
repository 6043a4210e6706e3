"""Hybrid logical clock (Kulkarni et al. 2014, "Logical Physical Clocks"), packed into 64 bits.

A timestamp is `milliseconds since the epoch << 16 | counter`: it compares like an integer, stays within
`MAX_AHEAD_MS` of the wall clock, and never repeats or goes back within one process.
"""

from __future__ import annotations

import time
from collections.abc import Callable

COUNTER_BITS = 16
COUNTER_MASK = (1 << COUNTER_BITS) - 1
MAX_AHEAD_MS = 1_000
"""An event whose clock is further ahead of its broker's append time than this is refused."""

NEVER_MS = 2**63 - 1
"""The expiry of what never expires."""


def wall_ms() -> int:
    """Milliseconds since the epoch, from the system clock."""
    return time.time_ns() // 1_000_000


def pack(ms: int, counter: int = 0) -> int:
    """A hybrid timestamp from wall milliseconds and a counter."""
    return (ms << COUNTER_BITS) | counter


def ms_of(hlc: int) -> int:
    """The wall-clock milliseconds of a hybrid timestamp."""
    return hlc >> COUNTER_BITS


class HybridClock:
    """Issues hybrid timestamps: each later than every one issued or observed before."""

    def __init__(self, now_ms: Callable[[], int] = wall_ms) -> None:
        self._now_ms = now_ms
        self._last = 0

    @property
    def last(self) -> int:
        """The latest timestamp issued or observed; 0 before the first."""
        return self._last

    def tick(self) -> int:
        """A new timestamp for a local event."""
        self._last = max(self._last + 1, pack(self._now_ms()))
        return self._last

    def observe(self, hlc: int) -> None:
        """Take note of another's timestamp, so that later ticks come after it.

        One that is more than `MAX_AHEAD_MS` ahead of the wall clock is not followed: a broken clock elsewhere
        must not drag this one into the future.
        """
        if ms_of(hlc) - self._now_ms() <= MAX_AHEAD_MS:
            self._last = max(self._last, hlc)
