"""What the client answers with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from streams.model.token import Token


@dataclass(frozen=True, slots=True)
class Receipt:
    """Where a put's or delete's event is in the log. `timestamp`: the broker's append time, epoch milliseconds.

    `version`: of strong keyspaces, what the key has now (0: it is absent). `order`, `trades`: of keys `order:ID`, the
    order as it was placed or cancelled, and the trades that it made.
    """

    key: str
    topic: str
    partition: int
    offset: int
    region: str
    timestamp: int
    token: Token
    version: int | None = None
    order: dict[str, Any] | None = None
    trades: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class TransactionReceipt:
    """An applied transaction: its version, and the one that each key changed has now (0: it is absent)."""

    version: int
    versions: dict[str, int]
    offset: int
    timestamp: int
    token: Token


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a strong write: `applied`, `failed` (a condition did not hold) or `cancelled`. `version`: as the
    first answer had it."""

    outcome: str
    version: int | None


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a table. `expires_at`: epoch milliseconds, None for never. `timestamp`: of its latest write, likewise.

    `region`: who wrote that. `version`: of strong keyspaces.
    """

    key: str
    value: Any
    expires_at: int | None = None
    timestamp: int | None = None
    region: str | None = None
    version: int | None = None


@dataclass(frozen=True, slots=True)
class RankedRow:
    """A row of an ordered read; ranks count from 1."""

    rank: int
    key: str
    value: Any


@dataclass(frozen=True, slots=True)
class Rejected:
    """A put of a batch that was refused: its place in the input, from 1, and why."""

    line: int
    reason: str


@dataclass(frozen=True, slots=True)
class BatchReceipt:
    """What became of a batch. `accepted` are durable; `rejected` lists the first ones, `rejected_count` counts all.

    `skipped`: puts of a load that were durable from before.
    """

    accepted: int
    rejected: tuple[Rejected, ...]
    rejected_count: int
    token: Token
    seconds: float = 0.0
    skipped: int = 0


@dataclass(frozen=True, slots=True)
class Event:
    """An event of a keyspace. `op`: put, delete or invalid. `position`: subscribe from here to go on after it. `part`:
    its place in the frame that it came in, None for a record of its own.
    """

    op: str
    key: str
    value: Any
    partition: int
    offset: int
    timestamp: int
    region: str
    position: Token
    part: int | None = None

    @property
    def token(self) -> str:
        """`position` as text: subscribe from here to go on after this event."""
        return self.position.encode()

    @property
    def time(self) -> int:
        """When it happened, epoch milliseconds: a reading's own `time`, else when it was accepted."""
        value = self.value
        time = value.get("time") if isinstance(value, dict) else None
        return time if type(time) is int else self.timestamp


@dataclass(frozen=True, slots=True)
class Digest:
    """A table's digest: equal in every region whose `applied` are equal. `applied`: by `origin/partition`."""

    digest: str
    rows: int
    as_of: int
    applied: dict[str, dict[str, int]]
