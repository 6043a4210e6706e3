"""Slices of a batch on their way to the log: large ones as frames, small ones and special keys as single records."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from streams.gateway.auth import authorize
from streams.gateway.context import Gateway
from streams.gateway.http import Call, Reply, reply
from streams.gateway.routes_kv import event_headers
from streams.kafka.batches import Record
from streams.kafka.loads import Place, header_of
from streams.kafka.partitioner import slice_partitions
from streams.model.errors import BadInput, Conflict, Forbidden, NotFound, StreamsError, TooLarge
from streams.model.keyspace import Keyspace
from streams.model.row import MergeType
from streams.model.token import Input, Token
from streams.processing.topics import RECORD_BYTES_MAX
from streams.serde import AvroSchema, Frame, decode_frame, encode_frames
from streams.serde.frame_columns import Array
from streams.tabular.judge import Judged, Rejection, bounded, by_keyspace, judge, key_rejections, rejected
from streams.tabular.rows import Rows

T = TypeVar("T")

FRAME_PUTS_MIN = 64
"""Fewer puts of a keyspace than this in a slice become single records, which every Kafka client reads."""

RECORD_FIT_BYTES = RECORD_BYTES_MAX - (64 << 10) - 1024
KEYS_PER_TURN = 256
"""Keys looked up between two turns of the event loop, so that reads are not held up."""

POOL = ThreadPoolExecutor(2, "batches")
"""Where bodies are parsed: both cores, and no more, whatever the number of requests."""


@dataclass(frozen=True, slots=True)
class LoadChunk:
    """A chunk of a load. `durable`: by partition, the last frame that is in the log."""

    ident: str
    chunk: int
    durable: dict[int, Place]


@dataclass(slots=True)
class Slice:
    """Puts of one keyspace, checked and encoded."""

    keyspace: Keyspace
    judged: Judged
    frames: list[Frame]
    rejections: list[Rejection] = field(default_factory=list)


class Batch:
    """One request in progress: what is being produced, what was accepted, what was refused.

    `load`: the chunk that it is of a load; then every frame is named, and those that are durable are not sent again.
    """

    def __init__(self, gateway: Gateway, call: Call, load: LoadChunk | None = None) -> None:
        self._gateway, self._call, self._load = gateway, call, load
        self._frames_seen: Counter[tuple[str, int]] = Counter()
        self._skipped = 0
        self._known: dict[str, Keyspace] = {}
        self._positions: dict[Input, int] = {}
        self._sending: asyncio.Task[None] | None = None
        self._rejected: list[Rejection] = []
        self._rejected_count = 0
        self._accepted = 0

    def prepare(self, rows: Rows) -> tuple[list[Slice], list[Rejection]]:
        """In the pool: rows as slices by keyspace, ready to be sent, and rows that no keyspace takes."""
        slices, refused = [], []
        for name, mine in by_keyspace(rows):
            if not name:
                refused += key_rejections(mine)
                continue
            try:
                keyspace, schema = self._keyspace(name)
            except (BadInput, NotFound, Conflict, Forbidden) as error:
                refused += rejected(mine, error)
                continue
            judged, bad = judge(mine, keyspace, schema)
            frames = encode_frames(judged.columns, schema, slice_partitions(keyspace.partitions)) if len(judged) else []
            slices.append(Slice(keyspace, judged, frames, bad))
        return slices, refused

    def _keyspace(self, name: str) -> tuple[Keyspace, AvroSchema]:
        gateway = self._gateway
        if name not in self._known:
            authorize(self._call.principal, name, "write")
            keyspace = gateway.definitions.keyspace(name)
            if keyspace.consistency == "strong":
                raise Conflict(f"keyspace {name} is strong, and batches are not sequenced", field="key")
            self._known[name] = keyspace
        keyspace = self._known[name]
        schema = gateway.definitions.schema_of(keyspace)
        if schema is None:
            raise BadInput(f"keyspace {name} has no schema {keyspace.schema}", field="schema", fix="register it")
        return keyspace, schema

    async def take(self, slices: list[Slice], refused: list[Rejection]) -> None:
        """Produce slices, one at a time while the next is being parsed; note what was refused."""
        found = [*refused, *(bad for each in slices for bad in each.rejections)]
        self.reject(bounded(found, len(found)))
        for each in slices:
            if not len(each.judged):
                continue
            await self.settled()
            # One slice follows the other: two puts of a key must keep their order in the log.
            self._sending = asyncio.create_task(self._send(each))

    async def settled(self) -> None:
        """Wait for what is in flight; its error, if any, ends the batch."""
        sending, self._sending = self._sending, None
        if sending is not None:
            await sending

    async def _send(self, part: Slice) -> None:
        """All of a slice in one order: large ones as frames, but puts of a frame as single records when one of its
        keys was deleted: its record then names the delete that it follows, which a frame cannot."""
        single = await self._special(part)
        gateway, keyspace = self._gateway, part.keyspace
        records, partitions, puts = [], [], 0
        head = [("hlc", b"%d" % gateway.clock.tick()), ("origin", gateway.region.name.encode())]
        for frame in part.frames:
            name = self._name(keyspace, frame)
            if name is None:
                continue
            lines = part.judged.numbers[frame.rows]
            if single is None or not single[frame.rows].any():
                made: list[tuple[list[int], Record]] = [(lines.tolist(), (None, frame.value, [*head, *name]))]
            else:
                made = [([int(line)], each) for line, each in zip(lines, self._records(part, frame), strict=True)]
                await asyncio.sleep(0)
            for rows, record in made:
                size = len(record[0] or b"") + len(record[1] or b"")
                if size > RECORD_FIT_BYTES:
                    error = TooLarge(f"a record of {size} bytes is over {RECORD_FIT_BYTES}", field="value")
                    self.reject([Rejection(line, str(error)) for line in rows])
                    continue
                records.append(record)
                partitions.append(frame.partition)
                puts += len(rows)
        if records:
            meta = await gateway.events.put_batch(keyspace.events_topic, records, np.array(partitions, np.int32))
            self._count(keyspace, meta.topic, meta.next_offsets(), puts)

    def _name(self, keyspace: Keyspace, frame: Frame) -> list[tuple[str, bytes | None]] | None:
        """The header that names a load's frame; None when the log holds it already."""
        load = self._load
        if load is None:
            return []
        index = self._frames_seen[keyspace.name, frame.partition]
        self._frames_seen[keyspace.name, frame.partition] += 1
        if (load.chunk, index) <= load.durable.get(frame.partition, (-1, -1)):
            self._skipped += len(frame.rows)
            return None
        return [("load", header_of(load.ident, (load.chunk, index)).encode())]

    async def _special(self, part: Slice) -> Array | None:
        """Which puts must be single records; None for none."""
        judged, keyspace = part.judged, part.keyspace
        if self._load is not None:
            return None  # a load's frames are what says how far it came
        if len(judged) < FRAME_PUTS_MIN:
            return np.ones(len(judged), bool)
        if keyspace.merge is MergeType.LWW:
            return None  # a put is newer than any delete that its clock has seen
        table = self._gateway.tables.table(keyspace.name)
        keys = judged.keys.dictionary_encode()
        deleted = []
        for index, key in enumerate(keys.dictionary.to_pylist(), 1):
            if table.generation_of(key.encode()):
                deleted.append(index - 1)
            if index % KEYS_PER_TURN == 0:
                await asyncio.sleep(0)
        return np.isin(keys.indices.to_numpy(zero_copy_only=False), deleted) if deleted else None

    def _records(self, part: Slice, frame: Frame) -> list[Record]:
        decoded = decode_frame(frame.value)
        return [
            (key, value, event_headers(self._gateway, part.keyspace, key, decoded.ttl_of(index)))
            for index, (key, value) in enumerate(zip(decoded.keys(), decoded.values(), strict=True))
        ]

    def _count(self, keyspace: Keyspace, topic: str, ends: dict[int, int], puts: int) -> None:
        for partition, position in ends.items():
            where = Input(self._gateway.region.name, topic, partition)
            self._positions[where] = max(position, self._positions.get(where, 0))
        self._accepted += puts
        self._gateway.metrics.events.labels(keyspace.name).inc(puts)

    def reject(self, found: list[Rejection]) -> None:
        """Note refused rows: all are counted, the first are listed."""
        self._rejected_count += len(found)
        limit = self._gateway.options.rejects_max
        if len(self._rejected) < limit:
            self._rejected += found[: limit - len(self._rejected)]

    def answer(self, session: Token) -> Reply:
        """What was accepted and what not."""
        self._gateway.metrics.rejected.labels("").inc(self._rejected_count)
        token = session.merge(Token(self._positions)).encode()
        listed = bounded(self._rejected, self._gateway.options.rejects_max)
        body: dict[str, object] = {
            "accepted": self._accepted,
            "rejected": [{"line": bad.line, "reason": bad.reason} for bad in listed],
            "rejected_count": self._rejected_count,
            "token": token,
        }
        if self._load is not None:
            body["skipped"] = self._skipped
        return reply(body, headers=((b"causal-token", token.encode()),))

    def interrupted(self, error: StreamsError) -> StreamsError:
        """The error, saying how much was accepted before it."""
        error.detail = f"{error.detail}; {self._accepted} puts had been accepted"
        return error


async def in_pool(work: Callable[[], T]) -> T:
    """Run in the pool of batches."""
    return await asyncio.get_running_loop().run_in_executor(POOL, work)
