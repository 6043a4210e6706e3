"""`EventProducer`: durable puts (idempotent, acks=all) with bounded memory and bounded waits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from aiokafka import AIOKafkaProducer, TopicPartition
from numpy.typing import NDArray

from streams.kafka.batches import Headers, Record
from streams.kafka.errors import mapped
from streams.kafka.partitioner import partitions_for
from streams.kafka.produce_request import join_requests
from streams.model.errors import BadInput, NotFound, Timeout, TooLarge, TooManyRequests, Unavailable
from streams.model.keys import partition_for

_RECORD_OVERHEAD_BYTES = 100


@dataclass(frozen=True)
class ProducerOptions:
    """Limits. `timeout_s` bounds a put; `in_flight_bytes` what is sent and not yet acknowledged."""

    timeout_s: float = 10.0
    in_flight_bytes: int = 64 * 1024 * 1024
    max_record_bytes: int = 1_000_000
    batch_bytes: int = 250_000
    compression: str | None = None
    client_id: str = "streams-producer"


@dataclass(frozen=True, slots=True)
class RecordMeta:
    """Where a record is in the log. `timestamp_ms` is the broker's append time on LogAppendTime topics."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int

    @property
    def next_offset(self) -> int:
        """The position after the record, as tokens carry it."""
        return self.offset + 1


@dataclass(frozen=True)
class BatchMeta:
    """Where the records of a `put_batch` are, in the order they were given."""

    topic: str
    partitions: NDArray[np.int32]
    offsets: NDArray[np.int64]
    timestamps_ms: NDArray[np.int64]

    def next_offsets(self) -> dict[int, int]:
        """By partition, the position after its last record of this batch."""
        return {int(p): int(self.offsets[self.partitions == p].max()) + 1 for p in np.unique(self.partitions)}


class _Budget:
    """Bytes that may be in flight; waiters are served in order."""

    def __init__(self, total: int) -> None:
        self._total, self._free = total, total
        self._waiters: list[tuple[int, asyncio.Future[None]]] = []

    async def take(self, size: int, timeout_s: float) -> int:
        """Wait for `size` bytes (at most the total) and hold them; how many. TooManyRequests after `timeout_s`."""
        size = min(size, self._total)
        if not self._waiters and self._free >= size:
            self._free -= size
            return size
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append((size, turn))
        try:
            await asyncio.wait_for(turn, timeout_s)
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                self.give(size)
            else:
                self._waiters = [entry for entry in self._waiters if entry[1] is not turn]
                self._wake()
            if isinstance(error, TimeoutError):
                raise TooManyRequests("too much is in flight to Kafka; nothing was accepted", fix="retry") from None
            raise
        return size

    def give(self, size: int) -> None:
        """Give back what was taken."""
        self._free += size
        self._wake()

    def _wake(self) -> None:
        while self._waiters and self._free >= self._waiters[0][0]:
            size, turn = self._waiters.pop(0)
            if not turn.done():
                self._free -= size
                turn.set_result(None)


