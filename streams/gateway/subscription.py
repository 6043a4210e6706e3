"""Following a keyspace's events in this region's log: from a token, from the start, or from now."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

from streams.gateway.context import Gateway
from streams.gateway.event_stream import IDLE, RETRY, event, mark
from streams.kafka.admin import Admin
from streams.kafka.errors import OffsetOutOfRange
from streams.kafka.raw_fetch import FetchOptions, RawConsumer
from streams.kafka.records import EventRecord, records_of
from streams.kafka.run import Run
from streams.model.errors import BadInput, Conflict, NotFound
from streams.model.fold_table import fold_tables
from streams.model.keys import validate_key
from streams.model.keyspace import Keyspace
from streams.model.token import CURSOR_BYTES_MAX, Input, Token
from streams.serde import DELETE, PURGE, TABLE_PURGE, decode_frame, is_frame, load_builtin, wire_schema_id

_BYTES_AT_ONCE = 1 << 20
_EVENTS_AT_ONCE = 200
"""Events made before others of this process get a turn: a frame may hold thousands."""
_CHUNK_BYTES = 64 << 10
_PURGES = (load_builtin()[PURGE].id, load_builtin()[TABLE_PURGE].id)
_DELETE = load_builtin()[DELETE].id
_GAP_FIX = "read the table, then subscribe from now or from=start"
NOW, START = ("latest", "now"), ("start", "beginning", "earliest")


@dataclass(frozen=True, slots=True)
class Feed:
    """A topic that can be followed. `keyed`: its keys are keys of the keyspace, which anything else is invalid in."""

    topic: str
    partitions: int
    keyed: bool = True


def feed_of(keyspace: Keyspace, stream: str | None) -> Feed:
    """The keyspace's events, or what UDFs put out from them (`alerts`: the topic `alerts.<keyspace>`).

    NotFound names the streams that the keyspace has.
    """
    feeds = {"events": Feed(keyspace.events_topic, keyspace.partitions)}
    for table in fold_tables([keyspace]):
        for topic in table.outputs:
            feeds[topic.removesuffix(f".{keyspace.name}")] = Feed(topic, table.partitions, keyed=False)
    found = feeds.get(stream or "events")
    if found is None:
        raise NotFound(
            f"keyspace {keyspace.name} has no stream {str(stream)[:40]!r}",
            field="stream",
            fix=f"choose one of {', '.join(feeds)}",
        )
    return found


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


async def start_positions(
    gateway: Gateway, feed: Feed, since: str | None, field: str = "from"
) -> dict[tuple[str, int], Place]:
    """Where to begin, by partition. `since`: a token, `start` (or `beginning`), or None or `latest` for now.

    A partition that the token does not name begins at the log's start: nothing is missed. Conflict when events after
    the token are no longer in the log; BadInput, naming `field`, for a token that is malformed, from the future, or
    of another region's log.
    """
    topic, region = feed.topic, gateway.region.name
    partitions = [(topic, number) for number in range(feed.partitions)]
    token = None if since is None or since in (*NOW, *START) else _cursor(since, topic, region, field)
    async with Admin(gateway.region.bootstrap_servers) as admin:
        ends = await admin.end_offsets(partitions)
        if since is None or since in NOW:
            return {tp: Place(ends[tp]) for tp in partitions}  # type: ignore[index]
        starts = await admin.start_offsets(partitions)
    if token is None:
        return {tp: Place(starts[tp]) for tp in partitions}  # type: ignore[index]
    found: dict[tuple[str, int], Place] = {}
    for tp in partitions:
        start, end = starts[tp], ends[tp]  # type: ignore[index]
        place = place_of(token, Input(region, topic, tp[1]), start)
        if place.offset < start:
            raise Conflict(
                f"events {place.offset} to {start - 1} of {topic}/{tp[1]} are no longer in the log",
                field=field,
                fix=_GAP_FIX,
            )
        if place.offset > end:
            raise BadInput(
                f"the token is at {place.offset} of {topic}/{tp[1]}, past its end {end}",
                field=field,
                fix="use another",
            )
        found[tp] = place
    return found


def _cursor(since: str, topic: str, region: str, field: str) -> Token:
    """The token of `since`; BadInput when it cannot be one of this log."""
    try:
        token = Token.decode(since, CURSOR_BYTES_MAX)
    except BadInput as error:
        raise BadInput(
            f"{error.detail}; it is neither a token nor start, latest",
            field=field,
            fix="give the id of an event, the token of a put, start, or latest",
        ) from None
    origins = {source.origin for source in token.positions if source.topic == topic}
    if origins and region not in origins:
        raise BadInput(
            f"the token is of {topic} in {', '.join(sorted(origins))[:80]}, this is {region}'s",
            field=field,
            fix="give a token of this region's events, start, or latest",
        )
    return token


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


class Cursor:
    """Ids of events that follow each other in one partition, while the others stand still: `token_of`, many times."""

    def __init__(self, region: str, at: Mapping[tuple[str, int], Place], moving: tuple[str, int]) -> None:
        inputs = sorted((Input(region, *tp), place) for tp, place in at.items())
        texts = [(f"{json.dumps(str(source))}:", place) for source, place in inputs]
        here = inputs.index((Input(region, *moving), at[moving]))
        self._before = "{" + "".join(f"{name}{_text(place)}," for name, place in texts[:here]) + texts[here][0]
        self._after = "".join(f",{name}{_text(place)}" for name, place in texts[here + 1 :]) + "}"

    def id_at(self, place: Place) -> str:
        """The id when the moving partition is at `place`."""
        text = f"{self._before}{_text(place)}{self._after}"
        return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _text(place: Place) -> str:
    return f"[{place.offset + 1},{place.part}]" if place.part else str(place.offset)


async def follow(
    gateway: Gateway, feed: Feed, positions: dict[tuple[str, int], Place], prefix: str
) -> AsyncIterator[bytes]:
    """The events from `positions` on, as server-sent events: whole ones in each piece; keep-alives in between.

    In memory at a time: one fetch ahead, the runs at hand (counted with `gateway.subscribers`), one piece to send.
    """
    region, limits = gateway.region.name, gateway.subscribers.options
    fetch = FetchOptions(
        max_wait_ms=100,
        client_id="streams-subscribe",
        partition_bytes=max(1, limits.fetch_bytes // feed.partitions),
        fetch_bytes=limits.fetch_bytes,
    )
    consumer = RawConsumer(gateway.region.bootstrap_servers, fetch)
    await consumer.start()
    try:
        consumer.assign({tp: place.offset for tp, place in positions.items()})
        at = dict(positions)
        sent = token_of(region, at)
        yield RETRY + mark(sent)
        while True:
            runs = await _next_runs(consumer, limits.idle_s, feed.topic)
            if not runs:
                # Where it is now, if only events of other keys came: or a resumption would read them all again.
                passed, sent = sent, token_of(region, at)
                yield IDLE if passed == sent else mark(sent)
            with gateway.subscribers.holding(sum(run.size_bytes for run in runs)):
                for run in runs:
                    async for piece in _pieces(gateway, feed, run, at, prefix):
                        yield piece
    finally:
        await consumer.stop()


async def _next_runs(consumer: RawConsumer, idle_s: float, topic: str) -> list[Run]:
    try:
        return await consumer.get_runs(idle_s, _BYTES_AT_ONCE)
    except OffsetOutOfRange as error:
        raise Conflict(f"events of {topic} were removed from the log before they were read", fix=_GAP_FIX) from error


async def _pieces(
    gateway: Gateway, feed: Feed, run: Run, at: dict[tuple[str, int], Place], prefix: str
) -> AsyncIterator[bytes]:
    """The events of a run, some at a time; moves `at` along."""
    here = (run.topic, run.partition)
    cursor, shown, size = Cursor(gateway.region.name, at, here), list[bytes](), 0
    for record in records_of(run):
        for each in await _events_of(record, at[here], prefix):
            at[here] = each.after
            view = _show(gateway, feed, each, prefix)
            if view is not None:
                shown.append(event(str(view["op"]), view, cursor.id_at(each.after)))
                size += len(shown[-1])
            if len(shown) >= _EVENTS_AT_ONCE or size >= _CHUNK_BYTES:
                yield b"".join(shown)
                shown, size = [], 0
                await asyncio.sleep(0)
        at[here] = Place(record.offset + 1)
    at[here] = Place(run.next)
    if shown:
        yield b"".join(shown)


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
    if frame.schema_id in _PURGES:
        return []
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


def _show(gateway: Gateway, feed: Feed, each: Event, prefix: str) -> dict[str, object] | None:
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
        key = validate_key(record.key or b"").decode() if feed.keyed else str(shown["key"])
        if not key.startswith(prefix):
            return None
        schema = wire_schema_id(record.value)
        if schema in _PURGES:
            return None
        if schema == _DELETE:
            shown["op"] = "delete"
        elif record.value is not None:
            shown["value"] = gateway.definitions.from_avro(record.value)
    except BadInput as error:
        shown["op"], shown["reason"] = "invalid", str(error)
    ttl = headers.get("ttl_ms")
    with suppress(ValueError):
        shown["ttl_ms"] = None if ttl is None else int(ttl)
    return shown
