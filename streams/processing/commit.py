"""When to commit, and what a commit holds. Pure: time comes in as an argument, nothing is read or written.

A commit costs milliseconds whatever is in it, so commits are spaced by what the last one cost: an event that comes
alone is committed at once, a flood is coalesced into few large units.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import Enum

from streams.model.marker import MARKER_KEY, Marker
from streams.wasm.row_encoder import EncodedRows

Headers = Sequence[tuple[str, bytes]]
ChangelogRecord = tuple[bytes, bytes | None, Headers]
"""Key, value (None: the row was removed) and headers of one record of a changelog."""

SEQ_HEADER = "seq"
ROW_OBJECTS_BYTES = 250
"""Of a row: two bytes objects' headers, two tuples, a slot of a dictionary and two of lists."""
MANY_ROWS = 10_000
"""From so many on it is the rows that make a commit long, and fewer commits make them fewer."""
PACKED_ROW_BYTES = 40
"""Of a row that is held encoded: where it is, and where its key is looked for (streams/wasm/key_index.py)."""


@dataclass(frozen=True, slots=True)
class CommitOptions:
    """How commits are spaced.

    `spacing_s`: the least time from one commit's start to the next one's. `caught_up_factor`, `behind_factor`: how many
    times the last commit's duration passes between its end and the next one's start, when the log's end has been
    reached and when it has not (or a commit of MANY_ROWS takes longer than `behind_linger_s`). `behind_linger_s`: the
    least age of an uncommitted event before a commit while behind.
    `age_s`: an uncommitted event never waits longer; but an event that was late already when it was folded may wait for
    `late_share` times that time, up to `age_max_s`: a backlog of many keys is worked off in few large units, in each of
    which one row stands for many events. With a share above 1 an event waits less in all: it is the wait that makes
    units large enough, and what is late in the log waits there for nothing. `soft_bytes` of uncommitted input, or
    changed rows that are expected to take `soft_row_bytes` of memory, are committed at once; at `hard_bytes` and
    `hard_row_bytes` folding pauses. So are `soft_rows` changed rows: a gateway takes a unit in one step.
    `heartbeat_s`: a marker of its own at each multiple of it since the last commit: all
    partitions of a process in the same moment, so that they share requests, fetches and the mirror's transactions.
    """

    spacing_s: float = 0.015
    caught_up_factor: float = 1.0
    behind_factor: float = 4.0
    behind_linger_s: float = 0.1
    age_s: float = 0.5
    late_share: float = 4.0
    age_max_s: float = 7.5
    soft_bytes: int = 48 << 20
    hard_bytes: int = 128 << 20
    soft_row_bytes: int = 64 << 20
    hard_row_bytes: int = 96 << 20
    soft_rows: int = 400_000
    heartbeat_s: float = 0.5


class Action(Enum):
    """What the policy asks for."""

    WAIT = "wait"
    COMMIT = "commit"
    HEARTBEAT = "heartbeat"


@dataclass(frozen=True, slots=True)
class Decision:
    """An action, and for WAIT the time in seconds at which to ask again (None: when something happens)."""

    action: Action
    at_s: float | None = None


