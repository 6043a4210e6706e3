"""Errors as `application/problem+json` (RFC 9457), with the offending field and what to do about it."""

from __future__ import annotations

import math

from streams.gateway.http import Headers, Reply
from streams.gateway.json_text import dump
from streams.model.errors import StreamsError, Timeout, TooManyRequests, Unauthorized, Unavailable

PROBLEM = b"application/problem+json"


def problem(error: StreamsError) -> Reply:
    """The answer for `error`. `Retry-After` goes with what may succeed later."""
    body = {
        "type": "about:blank" if error.status == 500 else f"/docs#{error.title.replace(' ', '-')}",
        "title": error.title,
        "status": error.status,
        "detail": error.detail,
        "field": error.field,
        "fix": error.fix,
        **error.extra,
    }
    return Reply(dump(body), error.status, PROBLEM, _headers(error))


def _headers(error: StreamsError) -> Headers:
    if (read := getattr(error, "headers", None)) is not None:
        return tuple(read)
    if isinstance(error, Timeout):
        return ((b"retry-after", b"%d" % max(1, math.ceil(error.retry_after_s))),)
    if isinstance(error, Unavailable | TooManyRequests):
        return ((b"retry-after", b"1"),)
    if isinstance(error, Unauthorized):
        return ((b"www-authenticate", b"Bearer"),)
    return ()


class MethodNotAllowed(StreamsError):
    """The path exists, the method does not."""

    status = 405
    title = "method not allowed"

    def __init__(self, detail: str, allowed: str) -> None:
        super().__init__(detail, field="method", fix=f"use {allowed}")
        self.headers = ((b"allow", allowed.encode()),)


class InternalError(StreamsError):
    """A defect of the gateway; its log has the traceback."""

    status = 500
    title = "internal error"
