"""An order-statistic index: highest value first, ties by key; rank and top in logarithmic time.

Entries stand in sorted buckets of about a thousand. Adding, removing and ranking cost two binary searches; the ranks
before a bucket are the sum of its predecessors' sizes.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Generator, Iterator

from streams.model.clock import NEVER_MS

Number = int | float
Entry = tuple[Number, bytes]
"""(minus the value, key): sorts as readers see it."""

_LOAD = 1000


class OrderedIndex:
    """Keys by value, descending; equal values by key bytes, ascending. Ranks start at 1."""

    def __init__(self) -> None:
        self._buckets: list[list[Entry]] = []
        self._maxes: list[Entry] = []
        self._sizes: list[int] = []
        self._entries: dict[bytes, Entry] = {}
        self._expiries: dict[bytes, int] = {}
        self._heap: list[tuple[int, bytes]] = []

    def __len__(self) -> int:
        return len(self._entries)

    def load(self, entries: list[Entry], expiries: dict[bytes, int]) -> Iterator[None]:
        """Fill an empty index; a generator, to be advanced until it ends, that does about a millisecond a step.

        Sample sort: every step sorts one small bucket, so that no step holds the event loop for long.
        """
        splitters = yield from _splitters(entries)
        piles: list[list[Entry]] = [[] for _ in range(len(splitters) + 1)]
        for first in range(0, len(entries), _LOAD):
            for entry in entries[first : first + _LOAD]:
                piles[bisect_left(splitters, entry)].append(entry)
            yield
        entries.clear()
        for pile in piles:
            pile.sort()
            for first in range(0, len(pile), _LOAD):
                self._append_bucket(pile[first : first + _LOAD])
            for entry in pile:
                self._entries[entry[1]] = entry
            yield
        self._expiries = expiries
        for count, (key, expires_ms) in enumerate(expiries.items()):
            heapq.heappush(self._heap, (expires_ms, key))
            if count % _LOAD == 0:
                yield

    def set(self, key: bytes, value: Number, expires_ms: int = NEVER_MS) -> None:
        """Put `key` where its value belongs."""
        entry = (-value, key)
        old = self._entries.get(key)
        if old != entry:
            if old is not None:
                self._remove(old)
            self._entries[key] = entry
            self._add(entry)
        known = self._expiries.get(key)
        if expires_ms == NEVER_MS:
            if known is not None:
                del self._expiries[key]
        elif known != expires_ms:
            self._expiries[key] = expires_ms
            if known is None or expires_ms < known:
                heapq.heappush(self._heap, (expires_ms, key))

    def discard(self, key: bytes) -> None:
        """Take `key` out, if it is in."""
        old = self._entries.pop(key, None)
        if old is not None:
            self._remove(old)
            self._expiries.pop(key, None)

    def expired(self, now_ms: int, limit: int) -> list[bytes]:
        """Up to `limit` keys whose expiry has come; each must be set anew or discarded by the caller."""
        found: list[bytes] = []
        heap = self._heap
        while heap and heap[0][0] <= now_ms and len(found) < limit:
            at, key = heapq.heappop(heap)
            current = self._expiries.get(key)
            if current is None:
                continue
            if current > at:
                heapq.heappush(heap, (current, key))
            else:
                del self._expiries[key]
                found.append(key)
        return found

    def has_expired(self, now_ms: int) -> bool:
        """Whether some entry may have expired by `now_ms`."""
        return bool(self._heap) and self._heap[0][0] <= now_ms

    def top(self, n: int) -> list[tuple[int, bytes, Number]]:
        """The first `n` as (rank, key, value)."""
        return self.slice(1, n)

    def rank(self, key: bytes) -> int | None:
        """The rank of `key`, or None."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        bucket = bisect_left(self._maxes, entry)
        return sum(self._sizes[:bucket]) + bisect_left(self._buckets[bucket], entry) + 1

    def around(self, key: bytes, n: int) -> list[tuple[int, bytes, Number]]:
        """`key` with up to `n` neighbours on each side; empty when it is not in."""
        rank = self.rank(key)
        if rank is None:
            return []
        first = max(1, rank - n)
        return self.slice(first, rank + n - first + 1)

    def slice(self, first_rank: int, count: int) -> list[tuple[int, bytes, Number]]:
        """Up to `count` entries from `first_rank` on."""
        found: list[tuple[int, bytes, Number]] = []
        skip = first_rank - 1
        rank = first_rank
        for bucket in self._buckets:
            if len(found) >= count:
                break
            if skip >= len(bucket):
                skip -= len(bucket)
                continue
            for minus, key in bucket[skip : skip + count - len(found)]:
                found.append((rank, key, -minus))
                rank += 1
            skip = 0
        return found

    def _append_bucket(self, entries: list[Entry]) -> None:
        self._buckets.append(entries)
        self._maxes.append(entries[-1])
        self._sizes.append(len(entries))

    def _add(self, entry: Entry) -> None:
        if not self._buckets:
            self._append_bucket([entry])
            return
        at = min(bisect_left(self._maxes, entry), len(self._buckets) - 1)
        bucket = self._buckets[at]
        insort(bucket, entry)
        if len(bucket) > 2 * _LOAD:
            tail = bucket[_LOAD:]
            del bucket[_LOAD:]
            self._buckets.insert(at + 1, tail)
            self._maxes.insert(at + 1, tail[-1])
            self._sizes.insert(at + 1, len(tail))
        self._maxes[at] = bucket[-1]
        self._sizes[at] = len(bucket)

    def _remove(self, entry: Entry) -> None:
        at = bisect_left(self._maxes, entry)
        bucket = self._buckets[at]
        del bucket[bisect_left(bucket, entry)]
        if bucket:
            self._maxes[at] = bucket[-1]
            self._sizes[at] = len(bucket)
        else:
            del self._buckets[at], self._maxes[at], self._sizes[at]


def _splitters(entries: list[Entry]) -> Generator[None, None, list[Entry]]:
    """Generator that returns about one splitter per bucket, from a sample of the entries."""
    wanted = len(entries) // _LOAD
    step = max(1, len(entries) // max(1, wanted * 4))
    sample = entries[::step]
    yield
    runs = []
    for first in range(0, len(sample), _LOAD):
        runs.append(sorted(sample[first : first + _LOAD]))
        yield
    ordered = list(heapq.merge(*runs))
    return ordered[4::4] if wanted else []
