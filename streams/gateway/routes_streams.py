"""`:subscribe` (the events of a keyspace) and `:watch` (the rows of a table) as server-sent events."""

from __future__ import annotations

from collections.abc import AsyncIterator
from urllib.parse import quote, urlencode

from streams.edge.edge_table import EdgeTable
from streams.edge.watch import Position, WatchGap
from streams.gateway.context import Gateway
from streams.gateway.endpoint import Operation
from streams.gateway.event_stream import IDLE, RETRY, event, mark, stream
from streams.gateway.http import Call, Reply
from streams.gateway.params import NAME, PREFIX, STRING, TABLE, Param
from streams.gateway.subscription import follow, start_positions
from streams.model.errors import Unavailable

FROM_TOKEN = Param("from", "query", "A token: what came after it; `start`: all; absent: from now on", STRING)
FROM_START = Param("from", "query", "`start`: the rows as they are first; absent: changes from now on", STRING)
LAST_EVENT_ID = Param("Last-Event-ID", "header", "Go on after this event", STRING)
REGION = Param("region", "query", "Whose events; another region's are fetched from there", STRING)
_ROWS_AT_ONCE = 500
SSE = "text/event-stream"


class StreamRoutes:
    """Handlers of event streams."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def operations(self) -> list[Operation]:
        """The routes."""
        return [
            Operation(
                "GET",
                "/v1/keyspaces/{name}:subscribe",
                self.subscribe_events,
                "Events as they are accepted, resumable",
                "read",
                (NAME, FROM_TOKEN, PREFIX, REGION, LAST_EVENT_ID),
                answers={404: "No such keyspace", 409: "Events after the token are gone"},
                answer_type=SSE,
                tag="keyspaces",
            ),
            Operation(
                "GET",
                "/v1/tables/{table}:watch",
                self.watch_rows,
                "Rows as they change, resumable; `reset` starts over",
                "read",
                (TABLE, PREFIX, FROM_START, LAST_EVENT_ID),
                answers={404: "No such table"},
                answer_type=SSE,
            ),
        ]

    async def subscribe_events(self, call: Call) -> Reply:
        """Follow this region's log, or pass on another region's stream."""
        gateway = self._gateway
        keyspace = gateway.keyspace(call, call.part("name"), "read")
        since = LAST_EVENT_ID.text(call) or FROM_TOKEN.text(call) or None
        region = REGION.text(call) or gateway.region.name
        prefix = PREFIX.text(call) or ""
        if region != gateway.region.name:
            url = gateway.topology.region(region).gateway_url
            query = {"region": region, "prefix": prefix, **({"from": since} if since else {})}
            source = _elsewhere(f"{url}/v1/keyspaces/{quote(keyspace.name)}:subscribe?{urlencode(query)}", call)
            return stream(gateway, "proxy", source)
        positions = await start_positions(gateway, keyspace, since)
        return stream(gateway, "subscribe", follow(gateway, keyspace, positions, prefix))

    async def watch_rows(self, call: Call) -> Reply:
        """Follow a table."""
        gateway = self._gateway
        table = gateway.table(call, call.part("table"))
        prefix = (PREFIX.text(call) or "").encode()
        last = LAST_EVENT_ID.text(call)
        position: Position | None = table.watch.latest
        if last:
            try:
                position = Position.parse(last)
                table.watch.since(position)
            except WatchGap:
                position = None
        elif FROM_START.text(call) == "start":
            position = None
        return stream(gateway, "watch", self._rows(table, prefix, position))

    async def _rows(self, table: EdgeTable, prefix: bytes, position: Position | None) -> AsyncIterator[bytes]:
        yield RETRY
        while True:
            try:
                if position is None:
                    position = table.watch.latest
                    async for frames in self._snapshot(table, prefix, position):
                        yield frames
                else:
                    keys, after = table.watch.since(position)
                    position = after
                    wanted = [key for key in keys if key.startswith(prefix)]
                    if wanted:
                        # The position goes out with the last row only: a cut in between sends the group again.
                        *first, last = (self._row(table, key) for key in wanted)
                        yield b"".join(map(_without_id, first)) + event("row", last, str(after))
                if not await table.watch.wait(position, self._gateway.options.stream_idle_s):
                    yield IDLE
            except WatchGap:
                position = None

    async def _snapshot(self, table: EdgeTable, prefix: bytes, position: Position) -> AsyncIterator[bytes]:
        yield b"event: reset\ndata: {}\n\n"
        after: bytes | None = None
        while True:
            page = table.scan(prefix, _ROWS_AT_ONCE, after)
            rows = [
                event("row", self._gateway.row_of(key, merged), "").partition(b"\n")[2] for key, merged in page.rows
            ]
            yield b"".join(rows)
            after = page.cursor
            if after is None:
                yield mark(str(position))
                return

    def _row(self, table: EdgeTable, key: bytes) -> dict[str, object]:
        merged = table.get(key)
        return {"key": key.decode(), "value": None} if merged is None else self._gateway.row_of(key, merged)


def _without_id(row: dict[str, object]) -> bytes:
    return event("row", row, "").partition(b"\n")[2]


async def _elsewhere(url: str, call: Call) -> AsyncIterator[bytes]:
    headers = {}
    if (authorization := call.header(b"authorization")) is not None:
        headers["Authorization"] = authorization
    import aiohttp  # here: it takes a third of a second to load, at each start, and few gateways ever proxy

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=60)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout, auto_decompress=False) as session,
            session.get(url, headers=headers) as answer,
        ):
            if answer.status != 200:
                raise Unavailable(f"the other region answered {answer.status}: {(await answer.text())[:300]}")
            async for chunk in answer.content.iter_any():
                yield chunk
    except (aiohttp.ClientError, TimeoutError) as error:
        raise Unavailable(f"the other region's stream broke: {error!r}", fix="reconnect with Last-Event-ID") from error
