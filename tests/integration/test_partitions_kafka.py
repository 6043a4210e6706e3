"""Partitions by region on two real regions: each event once and in order, whatever is killed meanwhile."""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field, replace

import aiohttp
import pytest

from streams.client import AsyncClient, Event, connect, connect_sync
from streams.gateway.subscription import Feed, Place, feed_of, follow, start_positions
from streams.kafka.admin import Admin, TopicSpec
from streams.kafka.partitioner import slice_partitions
from streams.kafka.producer import EventProducer
from streams.model.errors import BadInput, Conflict, NotFound, Unavailable
from streams.model.keyspace import BUILTIN
from streams.model.token import Input, Token
from streams.model.topology import Topology
from streams.serde import Columns, encode, encode_frames, load_builtin
from tests.support.gateway import running_gateway
from tests.support.gateway_process import ROOT, GatewayProcess
from tests.support.kafka import TwoRegions
from tests.support.polling import eventually

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]

HERE, THERE = "us-east", "eu-west"
DEVICE = next(each for each in BUILTIN if each.name == "device")


@dataclass
class Edges:
    """Both regions' gateways, and a session with us-east's."""

    gateways: dict[str, GatewayProcess]
    edge: AsyncClient
    regions: TwoRegions
    sessions: dict[str, AsyncClient]

    async def restart(self, region: str) -> None:
        """kill -9, and start again."""
        self.gateways[region].kill()
        self.gateways[region].start()
        await self.gateways[region].serving(self.sessions[region])


@pytest.fixture(scope="module")
async def edges(two_regions: TwoRegions, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Edges]:
    """Gateways whose topology names no URL of the other's: they know each other by their announcements alone."""
    bare = Topology(tuple(replace(each, gateway_url="", gateway_port=0) for each in two_regions.topology.regions))
    directory = tmp_path_factory.mktemp("gateways")
    gateways = {name: GatewayProcess(directory, bare, name, "--stall-s", "2") for name in (HERE, THERE)}
    try:
        for each in gateways.values():
            each.start()
        async with connect(gateways[HERE].url) as edge, connect(gateways[THERE].url) as far:
            found = Edges(gateways, edge, two_regions, {HERE: edge, THERE: far})
            for name, session in found.sessions.items():
                await gateways[name].serving(session)
                await eventually(lambda session=session: both_live(session, found), 60)
            yield found
    finally:
        for each in gateways.values():
            each.kill()


async def both_live(session: AsyncClient, edges: Edges) -> bool:
    rows = (await session.get_json("/v1/gateways"))["gateways"]
    live = {row["region"]: row["url"] for row in rows if row["live"]}
    return live == {name: each.url for name, each in edges.gateways.items()}


@dataclass
class Writer:
    """Readings, one by one and in frames, straight into a region's log; each has a number, rising within its device."""

    bootstrap_servers: str
    rng: random.Random
    written: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    async def write(self, rounds: int, pause_s: float = 0.0, size: tuple[int, int] = (64, 400)) -> None:
        producer = EventProducer(self.bootstrap_servers)
        await producer.start()
        schema = load_builtin()["streams.Reading"]
        try:
            for _ in range(rounds):
                name = f"device:{self.rng.randrange(7)}:telemetry"
                value = encode(schema, {"metric": "t", "value": self._next(name), "time": 1_000})
                await producer.put(DEVICE.events_topic, name.encode(), value, [("hlc", b"1")])
                names = [f"device:{self.rng.randrange(7)}:telemetry" for _ in range(self.rng.randrange(*size))]
                values = [self._next(each) for each in names]
                columns = Columns(names, {"metric": ["t"] * len(names), "value": values, "time": [1_000] * len(names)})
                frames = encode_frames(columns, schema, slice_partitions(DEVICE.partitions))
                records = [(None, frame.value, [("hlc", b"1")]) for frame in frames]
                partitions = [frame.partition for frame in frames]
                for record, partition in zip(records, partitions, strict=True):
                    await producer.put(DEVICE.events_topic, None, record[1], record[2], partition)
                await asyncio.sleep(pause_s)
        finally:
            await producer.stop()

    def _next(self, name: str) -> float:
        self.written[name].append(float(len(self.written[name])))
        return self.written[name][-1]

    @property
    def count(self) -> int:
        return sum(map(len, self.written.values()))


async def collect(edge: AsyncClient, region: str, found: list[Event], **options: str) -> None:
    async for event in edge.subscribe_partition(f"iot:region:{region}", **options):  # type: ignore[arg-type]
        found.append(event)


def check(found: list[Event], writer: Writer, region: str) -> None:
    """Each event once; in the order of its Kafka partition; of this region."""
    seen: dict[str, list[float]] = defaultdict(list)
    places: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for event in found:
        seen[event.key].append(event.value["value"])
        places[event.partition].append((event.offset, event.part or 0))
    assert seen == writer.written
    assert all(each == sorted(set(each)) for each in places.values())
    assert {(event.op, event.region, event.time) for event in found} == {("put", region, 1_000)}


