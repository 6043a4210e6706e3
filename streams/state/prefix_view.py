"""`PrefixView`: the rows of a partition whose keys begin with a prefix, as a table partition of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from streams.model.errors import BadInput
from streams.model.marker import Marker
from streams.state.cursor import TableCursor
from streams.state.partition import Rows, TablePartition


class PrefixView(TablePartition):
    """Read-only. `marker` says where the whole stands; the store behind it is opened and closed by its owner."""

    def __init__(self, whole: TablePartition, prefix: bytes, marker: Callable[[], Marker | None]) -> None:
        self.path = whole.path
        self._whole, self._prefix, self._current = whole, prefix, marker

    def marker(self) -> Marker | None:
        """Where the whole stands."""
        return self._current()

    def get(self, key: bytes) -> bytes | None:
        """The row of `key`, if it is in the view."""
        return self._whole.get(key) if key.startswith(self._prefix) else None

    def multi_get(self, keys: list[bytes]) -> list[bytes | None]:
        """The rows of `keys`, in their order."""
        found = self._whole.multi_get(keys)
        return [row if key.startswith(self._prefix) else None for key, row in zip(keys, found, strict=True)]

    def iterate(self, prefix: bytes = b"", after: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
        """All (key, row) of the view in key order, as of this call."""
        if prefix.startswith(self._prefix):
            return self._whole.iterate(prefix, after)
        if self._prefix.startswith(prefix):
            return self._whole.iterate(self._prefix, after)
        return iter(())

    def cursor(self) -> TableCursor:
        """Refused: nothing asks a view for it."""
        raise BadInput("a view has no cursor", field="table")

    def size_bytes(self) -> int:
        """Of the whole: what of its files is the view's own is not known."""
        return self._whole.size_bytes()

    def apply(self, rows: Rows, marker: Marker | None, changelog_offset: int, *, guard_seq: bool = False) -> int:
        """Refused: a view is written by nobody."""
        raise BadInput("a view is read-only", field="table")

    def close(self) -> None:
        """Nothing: the store is its owner's."""
