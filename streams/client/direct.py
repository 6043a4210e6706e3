"""Straight to Kafka: rows judged and framed here, appended by a producer of our own. Imported when it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from streams.kafka.partitioner import slice_partitions
from streams.kafka.producer import EventProducer, ProducerOptions
from streams.model.clock import HybridClock
from streams.model.errors import BadInput, Conflict
from streams.model.keyspace import Keyspace
from streams.model.token import Input, Token
from streams.serde import AvroSchema, Frame, encode_frames, load_builtin, parse_schema
from streams.tabular.judge import Rejection, by_keyspace, judge, key_rejections, rejected
from streams.tabular.rows import Rows

RECORD_BYTES_MAX = (20 << 20) - (64 << 10)
"""As a gateway has it: what the topics take, less what a record adds to its value."""

BATCH_BYTES = 512 << 10
"""Of a record batch of several frames. A partition has one in flight: small ones make a slice many round trips."""

FRAME_PUTS = 10_000
"""Puts of a frame at most, unless the caller says otherwise."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """Rows ready to be appended. `accepted`: how many puts the frames hold."""

    frames: list[Frame]
    accepted: int
    rejections: list[Rejection]


class KafkaSender:
    """Appends frames of one keyspace to its events topic, in order, each durable when `send` returns."""

    def __init__(self, bootstrap_servers: str, region: str, keyspace: Keyspace, schema: AvroSchema) -> None:
        self.keyspace, self.region = keyspace, region
        self._schema = schema
        self._clock = HybridClock()
        options = ProducerOptions(
            max_record_bytes=RECORD_BYTES_MAX, batch_bytes=BATCH_BYTES, timeout_s=60.0, client_id="streams-load"
        )
        self._producer = EventProducer(bootstrap_servers, options)

    async def start(self) -> None:
        """Connect. Raises Unavailable."""
        await self._producer.start()

    async def stop(self) -> None:
        """Disconnect; idempotent."""
        await self._producer.stop()

    def prepare(
        self, rows: Rows, ttl_ms: int | None = None, now_ms: int | None = None, frame_puts: int | None = None
    ) -> Prepared:
        """Judge and encode, at most `frame_puts` to a frame; for a thread. Row numbers are those of `rows`."""
        frame_puts = FRAME_PUTS if frame_puts is None else frame_puts
        frames: list[Frame] = []
        accepted, refused = 0, []
        for name, mine in by_keyspace(rows):
            if name != self.keyspace.name:
                error = BadInput(f"the key is not of keyspace {self.keyspace.name}", field="key")
                refused += rejected(mine, error) if name else key_rejections(mine)
                continue
            judged, bad = judge(mine, self.keyspace, self._schema, ttl_ms, now_ms)
            refused += bad
            accepted += len(judged)
            if len(judged):
                partition = slice_partitions(self.keyspace.partitions)
                frames = encode_frames(judged.columns, self._schema, partition, frame_puts)
        return Prepared(frames, accepted, refused)

    async def send(self, frames: list[Frame], loads: list[str] | None = None) -> Token:
        """Append frames; the token of what is durable then. `loads`: the `load` header of each."""
        if not frames:
            return Token()
        head = [("hlc", b"%d" % self._clock.tick()), ("origin", self.region.encode())]
        records: list[Any] = []
        for index, frame in enumerate(frames):
            records.append((None, frame.value, head if loads is None else [*head, ("load", loads[index].encode())]))
        partitions = np.array([frame.partition for frame in frames], np.int32)
        meta = await self._producer.put_batch(self.keyspace.events_topic, records, partitions)
        ends = meta.next_offsets().items()
        return Token({Input(self.region, meta.topic, number): position for number, position in ends})


async def sender_for(fetch: Callable[[str], Any], bootstrap_servers: str, name: str) -> KafkaSender:
    """A sender for a keyspace, told by a gateway (`fetch`: a path's JSON) what the keyspace is."""
    settings = dict(await fetch(f"/v1/keyspaces/{name}"))
    keyspace = Keyspace.from_json(settings)
    if keyspace.consistency == "strong":
        raise Conflict(f"keyspace {name} is strong, and batches are not sequenced", field="key")
    schema = load_builtin().get(keyspace.schema)
    if schema is None:
        schema = parse_schema((await fetch(f"/subjects/{keyspace.subject}/versions/latest"))["schema"])
    region = (await fetch("/healthz"))["region"]
    return KafkaSender(bootstrap_servers, str(region), keyspace, schema)
