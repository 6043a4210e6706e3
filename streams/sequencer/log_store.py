"""`LogStore`: what the rows of any sequenced log have in common: one RocksDB, whose log they are, and up to where."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from streams.model.errors import Conflict
from streams.state.errors import StoreCorrupt
from streams.state.options import StoreOptions
from streams.state.partition import TablePartition
from streams.wasm.machine_host import LogCommand

_TOPIC_ID, _MODULE = "topic_id", "machine"
_CHUNK_ROWS = 5_000
_WIPING = "-"


class LogStore:
    """The store of one group's rows; rows and offset go into it in one write batch, so it is the snapshot.

    `machine_hash`: of the module that makes the rows. A corrupt store, and rows of another machine, which this one may
    not even be able to read, are wiped: the log has everything.
    """

    def __init__(self, path: Path, topic: str, machine_hash: str, options: StoreOptions | None = None) -> None:
        self._topic, self._machine_hash = topic, machine_hash
        try:
            self.store = TablePartition(path, options)
        except StoreCorrupt:
            TablePartition.wipe(path)
            self.store = TablePartition(path, options)
        if self.store.meta(_MODULE) not in (None, machine_hash):
            self.wipe()

    @property
    def next(self) -> int:
        """The position in the log up to which everything is applied."""
        return self.store.changelog_offset() or 0

    @property
    def topic_id(self) -> str:
        """The id of the topic that these rows come from; empty before the first."""
        return self.store.meta(_TOPIC_ID) or ""

    def belongs_to(self, topic_id: str) -> bool:
        """Whether the rows are of this topic and were made by this very machine (or there are none yet)."""
        known, module = self.store.meta(_TOPIC_ID), self.store.meta(_MODULE)
        return known in (None, topic_id) and module in (None, self._machine_hash)

    def begin(self, topic_id: str) -> None:
        """Note where the rows come from, before the first is applied."""
        self.store.set_meta(_TOPIC_ID, topic_id)
        self.store.set_meta(_MODULE, self._machine_hash)

    def wipe(self) -> None:
        """Remove all rows, and the position: the log is read again from its start."""
        self.store.set_meta(_TOPIC_ID, _WIPING)  # no topic's: when it ends here, it is wiped again
        self.store.apply([], None, 0)
        for chunk in iter(lambda: self.store.scan(limit=_CHUNK_ROWS), []):
            self.store.apply([(key, None) for key, _ in chunk], None, 0)

    def check_follows(self, commands: Sequence[LogCommand]) -> None:
        """Conflict when they do not go on where the rows stand."""
        if commands and commands[0].offset < self.next:
            raise Conflict(f"{self._topic} stepped back to {commands[0].offset}, applied is {self.next}", field="topic")
