"""What another region's gateway says of a UDF, asked for while a deploy waits.

A deploy makes topics, and MirrorMaker stands still for a second or more while it takes up new topics: just when the
other regions' reports are on their way. Their gateways know them already. The mirror's word comes all the same, and
counts then.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any

from streams.definitions.deployment import Deployment
from streams.definitions.udf_states import StateReader, UdfState
from streams.gateway.proxy import HOP
from streams.model.errors import StreamsError
from streams.serde import parse_json

if TYPE_CHECKING:
    import aiohttp

    from streams.gateway.context import Gateway

log = logging.getLogger(__name__)

_EVERY_S = 0.2
_TIMEOUT_S = 2.0
_ANSWER_BYTES_MAX = 1 << 20
_SETTLED = ("active", "failing", "refused")
"""Not a pause: how often it was resumed before counts with it, which only the report itself says."""


@contextlib.asynccontextmanager
async def asking(
    gateway: Gateway, states: StateReader, of: Deployment, authorization: str | None
) -> AsyncIterator[None]:
    """Ask the other regions' gateways how `of` does there, again and again, as long as the block takes.

    `authorization`: the caller's, who may be allowed less there: then only the mirror tells. Nothing fails by it.
    """
    regions = [name for name in gateway.topology.names if name != gateway.region.name]
    tasks = [asyncio.create_task(_ask(gateway, states, of, region, authorization)) for region in regions]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _ask(gateway: Gateway, states: StateReader, of: Deployment, region: str, authorization: str | None) -> None:
    import aiohttp  # here: see proxy.py

    headers = {HOP: gateway.region.name}
    if authorization is not None:
        headers["Authorization"] = authorization
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(_TIMEOUT_S), headers=headers) as session:
        while True:
            await asyncio.sleep(_EVERY_S)
            for url in gateway.peers.urls(region)[:1]:
                with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError, StreamsError):
                    word = word_of(await _get(session, f"{url}/v1/udfs/{of.name}"), of, region)
                    if word is not None:
                        states.hear(word)


async def _get(session: aiohttp.ClientSession, url: str) -> object:
    async with session.get(url, allow_redirects=False) as answer:
        if answer.status != 200:
            return None
        return parse_json(await answer.content.read(_ANSWER_BYTES_MAX), field="udf")


def word_of(body: object, of: Deployment, region: str) -> UdfState | None:
    """What a gateway's answer says of this very version in its region; None: nothing, or that it is on its way.

    A version that is built beside the served one is not looked for: it takes over by its markers, as the mirror brings
    them.
    """
    if not isinstance(body, Mapping):
        return None
    there: Any = body.get("regions")
    found = there.get(region) if isinstance(there, Mapping) else None
    same = (body.get("sha256"), body.get("version"), body.get("generation")) == (
        of.sha256,
        of.manifest.version,
        of.generation,
    )
    if not same or not isinstance(found, Mapping) or found.get("version") != of.manifest.version:
        return None
    state, at_ms = found.get("state"), found.get("at")
    if state not in _SETTLED or type(at_ms) is not int:
        return None
    reason = str(found.get("reason", ""))
    return UdfState(of.name, region, of.manifest.version, of.sha256, str(state), reason, at_ms, of.generation)