async def test_each_event_comes_once_and_in_order_whatever_is_killed(edges: Edges) -> None:
    """One subscription of the gateway's own region and one that it passes on, through kills of both gateways."""
    seed = int(os.environ.get("SEED", random.randrange(2**32)))
    print("seed", seed)
    rng = random.Random(seed)
    writers = {region: Writer(edges.regions.bootstrap_servers(region), rng) for region in (HERE, THERE)}
    for region in writers:
        await Writer(edges.regions.bootstrap_servers(region), rng).write(3)  # before what is asked for
    tokens = {region: await position_of(edges, region) for region in writers}
    found: dict[str, list[Event]] = {region: [] for region in writers}
    following = [asyncio.create_task(collect(edges.edge, each, found[each], from_=tokens[each])) for each in writers]

    async def all_came(counts: dict[str, int], timeout_s: float) -> None:
        def came() -> bool:
            ended = any(task.done() for task in following)
            return ended or all(len(found[region]) >= count for region, count in counts.items())

        await eventually(came, timeout_s)
        assert not any(task.done() for task in following), [task.result() for task in following if task.done()]

    try:
        for writer in writers.values():
            await writer.write(20)
        writing = [asyncio.create_task(writer.write(60, pause_s=0.05)) for writer in writers.values()]
        for victim in (HERE, THERE):
            await all_came({region: len(events) + 500 for region, events in found.items()}, 60)
            await edges.restart(victim)
        await asyncio.gather(*writing)
        await all_came({region: writer.count for region, writer in writers.items()}, 90)
        for region, writer in writers.items():
            check(found[region], writer, region)
    finally:
        for task in following:
            task.cancel()
    for region, events in found.items():
        await goes_on_after(edges, region, events, len(events) // 3)


async def goes_on_after(edges: Edges, region: str, found: list[Event], at: int) -> None:
    """From a token in the middle on comes what came after it."""
    rest: list[Event] = []
    again = asyncio.create_task(collect(edges.edge, region, rest, from_=found[at].token))
    await eventually(lambda: again.done() or len(rest) >= len(found) - at - 1, 60)
    again.cancel()
    assert by_partition(rest) == by_partition(found[at + 1 :])


def by_partition(events: list[Event]) -> dict[int, list[tuple[object, ...]]]:
    """What came, in order; how partitions interleave is nobody's promise."""
    found: dict[int, list[tuple[object, ...]]] = defaultdict(list)
    for event in events:
        found[event.partition].append((event.offset, event.part, event.key, event.value, event.timestamp))
    return found


async def position_of(edges: Edges, region: str) -> str:
    """A token of the present end of a region's log."""
    tps = [(DEVICE.events_topic, number) for number in range(DEVICE.partitions)]
    async with Admin(edges.regions.bootstrap_servers(region)) as admin:
        ends = await admin.end_offsets(tps)
    return Token({Input(region, topic, number): ends[topic, number] for topic, number in tps}).encode()  # type: ignore[index]


async def test_puts_are_events_of_the_gateways_region(edges: Edges) -> None:
    """A put at a gateway is in its region's partition, and in no other."""
    tokens = {name: await position_of(edges, name) for name in (HERE, THERE)}
    for number, (name, session) in enumerate(edges.sessions.items()):
        await session.put("device:put:telemetry", {"metric": "t", "value": number, "time": "1970-01-01T00:00:01Z"})
        await session.delete("device:put:telemetry")
        found: list[Event] = []
        async with aclosing(edges.edge.subscribe_partition(f"iot:region:{name}", from_=tokens[name])) as events:
            async for event in events:
                found.append(event)
                if len(found) == 2:
                    break
        assert [(e.op, e.region, e.key) for e in found] == [
            ("put", name, "device:put:telemetry"),
            ("delete", name, "device:put:telemetry"),
        ]
        assert found[0].value == {"metric": "t", "value": float(number), "time": 1_000}


async def test_the_synchronous_twin_and_the_command_line(edges: Edges) -> None:
    writer = Writer(edges.regions.bootstrap_servers(THERE), random.Random(1))
    token = await position_of(edges, THERE)
    await writer.write(1)

    def read() -> list[Event]:
        with connect_sync(edges.gateways[HERE].url) as edge:
            some = list(edge.subscribe_partition(f"iot:region:{THERE}", from_=token, limit=10))
            rest = list(edge.subscribe_partition(f"iot:region:{THERE}", from_=some[-1].token, quiet_s=3.0))
            return some + rest

    found = await asyncio.to_thread(read)
    check(found, writer, THERE)
    command = [sys.executable, "-m", "streams.cli.main", "tail", f"iot:region:{THERE}", "--from", token, "-n", "5"]
    tail = await asyncio.create_subprocess_exec(
        *command, "--tokens", "--url", edges.gateways[HERE].url, stdout=subprocess.PIPE, cwd=ROOT
    )
    output, _ = await asyncio.wait_for(tail.communicate(), 60)
    assert tail.returncode == 0
    rows = [json.loads(line) for line in output.splitlines()]
    shown = [Event(position=Token.decode(row.pop("token")), **row) for row in rows]
    assert len(shown) == 5
    for number, events in by_partition(shown).items():
        assert events == by_partition(found)[number][: len(events)]


async def test_who_stops_reading_is_cut_off_and_goes_on_later(edges: Edges) -> None:
    """20 MB of events: more than the sockets between the two hold."""
    writer = Writer(edges.regions.bootstrap_servers(HERE), random.Random(3))
    token = await position_of(edges, HERE)
    await writer.write(7, size=(9_000, 10_000))
    before = await metric(edges, 'streams_subscribers_dropped_total{reason="slow"}')
    found: list[Event] = []
    async with aclosing(edges.edge.subscribe_partition(f"iot:region:{HERE}", from_=token)) as events:
        async for event in events:
            found.append(event)
            if len(found) == 10:
                await eventually(lambda: cut_off(edges, before), 60)
                await eventually(lambda: nothing_held(edges))
            if len(found) == writer.count:
                break
    check(found, writer, HERE)


async def cut_off(edges: Edges, before: float) -> bool:
    held = await metric(edges, "streams_subscribers_held_bytes")
    assert held < 8 << 20
    return await metric(edges, 'streams_subscribers_dropped_total{reason="slow"}') > before


async def nothing_held(edges: Edges) -> bool:
    return await metric(edges, "streams_subscribers_held_bytes") == 0


async def metric(edges: Edges, name: str) -> float:
    """A metric of us-east's gateway, 0 when it is not there."""
    async with aiohttp.ClientSession() as http, http.get(f"{edges.gateways[HERE].url}/metrics") as answer:
        lines = (await answer.text()).splitlines()
    return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name} ")), 0.0)


