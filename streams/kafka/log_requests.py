"""Two requests that aiokafka lacks: change some settings of topics, and tell the sizes of logs on disk."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import Array, Boolean, Int8, Int16, Int32, Int64, Schema, String

_TOPIC, _SET = 2, 0


class AlterResponse(Response):  # type: ignore[misc]
    """IncrementalAlterConfigs response, version 0."""

    API_KEY = 44
    API_VERSION = 0
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "responses",
            Array(("error_code", Int16), ("error_message", String("utf-8")), ("type", Int8), ("name", String("utf-8"))),
        ),
    )


class AlterStruct(RequestStruct):  # type: ignore[misc]
    """IncrementalAlterConfigs request, version 0."""

    API_KEY = 44
    API_VERSION = 0
    RESPONSE_TYPE = AlterResponse
    SCHEMA = Schema(
        (
            "resources",
            Array(
                ("type", Int8),
                ("name", String("utf-8")),
                ("configs", Array(("name", String("utf-8")), ("operation", Int8), ("value", String("utf-8")))),
            ),
        ),
        ("validate_only", Boolean),
    )


class AlterRequest(Request[AlterStruct]):  # type: ignore[misc]
    """Set the given settings of topics, or of what else `kind` is (4: brokers, by id); the others stay (unlike
    AlterConfigs, which resets them)."""

    API_KEY = 44

    def __init__(self, changes: Mapping[str, Mapping[str, str]], *, kind: int = _TOPIC) -> None:
        self._changes, self._kind = changes, kind

    def build(self, request_struct_class: Any) -> Any:
        """The request in the version the broker speaks."""
        resources = [
            (self._kind, of, [(name, _SET, value) for name, value in settings.items()])
            for of, settings in self._changes.items()
        ]
        return request_struct_class(resources, False)


class LogDirsResponse(Response):  # type: ignore[misc]
    """DescribeLogDirs response, version 1."""

    API_KEY = 35
    API_VERSION = 1
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "results",
            Array(
                ("error_code", Int16),
                ("log_dir", String("utf-8")),
                (
                    "topics",
                    Array(
                        ("name", String("utf-8")),
                        (
                            "partitions",
                            Array(("partition", Int32), ("size", Int64), ("offset_lag", Int64), ("is_future", Boolean)),
                        ),
                    ),
                ),
            ),
        ),
    )


class LogDirsStruct(RequestStruct):  # type: ignore[misc]
    """DescribeLogDirs request, version 1."""

    API_KEY = 35
    API_VERSION = 1
    RESPONSE_TYPE = LogDirsResponse
    SCHEMA = Schema(("topics", Array(("topic", String("utf-8")), ("partitions", Array(Int32)))))


class LogDirsRequest(Request[LogDirsStruct]):  # type: ignore[misc]
    """Ask one broker for the sizes of all its logs."""

    API_KEY = 35

    def build(self, request_struct_class: Any) -> Any:
        """The request in the version the broker speaks."""
        return request_struct_class(None)
