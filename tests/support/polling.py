"""Waiting for something to become true, with a deadline instead of a sleep."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any


async def eventually(
    check: Callable[[], Any | Awaitable[Any]], timeout_s: float = 10.0, *, every_s: float = 0.02
) -> Any:
    """Poll `check` (plain or async) until it returns something true and return that.

    An AssertionError or a false value means not yet; after `timeout_s` the last AssertionError, or one that shows the
    last value, is raised. Other exceptions pass at once.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        failure: AssertionError | None = None
        value: Any = None
        try:
            value = check()
            if inspect.isawaitable(value):
                value = await value
            if value:
                return value
        except AssertionError as error:
            failure = error
        if time.monotonic() >= deadline:
            raise failure or AssertionError(f"not true within {timeout_s} s; last value: {value!r}")
        await asyncio.sleep(every_s)


def eventually_sync(check: Callable[[], Any], timeout_s: float = 10.0, *, every_s: float = 0.02) -> Any:
    """The same for tests without an event loop."""
    deadline = time.monotonic() + timeout_s
    while True:
        failure: AssertionError | None = None
        value: Any = None
        try:
            value = check()
            if value:
                return value
        except AssertionError as error:
            failure = error
        if time.monotonic() >= deadline:
            raise failure or AssertionError(f"not true within {timeout_s} s; last value: {value!r}")
        time.sleep(every_s)