async def test_what_a_udf_puts_out_is_a_stream(edges: Edges) -> None:
    """`follow` on the topic of alerts: records of another shape than the keyspace's, keys of any form."""
    servers = edges.regions.bootstrap_servers(HERE)
    async with Admin(servers) as admin:
        await admin.ensure_topics([TopicSpec("alerts.device", 2, {})])
    producer = EventProducer(servers)
    await producer.start()
    await producer.put("alerts.device", b"anything", encode(load_builtin()["streams.Json"], {"json": '{"a":1}'}))
    await producer.stop()
    async with running_gateway(edges.gateways[HERE].data / "alerts") as found:
        found.gateway.region = edges.regions.topology.region(HERE)
        feed = Feed("alerts.device", 2, keyed=False)
        positions = await start_positions(found.gateway, feed, "start")
        async with aclosing(follow(found.gateway, feed, positions, "")) as pieces:
            await anext(pieces)
            text = (await anext(pieces)).decode()
    assert '"key":"anything"' in text and '"op":"put"' in text and '"a"' in text


async def test_wrong_tokens_partitions_and_cut_logs_are_said(edges: Edges) -> None:
    edge = edges.edge
    for region in (HERE, THERE):
        future = Token({Input(region, DEVICE.events_topic, 0): 10**9}).encode()
        other = await position_of(edges, THERE if region == HERE else HERE)
        for bad, message in (("%%%", "token"), (future, "past its end"), (other, "the token is of")):
            with pytest.raises(BadInput, match=message):
                await anext(edge.subscribe_partition(f"iot:region:{region}", from_=bad))
    with pytest.raises(NotFound, match="iot:region:us-east, iot:region:eu-west"):
        await anext(edge.subscribe_partition("iot:region:mars"))
    with pytest.raises(NotFound, match="no stream"):
        await anext(edge.subscribe_partition(f"iot:region:{THERE}", stream="nonsense"))
    await Writer(edges.regions.bootstrap_servers(THERE), random.Random(2)).write(1)
    begin = Token({Input(THERE, DEVICE.events_topic, number): 0 for number in range(2)}).encode()
    async with Admin(edges.regions.bootstrap_servers(THERE)) as admin:
        await admin.delete_records({(DEVICE.events_topic, number): 1 for number in range(2)})
    with pytest.raises(Conflict, match="no longer in the log"):
        await anext(edge.subscribe_partition(f"iot:region:{THERE}", from_=begin))
    async with running_gateway(edges.gateways[HERE].data / "cut") as found:
        # Removed after its position was found good, before it was read.
        found.gateway.region = edges.regions.topology.region(THERE)
        places = {(DEVICE.events_topic, number): Place(0) for number in range(2)}
        async with aclosing(follow(found.gateway, feed_of(DEVICE, None), places, "")) as pieces:
            await anext(pieces)
            with pytest.raises(Conflict, match="removed from the log before they were read"):
                await anext(pieces)


async def test_a_region_that_is_down_is_said_before_the_stream_begins(edges: Edges) -> None:
    """Last: a gateway that says goodbye is gone from the others' lists at once."""
    assert edges.gateways[THERE].stop() == 0
    with pytest.raises(Unavailable, match="eu-west cannot be reached"):
        await anext(edges.edge.subscribe_partition(f"iot:region:{THERE}", give_up_s=1.0))
    await eventually(lambda: only_here(edges), 30)


async def only_here(edges: Edges) -> bool:
    return {row["region"] for row in (await edges.edge.get_json("/v1/gateways"))["gateways"]} == {HERE}
