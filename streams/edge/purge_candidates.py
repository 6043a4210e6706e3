"""Keys that may be due for a purge, soonest first, so many and no more."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from streams.edge.purge_rules import PurgeOptions
from streams.model.clock import NEVER_MS

Longs = NDArray[np.int64]


class Candidates:
    """A bounded heap of (when, table, key). What it does not take is left to scans: `far` names the tables of keys that
    are due beyond the horizon, `overflowed` those of keys that found no room."""

    def __init__(self, options: PurgeOptions) -> None:
        self._options = options
        self._heap: list[tuple[int, str, bytes]] = []
        self._due: dict[tuple[str, bytes], int] = {}
        self.far: set[str] = set()
        self.overflowed: set[str] = set()

    def __len__(self) -> int:
        return len(self._due)

    def remember(self, at_ms: int, table: str, key: bytes, now_ms: int) -> None:
        """Look at `key` when it is `at_ms`, or sooner if that was asked before."""
        known = self._due.get((table, key))
        if known is not None and known <= at_ms:
            return
        if known is None:
            # What is due in a day must not keep out what is due now.
            if at_ms > now_ms + self._options.horizon_s * 1000:
                self.far.add(table)
                return
            if len(self._due) >= self._options.candidates_max:
                self.overflowed.add(table)
                return
        self._due[(table, key)] = at_ms
        heapq.heappush(self._heap, (at_ms, table, key))

    def remember_all(self, at_ms: Longs, table: str, keys: Sequence[bytes], now_ms: int) -> None:
        """As `remember` for each key; NEVER_MS is for those not to be remembered. Those beyond the horizon may be very
        many, and are not kept one by one."""
        horizon_ms = now_ms + self._options.horizon_s * 1000
        wanted, near = at_ms != NEVER_MS, at_ms <= horizon_ms
        far = map(int, np.flatnonzero(wanted & ~near))
        if table not in self.far and any((table, keys[at]) not in self._due for at in far):
            self.far.add(table)
        for at in np.flatnonzero(wanted & near).tolist():
            self.remember(int(at_ms[at]), table, keys[at], now_ms)

    def is_due(self, now_ms: int) -> bool:
        """Whether there may be something to look at now."""
        return bool(self._heap) and self._heap[0][0] <= now_ms

    def take(self, now_ms: int, limit: int) -> dict[str, list[bytes]]:
        """Up to `limit` keys that are due, by table; they are forgotten here."""
        found: dict[str, list[bytes]] = {}
        while limit > 0 and self.is_due(now_ms):
            at_ms, table, key = heapq.heappop(self._heap)
            if self._due.get((table, key)) != at_ms:
                continue
            del self._due[(table, key)]
            found.setdefault(table, []).append(key)
            limit -= 1
        return found
