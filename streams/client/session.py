"""The client: one session with one gateway. It keeps the causal token, so it reads what it wrote."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from streams.client.columns import dump, lines_of
from streams.client.follow import CONNECT_S, GIVE_UP_S, Patience, follow
from streams.client.invoke import InvokeCalls
from streams.client.machines import MachineCalls
from streams.client.routing import RouteDecision, decision_of, location_query
from streams.client.strong import StrongCalls
from streams.client.telemetry import TelemetryWindows, Time, aggregate_answer, aggregate_request
from streams.client.trading import TradingCalls
from streams.client.transport import CATCH_UP_S, Transport
from streams.client.types import BatchReceipt, Digest, Event, RankedRow, Receipt, Rejected, Row
from streams.client.udf_versions import UdfVersionCalls, send_udf
from streams.model.errors import BadInput, NotFound, StreamsError, Timeout, Unavailable
from streams.model.token import Token
from streams.model.ttl import parse_ttl_ms

if TYPE_CHECKING:
    from streams.client.direct import KafkaSender

BATCH_BYTES = 4 << 20
PAGE_ROWS = 1_000
REJECTED_MAX = 1_000
"""How many rejected rows a receipt lists."""

AGAIN_S = 0.1
"""Between two tries while a gateway does not answer."""

LEADERBOARD = "score"
NO_VALUE = "no value"
"""The title of the problem for a key that has none, apart from unknown keyspaces."""


class AsyncClient(StrongCalls, TradingCalls, InvokeCalls, MachineCalls, UdfVersionCalls):
    """A session with a region's gateway: `async with connect(url) as edge: ...`.

    Every answer's token is merged into `token` and sent with the next request: reads see the session's own writes and
    never go back, in this region and, with `token` carried over, in others. Errors are those of
    `streams.model.errors`. Safe for concurrent use in one event loop.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | Token | None = None,
        bearer: str | None = None,
        bootstrap_servers: str | None = None,
        catch_up_s: float = CATCH_UP_S,
    ) -> None:
        self.url = url.rstrip("/")
        self._bootstrap_servers = bootstrap_servers
        self._transport = Transport(self.url, bearer, catch_up_s)
        self._begin_invoking()
        if token:
            self.observe(token)

    @property
    def token(self) -> Token:
        """What this session has written and read."""
        return self._transport.token

    def observe(self, token: str | Token) -> None:
        """Depend on what `token` stands for from now on: take it from another session, in any region."""
        found = Token.decode(token) if isinstance(token, str) else token
        self._transport.token = self._transport.token.merge(found)

    async def __aenter__(self) -> AsyncClient:
        self._transport.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections; idempotent."""
        await self._close_others()
        await self._transport.close()

    async def put(
        self, key: str, value: Any, *, ttl: float | str | None = None, idempotency_key: str | None = None
    ) -> Receipt:
        """Put a value; returns when the event is durable. `ttl`: seconds, or as `1h`.

        Timeout and Unavailable: the event may be in the log or not. A connection that breaks is retried under the
        same idempotency key, so it counts once.
        """
        query = {} if ttl is None else {"ttl": str(ttl)}
        headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex, "Content-Type": "application/json"}
        body = await self._transport.json("PUT", _path("/v1/kv/", key), query, headers=headers, body=dump(value))
        return _receipt(body)

    async def delete(self, key: str) -> Receipt:
        """Delete a key; returns when the event is durable.

        A connection that breaks is retried under the same idempotency key: a strong key is deleted once, not again
        after what others have put meanwhile.
        """
        headers = {"Idempotency-Key": uuid.uuid4().hex}
        return _receipt(await self._transport.json("DELETE", _path("/v1/kv/", key), {}, headers=headers))

    async def get(self, key: str, *, max_staleness_ms: int | None = None, consistency: str | None = None) -> Row | None:
        """The merged row of a key, or None when it has no value.

        `consistency`: of strong keyspaces, `strong` (the default: linearizable) or `eventual` (this region's copy).
        """
        query = {} if max_staleness_ms is None else {"max_staleness": str(max_staleness_ms)}
        if consistency is not None:
            query["consistency"] = consistency
        try:
            body = await self._transport.json("GET", _path("/v1/kv/", key), query)
        except NotFound as error:
            if error.title == NO_VALUE:
                return None
            raise
        return Row(**body)

    async def put_many(
        self, keyspace: str, table: Any, ttl: float | str | None = None, *, frame_puts: int | None = None
    ) -> BatchReceipt:
        """Put many: a dict of columns, numpy arrays, Arrow, a pandas or polars frame, or dicts of puts.

        Columns: `key` (the keyspace is put before it if it is not there), `value` or the value's fields, `ttl` (else
        `ttl` for all). Sent slice by slice, the next when the last is durable, small ones that came meanwhile together;
        straight to Kafka when the session has `bootstrap_servers`, then with at most `frame_puts` (10,000) puts a
        record. An error says how many puts are durable; rejected rows are listed by number, from 1.
        """
        from streams.tabular.tables import batches_of

        ttl_ms = None if ttl is None else parse_ttl_ms(ttl)
        batches = batches_of(keyspace, table, ttl_ms, bare=self._bootstrap_servers is not None)
        if batches is None:
            return await self._put_lines(lines_of(keyspace, table, ttl))
        if self._bootstrap_servers is None:
            if frame_puts is not None:
                raise BadInput("the gateway makes the frames", field="frame_puts", fix="give bootstrap_servers, too")
            return await self._in_slices(self._put_slice, batches)
        from streams.client.direct import sender_for

        sender = await sender_for(self.get_json, self._bootstrap_servers, keyspace)
        await sender.start()
        try:
            return await self._in_slices(lambda batch: self._append_slice(sender, batch, frame_puts), batches)
        finally:
            await sender.stop()

    async def _in_slices(self, put: Callable[[Any], Awaitable[BatchReceipt]], batches: Iterator[Any]) -> BatchReceipt:
        from streams.client.ahead import Ahead

        receipts: list[BatchReceipt] = []
        began_s, first = time.monotonic(), 0
        ahead = Ahead(batches)
        try:
            while (batch := await ahead.take()) is not None:
                try:
                    receipts.append(_shifted(await put(batch), first))
                except StreamsError as error:
                    durable = sum(receipt.accepted for receipt in receipts)
                    error.detail = f"{error.detail}; the slices before this hold {durable} puts, which are durable"
                    raise
                first += batch.num_rows
        finally:
            ahead.stop()
        return _joined(receipts, time.monotonic() - began_s)

    async def _put_slice(self, batch: Any) -> BatchReceipt:
        from streams.tabular.tables import encoded

        return await self.put_raw(await asyncio.to_thread(encoded, batch), "application/vnd.apache.arrow.stream")

    async def _append_slice(self, sender: KafkaSender, batch: Any, frame_puts: int | None) -> BatchReceipt:
        from streams.tabular.tables import rows_of

        name = sender.keyspace.name
        ready = await asyncio.to_thread(lambda: sender.prepare(rows_of(name, batch), frame_puts=frame_puts))
        token = await sender.send(ready.frames)
        self.observe(token)
        listed = tuple(Rejected(each.line, each.reason) for each in ready.rejections[:REJECTED_MAX])
        return BatchReceipt(ready.accepted, listed, len(ready.rejections), token)

    async def get_json(self, path: str, query: dict[str, str] | None = None) -> Any:
        """The JSON that a path of the gateway answers."""
        return await self._transport.json("GET", path, query or {})

    async def put_batch(self, puts: Iterable[dict[str, Any]]) -> BatchReceipt:
        """Put many `{"key", "value", "ttl"?}`; good ones are accepted, bad ones listed with their line from 1."""
        return await self._put_lines(lines_of(None, puts))

    async def _put_lines(self, lines: Iterator[bytes]) -> BatchReceipt:
        receipts, first_line, began_s = [], 1, time.monotonic()
        for count, chunk in _chunks(lines):
            receipts.append(_shifted(await self.put_raw(chunk, "application/x-ndjson"), first_line - 1))
            first_line += count
        return _joined(receipts, time.monotonic() - began_s)

    async def put_raw(
        self, body: bytes | AsyncIterator[bytes], content_type: str, headers: Mapping[str, str] | None = None
    ) -> BatchReceipt:
        """One batch request as it is: NDJSON, CSV or Arrow bytes, or a stream of them."""
        headers = {"Content-Type": content_type, **(headers or {})}
        if isinstance(body, bytes):
            headers["Idempotency-Key"] = uuid.uuid4().hex
        answer = await self._transport.json("POST", "/v1/kv:batch", {}, headers=headers, body=body)
        rejected = tuple(Rejected(**each) for each in answer["rejected"])
        count = answer.get("rejected_count", len(rejected))
        token = Token.decode(answer["token"])
        return BatchReceipt(answer["accepted"], rejected, count, token, skipped=answer.get("skipped", 0))

    async def scan(self, table: str, *, prefix: str = "", limit: int | None = None) -> AsyncGenerator[Row, None]:
        """The rows of a table in key order, at most `limit`, fetched page by page."""
        cursor, left = "", limit
        while left is None or left > 0:
            page = PAGE_ROWS if left is None else min(PAGE_ROWS, left)
            query = {"prefix": prefix, "limit": str(page), "cursor": cursor}
            body = await self._transport.json("GET", _path("/v1/tables/", table), query)
            for row in body["rows"]:
                yield Row(**row)
            left = None if left is None else left - len(body["rows"])
            cursor = body["cursor"]
            if cursor is None:
                return

    async def top(self, table: str, n: int = 100, *, by: str | None = None) -> list[RankedRow]:
        """The highest rows, ties by key."""
        body = await self._ordered(table, "top", {"n": str(n)}, by)
        return [RankedRow(**row) for row in body["rows"]]

    async def get_top_n_players(self, n: int = 100) -> list[RankedRow]:
        """The leaderboard: the highest rows of the `score` table."""
        return await self.top(LEADERBOARD, n)

    async def rank(self, table: str, key: str, *, by: str | None = None) -> RankedRow | None:
        """A key's row with its rank, or None when it is not ranked."""
        try:
            body = await self._ordered(table, "rank", {"key": key}, by)
        except NotFound as error:
            if error.field == "key":
                return None
            raise
        return RankedRow(**body["rows"][0])

    async def around(self, table: str, key: str, n: int = 5, *, by: str | None = None) -> list[RankedRow]:
        """A key's row with `n` neighbours on each side; NotFound when it is not ranked."""
        body = await self._ordered(table, "around", {"key": key, "n": str(n)}, by)
        return [RankedRow(**row) for row in body["rows"]]

    async def _ordered(self, table: str, what: str, query: dict[str, str], by: str | None) -> Any:
        if by is not None:
            query["by"] = by
        return await self._transport.json("GET", _path("/v1/tables/", table) + f":{what}", query)

    async def digest(self, table: str, *, as_of_ms: int | None = None) -> Digest:
        """The table's digest."""
        query = {} if as_of_ms is None else {"as_of": str(as_of_ms)}
        return Digest(**await self._transport.json("GET", _path("/v1/tables/", table) + ":digest", query))

    async def aggregate_telemetry(
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
        """Windows over the readings of a partition such as `iot:region:us-east`, this session's own puts included.

        `window`, `hop`, `gap`: whole seconds, or as `5m`; tumbling windows of 60 s by default, sessions with `gap`.
        `by`: device or region. Windows that overlap [start, end), whole. NotFound names the partitions that there are;
        BadInput a parameter that is wrong or makes more than 100,000 windows.
        """
        others = {"hop": hop, "gap": gap, "device": device, "metric": metric}
        path, query = aggregate_request(partition, window, by, start, end, others)
        return aggregate_answer(await self._transport.json("GET", path, query))

    async def tables(self) -> list[dict[str, Any]]:
        """All tables with their settings."""
        found: list[dict[str, Any]] = (await self._transport.json("GET", "/v1/tables", {}))["tables"]
        return found

    async def keyspaces(self) -> list[dict[str, Any]]:
        """All keyspaces with their settings."""
        found: list[dict[str, Any]] = (await self._transport.json("GET", "/v1/keyspaces", {}))["keyspaces"]
        return found

    async def put_keyspace(self, name: str, **settings: Any) -> dict[str, Any]:
        """Define a keyspace in all regions: `merge`, `schema`, `partitions`, `ttl`, `consistency`, `mirror`."""
        headers = {"Content-Type": "application/json"}
        path = _path("/v1/keyspaces/", name)
        found: dict[str, Any] = await self._transport.json("PUT", path, {}, headers=headers, body=dump(settings))
        return found

    async def deploy_globally(
        self,
        directory: str | Path,
        *,
        wait_s: int = 10,
        from_: str | int | None = None,
        in_place: bool = False,
        keep: str | None = None,
    ) -> dict[str, Any]:
        """Deploy a UDF directory (udf.toml and its module or C source) in all regions; answers how it does in each.

        Waits up to `wait_s` for the regions that are heard from. Idempotent for an equal module and manifest. Another
        version builds its table beside the active one's and takes over once it has caught up in every region, unless
        its logic is the same or it is replaced `in_place`. `from_`: what the table is built from: `beginning`,
        `earliest`, or a time (ISO 8601, epoch milliseconds). `keep`: how long what it replaces is kept, as in `30m`.
        BadInput names what is refused; Conflict: it does not fit what is deployed, as other code under its version.
        """
        query = {"wait": wait_s, "from": from_, "in_place": "true" if in_place else None, "keep": keep}
        return await send_udf(self._transport, "/v1/udfs", directory, query)

    async def udfs(self) -> list[dict[str, Any]]:
        """The deployed UDFs; for each region its state, and as `meter` what it uses there."""
        found: list[dict[str, Any]] = (await self._transport.json("GET", "/v1/udfs", {}))["udfs"]
        return found

    async def list_udfs(self) -> dict[str, list[dict[str, Any]]]:
        """`udfs` as from `udfs()`, and `builtin`: what the built-in UDFs use in each region, by table."""
        found: dict[str, list[dict[str, Any]]] = await self._transport.json("GET", "/v1/udfs", {})
        return found

    async def resume_udf(self, name: str, *, wait_s: int = 10) -> dict[str, Any]:
        """Go on, in all regions, with a UDF that is paused, where it stopped; answers how it does in each. NotFound.

        What it stopped at is tried again, and becomes a dead letter if it still traps. Asking twice resumes twice.
        """
        headers = {"Idempotency-Key": uuid.uuid4().hex}
        path = _path("/v1/udfs/", name) + ":resume"
        found: dict[str, Any] = await self._transport.json("POST", path, {"wait": str(wait_s)}, headers=headers)
        return found

    async def remove_udf(self, name: str) -> None:
        """Stop a UDF in all regions; its table is served no more. NotFound."""
        await self._transport.json("DELETE", _path("/v1/udfs/", name), {})

    async def wait_for(self, token: str | Token | None = None, *, timeout_s: float = 30.0) -> None:
        """Return when this region has `token` (default: the session's own); Timeout after `timeout_s`."""
        if token is not None:
            self.observe(token)
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                await self._transport.json("GET", "/v1/tables", {}, catch_up_s=deadline - time.monotonic())
                return
            except (Timeout, Unavailable):
                if time.monotonic() >= deadline:
                    raise
            await asyncio.sleep(min(AGAIN_S, max(0.0, deadline - time.monotonic())))

    async def route(self, location: object) -> RouteDecision:
        """The nearest healthy gateway for a user, by estimated round trip, and fallbacks.

        `location`: `(latitude, longitude)`, a mapping with `lat` and `lon`, or an IP address. BadInput, Unavailable.
        """
        found = await self._transport.json("GET", "/v1/route", location_query(location))
        return self._remember(decision_of(found))

    def subscribe(
        self,
        keyspace: str,
        *,
        since: str | Token | None = None,
        region: str | None = None,
        prefix: str = "",
        stream: str = "events",
        give_up_s: float = GIVE_UP_S,
    ) -> AsyncGenerator[Event, None]:
        """The keyspace's events, without end: from now, from a token, or all that are kept (`since="start"`).

        `region`: another region's events. `stream`: `alerts` or `late`, where the keyspace has it. Otherwise as
        `subscribe_partition`.
        """
        query = {"prefix": prefix, "region": region or "", "from": _text(since), "stream": stream}
        return self._follow(_path("/v1/keyspaces/", keyspace), query, give_up_s)

    def subscribe_partition(
        self,
        partition: str,
        *,
        from_: str | Token | None = None,
        prefix: str = "",
        stream: str = "events",
        give_up_s: float = GIVE_UP_S,
    ) -> AsyncGenerator[Event, None]:
        """The events of `iot:region:NAME`, without end: what that region's gateways accept in keyspace `device`.

        `from_`: `"latest"` (the default: from when the connection stands), `"beginning"` (all that are kept), or the
        `token` of an event or a put. Each event comes once, in the order of its Kafka partition (a key's events are in
        one), also when connections break or gateways restart: it reconnects, with growing random pauses, and goes on
        after the last event. Leaving the loop closes the connection; so does `aclose()`. Memory is bounded: who reads
        slowly slows the stream down.

        NotFound: no such partition. Conflict: the log has been cut after `from_` or while nobody read; nothing is
        skipped. BadInput: no such token. Unavailable: no contact for `give_up_s` (10 s if there never was one).
        """
        query = {"prefix": prefix, "from": _text(from_), "stream": stream}
        return self._follow(_path("/v1/telemetry/", partition), query, give_up_s)

    def _follow(self, path: str, query: dict[str, str], give_up_s: float) -> AsyncGenerator[Event, None]:
        given = {name: value for name, value in query.items() if value}
        return follow(self._transport, path, given, Patience(give_up_s, min(give_up_s, CONNECT_S)))


def _text(since: str | Token | None) -> str:
    return since.encode() if isinstance(since, Token) else since or ""


def _path(base: str, name: str) -> str:
    if not isinstance(name, str):
        raise BadInput(f"{str(name)[:40]!r} is no text", field="key", fix="use keyspace:rest, as in score:alice")
    return base + quote(name, safe="")


def _receipt(body: dict[str, Any]) -> Receipt:
    return Receipt(**{**body, "token": Token.decode(body["token"])})


def _chunks(lines: Iterator[bytes]) -> Iterator[tuple[int, bytes]]:
    held: list[bytes] = []
    size = 0
    for line in lines:
        held.append(line)
        size += len(line)
        if size >= BATCH_BYTES:
            yield len(held), b"".join(held)
            held, size = [], 0
    if held:
        yield len(held), b"".join(held)


def _shifted(receipt: BatchReceipt, by: int) -> BatchReceipt:
    rejected = tuple(Rejected(each.line + by, each.reason) for each in receipt.rejected)
    return BatchReceipt(receipt.accepted, rejected, receipt.rejected_count, receipt.token)


def _joined(receipts: list[BatchReceipt], seconds: float) -> BatchReceipt:
    token = Token()
    for receipt in receipts:
        token = token.merge(receipt.token)
    return BatchReceipt(
        sum(receipt.accepted for receipt in receipts),
        tuple(each for receipt in receipts for each in receipt.rejected)[:REJECTED_MAX],
        sum(receipt.rejected_count for receipt in receipts),
        token,
        seconds,
    )
