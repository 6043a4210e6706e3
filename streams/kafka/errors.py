"""Errors of the Kafka room, and the mapping from aiokafka's errors to those of the model."""

from __future__ import annotations

from aiokafka import errors as kafka_errors

from streams.model.errors import Conflict, StreamsError, Timeout, TooLarge, Unavailable


class Fenced(Conflict):
    """A newer owner initialised the same transactional id: this writer is a zombie and must drop its state."""


class UnknownOutcome(Unavailable):
    """A commit was begun and its outcome is not known: drop the state and start again from the changelog."""


class OffsetOutOfRange(Conflict):
    """A position lies outside [log start, end] of its partition. Never reset silently; the owner must decide."""


class ChangelogTooLarge(TooLarge):
    """Rows wait for their marker and would need more memory than the reader was given."""


class CorruptLog(StreamsError):
    """Bytes read from a topic are not what the protocol promises (CRC, truncated batch, malformed row)."""


def mapped(error: BaseException, doing: str) -> StreamsError:
    """The model's error for an aiokafka `error` met while `doing` something; always chain it with `from`."""
    if isinstance(error, StreamsError):
        return error
    detail = f"{doing}: {type(error).__name__}: {error}"
    if isinstance(error, kafka_errors.MessageSizeTooLargeError | kafka_errors.RecordListTooLargeError):
        return TooLarge(detail)
    if isinstance(error, kafka_errors.OffsetOutOfRangeError):
        return OffsetOutOfRange(detail, fix="restore from the log start, or declare the data lost")
    if isinstance(error, kafka_errors.CorruptRecordException):
        return CorruptLog(detail)
    if isinstance(error, kafka_errors.RequestTimedOutError | kafka_errors.KafkaTimeoutError | TimeoutError):
        return Timeout(detail)
    return Unavailable(detail)
