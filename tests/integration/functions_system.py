"""What functions must do in a whole two-region system; run by test_udf_deploy_system.py on the system that it has."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest

from streams.client import connect
from streams.client.udfs import multipart
from streams.model.errors import Conflict, NotFound, Timeout
from tests.support.functions import HANDLE_REQUEST, HOSTILE_TOML, hostile_module
from tests.support.polling import eventually
from tests.support.whole_system import FAR, HOME, WholeSystem, read_log

PLACES = {HOME: (40.7, -74.0), FAR: (48.9, 2.4)}


async def active(system: WholeSystem, name: str) -> bool:
    """Both gateways say that both regions run it."""
    async with system.sessions() as sessions:
        for edge in sessions:
            found: dict[str, Any] = next(each for each in await edge.udfs() if each["name"] == name)
            assert {each["state"] for each in found["regions"].values()} == {"active"}, found
    return True


async def functions_answer_at_the_nearest_edge(system: WholeSystem) -> None:
    """Deployed once, served in both regions from their own tables; what a function puts is on the region's log."""
    async with system.sessions() as (home, far):

        async def deployed() -> bool:
            try:
                return bool(await far.deploy_globally(HANDLE_REQUEST, wait_s=50))
            except Timeout:  # written, but the mirror has only just started: the same again is no other deploy
                return False

        await eventually(deployed, 90)
        await eventually(lambda: active(system, "handle_request"), 60)
        await home.put("prefs:fun", {"name": "Fun", "theme": "dark"})
        far.observe(home.token)
        for region, place in PLACES.items():
            decision = await far.route(place)
            assert decision.region == region
            found = await far.execute_at_edge(decision.primary_node, "handle_request", {"user": "fun"}, deadline_s=30)
            assert found.region == region and f"Served by {region}" in found.text and "Hello, Fun" in found.text
            topic, _, position = found.headers["streams-puts"].partition("/")
            partition, _, offset = position.partition("@")
            assert topic == "events.kv"
            log = await read_log(system.kafka(region), topic)
            assert [each.key for each in log if (each.partition, each.offset) == (int(partition), int(offset))] == [
                b"kv:visit:fun"
            ]
        row = await far.get("kv:visit:fun")
        assert row is not None and row.value["region"] == FAR
        with pytest.raises(NotFound):
            await home.invoke("nothing")
        with pytest.raises(Conflict):
            await home.invoke("bigs")


async def functions_are_refused_by_their_field(system: WholeSystem) -> None:
    """Over HTTP, as 4xx with the field."""
    text = HOSTILE_TOML.replace('"hostile"', '"refused-function"')
    async with aiohttp.ClientSession(system.url(FAR)) as http:
        for old, new, status, field in [
            ('"log"]', '"network"]', 400, "capabilities"),
            (', "log"]', "]", 400, "capabilities"),
            ('tables = ["kv", "score"]', 'tables = ["kv", "nowhere"]', 400, "tables"),
            ('puts = ["kv", "best"]', 'puts = ["strong"]', 409, "puts"),
            ("deadline_s = 0.3", "deadline_s = 999", 400, "limits.deadline_s"),
            ('kind = "function"', 'kind = "fold"\nmerge = "counter"\ninputs = ["score"]', 400, "limits.events"),
        ]:
            assert old in text
            body, kind = multipart({"manifest": text.replace(old, new).encode(), "module": hostile_module()})
            async with http.post("/v1/udfs", data=body, headers={"Content-Type": kind}) as answer:
                problem = await answer.json(content_type=None)
                assert (answer.status, problem["field"]) == (status, field), problem


async def functions_outlive_their_edge(system: WholeSystem) -> None:
    """The nearest gateway is killed in the midst of requests: every one is answered, some by the other region."""
    async with connect(system.url(FAR)) as edge:
        decision = await edge.route(PLACES[HOME])
        answered: list[str] = []
        stop = asyncio.Event()

        async def ask() -> None:
            while not stop.is_set():
                found = await edge.execute_at_edge(decision, "handle_request", {"user": "fun"}, deadline_s=30)
                assert found.status == 200
                answered.append(found.region)

        asking = [asyncio.create_task(ask()) for _ in range(3)]
        await eventually(lambda: HOME in answered, 90)
        killed = system.kill(f"gateway-{HOME}")
        await eventually(lambda: FAR in answered, 90)
        await system.back(f"gateway-{HOME}", killed, timeout_s=150)
        before = len(answered)
        await eventually(lambda: HOME in answered[before:], 90)
        stop.set()
        await asyncio.gather(*asking)
        await edge.remove_udf("handle_request")

        async def gone() -> bool:
            async with connect(system.url(HOME)) as home:
                try:
                    await home.invoke("handle_request")
                except NotFound:
                    return True
            return False  # not heard of its removal yet

        await eventually(gone, 30)
