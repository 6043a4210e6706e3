"""A personalised page at the edge: `handle_request` deployed everywhere, and a user in each of five cities.

Each user's preferences and points are put in the first region; the router names the node for the user's city, which
answers from its own copy and puts the visit. Every page must say who it is for and which region made it, and every
visit must be readable in all regions.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import as_file, files

from streams.client import AsyncClient, Invocation, RouteDecision, connect
from streams.demo.leaderboard import DemoFailed
from streams.model.errors import StreamsError
from streams.model.token import Token
from streams.model.topology import Topology

FUNCTION = "handle_request"
SETTLE_TIMEOUT_S = 120.0
WARMUP = 20
REQUESTS = 200
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class User:
    """Somebody somewhere; degrees."""

    ident: str
    name: str
    city: str
    latitude: float
    longitude: float
    theme: str
    points: int


USERS = (
    User("nina", "Nina", "New York", 40.71, -74.01, "dark", 120),
    User("caio", "Caio", "São Paulo", -23.55, -46.63, "green", 75),
    User("lucy", "Lucy", "London", 51.51, -0.13, "light", 310),
    User("paul", "Paul", "Paris", 48.86, 2.35, "blue", 45),
    User("toru", "Tōru", "Tokyo", 35.68, 139.69, "light", 205),
)


async def run(topology: Topology, say: Say) -> None:
    """Deploy, put what is known of the users, serve each a page, check and time it. DemoFailed: an answer is wrong."""
    async with connect(topology.regions[0].gateway_url) as edge:
        await _deploy(edge, topology, say)
        await _know(edge)
        say(
            f"\n{'city':<10} {'user':<6} {'node':<20} {'region':<9} {'distance':>9}"
            f"   {'p50':>8} {'p99':>8}   the page says"
        )
        for user in USERS:
            await _serve(edge, user, say)
        await _visits(edge, topology, say)


async def _deploy(edge: AsyncClient, topology: Topology, say: Say) -> None:
    began_s = time.monotonic()
    with as_file(files("wasm_udfs").joinpath(FUNCTION)) as directory:
        found = await edge.deploy_globally(directory, wait_s=50)
    while True:  # a region that has only just started may not be heard from yet
        states = {region: each["state"] for region, each in found["regions"].items()}
        if set(states.values()) == {"active"}:
            break
        if time.monotonic() - began_s > SETTLE_TIMEOUT_S or "refused" in states.values():
            raise DemoFailed(f"{FUNCTION} is not active everywhere: {states}")
        await asyncio.sleep(0.1)
        found = next(each for each in await edge.udfs() if each["name"] == FUNCTION)
    names = ", ".join(topology.names)
    say(f"{FUNCTION} {found['version']} is active in {names}, {time.monotonic() - began_s:.1f} s after its deploy")


async def _know(edge: AsyncClient) -> None:
    for user in USERS:
        await edge.put(f"prefs:{user.ident}", {"name": user.name, "theme": user.theme})
        row = await edge.get(f"score:{user.ident}")
        if row is None or row.value != user.points:  # the directory is kept: a counter is not counted up again
            await edge.put(f"score:{user.ident}", {"add": user.points - (0 if row is None else row.value)})


async def _serve(edge: AsyncClient, user: User, say: Say) -> None:
    decision = await edge.route((user.latitude, user.longitude))
    body = {"user": user.ident, "city": user.city}
    found = await _page(edge, decision, body)
    for text in (
        f"Hello, {user.name}",
        f"Points: {user.points}",
        f"Served by {found.region}",
        f"You are in {user.city}",
    ):
        if text not in found.text:
            raise DemoFailed(f"the page of {user.ident} lacks {text!r}: {found.text[:300]}")
    samples = sorted([await _timed(decision.url, edge.token, body) for _ in range(WARMUP + REQUESTS)][WARMUP:])
    p50, p99 = samples[len(samples) // 2], samples[int(len(samples) * 0.99)]
    distance = "" if decision.distance_km is None else f"{decision.distance_km:,.0f} km"
    says = " | ".join(line[3:-4] for line in found.text.splitlines() if line.startswith("<p>"))
    say(
        f"{user.city:<10} {user.ident:<6} {decision.primary_node:<20} {found.region:<9} {distance:>9}"
        f"   {p50:>5.1f} ms {p99:>5.1f} ms   {says}"
    )


async def _page(edge: AsyncClient, decision: RouteDecision, body: dict[str, str]) -> Invocation:
    """At the node that the router named; asked again while its region has not what the session wrote a moment ago."""
    deadline = time.monotonic() + SETTLE_TIMEOUT_S
    while True:
        try:
            found = await edge.execute_at_edge(decision.primary_node, FUNCTION, body, deadline_s=30)
        except StreamsError as error:
            if not error.retriable or time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.2)
            continue
        if found.status != 200:
            raise DemoFailed(f"{found.url} answered {found.status}: {found.text[:200]}")
        return found


async def _timed(url: str, known: Token, body: dict[str, str]) -> float:
    """A visit by a session of its own, its connection included. One session's next visit would wait until its last one,
    which the page shows, has come into the table: some 20 ms.
    """
    async with connect(url, token=known) as visitor:
        began_s = time.perf_counter()
        found = await visitor.invoke(FUNCTION, body)
        if found.status != 200:
            raise DemoFailed(f"{found.url} answered {found.status}: {found.text[:200]}")
        return (time.perf_counter() - began_s) * 1e3


async def _visits(edge: AsyncClient, topology: Topology, say: Say) -> None:
    """The visits that functions put, wherever that was, as every region shows them."""
    shown = []
    for region in topology.regions:
        async with connect(region.gateway_url) as reader:
            await reader.wait_for(edge.token, timeout_s=SETTLE_TIMEOUT_S)
            rows = {row.key: row.value["city"] async for row in reader.scan("kv", prefix="kv:visit:")}
            wanted = {f"kv:visit:{user.ident}": user.city for user in USERS}
            if {key: rows.get(key) for key in wanted} != wanted:
                raise DemoFailed(f"{region.name} shows the visits {rows}, not {wanted}")
            shown.append(region.name)
    say(f"\nall {len(USERS)} visits, put by the functions, are readable in {', '.join(shown)}")
