"""The synchronous twin, for scripts and notebooks: the same calls, answered when they are done."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from streams.client.follow import GIVE_UP_S
from streams.client.invoke import SyncInvokeCalls
from streams.client.machines import SyncMachineCalls
from streams.client.routing import RouteDecision
from streams.client.session import AsyncClient
from streams.client.strong import SyncStrongCalls
from streams.client.telemetry import TelemetryWindows, Time
from streams.client.trading import Answer, SyncTradingCalls
from streams.client.types import BatchReceipt, Digest, Event, RankedRow, Receipt, Row
from streams.client.udf_versions import SyncUdfVersionCalls
from streams.model.token import Token

T = TypeVar("T")


class Client(SyncStrongCalls, SyncTradingCalls, SyncInvokeCalls, SyncMachineCalls, SyncUdfVersionCalls):
    """`AsyncClient` on an event loop of its own in a background thread. `with connect_sync(url) as edge: ...`"""

    _edge: AsyncClient

    def __init__(self, make: Callable[[], AsyncClient]) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="streams-client", daemon=True)
        self._thread.start()
        self._edge = make()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections and end the thread; idempotent."""
        if not self._loop.is_closed():
            self._run(self._edge.close())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    @property
    def token(self) -> Token:
        """See AsyncClient.token."""
        return self._edge.token

    def observe(self, token: str | Token) -> None:
        """See AsyncClient.observe."""
        self._edge.observe(token)

    def put(self, key: str, value: Any, *, ttl: float | str | None = None) -> Receipt:
        """See AsyncClient.put."""
        return self._run(self._edge.put(key, value, ttl=ttl))

    def delete(self, key: str) -> Receipt:
        """See AsyncClient.delete."""
        return self._run(self._edge.delete(key))

    def get(self, key: str, *, max_staleness_ms: int | None = None, consistency: str | None = None) -> Row | None:
        """See AsyncClient.get."""
        return self._run(self._edge.get(key, max_staleness_ms=max_staleness_ms, consistency=consistency))

    def put_many(
        self, keyspace: str, table: Any, ttl: float | str | None = None, *, frame_puts: int | None = None
    ) -> BatchReceipt:
        """See AsyncClient.put_many."""
        return self._run(self._edge.put_many(keyspace, table, ttl, frame_puts=frame_puts))

    def put_batch(self, puts: Iterable[dict[str, Any]]) -> BatchReceipt:
        """See AsyncClient.put_batch."""
        return self._run(self._edge.put_batch(puts))

    def put_raw(self, body: bytes, content_type: str) -> BatchReceipt:
        """See AsyncClient.put_raw."""
        return self._run(self._edge.put_raw(body, content_type))

    def scan(self, table: str, *, prefix: str = "", limit: int | None = None) -> Iterator[Row]:
        """See AsyncClient.scan."""
        return self._iterate(self._edge.scan(table, prefix=prefix, limit=limit))

    def top(self, table: str, n: int = 100, *, by: str | None = None) -> list[RankedRow]:
        """See AsyncClient.top."""
        return self._run(self._edge.top(table, n, by=by))

    def get_top_n_players(self, n: int = 100) -> list[RankedRow]:
        """See AsyncClient.get_top_n_players."""
        return self._run(self._edge.get_top_n_players(n))

    def rank(self, table: str, key: str, *, by: str | None = None) -> RankedRow | None:
        """See AsyncClient.rank."""
        return self._run(self._edge.rank(table, key, by=by))

    def around(self, table: str, key: str, n: int = 5, *, by: str | None = None) -> list[RankedRow]:
        """See AsyncClient.around."""
        return self._run(self._edge.around(table, key, n, by=by))

    def digest(self, table: str, *, as_of_ms: int | None = None) -> Digest:
        """See AsyncClient.digest."""
        return self._run(self._edge.digest(table, as_of_ms=as_of_ms))

    def aggregate_telemetry(
        self,
        partition: str,
        window: float | str | None = None,
        by: str = "device",
        *,
        start: Time | None = None,
        end: Time | None = None,
        hop: float | str | None = None,
        gap: float | str | None = None,
        device: str | None = None,
        metric: str | None = None,
    ) -> TelemetryWindows:
        """See AsyncClient.aggregate_telemetry."""
        return self._run(
            self._edge.aggregate_telemetry(
                partition, window, by, start=start, end=end, hop=hop, gap=gap, device=device, metric=metric
            )
        )

    def tables(self) -> list[dict[str, Any]]:
        """See AsyncClient.tables."""
        return self._run(self._edge.tables())

    def keyspaces(self) -> list[dict[str, Any]]:
        """See AsyncClient.keyspaces."""
        return self._run(self._edge.keyspaces())

    def put_keyspace(self, name: str, **settings: Any) -> dict[str, Any]:
        """See AsyncClient.put_keyspace."""
        return self._run(self._edge.put_keyspace(name, **settings))

    def deploy_globally(
        self,
        directory: str | Path,
        *,
        wait_s: int = 10,
        from_: str | int | None = None,
        in_place: bool = False,
        keep: str | None = None,
    ) -> dict[str, Any]:
        """See AsyncClient.deploy_globally."""
        return self._run(
            self._edge.deploy_globally(directory, wait_s=wait_s, from_=from_, in_place=in_place, keep=keep)
        )

    def udfs(self) -> list[dict[str, Any]]:
        """See AsyncClient.udfs."""
        return self._run(self._edge.udfs())

    def list_udfs(self) -> dict[str, list[dict[str, Any]]]:
        """See AsyncClient.list_udfs."""
        return self._run(self._edge.list_udfs())

    def resume_udf(self, name: str, *, wait_s: int = 10) -> dict[str, Any]:
        """See AsyncClient.resume_udf."""
        return self._run(self._edge.resume_udf(name, wait_s=wait_s))

    def remove_udf(self, name: str) -> None:
        """See AsyncClient.remove_udf."""
        self._run(self._edge.remove_udf(name))

    def trades(self, symbol: str) -> Iterator[Answer]:
        """See TradingCalls.trades."""
        return self._iterate(self._edge.trades(symbol))

    def subscribe_book(
        self, symbol: str, *, after: int | None = None, limit: int | None = None, quiet_s: float | None = None
    ) -> Iterator[tuple[str, Answer]]:
        """See TradingCalls.subscribe_book; bounded as `subscribe_partition`."""
        return self._iterate(self._edge.subscribe_book(symbol, after=after), limit, quiet_s)

    def wait_for(self, token: str | Token | None = None, *, timeout_s: float = 30.0) -> None:
        """See AsyncClient.wait_for."""
        self._run(self._edge.wait_for(token, timeout_s=timeout_s))

    def route(self, location: object) -> RouteDecision:
        """See AsyncClient.route."""
        return self._run(self._edge.route(location))

    def subscribe(
        self,
        keyspace: str,
        *,
        since: str | Token | None = None,
        region: str | None = None,
        prefix: str = "",
        stream: str = "events",
        give_up_s: float = GIVE_UP_S,
        limit: int | None = None,
        quiet_s: float | None = None,
    ) -> Iterator[Event]:
        """See AsyncClient.subscribe; bounded as `subscribe_partition`."""
        source = self._edge.subscribe(
            keyspace, since=since, region=region, prefix=prefix, stream=stream, give_up_s=give_up_s
        )
        return self._iterate(source, limit, quiet_s)

    def subscribe_partition(
        self,
        partition: str,
        *,
        from_: str | Token | None = None,
        prefix: str = "",
        stream: str = "events",
        give_up_s: float = GIVE_UP_S,
        limit: int | None = None,
        quiet_s: float | None = None,
    ) -> Iterator[Event]:
        """See AsyncClient.subscribe_partition. Ends after `limit` events, or when none has come for `quiet_s` seconds;
        without either never. Leaving the loop closes the connection.
        """
        source = self._edge.subscribe_partition(
            partition, from_=from_, prefix=prefix, stream=stream, give_up_s=give_up_s
        )
        return self._iterate(source, limit, quiet_s)

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def _iterate(
        self, source: AsyncGenerator[T, None], limit: int | None = None, quiet_s: float | None = None
    ) -> Iterator[T]:
        async def following() -> T:
            async with asyncio.timeout(quiet_s):
                return await anext(source)

        try:
            while limit is None or limit > 0:
                try:
                    item = self._run(following())
                except (StopAsyncIteration, TimeoutError):
                    return
                yield item
                limit = None if limit is None else limit - 1
        finally:
            if not self._loop.is_closed():
                self._run(source.aclose())
