"""The Metadata request in the version that tells topic ids (aiokafka stops at version 5)."""

from __future__ import annotations

import uuid
from typing import Any

from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import Boolean, CompactString, Int16, Int32

from streams.kafka.protocol_types import Uuid, array_of, flexible, values_of


class TopicIdsResponse(Response):  # type: ignore[misc]
    """Metadata response, version 12."""

    API_KEY = 3
    API_VERSION = 12
    SCHEMA = flexible(
        ("throttle_time_ms", Int32),
        (
            "brokers",
            array_of(
                ("node_id", Int32),
                ("host", CompactString("utf-8")),
                ("port", Int32),
                ("rack", CompactString("utf-8")),
            ),
        ),
        ("cluster_id", CompactString("utf-8")),
        ("controller_id", Int32),
        (
            "topics",
            array_of(
                ("error_code", Int16),
                ("name", CompactString("utf-8")),
                ("topic_id", Uuid),
                ("is_internal", Boolean),
                (
                    "partitions",
                    array_of(
                        ("error_code", Int16),
                        ("partition", Int32),
                        ("leader", Int32),
                        ("leader_epoch", Int32),
                        ("replicas", values_of(Int32)),
                        ("isr", values_of(Int32)),
                        ("offline", values_of(Int32)),
                    ),
                ),
                ("authorized_operations", Int32),
            ),
        ),
    )


class TopicIdsRequestStruct(RequestStruct):  # type: ignore[misc]
    """Metadata request, version 12."""

    FLEXIBLE_VERSION = True
    API_KEY = 3
    API_VERSION = 12
    RESPONSE_TYPE = TopicIdsResponse
    SCHEMA = flexible(
        ("topics", array_of(("topic_id", Uuid), ("name", CompactString("utf-8")))),
        ("allow_auto_topic_creation", Boolean),
        ("include_topic_authorized_operations", Boolean),
    )


class TopicIdsRequest(Request[TopicIdsRequestStruct]):  # type: ignore[misc]
    """Ask for topics' ids and partitions; None for all topics."""

    API_KEY = 3

    def __init__(self, topics: list[str] | None) -> None:
        self._topics = topics

    def build(self, request_struct_class: Any) -> Any:
        """The request in the version the broker speaks."""
        zero = uuid.UUID(int=0)
        topics: list[Any] | None = None if self._topics is None else [(zero, name, {}) for name in self._topics]
        return request_struct_class(topics, False, False, {})
