"""Many partitions of one process: opened with the same options, closed together."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from streams.state.options import StoreOptions
from streams.state.partition import TablePartition

_CLOSERS = 8


def close_all(partitions: Iterable[TablePartition]) -> None:
    """Close partitions concurrently: one by one, many of them can outlast a consumer's poll interval.

    All are closed; then the first error, if any, is raised.
    """
    found = list(partitions)
    if not found:
        return
    with ThreadPoolExecutor(min(_CLOSERS, len(found)), thread_name_prefix="close") as pool:
        failures = [job.exception() for job in [pool.submit(partition.close) for partition in found]]
    for failure in failures:
        if failure is not None:
            raise failure


class StoreSet:
    """The open partitions of a process, by path."""

    def __init__(self, options: StoreOptions | None = None) -> None:
        self.options = options or StoreOptions()
        self._open: dict[Path, TablePartition] = {}

    def open(self, path: Path) -> TablePartition:
        """The partition in `path`, opened on first use. Errors as TablePartition's."""
        found = self._open.get(path)
        if found is None:
            found = self._open[path] = TablePartition(path, self.options)
        return found

    def fresh(self, path: Path) -> TablePartition:
        """An empty partition in `path`: what was there is removed."""
        self.close(path)
        TablePartition.wipe(path)
        return self.open(path)

    def close(self, path: Path) -> None:
        """Close one partition, if it is open."""
        found = self._open.pop(path, None)
        if found is not None:
            found.close()

    def close_under(self, path: Path) -> None:
        """Close the open partitions in directories below `path`."""
        found = [each for each in list(self._open) if each.is_relative_to(path)]
        close_all(self._open.pop(each) for each in found)

    def close_all(self) -> None:
        """Close every open partition, concurrently."""
        found = list(self._open.values())
        self._open.clear()
        close_all(found)

    def __len__(self) -> int:
        return len(self._open)
