"""Queries of one gateway: computed in threads of their own, so many at a time and no more."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from streams.edge.edge_table import EdgeTable
from streams.model.errors import TooManyRequests
from streams.use_cases.telemetry.answer import AnswerLimits, answer
from streams.use_cases.telemetry.query import WindowQuery

TABLE = "telemetry"


@dataclass(frozen=True, slots=True)
class TelemetryOptions:
    """`threads`: queries computed at once. `waiting_max`: queries that may be under way, those that wait included."""

    threads: int = 2
    waiting_max: int = 32
    limits: AnswerLimits = field(default_factory=AnswerLimits)


class TelemetryService:
    """Answers window queries. For one event loop; `close` when it ends."""

    def __init__(self, options: TelemetryOptions | None = None) -> None:
        self._options = options or TelemetryOptions()
        self._threads = ThreadPoolExecutor(self._options.threads, thread_name_prefix="telemetry")
        self._under_way = 0
        self._lock = threading.Lock()

    async def aggregate(self, table: EdgeTable, query: WindowQuery) -> bytes:
        """The JSON answer, over the rows as they are in this step of the loop.

        BadInput names the parameter that asks for too much; TooManyRequests when too many queries are under way. A
        query whose caller has left is still computed to its end, and counts until then.
        """
        if self._under_way >= self._options.waiting_max:
            raise TooManyRequests(
                f"{self._under_way} telemetry queries are under way", fix="try again, with fewer at a time"
            )
        view = table.view_of(query.origin)
        with self._lock:
            self._under_way += 1
        job = self._threads.submit(answer, view, query, self._options.limits)
        job.add_done_callback(self._ended)
        return await asyncio.wrap_future(job)

    def _ended(self, _job: Future[bytes]) -> None:
        with self._lock:
            self._under_way -= 1

    async def close(self) -> None:
        """Wait for the queries that are being computed; those that wait are dropped."""
        await asyncio.to_thread(self._threads.shutdown, cancel_futures=True)
