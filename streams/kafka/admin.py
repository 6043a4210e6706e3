"""Topics: create and check, ids, offsets, deletion; and waiting for a broker."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import (
    InvalidReplicationFactorError,
    KafkaError,
    TopicAlreadyExistsError,
    UnknownTopicOrPartitionError,
    for_code,
)
from aiokafka.protocol.admin import CreateTopicsRequest, DeleteTopicsRequest, DescribeConfigsRequest
from aiokafka.protocol.offset import OffsetRequest
from aiokafka.structs import TopicPartition

from streams.kafka.errors import mapped
from streams.kafka.link import Deadline, Link
from streams.kafka.log_requests import AlterRequest, LogDirsRequest
from streams.kafka.metadata import TopicIdsRequest
from streams.kafka.run import TP
from streams.model.errors import Conflict, NotFound, StreamsError, Unavailable

_LATEST, _EARLIEST = -1, -2
_OFFSET_NOT_AVAILABLE = 78
"""A code that aiokafka does not know."""
_BROKER = 4
"""The kind of a resource whose settings are asked for."""
_DEFAULT_REPLICAS = "default.replication.factor"


@dataclass(frozen=True)
class TopicSpec:
    """A topic as it must be. `config` are Kafka's topic settings, as strings; only these are compared.

    `replication` 0 means what the brokers have as `default.replication.factor`, or as many as there are brokers, to 3,
    if that is more. With 3 or more, `min.insync.replicas` is 2 unless `config` says otherwise: any one may be lost.
    """

    name: str
    partitions: int
    config: Mapping[str, str] = field(default_factory=dict)
    replication: int = 0


@dataclass(frozen=True)
class TopicInfo:
    """A topic as it is."""

    name: str
    topic_id: UUID
    partitions: int


def in_sync_config(replicas: int) -> dict[str, str]:
    """The setting with which what is acknowledged (`acks=all`) outlives any one of so many replicas."""
    return {"min.insync.replicas": "2"} if replicas >= 3 else {}


class Admin:
    """Administrative requests to one cluster. All raise Unavailable or Timeout when it does not answer."""

    def __init__(self, bootstrap_servers: str, timeout_s: float = 30.0) -> None:
        self._bootstrap, self._timeout_s = bootstrap_servers, timeout_s
        self._link = Link(bootstrap_servers, "streams-admin", timeout_s)

    @property
    def link(self) -> Link:
        """Its connections, for further requests of this room."""
        return self._link

    async def start(self) -> None:
        """Connect."""
        await self._link.start()

    async def stop(self) -> None:
        """Disconnect; idempotent."""
        await self._link.stop()

    async def __aenter__(self) -> Admin:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def topics(self, names: Sequence[str] | None = None) -> dict[str, TopicInfo]:
        """Id and partition count of the topics that exist among `names` (None: of all topics)."""
        response = await self._link.any_node(TopicIdsRequest(None if names is None else list(names)))
        found = {}
        for error, name, topic_id, _internal, partitions, *_ in response.topics:
            if error == 0:
                found[name] = TopicInfo(name, topic_id, len(partitions))
            elif for_code(error) is not UnknownTopicOrPartitionError:
                raise Unavailable(f"metadata of topic {name}: {for_code(error).__name__}")
        return found

    async def topic_ids(self, names: Sequence[str]) -> dict[str, UUID]:
        """The UUIDs of the topics; NotFound names the first that does not exist."""
        found = await self.topics(names)
        for name in names:
            if name not in found:
                raise NotFound(f"topic {name} does not exist", field="topic")
        return {name: info.topic_id for name, info in found.items()}

    async def partition_count(self, topic: str) -> int:
        """How many partitions a topic has; NotFound if it does not exist."""
        found = await self.topics([topic])
        if topic not in found:
            raise NotFound(f"topic {topic} does not exist", field="topic")
        return found[topic].partitions

    async def replication(self, topic: str) -> int:
        """How many replicas a topic's partitions have; NotFound if it does not exist."""
        response = await self._link.any_node(TopicIdsRequest([topic]))
        for error, _name, _id, _internal, partitions, *_ in response.topics:
            if error == 0 and partitions:
                return max(len(partition[4]) for partition in partitions)
        raise NotFound(f"topic {topic} does not exist", field="topic")

    async def ensure_topics(self, specs: Iterable[TopicSpec]) -> dict[str, TopicInfo]:
        """Create what is missing, and check what exists: Conflict names every difference in partitions or config.

        Returns once every topic is in the brokers' metadata with all its partitions led, and the leaders of what was
        created know that they lead: the first put to it is not refused and sent again. Nothing existing is altered.
        """
        wanted = {spec.name: spec for spec in specs}
        existing = await self.topics(list(wanted))
        missing = [spec for name, spec in wanted.items() if name not in existing]
        if missing:
            await self._create(missing)
        deadline = Deadline(self._timeout_s, 0.005)
        found = await self._await_topics(wanted, deadline)
        created = [(spec.name, partition) for spec in missing for partition in range(found[spec.name].partitions)]
        await self._records_at(created, _LATEST, deadline=deadline)
        checked = [spec for name, spec in wanted.items() if name in existing or spec not in missing]
        await self._check(checked, found)
        return found

    async def end_offsets(self, tps: Iterable[tuple[str, int]], *, committed: bool = True) -> dict[TP, int]:
        """The offset after the last record: of committed data (last stable offset), or of all (high watermark)."""
        return await self._offsets(tps, _LATEST, 1 if committed else 0)

    async def start_offsets(self, tps: Iterable[tuple[str, int]]) -> dict[TP, int]:
        """The first offset that is still there (log start)."""
        return await self._offsets(tps, _EARLIEST, 0)

    async def first_since(self, tps: Iterable[tuple[str, int]], since_ms: int) -> dict[TP, tuple[int, int] | None]:
        """The first record of each partition that is of `since_ms` or later: its offset and time; None: there is none.

        With 0 that is the log's first record: how far back it reaches.
        """
        found = await self._records_at(tps, since_ms)
        return {tp: at if at[0] >= 0 else None for tp, at in found.items()}

    async def delete_topics(self, names: Sequence[str]) -> None:
        """Delete topics; those that do not exist are skipped. Returns when metadata no longer shows them."""
        response = await self._controller(DeleteTopicsRequest(list(names), int(self._timeout_s * 1000)))
        for name, code in response.topic_error_codes:
            if code and for_code(code) is not UnknownTopicOrPartitionError:
                raise Unavailable(f"deleting topic {name}: {for_code(code).__name__}")
        deadline = Deadline(self._timeout_s, 0.01)
        while await self.topics(names):
            await deadline.pause(f"topics {names} are still there")

    async def delete_records(self, before: Mapping[tuple[str, int], int]) -> dict[TP, int]:
        """Move log starts up to the given offsets; returns the new log starts."""
        client = AIOKafkaAdminClient(bootstrap_servers=self._bootstrap)
        try:
            await client.start()
            moved = await client.delete_records(
                {TopicPartition(*tp): RecordsToDelete(before_offset=offset) for tp, offset in before.items()}
            )
        except KafkaError as error:
            raise mapped(error, "deleting records") from error
        finally:
            await client.close()
        return {TP(*tp): offset for tp, offset in moved.items()}

    async def configs(self, names: Sequence[str]) -> dict[str, dict[str, str | None]]:
        """All settings of the topics."""
        client = AIOKafkaAdminClient(bootstrap_servers=self._bootstrap)
        try:
            await client.start()
            responses = await client.describe_configs([ConfigResource(ConfigResourceType.TOPIC, n) for n in names])
        except KafkaError as error:
            raise mapped(error, "describing topics") from error
        finally:
            await client.close()
        found: dict[str, dict[str, str | None]] = {}
        for response in responses:
            for code, message, _kind, name, entries, *_ in response.resources:
                if code:
                    raise Unavailable(f"describing topic {name}: {for_code(code).__name__} {message or ''}")
                found[name] = {entry[0]: entry[1] for entry in entries}
        return found

    async def alter_configs(self, changes: Mapping[str, Mapping[str, str]]) -> None:
        """Set these settings of these topics, and no others. Conflict with the broker's reason when it refuses."""
        response = await self._controller(AlterRequest(changes))
        for code, message, _kind, name in response.responses:
            if code:
                raise Conflict(f"altering topic {name}: {for_code(code).__name__}: {message}", field=name)

    async def log_bytes(self) -> dict[str, int]:
        """Bytes of each topic's segments on the brokers' disks, all replicas, without indices."""
        found: dict[str, int] = {}
        brokers = (await self._link.any_node(TopicIdsRequest([]))).brokers
        for node, *_ in brokers:
            try:
                response = await self._link.send(node, LogDirsRequest())
            except KafkaError as error:
                raise mapped(error, "asking for the sizes of logs") from error
            for code, _directory, topics in response.results:
                if code:
                    raise Unavailable(f"the sizes of logs: {for_code(code).__name__}")
                for name, partitions in topics:
                    found[name] = found.get(name, 0) + sum(size for _, size, *_ in partitions)
        return found

    async def _create(self, specs: list[TopicSpec]) -> None:
        replicas = await self._replicas()
        rows: list[tuple[str, int, int, list[int], list[tuple[str, str]]]] = [
            (
                spec.name,
                spec.partitions,
                spec.replication or replicas,
                [],
                list({**in_sync_config(spec.replication or replicas), **spec.config}.items()),
            )
            for spec in specs
        ]
        response = await self._controller(CreateTopicsRequest(rows, int(self._timeout_s * 1000), False))
        for name, code, message, *_ in response.topic_errors:
            if code and for_code(code) is InvalidReplicationFactorError:
                raise Unavailable(
                    f"creating topic {name}: there are too few brokers for {replicas} replicas: {message}"
                )
            if code and for_code(code) is not TopicAlreadyExistsError:
                raise Conflict(f"creating topic {name}: {for_code(code).__name__}: {message}", field=name)

    async def _replicas(self) -> int:
        """How many replicas a topic gets: what the brokers have for their default, but as many as there are brokers, to
        3, if that is more. Asking the brokers matters while some of them are still starting."""
        brokers = (await self._link.any_node(TopicIdsRequest([]))).brokers
        node = brokers[0][0]
        request = DescribeConfigsRequest([(_BROKER, str(node), [_DEFAULT_REPLICAS])], False)
        try:
            response = await self._link.send(node, request)
        except KafkaError as error:
            raise mapped(error, "asking for the default replication") from error
        found = []
        for code, message, _kind, _name, entries, *_ in response.resources:
            if code:
                raise Unavailable(f"asking for the default replication: {for_code(code).__name__} {message or ''}")
            found += [int(entry[1]) for entry in entries if entry[0] == _DEFAULT_REPLICAS and entry[1]]
        if not found:  # as a broker that has just started may answer: guessing would be for good
            raise Unavailable("the brokers did not tell their default replication", fix="try again")
        return max([*found, min(3, len(brokers))])

    async def _controller(self, request: Any) -> Any:
        # A KRaft broker forwards to the controller, so any broker will do.
        return await self._link.any_node(request)

    async def _await_topics(self, wanted: Mapping[str, TopicSpec], deadline: Deadline) -> dict[str, TopicInfo]:
        while True:
            found = await self.topics(list(wanted))
            absent = [name for name in wanted if name not in found]
            if not absent:
                await self._await_leaders(found.values(), deadline)
                return found
            await deadline.pause(f"topics {absent} did not appear")

    async def _await_leaders(self, topics: Iterable[TopicInfo], deadline: Deadline) -> None:
        for info in topics:
            for partition in range(info.partitions):
                await self._link.leader(info.name, partition, deadline)

    async def _check(self, specs: Sequence[TopicSpec], found: Mapping[str, TopicInfo]) -> None:
        if not specs:
            return
        configs = await self.configs([spec.name for spec in specs])
        wrong = []
        for spec in specs:
            has = found[spec.name].partitions
            if has != spec.partitions:
                wrong.append(f"{spec.name} has {has} partitions, not {spec.partitions}")
            for key, value in spec.config.items():
                actual = configs[spec.name].get(key)
                if actual != value:
                    wrong.append(f"{spec.name} has {key}={actual}, not {value}")
        if wrong:
            raise Conflict("; ".join(wrong), field="topic", fix="alter the topic with Kafka's tools, or the definition")

    async def _offsets(self, tps: Iterable[tuple[str, int]], which: int, isolation: int) -> dict[TP, int]:
        return {tp: offset for tp, (offset, _) in (await self._records_at(tps, which, isolation)).items()}

    async def _records_at(
        self, tps: Iterable[tuple[str, int]], which: int, isolation: int = 0, deadline: Deadline | None = None
    ) -> dict[TP, tuple[int, int]]:
        """Offset and time of what `which` names: an end of the log, or the first record since that time."""
        waiting = {TP(*tp) for tp in tps}
        found: dict[TP, tuple[int, int]] = {}
        deadline = deadline or Deadline(self._timeout_s)
        while waiting:
            by_node: dict[int, dict[str, list[tuple[int, int]]]] = {}
            for tp in sorted(waiting):
                node = await self._link.leader(tp.topic, tp.partition, deadline)
                by_node.setdefault(node, {}).setdefault(tp.topic, []).append((tp.partition, which))
            requests = [
                self._link.send(node, OffsetRequest(-1, isolation, list(topics.items())))
                for node, topics in by_node.items()
            ]
            reason: object = None
            for answer in await asyncio.gather(*requests, return_exceptions=True):
                if isinstance(answer, BaseException):
                    reason = _retriable(answer, "list offsets")
                    continue
                for topic, partitions in answer.topics:
                    for partition, code, timestamp, offset in partitions:
                        if code == 0:
                            found[TP(topic, partition)] = (offset, timestamp)
                        elif code == _OFFSET_NOT_AVAILABLE:
                            reason = f"the new leader of {topic}/{partition} does not know its end yet"
                        else:
                            reason = _retriable(for_code(code)(f"{topic}/{partition}"), "list offsets")
            waiting -= found.keys()
            if waiting:
                await self._link.refresh({tp.topic for tp in waiting})
                await deadline.pause(reason)
        return found


def _retriable(error: BaseException, doing: str) -> object:
    if isinstance(error, KafkaError) and error.retriable:
        return error
    raise mapped(error, doing) from error


async def wait_for_broker(bootstrap_servers: str, timeout_s: float) -> None:
    """Return as soon as a broker of the cluster answers; Timeout otherwise."""
    deadline = Deadline(timeout_s, 0.02, 0.25)
    while True:
        link = Link(bootstrap_servers, "streams-wait", request_timeout_s=max(1.0, min(5.0, timeout_s)))
        try:
            await link.start()
            await link.any_node(TopicIdsRequest([]))
        except StreamsError as error:
            await deadline.pause(error)
        else:
            return
        finally:
            await link.stop()
