"""`SequencedState`: a machine's rows on disk, with the offset that they stand for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from streams.model.clock import NEVER_MS
from streams.model.marker import InputPosition, Marker
from streams.sequencer.commands import META_KEY, MachineState, Result, decode_result, decode_state, expiry_of
from streams.sequencer.log_store import LogStore
from streams.state.options import StoreOptions
from streams.wasm.machine_host import LogCommand, MachineHost

_INDEX = b"\x01t"
SWEEP_ROWS = 200
"""Expired rows that are dropped with a batch, at most."""


@dataclass(frozen=True, slots=True)
class Step:
    """What a batch did: a result for each command; the users' rows that changed (None: removed)."""

    results: list[Result]
    keys: list[bytes]


class SequencedState(LogStore):
    """Rows, position and machine of one group. One RocksDB: rows and offset go into it in one write batch.

    So the store is the snapshot: a restart goes on at its offset. Rows that have expired by the time of the log count
    as absent and are dropped by the way, found by an index on their expiry that belongs to this replica alone.
    """

    def __init__(self, path: Path, topic: str, machine: MachineHost, options: StoreOptions | None = None) -> None:
        super().__init__(path, topic, machine.sha256, options)
        self._machine = machine
        self._time_ms = 0
        self._sweep_at_ms = 0
        self._load()

    def _load(self) -> None:
        self.machine_state: MachineState = decode_state(self.store.get(META_KEY))
        self._time_ms = self.machine_state.time_ms
        self._sweep_at_ms = 0

    def reset(self) -> None:
        """Forget everything: the log is read again from its start."""
        self.wipe()
        self._load()

    def apply(self, commands: Sequence[LogCommand], following: int) -> Step:
        """Apply commands; `following` is the log's position after them. One write batch: all or nothing.

        Conflict when they do not go on where the state stands. UdfTrap: nothing was applied.
        """
        self.check_follows(commands)
        done = self._machine.apply(commands, self.store.multi_get)
        rows = list(done.rows)
        first_ms = NEVER_MS
        for key, row in done.rows:
            if row is not None and (expires_ms := expiry_of(key, row)) != NEVER_MS:
                first_ms = min(first_ms, expires_ms)
                rows.append((_INDEX + expires_ms.to_bytes(8, "big") + key, b""))
        for key, row in done.rows:
            if key == META_KEY:
                self.machine_state = decode_state(row)
        self._time_ms = max(self._time_ms, self.machine_state.time_ms)
        due = done.rows and self._time_ms >= self._sweep_at_ms
        swept = self._sweep({key for key, _ in done.rows}) if due else []
        self.store.apply(rows + swept, None, following)
        self._sweep_at_ms = min(self._sweep_at_ms, first_ms)
        keys = [key for key, _ in (*done.rows, *swept) if key[0] >= 0x20]
        return Step([decode_result(each) for each in done.results], keys)

    def _sweep(self, just_changed: set[bytes]) -> list[tuple[bytes, bytes | None]]:
        """The rows of up to `SWEEP_ROWS` entries of the index that are due, and those entries.

        Every command leaves an entry that is due in a month, so the index is only looked at when its first one is due.
        """
        dead: list[tuple[bytes, bytes | None]] = []
        self._sweep_at_ms, kept = 0, False  # 0: something due may be left
        for entry, _ in self.store.scan(_INDEX, limit=SWEEP_ROWS):
            if (due_ms := int.from_bytes(entry[2:10], "big")) > self._time_ms:
                self._sweep_at_ms = self._time_ms if kept else due_ms
                break
            key = entry[10:]
            if key not in just_changed:
                row = self.store.get(key)
                if row is not None and expiry_of(key, row) <= self._time_ms:
                    dead.append((key, None))
                dead.append((entry, None))
            else:
                kept = True
        return dead

    def marker(self, time_ms: int) -> Marker:
        """Where this replica stands, as tables carry it; `time_ms`: everything acknowledged before is in."""
        return Marker(
            "commit",
            self.next,
            time_ms,
            {f"{self._topic}/0": InputPosition(self.next, self.topic_id)},
            self._machine.sha256,
        )

    def close(self) -> None:
        """Release the directory; idempotent."""
        self.store.close()
        self._machine.close()
