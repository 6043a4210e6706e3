"""Four requests that aiokafka lacks: what is open in partitions, what coordinators know of it, a marker to end it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import Boolean, CompactString, Int16, Int32, Int64

from streams.kafka.protocol_types import array_of, flexible, values_of

_TEXT = CompactString("utf-8")


class ProducersResponse(Response):  # type: ignore[misc]
    """DescribeProducers response, version 0."""

    API_KEY = 61
    API_VERSION = 0
    SCHEMA = flexible(
        ("throttle_time_ms", Int32),
        (
            "topics",
            array_of(
                ("name", _TEXT),
                (
                    "partitions",
                    array_of(
                        ("partition", Int32),
                        ("error_code", Int16),
                        ("error_message", _TEXT),
                        (
                            "producers",
                            array_of(
                                ("producer_id", Int64),
                                ("producer_epoch", Int32),
                                ("last_sequence", Int32),
                                ("last_timestamp_ms", Int64),
                                ("coordinator_epoch", Int32),
                                ("start_offset", Int64),
                            ),
                        ),
                    ),
                ),
            ),
        ),
    )


class ProducersStruct(RequestStruct):  # type: ignore[misc]
    """DescribeProducers request, version 0."""

    FLEXIBLE_VERSION = True
    API_KEY = 61
    API_VERSION = 0
    RESPONSE_TYPE = ProducersResponse
    SCHEMA = flexible(("topics", array_of(("name", _TEXT), ("partitions", values_of(Int32)))))


class ProducersRequest(Request[ProducersStruct]):  # type: ignore[misc]
    """Ask the leader of partitions who has written to them, and where each has a transaction open."""

    API_KEY = 61

    def __init__(self, partitions: Mapping[str, Sequence[int]]) -> None:
        self._partitions = partitions

    def build(self, request_struct_class: Any) -> Any:
        """The request in the version the broker speaks."""
        return request_struct_class([(name, list(numbers), {}) for name, numbers in self._partitions.items()], {})


class ListedResponse(Response):  # type: ignore[misc]
    """ListTransactions response, version 0."""

    API_KEY = 66
    API_VERSION = 0
    SCHEMA = flexible(
        ("throttle_time_ms", Int32),
        ("error_code", Int16),
        ("unknown_states", values_of(_TEXT)),
        ("transactions", array_of(("transactional_id", _TEXT), ("producer_id", Int64), ("state", _TEXT))),
    )


class ListedStruct(RequestStruct):  # type: ignore[misc]
    """ListTransactions request, version 0."""

    FLEXIBLE_VERSION = True
    API_KEY = 66
    API_VERSION = 0
    RESPONSE_TYPE = ListedResponse
    SCHEMA = flexible(("states", values_of(_TEXT)), ("producer_ids", values_of(Int64)))


class ListedRequest(Request[ListedStruct]):  # type: ignore[misc]
    """Ask one broker for the transactional ids, among those it coordinates, of some producer ids."""

    API_KEY = 66

    def __init__(self, producer_ids: Iterable[int]) -> None:
        self._producer_ids = sorted(producer_ids)

    def build(self, request_struct_class: Any) -> Any:
        """The request in the version the broker speaks."""
        return request_struct_class([], self._producer_ids, {})


class TransactionsResponse(Response):  # type: ignore[misc]
    """DescribeTransactions response, version 0."""

    API_KEY = 65
    API_VERSION = 0
    SCHEMA = flexible(
        ("throttle_time_ms", Int32),
        (
            "transactions",
            array_of(
                ("error_code", Int16),
                ("transactional_id", _TEXT),
                ("state", _TEXT),
                ("timeout_ms", Int32),
                ("started_ms", Int64),
                ("producer_id", Int64),
                ("producer_epoch", Int16),
                ("topics", array_of(("name", _TEXT), ("partitions", values_of(Int32)))),
            ),
        ),
    )


class TransactionsStruct(RequestStruct):  # type: ignore[misc]
    """DescribeTransactions request, version 0."""

    FLEXIBLE_VERSION = True
    API_KEY = 65
    API_VERSION = 0
    RESPONSE_TYPE = TransactionsResponse
    SCHEMA = flexible(("transactional_ids", values_of(_TEXT)))


class TransactionsRequest(Request[TransactionsStruct]):  # type: ignore[misc]
    """Ask a coordinator how the transactions of some transactional ids are."""

    API_KEY = 65

    def __init__(self, transactional_ids: Sequence[str]) -> None:
        self._ids = transactional_ids

    def build(self, request_struct_class: Any) -> Any:
        """The request in the version the broker speaks."""
        return request_struct_class(list(self._ids), {})


class MarkersResponse(Response):  # type: ignore[misc]
    """WriteTxnMarkers response, version 1."""

    API_KEY = 27
    API_VERSION = 1
    SCHEMA = flexible(
        (
            "markers",
            array_of(
                ("producer_id", Int64),
                (
                    "topics",
                    array_of(("name", _TEXT), ("partitions", array_of(("partition", Int32), ("error_code", Int16)))),
                ),
            ),
        ),
    )


class MarkersStruct(RequestStruct):  # type: ignore[misc]
    """WriteTxnMarkers request, version 1: of transactions whose markers carry the producer's own epoch."""

    FLEXIBLE_VERSION = True
    API_KEY = 27
    API_VERSION = 1
    RESPONSE_TYPE = MarkersResponse
    SCHEMA = flexible(
        (
            "markers",
            array_of(
                ("producer_id", Int64),
                ("producer_epoch", Int16),
                ("commit", Boolean),
                ("topics", array_of(("name", _TEXT), ("partitions", values_of(Int32)))),
                ("coordinator_epoch", Int32),
            ),
        ),
    )


class MarkerRequest(Request[MarkersStruct]):  # type: ignore[misc]
    """Have a partition's leader end what one producer has open there. `producer` is its id, epoch and the
    coordinator's epoch, as DescribeProducers tells them."""

    API_KEY = 27

    def __init__(self, topic: str, partition: int, producer: tuple[int, int, int], *, commit: bool) -> None:
        self._topic, self._partition, self._producer, self._commit = topic, partition, producer, commit

    def build(self, request_struct_class: Any) -> Any:
        """The request in the version the broker speaks."""
        producer_id, epoch, coordinator_epoch = self._producer
        topics: list[Any] = [(self._topic, [self._partition], {})]
        return request_struct_class([(producer_id, epoch, self._commit, topics, coordinator_epoch, {})], {})
