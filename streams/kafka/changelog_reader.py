"""Reads changelogs as units: rows are held back until the marker that commits them has been read."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from aiokafka.record.default_records import DefaultRecordBatch

from streams.kafka.errors import ChangelogTooLarge, CorruptLog
from streams.kafka.raw_fetch import FetchOptions, RawConsumer
from streams.kafka.run import TP, Run
from streams.model.errors import Timeout
from streams.model.marker import CLAIM_KEY, MARKER_KEY, Claim, Marker
from streams.model.unit_rows import SEQ_ENDS, UnitRows

_SPECIAL = (None, MARKER_KEY, CLAIM_KEY)
_TOMBSTONE_SEQ = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class Unit:
    """What a changelog says at one of its markers or claims.

    With a `marker`: `rows` are all rows of its atomic unit. With a `claim`: a new owner; no rows. `next_offset` is
    where reading may go on after this unit is applied without losing a row.
    """

    topic: str
    partition: int
    rows: UnitRows
    marker: Marker | None
    claim: Claim | None
    next_offset: int

    @property
    def tp(self) -> TP:
        """The changelog's partition."""
        return TP(self.topic, self.partition)


@dataclass(frozen=True)
class ChangelogOptions:
    """`buffer_bytes` bounds the rows of one partition that wait for their marker."""

    buffer_bytes: int = 512 * 1024 * 1024
    fetch: FetchOptions = FetchOptions(client_id="streams-changelog")  # noqa: RUF009 (frozen)


class UnitBuilder:
    """Turns the Runs of one partition into Units. Feed it every Run, in order."""

    def __init__(self, tp: TP, buffer_bytes: int) -> None:
        self._tp, self._limit = tp, buffer_bytes
        self._keys: list[bytes] = []
        self._rows: list[bytes | None] = []
        self._removed: dict[int, int] = {}
        self._bytes = 0
        self._first = -1

    @property
    def pending_rows(self) -> int:
        """Rows read whose marker has not been read."""
        return len(self._keys)

    def drain(self) -> UnitRows:
        """Those rows, given out early; only a restore may use them before their marker."""
        self._bytes = 0
        return self._take()

    def _take(self) -> UnitRows:
        rows = UnitRows(self._keys, self._rows, self._removed)
        self._keys, self._rows, self._removed = [], [], {}
        return rows

    def feed(self, run: Run) -> list[Unit]:
        """The Units that this Run completes. Raises ChangelogTooLarge or CorruptLog."""
        units: list[Unit] = []
        for batch in run.batches:
            units.extend(self._batch(batch, run.base))
            self._bytes += len(batch)
            if not self._keys:
                self._bytes = 0
            elif self._bytes > self._limit:
                raise ChangelogTooLarge(
                    f"{self._tp.topic}/{self._tp.partition}: {self._bytes} bytes of rows from offset {self._first} "
                    "have no marker yet",
                    fix="raise buffer_bytes, or commit smaller units",
                )
        return units

    def _batch(self, batch: bytes, base: int) -> Iterator[Unit]:
        records = DefaultRecordBatch(batch)
        if records.base_offset < base:
            records = (record for record in records if record.offset >= base)
        keys, rows = self._keys, self._rows
        for record in records:
            key, row = record.key, record.value
            if not keys:
                self._first = record.offset
            if key and key[0] and row is not None and len(row) >= SEQ_ENDS:  # nearly all
                keys.append(key)
                rows.append(row)
            elif key in _SPECIAL:
                yield self._unit(key, row, record.offset)
                keys, rows = self._keys, self._rows
            else:
                self._unusual_row(key, row, record)

    def _unusual_row(self, key: bytes, row: bytes | None, record: Any) -> None:
        """A row that was removed, or what is none."""
        try:
            if row is None:
                self._removed[len(self._keys)] = _tombstone_seq(record.headers)
            elif len(row) < SEQ_ENDS:
                raise KeyError(f"it has {len(row)} bytes")
        except KeyError as error:
            raise self._corrupt(record.offset, f"a row without a sequence number: {error}") from None
        self._keys.append(key)
        self._rows.append(row)

    def _unit(self, key: bytes | None, value: bytes | None, offset: int) -> Unit:
        try:
            if key == MARKER_KEY:
                return Unit(*self._tp, self._take(), Marker.decode(value or b""), None, offset + 1)
            if key == CLAIM_KEY:
                resume = self._first if self._keys else offset + 1
                return Unit(*self._tp, UnitRows([], [], {}), None, Claim.decode(value or b""), resume)
        except ValueError as error:
            raise self._corrupt(offset, str(error)) from None
        raise self._corrupt(offset, "a record without a key")

    def _corrupt(self, offset: int, what: str) -> CorruptLog:
        return CorruptLog(f"{self._tp.topic}/{self._tp.partition} offset {offset}: {what}")


