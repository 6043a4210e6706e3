"""Another region's event stream, passed on from one of that region's gateways."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING
from urllib.parse import quote, urlencode

from streams.gateway.context import Gateway
from streams.gateway.http import Call
from streams.model.errors import StreamsError, TooLarge, Unavailable, error_of
from streams.serde import parse_json

if TYPE_CHECKING:
    import aiohttp
    from yarl import URL

log = logging.getLogger(__name__)

HOP = "Streams-Hop"
"""On what a gateway asks of another: the asking region. Whoever gets it answers itself or not at all: no loops."""

_CONNECT_S = 2.0
_EVENT_BYTES_MAX = 128 << 20
_PROBLEM_BYTES_MAX = 64 << 10


class Misdirected(StreamsError):
    """A request that another gateway passed on is for a third region: an announced URL is wrong."""

    status = 421
    title = "misdirected request"


def refuse_detour(gateway: Gateway, call: Call, region: str) -> None:
    """Misdirected when the request came from a gateway and would have to be passed on again."""
    hop = call.header(HOP.lower().encode())
    if hop is not None and region != gateway.region.name:
        raise Misdirected(
            f"this is a gateway of {gateway.region.name}, not of {region[:80]}",
            field="region",
            fix="correct the URL that the region's gateway announces (--advertised-url)",
        )


async def pass_on(
    gateway: Gateway, call: Call, region: str, path: str, query: Mapping[str, str]
) -> AsyncIterator[bytes]:
    """The stream at `path` of one of `region`'s gateways, whole events at a time.

    Its refusals (4xx) are raised as they are. Unavailable when none of the region's gateways answers, or when the
    stream breaks: then the client goes on with the last id it has seen.
    """
    import aiohttp  # here: it takes a third of a second to load, at each start, and few gateways ever proxy

    headers = {HOP: gateway.region.name}
    for name in ("Authorization", "Last-Event-ID"):
        if (value := call.header(name.lower().encode())) is not None:
            headers[name] = value
    idle_s = gateway.subscribers.options.idle_s
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S, sock_read=3 * idle_s + 5)
    async with aiohttp.ClientSession(timeout=timeout, auto_decompress=False) as session:
        answer = await _answer(gateway, session, region, f"{path}?{urlencode(query)}", headers)
        async with answer:
            try:
                async for piece in _whole_events(answer.content):
                    yield piece
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                raise Unavailable(
                    f"the stream of region {region} broke: {error or type(error).__name__}",
                    fix="reconnect with Last-Event-ID",
                ) from error
    raise Unavailable(f"region {region}'s gateway ended the stream", fix="reconnect with Last-Event-ID")


async def _answer(
    gateway: Gateway, session: aiohttp.ClientSession, region: str, target: str, headers: Mapping[str, str]
) -> aiohttp.ClientResponse:
    import aiohttp

    reason = "none of its gateways has announced itself"
    for url in gateway.peers.urls(region):
        try:
            answer = await session.get(_url(url + target), headers=headers, allow_redirects=False)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            reason = f"{url} does not answer: {error or type(error).__name__}"
            continue
        if answer.status == 200:
            return answer
        async with answer:
            refusal = await _refusal(answer)
        if refusal is not None:
            raise refusal
        reason = f"{url} answered {answer.status}"
        log.warning("region %s: %s", region, reason)
    raise Unavailable(f"region {region} cannot be reached now: {reason}", field="region", fix="try again")


async def _refusal(answer: aiohttp.ClientResponse) -> StreamsError | None:
    """The error of an answer that another gateway would give too; None when that may differ."""
    if not 400 <= answer.status < 500 or answer.status == Misdirected.status:
        return None
    try:
        body = parse_json(await answer.content.read(_PROBLEM_BYTES_MAX), field="problem")
        return error_of(answer.status, body)
    except (StreamsError, KeyError, TypeError, AttributeError, OSError):
        return None


async def _whole_events(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """The bytes up to the last whole event each time: a stream that breaks leaves no half one behind, whose id would
    count as seen.
    """
    held = bytearray()
    async for chunk in content.iter_any():
        looked = max(0, len(held) - 1)
        held += chunk
        end = held.rfind(b"\n\n", looked)
        if end >= 0:
            yield bytes(held[: end + 2])
            del held[: end + 2]
        elif len(held) > _EVENT_BYTES_MAX:
            raise TooLarge(f"an event has over {_EVENT_BYTES_MAX} bytes")


def _url(text: str) -> URL:
    from yarl import URL  # comes with aiohttp: see above

    return URL(text, encoded=True)


def subscribe_path(keyspace: str) -> str:
    """Where a keyspace's events are subscribed to."""
    return f"/v1/keyspaces/{quote(keyspace, safe='')}:subscribe"
