"""Hot rows, decoded and merged: least recently used first out, bounded by bytes."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from streams.model.merge import Merged

_ENTRY_BYTES = 320
"""Key object, entry, slots of the dictionary, merged value without its payload: measured, rounded up."""


@dataclass(frozen=True, slots=True)
class Cached:
    """A key's merged row and the hybrid time of its latest delete, as of the last publish that touched it."""

    merged: Merged | None
    generation: int
    cost: int


class RowCache:
    """From key to `Cached`. An entry is right until its key is invalidated or its value expires."""

    def __init__(self, budget_bytes: int) -> None:
        self._budget = budget_bytes
        self._entries: OrderedDict[bytes, Cached] = OrderedDict()
        self.bytes = 0
        self.hits = 0
        self.misses = 0

    def get(self, key: bytes) -> Cached | None:
        """The entry of `key`, which becomes the most recently used."""
        found = self._entries.get(key)
        if found is None:
            self.misses += 1
            return None
        self.hits += 1
        self._entries.move_to_end(key)
        return found

    def put(self, key: bytes, merged: Merged | None, generation: int) -> Cached:
        """Keep an entry, at the cost of the least recently used ones; returns it."""
        self.drop(key)
        payload = merged.value if merged is not None else None
        cost = _ENTRY_BYTES + len(key) + (sys.getsizeof(payload) if isinstance(payload, bytes) else 0)
        entry = Cached(merged, generation, cost)
        if cost > self._budget:
            return entry
        self._entries[key] = entry
        self.bytes += cost
        while self.bytes > self._budget:
            _, oldest = self._entries.popitem(last=False)
            self.bytes -= oldest.cost
        return entry

    def drop(self, key: bytes) -> None:
        """Forget a key."""
        found = self._entries.pop(key, None)
        if found is not None:
            self.bytes -= found.cost

    def drop_all(self, keys: Iterable[bytes]) -> None:
        """Forget these keys."""
        entries = self._entries
        if entries:
            for key in keys:
                if key in entries:  # of a publish's very many keys few are
                    self.drop(key)

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._entries)
