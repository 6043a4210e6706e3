"""Errors that reach a user: each names what was wrong, the field, and what to do about it.

Every error carries the HTTP status that the gateway answers with and whether trying again can help, so that the
command line, the client and the gateway say the same thing.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any


class StreamsError(Exception):
    """A failure that can be shown to a user in one line.

    `detail` says what was wrong, `field` names the offending input (or None), `fix` says what to do.
    `status` is the HTTP status; `retriable` says whether the same request may succeed later.
    """

    status = 500
    title = "internal error"
    retriable = False
    extra: Mapping[str, object] = MappingProxyType({})
    """Further members of the problem document."""

    def __init__(self, detail: str, *, field: str | None = None, fix: str | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.field = field
        self.fix = fix

    def __str__(self) -> str:
        """One line: the field, what was wrong, and the fix."""
        line = f"{self.field}: {self.detail}" if self.field else self.detail
        return f"{line} ({self.fix})" if self.fix else line


class BadInput(StreamsError):
    """The request or record is malformed; the same input never succeeds."""

    status = 400
    title = "bad input"


class Unauthorized(StreamsError):
    """No valid bearer token came with the request."""

    status = 401
    title = "unauthorized"


class Forbidden(StreamsError):
    """The token's scopes do not cover this keyspace and action."""

    status = 403
    title = "forbidden"


class NotFound(StreamsError):
    """The named key, table, keyspace, schema or process does not exist."""

    status = 404
    title = "not found"


class Conflict(StreamsError):
    """The request contradicts what is already defined (schema, keyspace, consistency)."""

    status = 409
    title = "conflict"


class PreconditionFailed(StreamsError):
    """A conditional write's version has moved."""

    status = 412
    title = "precondition failed"


class TooLarge(StreamsError):
    """A body, key or value is over its limit in bytes."""

    status = 413
    title = "too large"


class Unprocessable(StreamsError):
    """Well-formed but unusable: an idempotency key reused for another request."""

    status = 422
    title = "unprocessable"


class RequestTimeout(StreamsError):
    """The client stopped sending in the middle of its request."""

    status = 408
    title = "request timeout"
    retriable = True


class UnsupportedMedia(StreamsError):
    """The body comes in a form that is not read, such as compressed."""

    status = 415
    title = "unsupported media"


class TooManyRequests(StreamsError):
    """A bounded queue is full; nothing was accepted."""

    status = 429
    title = "too many requests"
    retriable = True


class UdfFailed(StreamsError):
    """A function trapped, broke a limit or answered nonsense: `extra` names it. Nothing was put."""

    status = 502
    title = "UDF failed"


class Unavailable(StreamsError):
    """A dependency (Kafka, the home region) cannot be reached now; the outcome of a write may be unknown."""

    status = 503
    title = "unavailable"
    retriable = True


class Timeout(StreamsError):
    """A bounded wait ran out; `retry_after_s` suggests when to try again."""

    status = 504
    title = "timeout"
    retriable = True

    def __init__(
        self, detail: str, *, field: str | None = None, fix: str | None = None, retry_after_s: float = 1.0
    ) -> None:
        super().__init__(detail, field=field, fix=fix)
        self.retry_after_s = retry_after_s


_MEMBERS = {"type", "title", "status", "detail", "field", "fix"}


def error_of(status: int, body: Mapping[str, Any]) -> StreamsError:
    """The error that a problem document (RFC 9457) stands for; KeyError when `body` is none."""
    kinds = {each.status: each for each in StreamsError.__subclasses__() if each.__module__ == __name__}
    error = kinds.get(status, StreamsError)(body["detail"], field=body.get("field"), fix=body.get("fix"))
    error.title = str(body.get("title") or error.title)
    error.extra = {name: value for name, value in body.items() if name not in _MEMBERS}
    return error
