"""How much a UDF's table holds in this process, counted exactly while it has a limit; over it, the UDF pauses."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from streams.model.marker import Marker
from streams.processing.ports import ChangelogPort, Rows, StorePort
from streams.wasm.engine import Limits


class CountableStore(StorePort, Protocol):
    """A store whose rows can be gone through."""

    def iterate(self) -> Iterator[tuple[bytes, bytes]]:
        """All (key, row)."""
        ...


class TableUse:
    """Rows and bytes (keys included) of a table's partitions in this process. From any thread."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._lock = threading.Lock()
        self._used: dict[str, tuple[int, int]] = {}

    @property
    def limited(self) -> bool:
        """Whether there is anything to count for."""
        return self._limits.table_rows is not None or self._limits.table_bytes is not None

    @property
    def total(self) -> tuple[int, int]:
        """Rows and bytes now."""
        with self._lock:
            used = list(self._used.values())
        return sum(rows for rows, _ in used), sum(size for _, size in used)

    def set(self, partition: str, rows: int, size_bytes: int) -> None:
        """A partition holds this now."""
        with self._lock:
            self._used[partition] = (rows, size_bytes)

    def forget(self, partition: str) -> None:
        """A partition is no longer here."""
        with self._lock:
            self._used.pop(partition, None)

    def excess(self) -> str:
        """What is over its limit, in words; empty: nothing is."""
        rows, size = self.total
        if self._limits.table_rows is not None and rows > self._limits.table_rows:
            return f"the table holds {rows} rows here, over table_rows = {self._limits.table_rows}"
        if self._limits.table_bytes is not None and size > self._limits.table_bytes:
            return f"the table holds {size} bytes here, over table_bytes = {self._limits.table_bytes}"
        return ""


class CountedStore:
    """A StorePort that keeps a TableUse current. `too_large` is told why after a unit that made it so, or more so."""

    def __init__(self, store: CountableStore, use: TableUse, partition: str, too_large: Callable[[str], None]) -> None:
        self._store, self._use, self._partition, self._too_large = store, use, partition, too_large
        self._rows = self._bytes = 0
        for key, row in store.iterate():
            self._rows += 1
            self._bytes += len(key) + len(row)
        use.set(partition, self._rows, self._bytes)

    def marker(self) -> Marker | None:
        """The last applied marker."""
        return self._store.marker()

    def multi_get(self, keys: list[bytes]) -> Sequence[bytes | None]:
        """Rows of keys, in order."""
        return self._store.multi_get(keys)

    def apply(self, rows: Rows, marker: Marker, changelog_offset: int) -> object:
        """Write a unit; count what it changed."""
        after = dict(rows)  # once: rows that are packed are made while they are looked at
        keys = list(after)
        before = dict(zip(keys, self._store.multi_get(keys), strict=True))
        done = self._store.apply(rows, marker, changelog_offset)
        more_rows = more_bytes = 0
        for key, row in after.items():
            old = before[key]
            more_rows += (row is not None) - (old is not None)
            more_bytes += (0 if row is None else len(key) + len(row)) - (0 if old is None else len(key) + len(old))
        self._rows, self._bytes = self._rows + more_rows, self._bytes + more_bytes
        self._use.set(self._partition, self._rows, self._bytes)
        if (more_rows > 0 or more_bytes > 0) and (excess := self._use.excess()):
            self._too_large(excess)
        return done

    def close(self) -> None:
        """Let go of what is held."""
        self._use.forget(self._partition)
        self._store.close()


class CountedChangelog:
    """A ChangelogPort whose stores are counted."""

    def __init__(
        self, changelog: ChangelogPort, use: TableUse, partition: str, too_large: Callable[[str], None]
    ) -> None:
        self._changelog, self._use, self._partition, self._too_large = changelog, use, partition, too_large

    async def restore(self, end: int) -> StorePort:
        """The store, equal to the changelog up to `end`."""
        store = await self._changelog.restore(end)
        return CountedStore(store, self._use, self._partition, self._too_large)  # type: ignore[arg-type]
