"""What a partition's task needs from the rooms below, as small protocols: unit tests drive it with fakes."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Protocol

from streams.kafka.batches import EncodedRecords
from streams.model.clock import wall_ms
from streams.model.marker import Marker
from streams.processing.commit import ChangelogRecord, Headers, unit_records

Rows = Collection[tuple[bytes, bytes | None]]
"""Rows by key; None: the row is removed."""

UnitRecords = Sequence[ChangelogRecord] | EncodedRecords
"""A unit's records: its rows, then its marker (or a claim alone)."""

LoadRows = Callable[[list[bytes]], Sequence[bytes | None]]


@dataclass(frozen=True, slots=True)
class Rejected:
    """An event that no table takes: where it stands in the log, why, and its bytes as they came. `part`: the put's
    position in its frame, -1 for a record of its own (or a frame as a whole). `box`: how it stopped the UDF, if it did
    (black_box.py); `held`: the UDF pauses before it, so it is reported, not passed over.
    """

    offset: int
    reason: str
    key: bytes | None
    value: bytes | None
    headers: Headers
    part: int = -1
    box: bytes = b""
    held: bool = False


@dataclass(frozen=True, slots=True)
class StoppedAt:
    """Where a fold did not go on: the offset to offer again from, how many events were folded before it (refused ones
    included), the append time of the last of them, and the event that it is held for."""

    next: int
    events: int
    append_ms: int
    held: Rejected | None = None


@dataclass(frozen=True, slots=True)
class Output:
    """A record for another topic, written in the same transaction as the unit it comes from.

    `partition` None: by the key's hash, as any producer would choose it.
    """

    topic: str
    partition: int | None
    key: bytes | None
    value: bytes | None
    headers: Headers


Made = tuple[int, bytes, bytes] | Output
"""What a UDF puts out: of a fold (index of its topic, key, value), of a map the record as it is written."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """A run's events, ready to fold. `last_append_ms`: append time of its last event (0: none, not even a bad one)."""

    batch: object
    events: int
    rejected: Sequence[Rejected]
    unknown_schemas: frozenset[int]
    last_append_ms: int


@dataclass(frozen=True, slots=True)
class InputBounds:
    """The input's topic id and the offsets between which its log stands. `begin`: where a new table begins with it;
    None: at the log's start."""

    topic_id: str
    start: int
    end: int
    begin: int | None = None


class RunPort(Protocol):
    """A fetched run of records: covers the offsets [base, next)."""

    @property
    def topic(self) -> str:
        """The input topic."""
        ...

    @property
    def partition(self) -> int:
        """Its partition."""
        ...

    @property
    def batches(self) -> tuple[bytes, ...]:
        """Raw record batches (v2, decompressed, committed data only)."""
        ...

    @property
    def base(self) -> int:
        """The first offset it covers."""
        ...

    @property
    def next(self) -> int:
        """The position after it."""
        ...

    @property
    def high_watermark(self) -> int:
        """The partition's end when it was fetched."""
        ...

    @property
    def size_bytes(self) -> int:
        """Bytes of all batches."""
        ...


class DecoderPort(Protocol):
    """Turns runs into batches. Blocking."""

    def decode(self, run: RunPort, from_offset: int) -> Decoded:
        """The events of `run` from `from_offset` on."""
        ...


class FoldPort(Protocol):
    """The UDF's instance for one partition. Blocking, one call at a time, any thread."""

    def fold(self, decoded: Decoded, load_rows: LoadRows) -> Sequence[Rejected]:
        """Fold a batch; returns the events that the UDF refused or that stopped it."""
        ...

    @property
    def stopped(self) -> StoppedAt | None:
        """Where the last fold did not go on; None: all of it was folded."""
        ...

    @property
    def searching(self) -> bool:
        """Whether a fold is looking for what stops the module, which may take long."""
        ...

    @property
    def changed_rows(self) -> int | None:
        """How many rows the next take may give, after a fold; None: nobody knows."""
        ...

    def cancel(self) -> None:
        """Make such a search end soon, with an error. From any thread."""
        ...

    def take(self) -> tuple[Rows, Sequence[Rejected]]:
        """The rows changed since the last take, and events of earlier folds that only now turned out bad."""
        ...

    def take_outputs(self) -> Sequence[Made]:
        """The UDF's outputs that belong to the rows of the last take: (index of its topic, key, value), or whole."""
        ...

    def committed(self) -> None:
        """The rows of the last take are in the store."""
        ...

    def close(self) -> None:
        """Let go of what is held."""
        ...


class WriterPort(Protocol):
    """The fenced writer of one changelog partition. Raises Fenced or UnknownOutcome."""

    async def start(self) -> None:
        """Fence every older owner."""
        ...

    async def commit(self, records: UnitRecords, outputs: Sequence[Output]) -> int:
        """One transaction; returns the changelog offset after it."""
        ...

    async def close(self) -> None:
        """Let go of connections; an open transaction is left to be aborted."""
        ...


class StorePort(Protocol):
    """The partition's RocksDB. Blocking; `apply` is one WriteBatch."""

    def marker(self) -> Marker | None:
        """The last applied marker."""
        ...

    def multi_get(self, keys: list[bytes]) -> Sequence[bytes | None]:
        """Rows of keys, in order."""
        ...

    def apply(self, rows: Rows, marker: Marker, changelog_offset: int) -> object:
        """Write a unit, its marker and the changelog position after it, all or nothing."""
        ...

    def close(self) -> None:
        """Let go of what is held."""
        ...


class ChangelogPort(Protocol):
    """Opens the partition's store and brings it to the changelog's end."""

    async def restore(self, end: int) -> StorePort:
        """The store, equal to the changelog up to `end`: the offset after the new owner's claim."""
        ...


class InputPort(Protocol):
    """The input partition, as the consumer of this process sees it."""

    async def bounds(self) -> InputBounds:
        """Ask the broker for the topic's id and the log's bounds."""
        ...

    async def seek(self, offset: int) -> None:
        """Fetch from `offset` on; what is on its way may still come."""
        ...


class SchemasPort(Protocol):
    """The definitions' schemas."""

    async def wait_for(self, schema_ids: frozenset[int], timeout_s: float) -> bool:
        """True when all ids have become known within the time."""
        ...


class ContainmentPort(Protocol):
    """When a UDF may fold, and how much at once (containment.py)."""

    @property
    def paused(self) -> str:
        """Why nothing is folded until somebody resumes it."""
        ...

    @property
    def resting(self) -> str:
        """Why nothing is folded just now."""
        ...

    @property
    def slice_events(self) -> int | None:
        """How many offsets to fold at once; None: as they come."""
        ...

    def wait_s(self) -> float:
        """How long until the next fold may begin: at most 0 for now, infinity while it is paused."""
        ...

    def folded(self, events: int) -> None:
        """So many events were folded."""
        ...

    def on_resume(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call back when it is resumed; returns what unsubscribes."""
        ...


@dataclass(frozen=True, slots=True)
class TaskPorts:
    """Everything a partition's task works with. `blocking` runs folds and store writes off the event loop; `encode`
    makes the records of a unit's rows and marker."""

    writer: WriterPort
    changelog: ChangelogPort
    input: InputPort
    decoder: DecoderPort
    fold: FoldPort
    schemas: SchemasPort
    blocking: Executor | None = None
    containment: ContainmentPort | None = None
    now_s: Callable[[], float] = time.monotonic
    wall_ms: Callable[[], int] = wall_ms
    encode: Callable[[Rows, Marker], tuple[Rows, UnitRecords]] = unit_records
