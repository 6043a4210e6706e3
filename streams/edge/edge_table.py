"""One table as a gateway serves it: replicas' rows merged at read, hot rows in memory, ordered indices on demand."""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from streams.edge.digest import Digest, DigestSum
from streams.edge.live_index import LiveIndex
from streams.edge.options import DecodeValue, EdgeOptions, TableSpec
from streams.edge.ordered_index import Number, OrderedIndex
from streams.edge.raw_merge import deleted_of, group_chunks, merge_encoded
from streams.edge.row_cache import Cached, RowCache
from streams.edge.watch import WatchLog
from streams.model.clock import NEVER_MS, wall_ms
from streams.model.errors import BadInput, TooManyRequests
from streams.model.marker import Marker
from streams.model.merge import Merged, Replica
from streams.state.cursor import TableCursor
from streams.state.partition import TablePartition

_CHUNK = 200
_FIELD_MAX = 200


@dataclass(frozen=True, slots=True)
class Ranked:
    """A row of an ordered read. `number` is what it is ordered by. `merged` is the row when that is one of its fields,
    None when it just vanished, or when the number is all that there is."""

    rank: int
    key: bytes
    number: Number
    merged: Merged | None


@dataclass(frozen=True, slots=True)
class ScanPage:
    """Rows in key order. `cursor`: pass it as `after` for the next page; None when there is nothing more."""

    rows: list[tuple[bytes, Merged]]
    cursor: bytes | None


@dataclass(frozen=True, slots=True)
class OriginView:
    """What one origin has written to a table, unmerged, at one moment: a cursor for each of its partitions.

    `passed_ms`: everything accepted in the origin before it is in; 0 while a partition was never heard from. `now_ms`:
    the clock that expiry is judged by. The cursors may be used in another thread, one at a time; drop them soon.
    """

    origin: str
    cursors: tuple[TableCursor, ...]
    passed_ms: int
    now_ms: int


