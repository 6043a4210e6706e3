"""How many follow streams, and how much is held in memory for all of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from streams.gateway.metrics import Metrics
from streams.model.errors import TooManyRequests


@dataclass(frozen=True, slots=True)
class StreamOptions:
    """Limits of event streams.

    `idle_s`: silence after which a keep-alive is sent. `stall_s`: how long a client may read nothing before it is
    disconnected. `subscribers_max`: streams at once. `held_bytes_max`: events of all of them in memory, from Kafka
    and not sent yet. `fetch_bytes`: what is read ahead for each besides.
    """

    idle_s: float = 10.0
    stall_s: float = 30.0
    goodbye_s: float = 2.0
    subscribers_max: int = 256
    held_bytes_max: int = 256 << 20
    fetch_bytes: int = 1 << 20


class Subscribers:
    """Counts streams and their bytes; who comes when it is full is refused, and told to come again."""

    def __init__(self, options: StreamOptions, metrics: Metrics) -> None:
        self.options, self._metrics = options, metrics
        self._count = self._held_bytes = 0

    @property
    def count(self) -> int:
        """Streams that are open now."""
        return self._count

    @property
    def held_bytes(self) -> int:
        """Bytes of events that are in memory for them."""
        return self._held_bytes

    def check(self) -> None:
        """TooManyRequests when there is no room for another stream."""
        if self._count >= self.options.subscribers_max:
            raise TooManyRequests(
                f"{self._count} streams are open, as many as this gateway serves",
                fix="close some, come again later, or raise the gateway's --subscribers-max",
            )

    @contextmanager
    def enter(self, kind: str) -> Iterator[None]:
        """One open stream; TooManyRequests."""
        self.check()
        self._count += 1
        self._metrics.streams.labels(kind).inc()
        try:
            yield
        finally:
            self._count -= 1
            self._metrics.streams.labels(kind).dec()

    @contextmanager
    def holding(self, size_bytes: int) -> Iterator[None]:
        """Events in memory until they are sent; TooManyRequests when all streams hold too much already.

        One alone may pass the limit: a record is as large as it is.
        """
        if self._held_bytes and self._held_bytes + size_bytes > self.options.held_bytes_max:
            self._metrics.dropped.labels("memory").inc()
            raise TooManyRequests(
                f"streams hold {self._held_bytes} bytes of events that their clients have not read",
                fix="go on with Last-Event-ID, later",
            )
        self._held_bytes += size_bytes
        self._metrics.held_bytes.set(self._held_bytes)
        try:
            yield
        finally:
            self._held_bytes -= size_bytes
            self._metrics.held_bytes.set(self._held_bytes)
