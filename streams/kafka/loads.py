"""What of a load is in the log.

Its frames carry the header `load`: `<load id>:<chunk>`, and `.<n>` after it for the n-th further frame of the chunk in
its partition. They are appended in order, so a partition's last one says what it holds.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Mapping

from streams.kafka.admin import Admin
from streams.kafka.raw_fetch import FetchOptions, RawConsumer
from streams.kafka.records import records_of
from streams.model.errors import BadInput

Place = tuple[int, int]
"""A chunk, and which of its frames in one partition."""

_SETTLE_S = 0.5
"""How long the log must show nothing new of the load: a killed run's last requests may still be on their way."""

_SETTLE_MAX_S = 5.0
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")
_PLACE = re.compile(r"(\d{1,15})(?:\.(\d{1,9}))?\Z")


def check_load_id(text: str, field: str) -> str:
    """`text` itself, if it can name a load; BadInput otherwise."""
    if not _ID.match(text):
        raise BadInput(f"{text[:80]!r} names no load", field=field, fix="use 1 to 64 letters, digits, '-' and '_'")
    return text


def header_of(ident: str, place: Place) -> str:
    """The `load` header of a frame."""
    return f"{ident}:{place_text(place)}"


def place_text(place: Place) -> str:
    """A place as headers have it."""
    return f"{place[0]}.{place[1]}" if place[1] else str(place[0])


def parse_place(text: str, field: str = "load") -> Place:
    """The inverse; BadInput."""
    found = _PLACE.match(text)
    if found is None:
        raise BadInput(f"{text[:40]!r} is no chunk", field=field, fix="write a number, as in 12, or 12.1")
    return int(found[1]), int(found[2] or 0)


async def ends_of(bootstrap_servers: str, topic: str, partitions: int) -> dict[int, int]:
    """Where the partitions of a topic end."""
    async with Admin(bootstrap_servers) as admin:
        found = await admin.end_offsets([(topic, number) for number in range(partitions)])
    return {partition: offset for (_, partition), offset in found.items()}


async def durable_places(
    bootstrap_servers: str, topic: str, positions: Mapping[int, int], ident: str
) -> dict[int, Place]:
    """By partition, the last frame of the load after `positions`; read until nothing more of it comes."""
    wanted = f"{ident}:".encode()
    durable: dict[int, Place] = {}
    consumer = RawConsumer(bootstrap_servers, FetchOptions(client_id="streams-load"))
    await consumer.start()
    try:
        consumer.assign({(topic, partition): offset for partition, offset in positions.items()})
        at, began_s, quiet_since_s = dict(positions), time.monotonic(), time.monotonic()
        while time.monotonic() - quiet_since_s < _SETTLE_S:
            ends = await ends_of(bootstrap_servers, topic, len(positions))
            while any(at[partition] < ends[partition] for partition in at):
                for run in await consumer.get_runs(1.0):
                    for record in records_of(run):
                        value = dict(record.headers).get("load") or b""
                        if value.startswith(wanted):
                            durable[run.partition] = parse_place(value[len(wanted) :].decode("ascii", "replace"))
                            if time.monotonic() - began_s < _SETTLE_MAX_S:
                                quiet_since_s = time.monotonic()
                    at[run.partition] = run.next
            await asyncio.sleep(_SETTLE_S / 5)
    finally:
        await consumer.stop()
    return durable
