"""`Idempotency-Key`: the first answer is kept and given again.

Kept in memory, bounded in time, number and bytes. A gateway that restarts forgets; what happened to a request whose
answer was lost in that moment is then unknown to it.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from streams.gateway.http import Reply
from streams.model.errors import BadInput, Unprocessable

KEY_CHARACTERS_MAX = 255
_ENTRY_BYTES = 400


@dataclass(frozen=True, slots=True)
class IdempotencyOptions:
    """Bounds: how long, how many, how many bytes of answers are kept."""

    keep_s: float = 24 * 3600.0
    entries_max: int = 100_000
    bytes_max: int = 64 << 20


@dataclass(slots=True)
class _Entry:
    fingerprint: bytes
    created_s: float
    answer: asyncio.Future[Reply | None]
    size: int = _ENTRY_BYTES


class IdempotencyStore:
    """Answers by key. Concurrent duplicates wait for the first; a failed first lets the next one try."""

    def __init__(self, options: IdempotencyOptions = IdempotencyOptions()) -> None:
        self._options = options
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        """How many keys are remembered."""
        return len(self._entries)

    async def run(self, key: str, fingerprint: bytes, work: Callable[[], Awaitable[Reply]]) -> tuple[Reply, bool]:
        """The answer to the request, and whether it was replayed.

        `fingerprint` identifies the request: the same key with another one is Unprocessable. Answers that say "try
        again" (429, 5xx) and errors are not kept.
        """
        if not 1 <= len(key) <= KEY_CHARACTERS_MAX:
            raise BadInput(
                "the key has no or too many characters",
                field="Idempotency-Key",
                fix=f"use 1 to {KEY_CHARACTERS_MAX} characters, such as a UUID",
            )
        self._expire()
        while (entry := self._entries.get(key)) is not None:
            if entry.fingerprint != fingerprint:
                raise Unprocessable(
                    "this key was used for another request",
                    field="Idempotency-Key",
                    fix="use a new key for each request",
                )
            answer = await asyncio.shield(entry.answer)
            if answer is not None:
                return answer, True
        return await self._first(key, fingerprint, work), False

    async def _first(self, key: str, fingerprint: bytes, work: Callable[[], Awaitable[Reply]]) -> Reply:
        entry = _Entry(fingerprint, time.monotonic(), asyncio.get_running_loop().create_future())
        self._entries[key] = entry
        self._bytes += entry.size
        answer: Reply | None = None
        try:
            answer = await work()
        finally:
            keep = answer is not None and answer.stream is None and answer.status < 500 and answer.status != 429
            if keep and answer is not None:
                entry.size += len(answer.body)
                self._bytes += len(answer.body)
            else:
                self._forget(key)
            entry.answer.set_result(answer if keep else None)
            self._expire()
        return answer

    def _expire(self) -> None:
        oldest_s = time.monotonic() - self._options.keep_s
        while self._entries:
            key, entry = next(iter(self._entries.items()))
            full = len(self._entries) > self._options.entries_max or self._bytes > self._options.bytes_max
            if not entry.answer.done() or (entry.created_s > oldest_s and not full):
                return
            self._forget(key)

    def _forget(self, key: str) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._bytes -= entry.size


def fingerprint(method: str, target: bytes, content_type: str, principal: str, body: bytes) -> bytes:
    """What makes two requests the same."""
    digest = hashlib.sha256()
    for part in (method.encode(), target, content_type.encode(), principal.encode(), body):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.digest()
