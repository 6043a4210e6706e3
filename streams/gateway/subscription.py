"""Following a keyspace's events in this region's log: from a token, from the start, or from now."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import suppress

from streams.gateway.context import Gateway
from streams.gateway.event_stream import IDLE, RETRY, event, mark
from streams.kafka.admin import Admin
from streams.kafka.raw_fetch import FetchOptions, RawConsumer
from streams.kafka.records import EventRecord, records_of
from streams.model.errors import BadInput, Conflict
from streams.model.keys import validate_key
from streams.model.keyspace import Keyspace
from streams.model.token import Input, Token
from streams.serde import DELETE, PURGE, load_builtin, wire_schema_id

_FETCH = FetchOptions(max_wait_ms=100, client_id="streams-subscribe")
_BYTES_AT_ONCE = 1 << 20


async def start_positions(gateway: Gateway, keyspace: Keyspace, since: str | None) -> dict[tuple[str, int], int]:
    """Where to begin, by partition. `since`: a token, `start`, or None for now.

    A partition that the token does not name begins at the log's start: nothing is missed. Conflict when events after
    the token are no longer in the log; BadInput for a token from the future.
    """
    topic = keyspace.events_topic
    partitions = [(topic, number) for number in range(keyspace.partitions)]
    async with Admin(gateway.region.bootstrap_servers) as admin:
        ends = await admin.end_offsets(partitions)
        if since is None:
            return {tp: ends[tp] for tp in partitions}  # type: ignore[index]
        starts = await admin.start_offsets(partitions)
    if since == "start":
        return {tp: starts[tp] for tp in partitions}  # type: ignore[index]
    token = Token.decode(since)
    found: dict[tuple[str, int], int] = {}
    for tp in partitions:
        start, end = starts[tp], ends[tp]  # type: ignore[index]
        position = token.positions.get(Input(gateway.region.name, topic, tp[1]), start)
        if position < start:
            raise Conflict(
                f"events {position} to {start - 1} of {topic}/{tp[1]} are no longer in the log",
                field="from",
                fix="read the table, then subscribe from now or from=start",
            )
        if position > end:
            raise BadInput(
                f"the token is at {position} of {topic}/{tp[1]}, past its end {end}", field="from", fix="use another"
            )
        found[tp] = position
    return found


async def follow(
    gateway: Gateway, keyspace: Keyspace, positions: dict[tuple[str, int], int], prefix: str
) -> AsyncIterator[bytes]:
    """The events from `positions` on, as frames; idle comments in between."""
    region, topic = gateway.region.name, keyspace.events_topic
    consumer = RawConsumer(gateway.region.bootstrap_servers, _FETCH)
    await consumer.start()
    try:
        consumer.assign(positions)
        at = dict(positions)
        yield RETRY + mark(_token(region, at))
        while True:
            runs = await consumer.get_runs(gateway.options.stream_idle_s, _BYTES_AT_ONCE)
            if not runs:
                yield IDLE
            for run in runs:
                frames: list[bytes] = []
                for record in records_of(run):
                    at[(topic, run.partition)] = record.offset + 1
                    shown = _show(gateway, record, prefix)
                    if shown is not None:
                        frames.append(event(str(shown["op"]), shown, _token(region, at)))
                at[(topic, run.partition)] = run.next
                if frames:
                    yield b"".join(frames)
    finally:
        await consumer.stop()


def _token(region: str, at: dict[tuple[str, int], int]) -> str:
    return Token({Input(region, topic, number): offset for (topic, number), offset in at.items()}).encode()


def _show(gateway: Gateway, record: EventRecord, prefix: str) -> dict[str, object] | None:
    """An event as subscribers see it; None for the platform's own (purges) and for other keys."""
    headers = dict(record.headers)
    shown: dict[str, object] = {
        "op": "put",
        "key": (record.key or b"").decode("utf-8", "replace"),
        "value": None,
        "partition": record.partition,
        "offset": record.offset,
        "timestamp": record.timestamp_ms,
        "region": gateway.region.name,
    }
    try:
        key = validate_key(record.key or b"").decode()
        if not key.startswith(prefix):
            return None
        schema = wire_schema_id(record.value)
        if schema == load_builtin()[PURGE].id:
            return None
        if schema == load_builtin()[DELETE].id:
            shown["op"] = "delete"
        elif record.value is not None:
            shown["value"] = gateway.definitions.from_avro(record.value)
    except BadInput as error:
        shown["op"], shown["reason"] = "invalid", str(error)
    ttl = headers.get("ttl_ms")
    with suppress(ValueError):
        shown["ttl_ms"] = None if ttl is None else int(ttl)
    return shown
