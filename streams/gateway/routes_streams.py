"""`:subscribe` (the events of a keyspace) and `:watch` (the rows of a table) as server-sent events."""

from __future__ import annotations

from collections.abc import AsyncIterator

from streams.edge.edge_table import EdgeTable
from streams.edge.watch import Position, WatchGap
from streams.gateway.context import Gateway, refuse_sequenced
from streams.gateway.endpoint import Operation
from streams.gateway.event_stream import IDLE, RETRY, event, mark, stream
from streams.gateway.http import Call, Reply
from streams.gateway.params import NAME, PREFIX, STRING, TABLE, Param
from streams.gateway.proxy import pass_on, refuse_detour, subscribe_path
from streams.gateway.subscription import feed_of, follow, start_positions
from streams.model.errors import BadInput
from streams.model.partition import PARTITION_KEYSPACE, is_partition, region_of

FROM_TOKEN = Param(
    "from",
    "query",
    "A token (an event's id, or of a put): what came after it; `start` or `beginning`: all that is kept; absent or "
    "`latest`: from now on",
    STRING,
)
FROM_START = Param("from", "query", "`start`: the rows as they are first; absent: changes from now on", STRING)
LAST_EVENT_ID = Param("Last-Event-ID", "header", "Go on after this event; rules over `from`", STRING)
REGION = Param("region", "query", "Whose events; another region's are passed on from there", STRING)
PARTITION = Param("partition", "query", "`iot:region:NAME`: the events of keyspace `device` in that region", STRING)
PARTITION_PATH = Param("partition", "path", "`iot:region:NAME`", STRING)
STREAM = Param(
    "stream", "query", "`events`, or what a UDF puts out from them: `alerts`, `late`, where the keyspace has it", STRING
)
_ROWS_AT_ONCE = 500
SSE = "text/event-stream"
EVENTS_NOTES = """Each event: `id`, the token to go on from; `event`, its `op`; `data`, a JSON object: `op` (`put`,
`delete`, or `invalid` with a `reason`), `key`, `value`, `partition`, `offset`, `part` (its place in a bulk put),
`timestamp` (acceptance, epoch milliseconds), `region`, `ttl_ms`. An `id` without an event is a position too. Silence is
broken by comments. An event `error` is the last one, its data a problem document; with status 408, 429, 503 or 504 the
client goes on with `Last-Event-ID`. A client that reads nothing for 30 s is disconnected. Nothing is missed and nothing
comes twice when a client goes on from the last id it has seen."""
_ANSWERS = {
    400: "The token is malformed, from the future, or another region's",
    404: "No such keyspace, region, partition or stream",
    409: "Events after the token are gone",
    429: "As many streams are open as this gateway serves",
    503: "The region cannot be reached now",
}


class StreamRoutes:
    """Handlers of event streams."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def operations(self) -> list[Operation]:
        """The routes."""
        choice = (FROM_TOKEN, PREFIX, STREAM, LAST_EVENT_ID)
        return [
            Operation(
                "GET",
                "/v1/keyspaces/{name}:subscribe",
                self.subscribe_events,
                "Events as they are accepted, resumable",
                "read",
                (NAME, *choice, REGION, PARTITION),
                answers=_ANSWERS,
                answer_type=SSE,
                tag="keyspaces",
                notes=EVENTS_NOTES,
            ),
            Operation(
                "GET",
                "/v1/telemetry/{partition}:subscribe",
                self.subscribe_partition,
                "Events of a region's partition, resumable",
                "read",
                (PARTITION_PATH, *choice),
                answers=_ANSWERS,
                answer_type=SSE,
                tag="telemetry",
                notes=EVENTS_NOTES,
            ),
            Operation(
                "GET",
                "/v1/tables/{table}:watch",
                self.watch_rows,
                "Rows as they change, resumable; `reset` starts over",
                "read",
                (TABLE, PREFIX, FROM_START, LAST_EVENT_ID),
                answers={404: "No such table", 429: _ANSWERS[429]},
                answer_type=SSE,
            ),
        ]

    async def subscribe_events(self, call: Call) -> Reply:
        """A keyspace's events in a region, or, under the name of a partition, that partition's."""
        name = call.part("name")
        partition = name if is_partition(name) else PARTITION.text(call)
        if not partition:
            return await self._subscribe(call, name, REGION.text(call) or self._gateway.region.name)
        region = region_of(partition, self._gateway.peers.regions)
        if name not in (partition, PARTITION_KEYSPACE):
            raise BadInput(
                f"{partition} is of keyspace {PARTITION_KEYSPACE}, not of {name[:40]}",
                field="partition",
                fix=f"subscribe to {PARTITION_KEYSPACE}, or use region=",
            )
        if REGION.text(call) not in (None, "", region):
            raise BadInput("region and partition name different regions", field="region", fix="leave one out")
        return await self._subscribe(call, PARTITION_KEYSPACE, region)

    async def subscribe_partition(self, call: Call) -> Reply:
        """The events of a region's partition."""
        region = region_of(call.part("partition"), self._gateway.peers.regions)
        return await self._subscribe(call, PARTITION_KEYSPACE, region)

    async def _subscribe(self, call: Call, name: str, region: str) -> Reply:
        """Follow this region's log, or pass on another region's stream."""
        gateway = self._gateway
        keyspace = gateway.keyspace(call, name, "read")
        refuse_sequenced(keyspace)
        feed = feed_of(keyspace, STREAM.text(call))
        prefix = PREFIX.text(call) or ""
        refuse_detour(gateway, call, region)
        if region != gateway.region.name:
            query = {"region": region, "prefix": prefix}
            query |= {each.name: text for each in (FROM_TOKEN, STREAM) if (text := each.text(call))}
            source = pass_on(gateway, call, region, subscribe_path(keyspace.name), query)
            return await stream(gateway, call, "proxy", source)
        last = LAST_EVENT_ID.text(call)
        since, field = (last, LAST_EVENT_ID.name) if last else (FROM_TOKEN.text(call) or None, FROM_TOKEN.name)
        gateway.subscribers.check()
        positions = await start_positions(gateway, feed, since, field)
        return await stream(gateway, call, "subscribe", follow(gateway, feed, positions, prefix))

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
        return await stream(gateway, call, "watch", self._rows(call.part("table"), table, prefix, position))

    async def _rows(
        self, name: str, table: EdgeTable, prefix: bytes, position: Position | None
    ) -> AsyncIterator[bytes]:
        yield RETRY
        while True:
            now = self._gateway.tables.served.get(name, table)
            if now is not table:  # another generation of the rows is served
                table, position = now, None
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
                if not await table.watch.wait(position, self._gateway.subscribers.options.idle_s):
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
