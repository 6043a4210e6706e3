"""The partition task's view of Kafka: its fenced writer and its input."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from streams.kafka.admin import Admin
from streams.kafka.batches import EncodedRecords, Record
from streams.kafka.changelog_writer import TransactionalWriter
from streams.kafka.run import TP
from streams.model.marker import MARKER_KEY
from streams.processing.ports import InputBounds, Output, UnitRecords


@dataclass(frozen=True, slots=True)
class ChangelogWriter:
    """A `TransactionalWriter` bound to one changelog partition."""

    writer: TransactionalWriter
    tp: TP

    async def start(self) -> None:
        """Fence every older owner."""
        await self.writer.start()

    async def commit(self, records: UnitRecords, outputs: Sequence[Output]) -> int:
        """One atomic unit: the changelog's records and the outputs. Returns the changelog offset after them.

        Without outputs it is all in one partition: one record batch, which is atomic by itself, if it fits one. A claim
        is always a transaction: it ends whatever the predecessor left open before its offset is known.
        """
        if not outputs and (isinstance(records, EncodedRecords) or records[-1][0] == MARKER_KEY):
            return await self.writer.append(self.tp.topic, self.tp.partition, records)
        groups: dict[tuple[str, int | None], list[Record]] = {}
        for out in outputs:
            groups.setdefault((out.topic, out.partition), []).append((out.key, out.value, out.headers))
        extra = [(topic, partition, made) for (topic, partition), made in groups.items()]
        return await self.writer.commit(self.tp.topic, self.tp.partition, records, extra)

    async def close(self) -> None:
        """Nothing is held: an open transaction is ended by the next owner's `start`, or by its timeout."""


Seek = Callable[[TP, int], Awaitable[None]]
"""Makes this process' consumer fetch a partition from an offset on."""


@dataclass(frozen=True, slots=True)
class InputPartition:
    """One input partition: bounds from the broker, position in the consumer. `from_ms`: a new table begins with what
    was accepted then or later; 0: with all that there is."""

    admin: Admin
    seek_to: Seek
    tp: TP
    from_ms: int = 0

    async def bounds(self) -> InputBounds:
        """The topic's id, the log's start, and its end (all records, open transactions included)."""
        ids, starts, ends = await asyncio.gather(
            self.admin.topic_ids([self.tp.topic]),
            self.admin.start_offsets([self.tp]),
            self.admin.end_offsets([self.tp], committed=False),
        )
        topic_id, start, end = ids[self.tp.topic], starts[self.tp], ends[self.tp]
        begin: int | None = None
        if self.from_ms:
            first = (await self.admin.first_since([self.tp], self.from_ms))[self.tp]
            begin = end if first is None else first[0]
        return InputBounds(str(topic_id), start, end, begin)

    async def seek(self, offset: int) -> None:
        """Fetch from `offset` on."""
        await self.seek_to(self.tp, offset)