def _tombstone_seq(headers: list[tuple[str, bytes | None]]) -> int:
    raw = dict(headers)["seq"]
    if raw is None or len(raw) != 8:
        raise KeyError("seq is not 8 bytes")
    return int(_TOMBSTONE_SEQ.unpack(raw)[0])


class ChangelogReader:
    """Follows changelog partitions, read_committed, as Units. Not for concurrent use."""

    def __init__(self, bootstrap_servers: str, options: ChangelogOptions = ChangelogOptions()) -> None:
        self._options = options
        self._consumer = RawConsumer(bootstrap_servers, options.fetch)
        self._builders: dict[TP, UnitBuilder] = {}

    async def start(self, positions: Mapping[tuple[str, int], int]) -> None:
        """Connect and read these partitions from these offsets."""
        await self._consumer.start()
        self.assign(positions)

    async def stop(self) -> None:
        """Disconnect; idempotent."""
        await self._consumer.stop()

    def assign(self, positions: Mapping[tuple[str, int], int]) -> None:
        """Read exactly these partitions from now on; buffered rows are dropped."""
        self._builders = {TP(*tp): UnitBuilder(TP(*tp), self._options.buffer_bytes) for tp in positions}
        self._consumer.assign(positions)

    def position(self, tp: tuple[str, int]) -> int:
        """The next offset to be fetched: also passes control batches, so it reaches the committed end."""
        return self._consumer.position(tp)

    def pending_rows(self, tp: tuple[str, int]) -> int:
        """Rows of a partition that wait for their marker."""
        return self._builders[TP(*tp)].pending_rows

    async def units(self, timeout_s: float, max_bytes: int | None = None) -> list[Unit]:
        """The Units at hand, in order per partition; may be empty. Waits up to `timeout_s` for data.

        Raises OffsetOutOfRange, ChangelogTooLarge, CorruptLog, Unavailable.
        """
        found: list[Unit] = []
        for run in await self._consumer.get_runs(timeout_s, max_bytes):
            found.extend(self._builders[run.tp].feed(run))
            await asyncio.sleep(0)
        return found


async def restore(
    bootstrap_servers: str,
    tp: tuple[str, int],
    from_offset: int,
    to_offset: int,
    *,
    options: ChangelogOptions = ChangelogOptions(),
    timeout_s: float = 30.0,
    eager: bool = False,
) -> AsyncIterator[list[Unit]]:
    """Units of one partition from `from_offset` until the position has reached `to_offset`, in chunks.

    Rows after the last marker are not given out (they belong to no committed unit). When `eager`, rows come before
    their marker, as Units with neither marker nor claim, so that a compacted changelog, whose only marker is its last,
    fits memory; it then reads on past `to_offset` until the rows given out have their marker. Sound only for a store
    that nobody reads yet. Timeout when nothing new comes for `timeout_s` before the end is reached.
    """
    consumer = RawConsumer(bootstrap_servers, options.fetch)
    builder = UnitBuilder(TP(*tp), options.buffer_bytes)
    await consumer.start()
    try:
        consumer.assign({tp: from_offset})
        position, open_rows = from_offset, False
        while position < to_offset or open_rows:
            runs = await consumer.get_runs(timeout_s, options.fetch.partition_bytes)
            if not runs:
                raise Timeout(f"restore of {tp[0]}/{tp[1]} stands at {position} of {to_offset} for {timeout_s} s")
            for run in runs:
                units = await asyncio.to_thread(builder.feed, run)
                position = run.next
                open_rows = open_rows and not any(unit.marker for unit in units)
                if eager and builder.pending_rows:
                    open_rows = True
                    units.append(Unit(*tp, builder.drain(), None, None, position))
                if units:
                    yield units
    finally:
        await consumer.stop()
