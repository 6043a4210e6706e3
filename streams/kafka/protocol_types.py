"""Types of Kafka's flexible protocol versions that aiokafka lacks or makes wordy."""

from __future__ import annotations

import uuid
from io import BytesIO
from typing import Any

from aiokafka.protocol.types import CompactArray, Int32, Schema, TaggedFields


class Uuid:
    """Kafka's 16-byte UUID as a protocol type."""

    @classmethod
    def encode(cls, value: uuid.UUID) -> bytes:
        """To the wire."""
        return value.bytes

    @classmethod
    def decode(cls, data: BytesIO) -> uuid.UUID:
        """From the wire."""
        return uuid.UUID(bytes=data.read(16))

    @classmethod
    def repr(cls, value: uuid.UUID) -> str:
        """For logs."""
        return str(value)


class _Tags(TaggedFields):  # type: ignore[misc]
    pass


def flexible(*fields: tuple[str, Any]) -> Any:
    """The schema of a structure of a flexible version: these fields and the tags."""
    return Schema(*fields, ("tags", _Tags))


def array_of(*fields: tuple[str, Any]) -> Any:
    """A compact array of structures of a flexible version."""
    return values_of(flexible(*fields))


def values_of(item: Any) -> Any:
    """A compact array of single values."""
    array = CompactArray(Int32)
    array.array_of = item
    return array
