"""An aiokafka consumer that hands out `Run`s instead of records.

aiokafka's fetcher builds its results from three names of its module: `MemoryRecords`, `PartitionRecords` and
`FetchResult`. We load a private second copy of its two consumer modules and give that copy our own three classes, so
the fetch loop, the protocol and the error handling stay aiokafka's, and no other consumer of the process changes.
tests/unit/test_kafka_raw_fetch.py pins the shape this relies on: an upgrade of aiokafka fails there first.
"""

from __future__ import annotations

import asyncio
import importlib.util
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from aiokafka import TopicPartition

from streams.kafka.errors import mapped
from streams.kafka.run import HEADER_BYTES, TP, Run, committed_batches

_PREFIX_BYTES = 12
_YIELD_BYTES = 128 << 10
"""Runs are taken together up to this size: whenever the loop turns, aiokafka looks at every partition anew."""


def _private_copy(name: str) -> ModuleType:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.loader is None:
        raise ImportError(f"no module {name}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class Pace:
    """The least time between an answer that held anything and the next fetch from that broker: `after_few_s`, or
    `after_many_s` when it had more than `few_bytes`. Who sends many at a time is waiting for none of them."""

    after_few_s: float = 0.0
    after_many_s: float = 0.0
    few_bytes: int = 512

    def after(self, size_bytes: int) -> float:
        """Seconds after an answer of this size."""
        return self.after_many_s if size_bytes > self.few_bytes else self.after_few_s


class _RawRecords:
    """Stands for aiokafka's MemoryRecords: keeps the record set's bytes."""

    def __init__(self, buffer: bytes | None) -> None:
        self.buffer = buffer or b""

    def has_next(self) -> bool:
        """Whether the set begins with a whole batch."""
        if len(self.buffer) < HEADER_BYTES:
            return False
        return len(self.buffer) >= _PREFIX_BYTES + int.from_bytes(self.buffer[8:12], "big")

    def size_in_bytes(self) -> int:
        """Bytes of the set."""
        return len(self.buffer)


class _RawPartition:
    """Stands for aiokafka's PartitionRecords: filters and decompresses when asked, once."""

    def __init__(
        self,
        tp: TopicPartition,
        records: _RawRecords,
        aborted: list[tuple[int, int]] | None,
        fetch_offset: int,
        _key_deserializer: object,
        _value_deserializer: object,
        check_crcs: bool,
        isolation_level: int,
    ) -> None:
        self._tp, self._records, self._aborted = tp, records, aborted
        self._check_crcs, self._read_committed = check_crcs, isolation_level == 1
        self._fetched_at_ms = time.time_ns() // 1_000_000
        self.next_fetch_offset = fetch_offset

    @property
    def size_bytes(self) -> int:
        """Bytes as fetched."""
        return self._records.size_in_bytes()

    def run(self, high_watermark: int) -> Run:
        """The committed batches from the position on, which moves behind them."""
        base = self.next_fetch_offset
        batches, following = committed_batches(
            self._records.buffer, base, self._aborted, read_committed=self._read_committed, check_crcs=self._check_crcs
        )
        self.next_fetch_offset = following
        return Run(self._tp.topic, self._tp.partition, base, following, batches, high_watermark, self._fetched_at_ms)


_fetcher = _private_copy("aiokafka.consumer.fetcher")


class _RawResult(_fetcher.FetchResult):  # type: ignore[misc, name-defined]
    """Stands for aiokafka's FetchResult: gives its one Run, then is empty."""

    _partition_records: _RawPartition | None

    def getall(self, max_records: int | None = None) -> list[Run]:
        """Its Run, the first time, if the partition is still assigned."""
        source = self._partition_records
        if source is None or not self.check_assignment(self._topic_partition):
            return []
        state = self._assignment.state_value(self._topic_partition)
        self._partition_records = None
        run = source.run(state.highwater if state.highwater is not None else -1)
        state.consumed_to(run.next)
        return [run]

    @property
    def size_bytes(self) -> int:
        """Bytes of its Run as fetched; 0 once it was given."""
        return 0 if self._partition_records is None else self._partition_records.size_bytes


class _Positioned:
    """A view of an assignment that shows only the partitions whose position somebody has set."""

    def __init__(self, assignment: Any) -> None:
        self._assignment = assignment
        self.state_value = assignment.state_value
        self.tps = [tp for tp in assignment.tps if self._ready(assignment.state_value(tp))]

    @staticmethod
    def _ready(state: Any) -> bool:
        return bool(state.has_valid_position or state.awaiting_reset)


class RawFetcher(_fetcher.Fetcher):  # type: ignore[misc, name-defined]
    """aiokafka's Fetcher giving Runs. It fetches no partition before a `seek`: group offsets are never consulted."""

    pace = Pace()

    def _get_actions_per_node(self, assignment: Any) -> Any:
        return super()._get_actions_per_node(_Positioned(assignment))

    async def _proc_fetch_request(self, assignment: Any, node_id: int, request: Any) -> bool:
        """One fetch, not sooner after the broker's last answer that held anything than `pace` says.

        After a pause the fetch already waits at the broker, so an event that comes alone is not held up; events in
        close succession share fetches, folds and commits instead of each paying for its own. Nothing is in close
        succession to an empty answer: the next fetch follows at once.
        """
        next_s = self.__dict__.setdefault("_next_s", {})
        wait_s = next_s.get(node_id, 0.0) - time.monotonic()
        if wait_s > 0:
            try:
                await asyncio.sleep(wait_s)
            except asyncio.CancelledError:
                return (
                    False  # as for a fetch under way: `close` awaits what it cancels, and must not be cancelled by it
                )
        found = await super()._proc_fetch_request(assignment, node_id, request)
        if found:
            waiting = sum(each.size_bytes for each in self._records.values() if isinstance(each, _RawResult))
            next_s[node_id] = time.monotonic() + self.pace.after(waiting)
        return bool(found)


_fetcher.MemoryRecords = _RawRecords  # type: ignore[attr-defined]
_fetcher.PartitionRecords = _RawPartition  # type: ignore[attr-defined]
_fetcher.FetchResult = _RawResult  # type: ignore[attr-defined]
_consumer = _private_copy("aiokafka.consumer.consumer")
_consumer.Fetcher = RawFetcher  # type: ignore[attr-defined]


class RawKafkaConsumer(_consumer.AIOKafkaConsumer):  # type: ignore[misc, name-defined]
    """aiokafka's AIOKafkaConsumer (same arguments, and `pace`) with `RawFetcher`: `fetched_records` gives Runs."""

    def __init__(self, *topics: str, pace: Pace = Pace(), **settings: Any) -> None:
        super().__init__(*topics, **settings)
        self._pace = pace

    async def start(self) -> None:
        """Connect and begin to fetch."""
        await super().start()
        self._fetcher.pace = self._pace


@dataclass(frozen=True)
class FetchOptions:
    """How a reader fetches. Sizes in bytes. `max_wait_ms` bounds an idle fetch (data is answered at once)."""

    read_committed: bool = True
    max_wait_ms: int = 250
    partition_bytes: int = 4 * 1024 * 1024
    fetch_bytes: int = 32 * 1024 * 1024
    check_crcs: bool = True
    request_timeout_s: float = 30.0
    client_id: str = "streams-reader"
    pace: Pace = Pace()

    def consumer_settings(self) -> dict[str, Any]:
        """The same as arguments of aiokafka's consumer."""
        return {
            "client_id": self.client_id,
            "isolation_level": "read_committed" if self.read_committed else "read_uncommitted",
            "fetch_min_bytes": 1,
            "fetch_max_wait_ms": self.max_wait_ms,
            "fetch_max_bytes": self.fetch_bytes,
            "max_partition_fetch_bytes": self.partition_bytes,
            "check_crcs": self.check_crcs,
            "request_timeout_ms": int(self.request_timeout_s * 1000),
            "auto_offset_reset": "none",
            "enable_auto_commit": False,
            "pace": self.pace,
        }


class RawConsumer:
    """Reads Runs of assigned partitions from given positions; no group, no commits."""

    def __init__(self, bootstrap_servers: str, options: FetchOptions = FetchOptions()) -> None:
        self._bootstrap = bootstrap_servers
        self._options = options
        self._consumer: Any = None

    async def start(self) -> None:
        """Connect. Raises Unavailable when no broker answers."""
        consumer = RawKafkaConsumer(
            bootstrap_servers=self._bootstrap, group_id=None, **self._options.consumer_settings()
        )
        try:
            await consumer.start()
        except BaseException as error:
            await consumer.stop()
            if isinstance(error, Exception):
                raise mapped(error, f"connecting to {self._bootstrap}") from error
            raise
        self._consumer = consumer

    async def stop(self) -> None:
        """Disconnect; idempotent."""
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await consumer.stop()

    def assign(self, positions: Mapping[tuple[str, int], int]) -> None:
        """Read exactly these partitions, each from its position (replaces an earlier assignment)."""
        self._consumer.assign([TopicPartition(*tp) for tp in positions])
        for tp, offset in positions.items():
            self.seek(tp, offset)

    def seek(self, tp: tuple[str, int], offset: int) -> None:
        """Continue an assigned partition at `offset`; Runs fetched before are dropped."""
        self._consumer._fetcher.seek_to(TopicPartition(*tp), offset)

    def pause(self, *tps: tuple[str, int]) -> None:
        """Stop fetching these partitions (what is buffered stays buffered)."""
        self._consumer.pause(*(TopicPartition(*tp) for tp in tps))

    def resume(self, *tps: tuple[str, int]) -> None:
        """Fetch these partitions again."""
        self._consumer.resume(*(TopicPartition(*tp) for tp in tps))

    def position(self, tp: tuple[str, int]) -> int:
        """The next offset to be given out for an assigned partition."""
        return int(self._state(tp).position)

    def high_watermark(self, tp: tuple[str, int]) -> int | None:
        """The end of the partition as of the last fetch (read_committed: the last stable offset), None before it."""
        state = self._state(tp)
        end = state.lso if self._options.read_committed else state.highwater
        return None if end is None else int(end)

    def positions(self) -> dict[TP, int]:
        """All assigned partitions with their next offsets."""
        return {TP(*tp): self.position(tp) for tp in self._consumer.assignment()}

    async def get_runs(self, timeout_s: float, max_bytes: int | None = None) -> list[Run]:
        """The Runs at hand, waiting up to `timeout_s` for a first one; stops after passing `max_bytes`.

        Raises OffsetOutOfRange (visible, never reset), CorruptLog, Unavailable.
        """
        fetcher = self._consumer._fetcher
        runs: list[Run] = []
        size, yield_at = 0, _YIELD_BYTES
        try:
            while max_bytes is None or size < max_bytes:
                got = await fetcher.fetched_records((), timeout=0 if runs else timeout_s, max_records=1)
                if not got:
                    break
                for found in got.values():
                    runs.extend(found)
                    size += sum(run.size_bytes for run in found)
                if size >= yield_at:  # much at hand must not hold up the loop's other work
                    yield_at = size + _YIELD_BYTES
                    await asyncio.sleep(0)
        except Exception as error:
            raise mapped(error, "fetching") from error
        return runs

    def _state(self, tp: tuple[str, int]) -> Any:
        assignment = self._consumer._subscription.subscription.assignment
        return assignment.state_value(TopicPartition(*tp))
