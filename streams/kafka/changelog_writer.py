"""`TransactionalWriter`: atomic units of a changelog, fenced by the broker: one record batch, else one transaction.

It speaks the transaction protocol itself on a `Link` instead of using aiokafka's producer: that one polls with a fixed
20 ms back-off after CONCURRENT_TRANSACTIONS and retries without end; here the back-off starts at 1 ms, every commit has
a deadline, and every outcome is one of committed, Fenced, UnknownOutcome.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from aiokafka.errors import InvalidTxnState, KafkaError, for_code
from aiokafka.protocol.transaction import AddPartitionsToTxnRequest, EndTxnRequest, InitProducerIdRequest

from streams.kafka.batches import AnyBatch, EncodedRecords, ProducerState, Record, encode_batches, frame_batches
from streams.kafka.errors import Fenced, UnknownOutcome, mapped
from streams.kafka.link import Deadline, Link
from streams.kafka.partitioner import partitions_for
from streams.kafka.produce_request import JoinedProduceRequest
from streams.kafka.run import TP
from streams.model.errors import Conflict, StreamsError, Unavailable

_INVALID_TXN_STATE = 48
_FENCED = {47, 90}
_COORDINATOR_MOVED = {15, 16}
_COORDINATOR_BUSY = {14, 51}
_LEADER_MOVED = {3, 5, 6, 7, 19, 20, 56, 100}
_channels = itertools.count(1000)
_PLAIN_EPOCH_MAX = 30_000
"""Epochs end at 32,766; then the transactional id gets a new producer id, whose batches do not fence the old: only
the coordinator does, so shortly before that every unit is a transaction again."""


@dataclass(frozen=True)
class WriterOptions:
    """Limits of a writer. `timeout_s` bounds a commit; `transaction_timeout_s` is when the broker aborts for us."""

    timeout_s: float = 30.0
    transaction_timeout_s: float = 60.0
    batch_bytes: int = 900_000
    in_flight: int = 4


@dataclass(frozen=True)
class CommitStats:
    """What the last commit cost: seconds, records, bytes, and how often the coordinator said to wait."""

    duration_s: float
    records: int
    size_bytes: int
    waits: int


Records = Sequence[Record] | EncodedRecords
Extra = tuple[str, int | None, Sequence[Record]]


class TransactionalWriter:
    """Writes atomic units under one transactional id. Not for concurrent use: one commit at a time."""

    def __init__(self, link: Link, transactional_id: str, options: WriterOptions = WriterOptions()) -> None:
        self._link, self._id, self._options = link, transactional_id, options
        self._channel = next(_channels)
        self._state: ProducerState | None = None
        self._sequences: dict[TP, int] = {}
        self._coordinator: int | None = None
        self._waits = 0
        self.last_commit: CommitStats | None = None

    async def start(self) -> None:
        """Initialise the producer id: fences every older owner and ends its transaction before it returns."""
        self._state = None
        await self._link.start()
        deadline = Deadline(self._options.timeout_s)
        request = InitProducerIdRequest(self._id, int(self._options.transaction_timeout_s * 1000))
        answer = await self._coordinate(request, lambda response: [response.error_code], deadline)
        self._sequences.clear()
        self._state = ProducerState(answer.producer_id, answer.producer_epoch, True)

    async def commit(self, topic: str, partition: int, records: Records, extra: Sequence[Extra] = ()) -> int:
        """Append `records` to a partition, and `extra` to others (partition None: by key), in one transaction.

        Returns the offset after the last of `records`; a control batch follows it, so a reader's position passes it.
        Raises TooLarge or Conflict before anything was sent; then Fenced, or UnknownOutcome for all other failures,
        cancellation included: after either only `start()` makes the writer usable again.
        """
        state, started = self._usable(), time.perf_counter()
        deadline = Deadline(self._options.timeout_s)
        self._waits = 0
        encoded = await self._encode(TP(topic, partition), records, extra, state, deadline)
        self._state = None
        try:
            await self._add_partitions(list(encoded), state, deadline)
            ends = await asyncio.gather(*(self._produce_all(tp, part, deadline) for tp, part in encoded.items()))
            await self._end(state, deadline)
        except (StreamsError, KafkaError) as error:
            raise self._outcome(error) from error
        self._state = state
        counts = {tp: sum(batch.count for batch in part) for tp, part in encoded.items()}
        for tp, count in counts.items():
            self._sequences[tp] = (self._sequences.get(tp, 0) + count) & 0x7FFFFFFF
        size = sum(batch.size_bytes for part in encoded.values() for batch in part)
        self.last_commit = CommitStats(time.perf_counter() - started, sum(counts.values()), size, self._waits)
        return dict(zip(encoded, ends, strict=True))[TP(topic, partition)]

    async def append(self, topic: str, partition: int, records: Records) -> int:
        """Append an atomic unit of one partition: as one record batch if it fits one, else in a transaction.

        Kafka appends a batch wholly or not at all, and its readers get it so; the idempotent producer's sequence keeps
        it single. That is one request instead of three, no control batch, and nothing that holds up the last stable
        offset. A zombie is fenced as well, by the partition's leader, once a newer owner has committed anything to that
        partition (its claim): the leader refuses the older epoch of the same producer id. Returns and raises what
        `commit` does.
        """
        state, started, tp = self._usable(), time.perf_counter(), TP(topic, partition)
        if _is_large(records, self._options.batch_bytes):
            return await self.commit(topic, partition, records)  # without encoding it twice
        plain = ProducerState(state.producer_id, state.epoch, False)
        batches = _batches(records, plain, self._sequences.get(tp, 0), self._options.batch_bytes)
        if len(batches) != 1 or state.epoch > _PLAIN_EPOCH_MAX:
            return await self.commit(topic, partition, records)
        deadline = Deadline(self._options.timeout_s)
        self._waits = 0
        self._state = None
        try:
            end = await self._produce_all(tp, batches, deadline, transactional=False)
        except (StreamsError, KafkaError) as error:
            raise self._outcome(error) from error
        self._state = state
        self._sequences[tp] = (self._sequences.get(tp, 0) + len(records)) & 0x7FFFFFFF
        self.last_commit = CommitStats(time.perf_counter() - started, len(records), batches[0].size_bytes, self._waits)
        return end

    def _usable(self) -> ProducerState:
        if self._state is None:
            raise Conflict(f"writer {self._id} has not been started, or its last commit failed")
        return self._state

    def _outcome(self, error: Exception) -> StreamsError:
        if isinstance(error, Fenced):
            return error
        return UnknownOutcome(f"commit of {self._id}: {error}", fix="restart from the changelog")

    async def _encode(
        self, main: TP, records: Records, extra: Sequence[Extra], state: ProducerState, deadline: Deadline
    ) -> dict[TP, Sequence[AnyBatch]]:
        if not records:
            raise Conflict("a transaction needs at least one record for its changelog")
        size = self._options.batch_bytes
        encoded: dict[TP, Sequence[AnyBatch]] = {main: _batches(records, state, self._sequences.get(main, 0), size)}
        groups: dict[TP, list[Record]] = {}
        for topic, partition, rows in extra:
            if not rows:
                continue
            if partition is not None:
                groups.setdefault(TP(topic, partition), []).extend(rows)
                continue
            total = await self._link.partition_count(topic, deadline)
            for row, chosen in zip(rows, partitions_for([row[0] or b"" for row in rows], total).tolist(), strict=True):
                groups.setdefault(TP(topic, chosen), []).append(row)
        if main in groups:
            raise Conflict(f"{main.topic}/{main.partition} is the changelog itself: nothing else may write to it")
        for tp, rows in groups.items():
            encoded[tp] = encode_batches(rows, state, self._sequences.get(tp, 0), size)
        return encoded

    async def _coordinate(self, request: Any, codes: Any, deadline: Deadline) -> Any:
        while True:
            reason: object
            try:
                if self._coordinator is None:
                    self._coordinator = await self._link.transaction_coordinator(self._id)
                answer = await self._link.send(self._coordinator, request, self._channel)
            except KafkaError as error:
                if not error.retriable:
                    raise mapped(error, type(request).__name__) from error
                reason, self._coordinator = error, None
            else:
                bad = {code for code in codes(answer) if code}
                if not bad:
                    return answer
                reason = self._judge(bad, type(request).__name__)
            self._waits += 1
            await deadline.pause(reason)

    def _judge(self, codes: set[int], doing: str) -> str:
        names = f"{doing}: {', '.join(for_code(code).__name__ + f' ({code})' for code in sorted(codes))}"
        if codes & _FENCED:
            raise Fenced(f"{self._id} has a newer owner ({names})")
        if codes & _COORDINATOR_MOVED:
            self._coordinator = None
            return names
        # 55: this partition was not tried because another one failed; 3: the topic is not known there yet.
        if codes & _COORDINATOR_BUSY or codes <= {3, 55}:
            return names
        raise Unavailable(names)

    async def _add_partitions(self, tps: list[TP], state: ProducerState, deadline: Deadline) -> None:
        topics: dict[str, list[int]] = {}
        for tp in tps:
            topics.setdefault(tp.topic, []).append(tp.partition)
        request = AddPartitionsToTxnRequest(self._id, state.producer_id, state.epoch, list(topics.items()))
        await self._coordinate(
            request, lambda answer: [code for _, parts in answer.errors for _, code in parts], deadline
        )

    async def _end(self, state: ProducerState, deadline: Deadline) -> None:
        request = EndTxnRequest(self._id, state.producer_id, state.epoch, True)
        await self._coordinate(request, lambda answer: [answer.error_code], deadline)

    async def _produce_all(
        self, tp: TP, batches: Sequence[AnyBatch], deadline: Deadline, *, transactional: bool = True
    ) -> int:
        """Send the batches in order, a few in flight; returns the offset after the last record."""
        done, end = 0, -1
        while done < len(batches):
            node = await self._link.leader(tp.topic, tp.partition, deadline)
            window = batches[done : done + self._options.in_flight]
            answers = await asyncio.gather(
                *(self._produce(node, tp, batch, transactional) for batch in window), return_exceptions=True
            )
            for batch, answer in zip(window, answers, strict=True):
                if not isinstance(answer, int):
                    await self._recover(tp, answer, deadline)
                    break
                end = answer + batch.count
                done += 1
        return end

    async def _produce(self, node: int, tp: TP, batch: AnyBatch, transactional: bool) -> int:
        timeout_ms = int(self._options.timeout_s * 1000)
        if transactional:
            request = JoinedProduceRequest(self._id, -1, timeout_ms, [(tp.topic, [(tp.partition, batch.data)])])
            answer = await self._link.send(node, request, self._channel)
            _partition, code, offset, *_ = answer.topics[0][1][0]
        else:
            code, offset = await self._link.produce(node, tp, batch.data, timeout_ms)
        if code in _FENCED:
            raise Fenced(f"{self._id} has a newer owner ({for_code(code).__name__} on {tp.topic}/{tp.partition})")
        if code == _INVALID_TXN_STATE and transactional:
            raise Unavailable(f"{tp.topic}/{tp.partition}: the broker has no such transaction")
        if code:
            raise for_code(code)(f"{tp.topic}/{tp.partition} ({code})")
        if offset < 0:
            raise Unavailable(f"{tp.topic}/{tp.partition}: the broker forgot where it put a repeated batch")
        return int(offset)

    async def _recover(self, tp: TP, error: BaseException, deadline: Deadline) -> None:
        """Wait before the same batch is sent again (its sequence makes that safe), or raise what is final."""
        if isinstance(error, InvalidTxnState):
            # A single record right after a commit: its control batch is not written yet, a matter of milliseconds.
            self._waits += 1
            await deadline.pause(error)
            return
        if isinstance(error, KafkaError) and (error.retriable or getattr(error, "errno", None) in _LEADER_MOVED):
            await self._link.refresh([tp.topic])
            await deadline.pause(error)
            return
        if isinstance(error, KafkaError):
            raise mapped(error, f"produce to {tp.topic}/{tp.partition}") from error
        raise error


def _is_large(records: Records, batch_bytes: int) -> bool:
    """Whether it is plain that they do not fit one batch."""
    if isinstance(records, EncodedRecords):
        return len(records.batches) > 1
    return sum(len(value) for _, value, _ in records if value) > batch_bytes


def _batches(records: Records, state: ProducerState, first_sequence: int, batch_bytes: int) -> Sequence[AnyBatch]:
    if isinstance(records, EncodedRecords):
        return frame_batches(records, state, first_sequence, batch_bytes)
    return encode_batches(records, state, first_sequence, batch_bytes)
