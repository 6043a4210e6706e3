"""Fakes below the processing room's ports: a broker with fencing and transactions, a store, a counter UDF.

They stand in for Kafka, RocksDB and WASM in unit tests of the task's logic only; the real ones are used in
tests/integration and tests/faults.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from streams.kafka.errors import Fenced, UnknownOutcome
from streams.model.marker import CLAIM_KEY, MARKER_KEY, Marker
from streams.processing.commit import ChangelogRecord
from streams.processing.ports import Decoded, InputBounds, LoadRows, Output, Rejected, Rows, RunPort, StoppedAt

BAD = "bad"
YIELD_S = 0.0
LOUD = 1000
"""An amount from which on the FakeFold puts the event out, and counts it nowhere."""


@dataclass
class FakeRun:
    """Events [base, next) of a FakeBroker's input."""

    base: int
    next: int
    high_watermark: int
    size_bytes: int = 100
    topic: str = "events.score"
    partition: int = 0
    batches: tuple[bytes, ...] = ()


@dataclass
class FakeBroker:
    """One input partition (a list of (key, amount)), one changelog (committed units), one transactional id."""

    events: list[tuple[str, int]] = field(default_factory=list)
    units: list[list[ChangelogRecord]] = field(default_factory=list)
    outputs: list[Output] = field(default_factory=list)
    epoch: int = 0
    topic_id: str = "id-1"
    log_start: int = 0

    def end_offset(self) -> int:
        return sum(len(unit) + 1 for unit in self.units)

    def run(self, base: int, end: int) -> FakeRun:
        return FakeRun(base, end, len(self.events), 100 * (end - base))


class FakeStore:
    """Rows in a dict."""

    def __init__(self) -> None:
        self.rows: dict[bytes, bytes] = {}
        self.last: Marker | None = None
        self.offset = 0
        self.closed = False

    def marker(self) -> Marker | None:
        return self.last

    def multi_get(self, keys: list[bytes]) -> Sequence[bytes | None]:
        assert not self.closed
        return [self.rows.get(key) for key in keys]

    def apply(self, rows: Rows, marker: Marker, changelog_offset: int) -> None:
        assert not self.closed
        assert self.last is None or marker.seq > self.last.seq
        for key, row in rows:
            if row is None:
                self.rows.pop(key, None)
            else:
                self.rows[key] = row
        self.last, self.offset = marker, changelog_offset

    def close(self) -> None:
        self.closed = True


class FakeWriter:
    """Fenced by a later `start`; `trouble` may raise before or after the unit is in."""

    def __init__(self, broker: FakeBroker, trouble: Callable[[str], None]) -> None:
        self.broker, self.trouble = broker, trouble
        self.epoch = 0

    async def start(self) -> None:
        self.broker.epoch += 1
        self.epoch = self.broker.epoch

    async def commit(self, records: Sequence[ChangelogRecord], outputs: Sequence[Output]) -> int:
        await asyncio.sleep(YIELD_S)
        if self.epoch != self.broker.epoch:
            raise Fenced("a newer owner is there")
        self.trouble("before")
        self.broker.units.append(list(records))
        self.broker.outputs.extend(outputs)
        self.trouble("after")
        return self.broker.end_offset()

    async def close(self) -> None:
        return


class FakeChangelog:
    """Restores by reading all units; the local store survives between owners, as a directory does."""

    def __init__(self, broker: FakeBroker, local: FakeStore) -> None:
        self.broker, self.local = broker, local
        self.restored_to = -1

    async def restore(self, end: int) -> FakeStore:
        self.local.closed = False
        self.restored_to = end
        at = 0
        for unit in self.broker.units:
            at += len(unit) + 1
            if at > end:
                break
            rows = [(key, value) for key, value, _ in unit if key not in (MARKER_KEY, CLAIM_KEY)]
            markers = [value for key, value, _ in unit if key == MARKER_KEY]
            if at > self.local.offset and markers and markers[0] is not None:
                self.local.apply(rows, Marker.decode(markers[0]), at)
        return self.local


class FakeInput:
    """Remembers seeks; the driver reads `position` to know what to fetch next."""

    def __init__(self, broker: FakeBroker) -> None:
        self.broker = broker
        self.position = -1

    async def bounds(self) -> InputBounds:
        return InputBounds(self.broker.topic_id, self.broker.log_start, len(self.broker.events))

    async def seek(self, offset: int) -> None:
        self.position = offset