class EdgeTable:
    """Reads of one table. All reads see whole commits: a publish is one step of the event loop."""

    def __init__(
        self,
        spec: TableSpec,
        options: EdgeOptions,
        decode: DecodeValue | None = None,
        clock: Callable[[], int] = wall_ms,
    ) -> None:
        self.spec = spec
        self._options, self._decode, self._clock = options, decode, clock
        self._replicas: dict[Replica, TablePartition] = {}
        self.cache = RowCache(options.cache_bytes)
        self.watch = WatchLog(time.time_ns(), options.watch_changes_max)
        self._indices: OrderedDict[str | None, LiveIndex] = OrderedDict()
        self._version = 0
        self._digest: tuple[int, int, Digest] | None = None

    def now_ms(self) -> int:
        """The clock that expiry is judged by, milliseconds."""
        return self._clock()

    @property
    def replicas(self) -> dict[Replica, TablePartition]:
        """The replicas that are served. Not to be changed by the caller."""
        return self._replicas

    def attach(self, replica: Replica, partition: TablePartition) -> None:
        """Serve a replica from now on; in place of the one before, if there was one."""
        self._replicas[replica] = partition
        self.cache.clear()
        self._version += 1
        for index in self._indices.values():
            index.forget()

    def published(self, keys: Sequence[bytes]) -> None:
        """Rows of `keys` were just written; called in the same step as the write."""
        if not keys:
            return
        self._version += 1
        self.cache.drop_all(keys)
        for index in self._indices.values():
            index.changed(keys)
        self.watch.append(keys)

    async def settled(self) -> None:
        """Wait for ordered reads that wait; the publisher calls it first, so that they cannot starve."""
        for index in list(self._indices.values()):
            if index.waiting:
                await index.settled()

    def rows_of(self, key: bytes) -> dict[Replica, bytes]:
        """The encoded rows that replicas hold for `key`."""
        found = {}
        for replica, partition in self._replicas.items():
            row = partition.get(key)
            if row is not None:
                found[replica] = row
        return found

    def get(self, key: bytes) -> Merged | None:
        """The row of `key` now, or None when it is absent, deleted or expired."""
        now_ms = self._clock()
        merged = self._cached(key, now_ms).merged
        return merged if merged is not None and merged.expires_ms > now_ms else None

    def generation_of(self, key: bytes) -> int:
        """The hybrid time of the latest delete of `key` that any replica knows; 0 for none. For a put's header."""
        return self._cached(key, self._clock()).generation

    def _cached(self, key: bytes, now_ms: int) -> Cached:
        found = self.cache.get(key)
        if found is not None and (found.merged is None or found.merged.expires_ms > now_ms):
            return found
        rows = self.rows_of(key)
        merged = merge_encoded(rows, now_ms) if rows else None
        generation = max(map(deleted_of, rows.values()), default=0)
        return self.cache.put(key, merged, generation)

    def merged_many(self, keys: list[bytes], now_ms: int) -> list[Merged | None]:
        """The rows of `keys` at `now_ms`; does not touch the cache."""
        found: list[dict[Replica, bytes]] = [{} for _ in keys]
        for replica, partition in self._replicas.items():
            for rows, row in zip(found, partition.multi_get(keys), strict=True):
                if row is not None:
                    rows[replica] = row
        return [merge_encoded(rows, now_ms) if rows else None for rows in found]

    def view_of(self, origin: str) -> OriginView:
        """The rows of one origin's replicas as they are now. Taken in a step of the event loop, as publishes are, so it
        holds whole commits, and all that the positions applied now say."""
        now_ms = self._clock()
        served = [self._replicas.get((origin, number)) for number in range(self.spec.partitions)]
        found = [each for each in served if each is not None]
        markers = [each.marker() for each in found]
        times = [marker.time_ms for marker in markers if marker is not None]
        passed_ms = min(times) if len(times) == self.spec.partitions else 0
        return OriginView(origin, tuple(each.cursor() for each in found), min(now_ms, passed_ms), now_ms)

    def scan(self, prefix: bytes = b"", limit: int = 100, after: bytes | None = None) -> ScanPage:
        """Up to `limit` live rows whose key starts with `prefix`, in key order, after key `after`.

        Looks at no more than `scan_examined_max` keys, so a page may be short; only `cursor` says whether it is the
        last.
        """
        now_ms = self._clock()
        rows: list[tuple[bytes, Merged]] = []
        if limit <= 0:
            return ScanPage(rows, after)
        examined = 0
        for group in self._grouped(prefix, after, max(1, min(limit, _CHUNK))):
            for key, replicas in group:
                merged = merge_encoded(replicas, now_ms)
                if merged is not None:
                    rows.append((key, merged))
                examined += 1
                if len(rows) >= limit or examined >= self._options.scan_examined_max:
                    return ScanPage(rows, key)
        return ScanPage(rows, None)

    def chunks(self, now_ms: int) -> Iterator[list[tuple[bytes, Merged]]]:
        """All rows alive at `now_ms`, in small chunks, each as of when it is taken."""
        for group in self.row_chunks():
            merged = ((key, merge_encoded(rows, now_ms)) for key, rows in group)
            yield [(key, row) for key, row in merged if row is not None]

    def row_chunks(self) -> Iterator[list[tuple[bytes, dict[Replica, bytes]]]]:
        """All rows by key, dead ones too, in small chunks, each as of when it is taken."""
        after: bytes | None = None
        while True:
            groups = self._grouped(b"", after, _CHUNK)
            group = next(groups)
            yield group
            if not group:
                return
            after = group[-1][0]

    def _grouped(
        self, prefix: bytes = b"", after: bytes | None = None, size: int = _CHUNK
    ) -> Iterator[list[tuple[bytes, dict[Replica, bytes]]]]:
        """Rows by key, in chunks, as of this call."""
        return group_chunks({replica: part.iterate(prefix, after) for replica, part in self._replicas.items()}, size)

    async def top(self, n: int, by: str | None = None) -> list[Ranked]:
        """The `n` highest rows. `by`: a numeric field of JSON object rows; None: the row's own number."""
        return await self._index(by).read(lambda index: self._ranked(index.top(n), by))

    def top_now(self, n: int, by: str | None = None) -> list[Ranked] | None:
        """As `top`, if it can be answered without waiting; None otherwise."""
        return self._index(by).read_now(lambda index: self._ranked(index.top(n), by))

    async def rank(self, key: bytes, by: str | None = None) -> Ranked | None:
        """Where `key` stands, from 1; None when it is absent or has no number."""

        def answer(index: OrderedIndex) -> Ranked | None:
            found = self._ranked(index.around(key, 0), by)
            return found[0] if found else None

        return await self._index(by).read(answer)

    async def around(self, key: bytes, n: int, by: str | None = None) -> list[Ranked]:
        """`key` and up to `n` rows on each side of it; empty when it is absent or has no number."""
        return await self._index(by).read(lambda index: self._ranked(index.around(key, n), by))

    def _ranked(self, found: list[tuple[int, bytes, Number]], by: str | None) -> list[Ranked]:
        if by is None:  # the row says no more, and looking a hundred up was a third of the whole request
            return [Ranked(rank, key, number, None) for rank, key, number in found]
        return [Ranked(rank, key, number, self.get(key)) for rank, key, number in found]

    def _index(self, by: str | None) -> LiveIndex:
        if by is not None and (not by or len(by) > _FIELD_MAX):
            raise BadInput("by is no field name", field="by", fix=f"name a field of at most {_FIELD_MAX} characters")
        found = self._indices.get(by)
        if found is None:
            while len(self._indices) >= self._options.indices_max:
                idle = [field for field, index in self._indices.items() if not index.busy]
                if not idle:
                    raise TooManyRequests(f"{len(self._indices)} orders of this table are being built", field="by")
                self._indices.pop(idle[0]).stop()
            found = LiveIndex(self, self._number_function(by), self._options.step_s)
            self._indices[by] = found
        self._indices.move_to_end(by)
        return found

    def _number_function(self, by: str | None) -> Callable[[Merged], Number | None]:
        def number_of(merged: Merged) -> Number | None:
            value: object = merged.value
            if isinstance(value, bytes):
                if self._decode is None:
                    return None
                try:
                    value = self._decode(self.spec.name, value)
                except (ValueError, BadInput):
                    return None
            if by is not None:
                value = value.get(by) if isinstance(value, dict) else None
            if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
                return None
            return value

        return number_of

    async def digest(self, as_of_ms: int | None = None) -> Digest:
        """The digest of the rows alive at `as_of_ms` (None: now), of one moment, computed without holding the loop."""
        as_of_ms = self._clock() if as_of_ms is None else as_of_ms
        known = self._digest
        if known is not None and known[0] == self._version and known[2].as_of_ms <= as_of_ms < known[1]:
            return Digest(known[2].hex, known[2].rows, as_of_ms, self._applied())
        version, applied = self._version, self._applied()
        total = DigestSum()
        next_expiry = NEVER_MS
        until = time.perf_counter() + self._options.step_s
        for group in self._grouped():
            for key, replicas in group:
                merged = merge_encoded(replicas, as_of_ms)
                if merged is not None:
                    total.add(key, merged)
                    next_expiry = min(next_expiry, merged.expires_ms)
            if time.perf_counter() > until:
                await asyncio.sleep(0)
                until = time.perf_counter() + self._options.step_s
        found = Digest(total.hex(), total.rows, as_of_ms, applied)
        self._digest = (version, next_expiry, found)
        return found

    def _applied(self) -> dict[str, tuple[int, int]]:
        found = {}
        for (origin, number), partition in sorted(self._replicas.items()):
            marker = partition.marker()
            if marker is not None:
                found[f"{origin}/{number}"] = (marker.seq, marker.time_ms)
        return found

    def markers(self) -> dict[Replica, Marker | None]:
        """The last applied marker of each served replica."""
        return {replica: partition.marker() for replica, partition in self._replicas.items()}

    async def close(self) -> None:
        """Stop the indices' background work."""
        for index in self._indices.values():
            await index.close()
        self._indices.clear()