class EventProducer:
    """Appends records to event topics. Safe for concurrent use in one event loop."""

    def __init__(self, bootstrap_servers: str, options: ProducerOptions = ProducerOptions()) -> None:
        self._bootstrap, self._options = bootstrap_servers, options
        self._budget = _Budget(options.in_flight_bytes)
        self._producer: Any = None
        self._reopening: asyncio.Lock | None = None

    async def start(self) -> None:
        """Connect. Raises Unavailable when no broker answers."""
        self._reopening = asyncio.Lock()
        self._producer = await self._open()

    async def stop(self) -> None:
        """Wait (at most `timeout_s`) for what is in flight, and disconnect; idempotent."""
        producer, self._producer = self._producer, None
        if producer is not None:
            await self._close(producer)

    async def put(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        headers: Headers = (),
        partition: int | None = None,
        timestamp_ms: int | None = None,
    ) -> RecordMeta:
        """Append one record, durably. Without `partition`, Kafka's default partitioner chooses by key.

        Raises TooLarge, NotFound (topic or partition), TooManyRequests (nothing was accepted), Unavailable, and
        Timeout: then the record may or may not be in the log.
        """
        size = len(key or b"") + len(value or b"") + _RECORD_OVERHEAD_BYTES
        if size > self._options.max_record_bytes:
            raise TooLarge(f"a record of {size} bytes is over {self._options.max_record_bytes}", field="value")
        producer = await self._ready()
        tp = await self._choose(producer, topic, key, partition)
        timeout_s = self._options.timeout_s
        held = await self._budget.take(size, timeout_s)
        try:
            # Straight into the accumulator: `producer.send` looks everything up again that is known here.
            accumulator = producer._message_accumulator
            async with asyncio.timeout(timeout_s):
                future = await accumulator.add_message(
                    tp, key, value, timeout_s, timestamp_ms=timestamp_ms, headers=list(headers)
                )
                done = await future
        except TimeoutError:
            raise Timeout(f"put to {topic}: no acknowledgement in {timeout_s} s; it may have been written") from None
        except Exception as error:
            raise mapped(error, f"put to {topic}") from error
        finally:
            self._budget.give(held)
        return RecordMeta(topic, tp.partition, done.offset, done.timestamp)

    async def put_batch(
        self, topic: str, records: Sequence[Record], partitions: NDArray[np.int32] | None = None
    ) -> BatchMeta:
        """Append many (key, value, headers) by Kafka's default partitioner, keeping their order per partition.

        `partitions`: where each goes, instead of by its key (frames have none).

        All or an error: on Timeout or Unavailable any subset may be in the log. Large inputs are sent piece by piece
        within the in-flight budget. A None key goes to the partition of the empty key.
        """
        deadline = time.monotonic() + self._options.timeout_s
        producer = await self._ready()
        total = await self._partition_count(producer, topic)
        if partitions is not None and len(partitions) and not 0 <= partitions.min() <= partitions.max() < total:
            raise BadInput(f"{topic} has {total} partitions", field="partition")
        if partitions is None:
            partitions = partitions_for([record[0] or b"" for record in records], total)
        offsets, stamps = np.full(len(records), -1, np.int64), np.full(len(records), -1, np.int64)
        pending: list[tuple[Any, NDArray[np.int64]]] = []
        for partition in np.unique(partitions).tolist():
            where = np.flatnonzero(partitions == partition)
            await self._send_partition(producer, (topic, partition), records, where, pending)
        done = await self._await([future for future, _ in pending], deadline, f"put_batch to {topic}")
        for meta, (_, rows) in zip(done, pending, strict=True):
            offsets[rows] = meta.offset + np.arange(len(rows))
            stamps[rows] = meta.timestamp
        return BatchMeta(topic, partitions, offsets, stamps)

    async def _send_partition(
        self,
        producer: Any,
        tp: tuple[str, int],
        records: Sequence[Record],
        where: NDArray[np.int64],
        pending: list[tuple[Any, NDArray[np.int64]]],
    ) -> None:
        """Cut one partition's records into batches and hand them to the producer."""
        now_ms = time.time_ns() // 1_000_000
        rows, at = where.tolist(), 0
        while at < len(rows):
            batch = producer.create_batch()
            append, first = batch._builder.append, at
            while at < len(rows):
                key, value, headers = records[rows[at]]
                if append(at - first, now_ms, key, value, headers if type(headers) is list else list(headers)) is None:
                    break
                at += 1
            batch._relative_offset = at - first
            batch.close()
            size = batch.size()
            if size > self._options.max_record_bytes:
                raise TooLarge(f"record {rows[first]} has {size} bytes", field=str(rows[first]))
            held = await self._budget.take(size, self._options.timeout_s)
            try:
                future = await producer.send_batch(batch, tp[0], partition=tp[1])
            except BaseException as error:
                self._budget.give(held)
                raise _shown(error, f"put_batch to {tp[0]}") from error
            future.add_done_callback(lambda _, held=held: self._budget.give(held))
            pending.append((future, where[first:at]))

    async def _await(self, futures: list[Any], deadline: float, doing: str) -> list[Any]:
        if not futures:
            return []
        done, late = await asyncio.wait(
            futures, timeout=max(0.0, deadline - time.monotonic()), return_when=asyncio.FIRST_EXCEPTION
        )
        for future in done:
            if future.exception() is not None:
                raise _shown(future.exception(), doing) from future.exception()
        if late:
            for future in late:
                future.add_done_callback(_consume)
            raise Timeout(f"{doing}: no acknowledgement in {self._options.timeout_s} s; it may have been written")
        return [future.result() for future in futures]

    async def _choose(self, producer: Any, topic: str, key: bytes | None, partition: int | None) -> TopicPartition:
        total = await self._partition_count(producer, topic)
        if partition is None:
            partition = partition_for(key or b"", total) if total > 1 else 0
        elif not 0 <= partition < total:
            raise BadInput(f"{topic} has {total} partitions, not a partition {partition}", field="partition")
        return TopicPartition(topic, partition)

    async def _partition_count(self, producer: Any, topic: str) -> int:
        found = producer._metadata.partitions_for_topic(topic)
        if found is None:
            try:
                found = await asyncio.wait_for(producer.partitions_for(topic), self._options.timeout_s)
            except TimeoutError:
                raise NotFound(f"topic {topic} does not exist", field="topic") from None
            except Exception as error:
                raise mapped(error, f"looking for topic {topic}") from error
        return len(found)

    async def _ready(self) -> Any:
        """The open producer; a new one when the last died of a fatal error (lost sequence, fenced)."""
        producer = self._producer
        if producer is None or self._reopening is None:
            raise Unavailable("the producer is not started")
        if not producer._sender.sender_task.done():
            return producer
        async with self._reopening:
            if self._producer is producer:
                self._producer = await self._open()
                await self._close(producer)
        return self._producer

    async def _open(self) -> Any:
        options = self._options
        producer = AIOKafkaProducer(
            bootstrap_servers=self._bootstrap,
            client_id=options.client_id,
            acks="all",
            enable_idempotence=True,
            linger_ms=0,
            max_batch_size=options.batch_bytes,
            max_request_size=options.max_record_bytes,
            request_timeout_ms=int(options.timeout_s * 1000),
            retry_backoff_ms=100,
            compression_type=options.compression,
        )
        join_requests(producer.client)
        try:
            await asyncio.wait_for(producer.start(), options.timeout_s)
        except BaseException as error:
            await self._close(producer)
            raise _shown(error, f"connecting to {self._bootstrap}") from error
        return producer

    async def _close(self, producer: Any) -> None:
        stopping = asyncio.ensure_future(producer.stop())
        _, late = await asyncio.wait([stopping], timeout=self._options.timeout_s)
        if late:
            stopping.cancel()
            await asyncio.wait([stopping])
        else:
            _consume(stopping)


def _shown(error: BaseException | None, doing: str) -> BaseException:
    """What to raise for an error: cancellation and exits stay what they are."""
    if isinstance(error, Exception):
        return mapped(error, doing)
    return error if error is not None else Unavailable(doing)


def _consume(future: Any) -> None:
    if not future.cancelled():
        future.exception()