class CommitPolicy:
    """Decides when one partition commits. All times are seconds of one monotonic clock.

    Call `folded` after each run, `started` and `finished` around each commit; ask `decide` whenever something changed.
    """

    def __init__(self, options: CommitOptions, now_s: float) -> None:
        self.options = options
        self.caught_up = False
        self.in_flight = False
        self.last_duration_s = 0.0
        self._started_s = now_s
        self._ended_s = now_s
        self._oldest_s: float | None = None
        self._late_s = 0.0
        self._open_bytes = 0
        self._flight_bytes = 0
        self._open_events = 0
        self._flight_row_bytes = 0.0
        self._event_row_bytes = 0.0
        self._row_bytes = float(ROW_OBJECTS_BYTES)
        self._open_rows: int | None = 0
        self._last_rows = 0

    @property
    def uncommitted_bytes(self) -> int:
        """Input bytes folded but not known to be committed, those of a commit in flight included."""
        return self._open_bytes + self._flight_bytes

    @property
    def has_work(self) -> bool:
        """Whether something was folded since the last commit began."""
        return self._oldest_s is not None

    @property
    def may_fold(self) -> bool:
        """False while so much is uncommitted that folding must pause."""
        rows = self._open_row_bytes + self._flight_row_bytes
        return self.uncommitted_bytes < self.options.hard_bytes and rows < self.options.hard_row_bytes

    @property
    def _open_row_bytes(self) -> float:
        """What the rows of everything since the last commit began may take: as much a row as in the last unit. Where
        nobody knows how many have changed, as much an event as in the last unit; larger units have fewer rows an event.
        """
        if self._open_rows is not None:
            return self._open_rows * self._row_bytes
        return self._open_events * self._event_row_bytes

    def folded(
        self,
        now_s: float,
        size_bytes: int,
        *,
        caught_up: bool,
        events: int = 0,
        rows: int | None = None,
        late_s: float = 0.0,
    ) -> None:
        """A run of `size_bytes` with so many events was folded; `caught_up` says whether it reached the log's end,
        `rows` how many have changed since the last commit began (None: unknown), `late_s` how long ago the run's last
        event was appended."""
        self.caught_up = caught_up
        self._late_s = late_s
        self._open_bytes += size_bytes
        self._open_events += events
        self._open_rows = rows
        if self._oldest_s is None:
            self._oldest_s = now_s

    def started(self, now_s: float, row_bytes: int = 0, rows: int = 0) -> None:
        """A commit of everything folded so far begins; its `rows` take `row_bytes` in memory."""
        self.in_flight = True
        if rows:
            self._row_bytes = row_bytes / rows
        if self._open_events:
            self._event_row_bytes = row_bytes / self._open_events
        self._flight_row_bytes, self._open_events, self._open_rows = row_bytes, 0, 0
        self._last_rows = rows
        self._started_s = now_s
        self._oldest_s = None
        self._flight_bytes, self._open_bytes = self._open_bytes, 0

    def finished(self, now_s: float) -> None:
        """The commit in flight is in the changelog and in the store."""
        self.in_flight = False
        self._ended_s = now_s
        self.last_duration_s = now_s - self._started_s
        self._flight_bytes, self._flight_row_bytes = 0, 0

    def decide(self, now_s: float) -> Decision:
        """What to do now."""
        if self.in_flight:
            return Decision(Action.WAIT)
        if self._oldest_s is None:
            period_s = self.options.heartbeat_s
            return self._at((math.floor(self._ended_s / period_s) + 1) * period_s, now_s, Action.HEARTBEAT)
        options = self.options
        if self._open_bytes >= options.soft_bytes or self._open_row_bytes >= options.soft_row_bytes:
            return Decision(Action.COMMIT)
        if (self._open_rows or 0) >= options.soft_rows:
            return Decision(Action.COMMIT)
        return self._at(self._due_s(self._oldest_s), now_s, Action.COMMIT)

    def _due_s(self, oldest_s: float) -> float:
        options, age_s = self.options, self.options.age_s
        behind_s = options.behind_factor * self.last_duration_s
        if self.caught_up:
            is_dear = self.last_duration_s > options.behind_linger_s and self._last_rows >= MANY_ROWS
            due = self._ended_s + (behind_s if is_dear else options.caught_up_factor * self.last_duration_s)
        else:
            due = self._ended_s + behind_s
            due = max(due, oldest_s + options.behind_linger_s)
            age_s = max(age_s, min(options.late_share * self._late_s, options.age_max_s))
        due = max(due, self._started_s + options.spacing_s)
        return min(due, oldest_s + age_s, self._ended_s + options.age_max_s)

    @staticmethod
    def _at(due_s: float, now_s: float, action: Action) -> Decision:
        return Decision(action) if now_s >= due_s else Decision(Action.WAIT, due_s)


def unit_records(
    rows: Collection[tuple[bytes, bytes | None]], marker: Marker
) -> tuple[list[tuple[bytes, bytes | None]], list[ChangelogRecord]]:
    """The rows with `marker.seq` patched in, and the changelog records of the unit: rows first, the marker last."""
    seq_bytes = marker.seq.to_bytes(8, "little")
    removed: Headers = ((SEQ_HEADER, seq_bytes),)
    nothing: Headers = ()
    # As model.row.patch_seq, which per row costs twice as much: these are very many.
    stamped = [(key, None if row is None else row[:8] + seq_bytes + row[16:]) for key, row in rows]
    records: list[ChangelogRecord] = [(key, row, removed if row is None else nothing) for key, row in stamped]
    records.append((MARKER_KEY, marker.encode(), nothing))
    return stamped, records


def row_bytes_of(rows: Collection[tuple[bytes, bytes | None]]) -> int:
    """About what rows take in memory, with the objects and the dictionary's slots that hold them."""
    if isinstance(rows, EncodedRows):
        return rows.size_bytes + PACKED_ROW_BYTES * len(rows)
    held = sum(len(row) for _, row in rows if row is not None)
    return held + sum(len(key) for key, _ in rows) + ROW_OBJECTS_BYTES * len(rows)
