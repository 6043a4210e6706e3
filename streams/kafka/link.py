"""`Link`: an aiokafka client for single requests, with retries up to a deadline. Used by admin and the writer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from aiokafka import TopicPartition
from aiokafka.client import AIOKafkaClient, CoordinationType
from aiokafka.errors import KafkaError

from streams.kafka.errors import mapped
from streams.kafka.produce_request import JoinedProduceRequest
from streams.kafka.run import TP
from streams.model.errors import Timeout, Unavailable

_APPENDS = 1
"""The channel of shared appends."""
_SHARED_REQUEST_BYTES = 4 << 20
"""Appends above this do not share a request, which would make small ones wait for large ones."""


@dataclass(frozen=True, slots=True)
class _Append:
    tp: TP
    data: bytes
    timeout_ms: int
    answer: asyncio.Future[tuple[int, int]]


def _for_all(error: BaseException) -> BaseException:
    return error if isinstance(error, Exception) else Unavailable("the connection was closed")


class Deadline:
    """A point in time by which something must be done, and the growing pause between tries."""

    def __init__(self, timeout_s: float, first_pause_s: float = 0.001, longest_pause_s: float = 0.1) -> None:
        self._at = time.monotonic() + timeout_s
        self._pause_s, self._longest_s = first_pause_s, longest_pause_s

    @property
    def remaining_s(self) -> float:
        """Seconds left; ≤ 0 when it has passed."""
        return self._at - time.monotonic()

    async def pause(self, reason: object) -> None:
        """Sleep before the next try. Raises Timeout with `reason` when the deadline comes first."""
        if self.remaining_s <= self._pause_s:
            raise Timeout(f"gave up in time: {reason}")
        await asyncio.sleep(self._pause_s)
        self._pause_s = min(self._pause_s * 2, self._longest_s)


class Link:
    """A connection pool to one Kafka cluster. One per event loop; may be shared by many writers.

    Requests that name the same `channel` go over one connection, in order; different channels do not wait for
    each other (a broker answers one connection's requests one after another).
    """

    def __init__(
        self,
        bootstrap_servers: str,
        client_id: str = "streams",
        request_timeout_s: float = 20.0,
        linger_s: float = 0.0,
    ) -> None:
        """`linger_s`: how long an append waits for others to share its request (0: those of one turn of the loop)."""
        self._linger_s = linger_s
        self.bootstrap_servers = bootstrap_servers
        self._client_id, self._request_timeout_s = client_id, request_timeout_s
        self._client: Any = None
        self._appends: dict[int, list[_Append]] = {}
        self._sending: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Connect. Raises Unavailable when no broker answers. Idempotent."""
        if self._client is not None:
            return
        client = AIOKafkaClient(
            bootstrap_servers=self.bootstrap_servers,
            client_id=self._client_id,
            request_timeout_ms=int(self._request_timeout_s * 1000),
            retry_backoff_ms=20,
        )
        try:
            await client.bootstrap()
        except BaseException as error:
            await client.close()
            if isinstance(error, Exception):
                raise mapped(error, f"connecting to {self.bootstrap_servers}") from error
            raise
        self._client = client

    async def stop(self) -> None:
        """Close all connections; idempotent."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def send(self, node: int, request: Any, channel: int = 0) -> Any:
        """One request to one broker, no retry; raises aiokafka's KafkaError."""
        return await self._started().send(node, request, group=channel)

    async def produce(self, node: int, tp: TP, data: bytes, timeout_ms: int) -> tuple[int, int]:
        """Append a batch outside of transactions; the broker's error code and the base offset. No retry.

        What is asked for in one turn of the event loop goes to a broker in one request (the heartbeats of all of a
        worker's partitions are one request). Raises aiokafka's KafkaError.
        """
        append = _Append(tp, data, timeout_ms, asyncio.get_running_loop().create_future())
        waiting = self._appends.setdefault(node, [])
        waiting.append(append)
        if len(waiting) == 1:
            asyncio.get_running_loop().call_later(self._linger_s, self._flush, node)
        return await append.answer

    def _flush(self, node: int) -> None:
        todo = self._appends.pop(node)
        while todo:
            now: list[_Append] = []
            later: list[_Append] = []
            seen: set[TP] = set()
            size = 0
            for append in todo:
                fits = append.tp not in seen and (not now or size + len(append.data) <= _SHARED_REQUEST_BYTES)
                (now if fits else later).append(append)
                if fits:
                    seen.add(append.tp)
                    size += len(append.data)
            sending = asyncio.ensure_future(self._append_all(node, now))
            self._sending.add(sending)
            sending.add_done_callback(self._sending.discard)
            todo = later

    async def _append_all(self, node: int, appends: list[_Append]) -> None:
        topics: dict[str, list[tuple[int, bytes]]] = {}
        for append in appends:
            topics.setdefault(append.tp.topic, []).append((append.tp.partition, append.data))
        timeout_ms = max(append.timeout_ms for append in appends)
        try:
            answer = await self.send(node, JoinedProduceRequest(None, -1, timeout_ms, list(topics.items())), _APPENDS)
            found = {TP(topic, part[0]): (part[1], part[2]) for topic, parts in answer.topics for part in parts}
            for append in appends:
                if not append.answer.done():
                    append.answer.set_result(found[append.tp])
        except BaseException as error:
            for append in appends:
                if not append.answer.done():
                    append.answer.set_exception(_for_all(error))
            if not isinstance(error, Exception):
                raise

    async def any_node(self, request: Any) -> Any:
        """One request to any broker, no retry; raises Unavailable or Timeout."""
        client = self._started()
        try:
            return await client.send(client.get_random_node(), request)
        except KafkaError as error:
            raise mapped(error, type(request).__name__) from error

    async def transaction_coordinator(self, transactional_id: str) -> int:
        """The broker that coordinates a transactional id; raises aiokafka's KafkaError."""
        return int(await self._started().coordinator_lookup(CoordinationType.TRANSACTION, transactional_id))

    async def refresh(self, topics: Iterable[str]) -> None:
        """Learn these topics' leaders anew."""
        client = self._started()
        for topic in topics:
            client.add_topic(topic)
        await client.force_metadata_update()

    async def leader(self, topic: str, partition: int, deadline: Deadline) -> int:
        """The broker that leads a partition; Timeout when none is known by the deadline."""
        client = self._started()
        while True:
            node = client.cluster.leader_for_partition(TopicPartition(topic, partition))
            if node is not None and node >= 0:
                return int(node)
            await self.refresh([topic])
            node = client.cluster.leader_for_partition(TopicPartition(topic, partition))
            if node is None or node < 0:
                await deadline.pause(f"{topic}/{partition} has no leader")

    async def partition_count(self, topic: str, deadline: Deadline) -> int:
        """How many partitions a topic has; Timeout when it does not turn up by the deadline."""
        client = self._started()
        while True:
            found = client.cluster.partitions_for_topic(topic)
            if found:
                return len(found)
            await self.refresh([topic])
            if not client.cluster.partitions_for_topic(topic):
                await deadline.pause(f"topic {topic} does not exist")

    def _started(self) -> Any:
        if self._client is None:
            raise Unavailable(f"not connected to {self.bootstrap_servers}")
        return self._client
