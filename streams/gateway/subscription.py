"""Following a keyspace's events in this region's log: from a token, from the start, or from now."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

from streams.gateway.context import Gateway
from streams.gateway.event_stream import IDLE, RETRY, event, mark
from streams.kafka.admin import Admin
from streams.kafka.raw_fetch import FetchOptions, RawConsumer
from streams.kafka.records import EventRecord, records_of
from streams.model.errors import BadInput, Conflict
from streams.model.keys import validate_key
from streams.model.keyspace import Keyspace
from streams.model.token import Input, Token
from streams.serde import DELETE, PURGE, TABLE_PURGE, decode_frame, is_frame, load_builtin, wire_schema_id

_FETCH = FetchOptions(max_wait_ms=100, client_id="streams-subscribe")
_BYTES_AT_ONCE = 1 << 20
_EVENTS_AT_ONCE = 200
"""Events made before others of this process get a turn: a frame may hold thousands."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a follower is in a partition: its next record, and how many puts of it (a frame) were shown already."""

    offset: int
    part: int = 0


@dataclass(frozen=True, slots=True)
class Event:
    """A record of its own, or a frame's put in the form of one. `after`: where to go on."""

    record: EventRecord
    part: int | None
    after: Place


async def start_positions(gateway: Gateway, keyspace: Keyspace, since: str | None) -> dict[tuple[str, int], Place]:
    """Where to begin, by partition. `since`: a token, `start`, or None for now.

    A partition that the token does not name begins at the log's start: nothing is missed. Conflict when events after
    the token are no longer in the log; BadInput for a token from the future.
    """
    topic = keyspace.events_topic
    partitions = [(topic, number) for number in range(keyspace.partitions)]
    async with Admin(gateway.region.bootstrap_servers) as admin:
        ends = await admin.end_offsets(partitions)
        if since is None:
            return {tp: Place(ends[tp]) for tp in partitions}  # type: ignore[index]
        starts = await admin.start_offsets(partitions)
    if since == "start":
        return {tp: Place(starts[tp]) for tp in partitions}  # type: ignore[index]
    token = Token.decode(since)
    found: dict[tuple[str, int], Place] = {}
    for tp in partitions:
        start, end = starts[tp], ends[tp]  # type: ignore[index]
        place = place_of(token, Input(gateway.region.name, topic, tp[1]), start)
        if place.offset < start:
            raise Conflict(
                f"events {place.offset} to {start - 1} of {topic}/{tp[1]} are no longer in the log",
                field="from",
                fix="read the table, then subscribe from now or from=start",
            )
        if place.offset > end:
            raise BadInput(
                f"the token is at {place.offset} of {topic}/{tp[1]}, past its end {end}",
                field="from",
                fix="use another",
            )
        found[tp] = place
    return found


def place_of(token: Token, source: Input, start: int) -> Place:
    """Where a token says to go on: inside a frame when only some of its puts were shown."""
    position = token.positions.get(source, start)
    part = token.parts.get(source)
    return Place(position) if part is None or not position else Place(position - 1, part)


def token_of(region: str, at: Mapping[tuple[str, int], Place]) -> str:
    """The text form of places. Inside a frame: the position after it, and how many of its puts were shown."""
    inputs = {Input(region, topic, number): place for (topic, number), place in at.items()}
    positions = {source: place.offset + bool(place.part) for source, place in inputs.items()}
    return Token(positions, {source: place.part for source, place in inputs.items() if place.part}).encode()


async def follow(
    gateway: Gateway, keyspace: Keyspace, positions: dict[tuple[str, int], Place], prefix: str
) -> AsyncIterator[bytes]:
    """The events from `positions` on, as server-sent events; idle comments in between."""
    region, topic = gateway.region.name, keyspace.events_topic
    consumer = RawConsumer(gateway.region.bootstrap_servers, _FETCH)
    await consumer.start()
    try:
        consumer.assign({tp: place.offset for tp, place in positions.items()})
        at = dict(positions)
        yield RETRY + mark(token_of(region, at))
        while True:
            runs = await consumer.get_runs(gateway.options.stream_idle_s, _BYTES_AT_ONCE)
            if not runs:
                yield IDLE
            for run in runs:
                here = (topic, run.partition)
                shown: list[bytes] = []
                for record in records_of(run):
                    for each in await _events_of(record, at[here], prefix):
                        at[here] = each.after
                        view = _show(gateway, each, prefix)
                        if view is not None:
                            shown.append(event(str(view["op"]), view, token_of(region, at)))
                        if len(shown) >= _EVENTS_AT_ONCE:
                            yield b"".join(shown)
                            shown = []
                            await asyncio.sleep(0)
                    at[here] = Place(record.offset + 1)
                at[here] = Place(run.next)
                if shown:
                    yield b"".join(shown)
    finally:
        await consumer.stop()


async def _events_of(record: EventRecord, place: Place, prefix: str) -> Iterator[Event]:
    """What a record holds, from `place` on: itself, or the puts of a frame whose keys have the prefix."""
    if not is_frame(record.value):
        return iter([Event(record, None, Place(record.offset + 1))])
    seen = place.part if place.offset == record.offset else 0
    # In a thread: a frame takes tens of milliseconds, and requests must not wait for it.
    return iter(await asyncio.to_thread(puts_of, record, seen, prefix.encode()))


def puts_of(record: EventRecord, seen: int, prefix: bytes) -> list[Event]:
    """The puts of a frame after the first `seen`, each as the record that it could have been; the frame itself when it
    is malformed.
    """
    end = Place(record.offset + 1)
    try:
        frame = decode_frame(record.value or b"")
    except BadInput:
        return [Event(record, None, end)]
    keys, values, found = frame.keys(), frame.values(), []
    for part in range(seen, frame.count):
        if not keys[part].startswith(prefix):
            continue
        ttl_ms, headers = frame.ttl_of(part), record.headers
        if ttl_ms is not None:
            headers = [*((name, text) for name, text in headers if name != "ttl_ms"), ("ttl_ms", b"%d" % ttl_ms)]
        after = end if part + 1 == frame.count else Place(record.offset, part + 1)
        found.append(Event(replace(record, key=keys[part], value=values[part], headers=headers), part, after))
    return found


def _show(gateway: Gateway, each: Event, prefix: str) -> dict[str, object] | None:
    """An event as subscribers see it; None for the platform's own (purges) and for other keys."""
    record = each.record
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
    if each.part is not None:
        shown["part"] = each.part
    try:
        if is_frame(record.value):
            decode_frame(record.value or b"")
        key = validate_key(record.key or b"").decode()
        if not key.startswith(prefix):
            return None
        schema = wire_schema_id(record.value)
        if schema in (load_builtin()[PURGE].id, load_builtin()[TABLE_PURGE].id):
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
