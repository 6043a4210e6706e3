"""How far back the regions' logs reach, for a version that is built from them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from streams.kafka.admin import Admin
from streams.kafka.run import TP
from streams.model.errors import StreamsError
from streams.model.keyspace import Keyspace
from streams.model.topology import Region

ASK_S = 3.0


async def reaches(regions: Sequence[Region], inputs: Sequence[Keyspace], from_ms: int) -> dict[str, Any]:
    """By region: `cut`, whether some of what was put at `from_ms` (0: ever) or later is gone; `first_at`, the time of
    the first event that will be folded, null when there is none yet. A region that does not answer within `ASK_S` has
    `cut` null and a `reason`.
    """
    if not inputs:
        return {}
    tps = [TP(each.events_topic, number) for each in inputs for number in range(each.partitions)]
    asked = await asyncio.gather(*(_region(region, tps, from_ms) for region in regions))
    return {region.name: answer for region, answer in zip(regions, asked, strict=True)}


async def _region(region: Region, tps: Sequence[TP], from_ms: int) -> Mapping[str, Any]:
    try:
        async with asyncio.timeout(ASK_S), Admin(region.bootstrap_servers, ASK_S) as admin:
            topics = await admin.topics(sorted({tp.topic for tp in tps}))
            there = [tp for tp in tps if tp.topic in topics]
            starts, firsts = await asyncio.gather(admin.start_offsets(there), admin.first_since(there, 0))
            wanted = await admin.first_since(there, from_ms) if from_ms else firsts
    except (StreamsError, TimeoutError) as error:
        return {"cut": None, "first_at": None, "reason": str(error)[:200] or "it did not answer"}
    cut = any(starts[tp] > 0 and ((first := firsts[tp]) is None or first[1] > from_ms) for tp in there)
    times = [at[1] for at in wanted.values() if at is not None]
    return {"cut": cut, "first_at": min(times, default=None)}
