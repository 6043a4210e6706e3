"""The leaderboard of aircraft: real flights through Kafka, a WASM counter and RocksDB tables, in two regions.

Each flight is one put, `score:<tail number>` with `{"add": miles}`: departures from EWR go into the second region, the
others into the first. Then both gateways must answer what the file says, for every aircraft.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import islice

from streams.client import AsyncClient, connect
from streams.demo.flights import Flight, miles_by_aircraft, ranked, read_flights
from streams.model.errors import StreamsError
from streams.model.topology import Topology

PUTS_PER_BATCH = 5_000
TOP = 10
STATE_KEY = "kv:demo-leaderboard"
SETTLE_TIMEOUT_S = 120.0
Say = Callable[[str], None]


class DemoFailed(StreamsError):
    """What the system answered is not what the file says."""

    title = "the demo's check failed"


async def run(topology: Topology, say: Say) -> None:
    """Load (once per data directory), check and print the leaderboard. DemoFailed when an answer is wrong."""
    say("reading the flights of 2013")
    flights = await asyncio.to_thread(lambda: list(read_flights()))
    truth = miles_by_aircraft(flights)
    async with connect(topology.regions[0].gateway_url) as east, connect(topology.regions[-1].gateway_url) as west:
        state = await east.get(STATE_KEY)
        if state is not None and state.value == "loaded":
            say(f"{len(flights):,} flights were loaded earlier into this data directory")
        else:
            if state is not None:
                await _start_over(east, truth, say)
            await east.put(STATE_KEY, "loading")
            await _load(flights, east, west, say)
            await east.put(STATE_KEY, "loaded")
        await _check(truth, {topology.regions[0].name: east, topology.regions[-1].name: west}, say)


async def _start_over(east: AsyncClient, truth: Counter[str], say: Say) -> None:
    """An earlier load was cut short and nobody knows where: delete its counters, so that they restart at 0."""
    say("an earlier load was interrupted: starting it again")
    for key in truth:
        await east.delete(key)


async def _load(flights: Sequence[Flight], east: AsyncClient, west: AsyncClient, say: Say) -> None:
    began_s = time.monotonic()
    eastern = [flight for flight in flights if flight.origin != "EWR"]
    western = [flight for flight in flights if flight.origin == "EWR"]
    await west.wait_for(east.token)  # what was deleted there is deleted here before anything is added
    await asyncio.gather(_load_into(east, eastern), _load_into(west, western))
    took_s = time.monotonic() - began_s
    say(f"{len(flights):,} puts are durable, {len(flights) / took_s:,.0f} puts/s")


async def _load_into(edge: AsyncClient, flights: Iterable[Flight]) -> None:
    rest = iter(flights)
    while batch := list(islice(rest, PUTS_PER_BATCH)):
        receipt = await edge.put_batch({"key": f"score:{f.tailnum}", "value": {"add": f.miles}} for f in batch)
        if receipt.rejected:
            raise DemoFailed(f"{len(receipt.rejected)} puts were refused, first: {receipt.rejected[0]}")


async def _check(truth: Counter[str], edges: dict[str, AsyncClient], say: Say) -> None:
    """Every aircraft's miles, at each gateway, against the file; then the top, side by side."""
    began_s = time.monotonic()
    token = edges[next(iter(edges))].token
    for edge in edges.values():
        token = token.merge(edge.token)
    tops = {}
    for name, edge in edges.items():
        await edge.wait_for(token, timeout_s=SETTLE_TIMEOUT_S)
        table = {row.key: row.value async for row in edge.scan("score")}
        wrong = [key for key in truth if table.get(key) != truth[key]]
        if wrong or len(table) != len(truth):
            raise DemoFailed(f"{name}: {len(wrong)} of {len(truth)} aircraft differ from the file, e.g. {wrong[:3]}")
        tops[name] = [(row.key, row.value) for row in await edge.top("score", TOP)]
        if tops[name] != ranked(truth, TOP):
            raise DemoFailed(f"{name}: the top {TOP} is {tops[name]}, the file says {ranked(truth, TOP)}")
    say(f"both regions have it all, {time.monotonic() - began_s:.1f} s after the last put")
    _print_board(truth, tops, say)


def _print_board(truth: Counter[str], tops: dict[str, list[tuple[str, int]]], say: Say) -> None:
    say(f"\nMost miles flown from New York in 2013 ({len(truth):,} aircraft, each equal to the file in every region)\n")
    say("rank  aircraft  " + "".join(f"{name:>12}" for name in tops) + f"{'file':>12}")
    for rank, (key, miles) in enumerate(ranked(truth, TOP), 1):
        cells = "".join(f"{dict(top)[key]:>12,}" for top in tops.values())
        say(f"{rank:>4}  {key.removeprefix('score:'):<8}  {cells}{miles:>12,}")
    say("")
