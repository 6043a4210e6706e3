"""Reading a partition's rows in key order, with leaps, as of one moment."""

from __future__ import annotations

from pathlib import Path

import rocksdict

from streams.state.errors import translate


class TableCursor:
    """A place among a partition's rows as they were when it was made, whatever is applied later.

    For one thread at a time, which need not be the one that made it. It keeps the partition's directory locked and old
    files on disk: drop it soon, and before the partition is opened anew. A move costs 1 µs, a leap 4 µs.
    """

    def __init__(self, source: rocksdict.Rdict, path: Path) -> None:
        self._rows = source.iter()
        self._path = path

    def seek(self, key: bytes) -> bytes | None:
        """Go to the first row at or after `key`; its key, or None when there is none."""
        self._rows.seek(key)
        return self.key

    @property
    def key(self) -> bytes | None:
        """The key of the row it stands at; None past the last."""
        if self._rows.valid():
            found: bytes = self._rows.key()
            return found
        try:
            self._rows.status()
        except Exception as error:  # the binding raises nothing more precise
            raise translate(error, self._path) from error
        return None

    @property
    def row(self) -> bytes:
        """The row it stands at; only where there is one."""
        found: bytes = self._rows.value()
        return found

    def advance(self) -> bytes | None:
        """Go to the next row; its key."""
        self._rows.next()
        return self.key

    def take(self, end: bytes, limit: int, into: list[bytes]) -> int:
        """Append to `into` the rows from here on whose keys are below `end`, at most `limit`; how many. It then stands
        at the first row not taken."""
        rows, taken = self._rows, 0
        while taken < limit and rows.valid() and rows.key() < end:
            into.append(rows.value())
            rows.next()
            taken += 1
        return taken