class FakeDecoder:
    """Slices the broker's events; `unknown` schema ids are keys that start with `new`."""

    def __init__(self, broker: FakeBroker) -> None:
        self.broker = broker
        self.known: set[str] = set()

    def decode(self, run: RunPort, from_offset: int) -> Decoded:
        assert run.base <= from_offset < run.next
        batch, rejected, unknown = [], [], set()
        for offset in range(from_offset, run.next):
            key, amount = self.broker.events[offset]
            if key == BAD:
                rejected.append(Rejected(offset, "wrong magic", key.encode(), b"?", (("h", b"1"),)))
            elif key.startswith("new") and key not in self.known:
                unknown.add(len(key))
                rejected.append(Rejected(offset, "unknown schema id", key.encode(), b"?", ()))
            else:
                batch.append((key, amount))
        return Decoded(batch, len(batch), rejected, frozenset(unknown), 1_000 + run.next)


class FakeFold:
    """A counter: rows are a 32-byte header as real rows have (for the seq patch) and the sum as text."""

    def __init__(self) -> None:
        self.cache: dict[bytes, int] = {}
        self.changed: set[bytes] = set()
        self.outstanding = False
        self.outputs: list[tuple[int, bytes, bytes]] = []
        self.stopped: StoppedAt | None = None
        self.searching = False

    @property
    def changed_rows(self) -> int:
        return len(self.changed)

    def cancel(self) -> None:
        return

    def fold(self, decoded: Decoded, load_rows: LoadRows) -> Sequence[Rejected]:
        batch = decoded.batch
        assert isinstance(batch, list)
        keys = sorted({key.encode() for key, _ in batch} - self.cache.keys())
        for key, row in zip(keys, load_rows(keys), strict=True):
            self.cache[key] = 0 if row is None else total_of(row)
        for key, amount in batch:
            self.cache[key.encode()] += amount if amount < LOUD else 0
            if amount >= LOUD:
                self.outputs.append((0, key.encode(), str(amount).encode()))
            else:
                self.changed.add(key.encode())
        return []

    def take(self) -> tuple[Rows, Sequence[Rejected]]:
        assert not self.outstanding, "taken again before the last take was committed"
        self.outstanding = True
        rows = [(key, bytes(32) + str(self.cache[key]).encode()) for key in sorted(self.changed)]
        self.changed.clear()
        return rows, []

    def take_outputs(self) -> Sequence[tuple[int, bytes, bytes]]:
        made, self.outputs = self.outputs, []
        return made

    def committed(self) -> None:
        self.outstanding = False
        if not self.changed:
            self.cache.clear()

    def close(self) -> None:
        return


class FakeSchemas:
    """Knows nothing until told."""

    def __init__(self, decoder: FakeDecoder, arrives: bool) -> None:
        self.decoder, self.arrives = decoder, arrives
        self.waits = 0

    async def wait_for(self, schema_ids: frozenset[int], timeout_s: float) -> bool:
        self.waits += 1
        if self.arrives:
            self.decoder.known |= {key for key, _ in self.decoder.broker.events if key.startswith("new")}
        return self.arrives


def total_of(row: bytes) -> int:
    """The sum in a FakeFold's row."""
    return int(row[32:])


def changelog_state(broker: FakeBroker) -> dict[str, int]:
    """What a reader of the committed changelog has: last row per key."""
    state: dict[str, int] = {}
    for unit in broker.units:
        for key, value, _ in unit:
            if key not in (MARKER_KEY, CLAIM_KEY) and value is not None:
                state[key.decode()] = total_of(value)
    return state


def markers(broker: FakeBroker) -> list[Marker]:
    """All markers committed, in order."""
    return [Marker.decode(value) for unit in broker.units for key, value, _ in unit if key == MARKER_KEY and value]


def random_trouble(rng: random.Random, rate: float) -> Callable[[str], None]:
    """Commits fail with an unknown outcome at `rate`, half of them after the unit is in."""

    def trouble(when: str) -> None:
        if rng.random() < rate / 2:
            raise UnknownOutcome(f"lost the broker {when} the commit")

    return trouble
