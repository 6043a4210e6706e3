"""What the gateway needs from the rooms below, as small protocols: unit tests drive the routes with fakes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from streams.edge.edge_store import Staleness
from streams.edge.edge_table import EdgeTable
from streams.kafka.batches import Headers, Record
from streams.kafka.producer import BatchMeta, RecordMeta
from streams.model.keyspace import Keyspace
from streams.model.token import Token
from streams.sequencer.commands import Result
from streams.serde import AvroSchema


class Tables(Protocol):
    """The region's edge tables (`streams.edge.edge_store.EdgeTables`)."""

    @property
    def tables(self) -> dict[str, EdgeTable]:
        """All tables by name."""
        ...

    @property
    def served(self) -> dict[str, EdgeTable]:
        """All tables by the names that readers use."""
        ...

    def is_served(self, name: str) -> bool:
        """Whether readers see a table of this name."""
        ...

    @property
    def applied(self) -> Token:
        """What is visible here."""
        ...

    def applied_by(self, table: str) -> Token:
        """What is visible of a table's inputs in it."""
        ...

    def table(self, name: str) -> EdgeTable:
        """A table; NotFound."""
        ...

    def staleness_ms(self, table: str) -> int:
        """Age of the oldest origin's marker, milliseconds."""
        ...

    def staleness(self, table: str) -> Staleness:
        """The same by origin."""
        ...

    async def wait_for(self, token: Token, timeout_s: float, table: str | None = None) -> None:
        """Return once `token` is visible; BadInput for one that cannot be; Timeout."""
        ...


class EventLog(Protocol):
    """Where events are appended (`streams.kafka.producer.EventProducer`)."""

    async def put(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        headers: Headers = (),
        partition: int | None = None,
        timestamp_ms: int | None = None,
    ) -> RecordMeta:
        """Append one record, durably."""
        ...

    async def put_batch(
        self, topic: str, records: Sequence[Record], partitions: NDArray[np.int32] | None = None
    ) -> BatchMeta:
        """Append many, durably, in order per partition; by key where no partitions are given."""
        ...


class Catalogue(Protocol):
    """Definitions (`streams.definitions.Definitions`): keyspaces and schemas."""

    @property
    def keyspaces(self) -> Mapping[str, Keyspace]:
        """All keyspaces, by name."""
        ...

    def keyspace(self, name: str) -> Keyspace:
        """A keyspace; NotFound."""
        ...

    def schema_of(self, keyspace: Keyspace) -> AvroSchema | None:
        """What values of a keyspace are written with."""
        ...

    def to_avro(self, keyspace: Keyspace | str, body: Any, now_ms: int | None = None) -> bytes:
        """A put's body as wire-format bytes; BadInput names the field."""
        ...

    def from_avro(self, value: bytes) -> Any:
        """The JSON value of wire-format bytes; BadInput."""
        ...

    async def put_keyspace(self, keyspace: Keyspace, schema: AvroSchema | None = None) -> Keyspace:
        """Define a keyspace, or change its TTL or mirroring; Conflict when it contradicts."""
        ...


class Sequencer(Protocol):
    """The group of strong keyspaces (`streams.gateway.strong.StrongWrites`)."""

    @property
    def home(self) -> str:
        """The region whose Kafka has the log."""
        ...

    @property
    def topic(self) -> str:
        """The log."""
        ...

    @property
    def time_ms(self) -> int:
        """The time of the log, as far as it is applied here."""
        ...

    async def execute(self, command: bytes) -> tuple[Result, int]:
        """A command's result and its offset; Unavailable, OutcomeUnknown."""
        ...

    async def linearize(self) -> None:
        """Return once what was acknowledged before this call is applied here; Unavailable."""
        ...

    async def tick(self) -> None:
        """Bring the time of the log up to now; Unavailable."""
        ...

    def row(self, key: bytes) -> bytes | None:
        """The row of a key as it is here."""
        ...

    def describe(self) -> dict[str, object]:
        """Offset and hash of the state."""
        ...
