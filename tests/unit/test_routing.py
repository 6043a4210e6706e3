"""The router's decision, places, GeoIP databases, and `/v1/route`."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from streams.client.routing import location_query
from streams.gateway.probes import ProbeOptions
from streams.model.errors import BadInput, Unavailable
from streams.model.peer import Announcement
from streams.model.place import Place, place_of_region
from streams.use_cases.routing import Node, choose
from streams.use_cases.routing.geoip import GeoIp, check_address
from tests.support.gateway import TestGateway, running_gateway
from tests.support.polling import eventually

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
NEW_YORK, PARIS, TOKYO = Place(40.7, -74.0), Place(48.9, 2.4), Place(35.7, 139.7)
VIRGINIA, DUBLIN = place_of_region("us-east"), place_of_region("eu-west")


def node(region: str, **changes: object) -> Node:
    settings: dict[str, object] = {"place": place_of_region(region), "rtt_ms": 1.0, **changes}
    return Node(f"gateway-{region}", region, f"http://{region}:1", **settings)  # type: ignore[arg-type]


def test_distances_are_the_known_ones() -> None:
    assert NEW_YORK.distance_km(PARIS) == pytest.approx(5850, rel=0.01)
    assert Place(0, 0).distance_km(Place(0, 180)) == pytest.approx(20015, rel=0.001)
    assert Place(90, 0).distance_km(Place(90, 120)) == pytest.approx(0, abs=1e-6)
    assert NEW_YORK.distance_km(NEW_YORK) == 0


def test_regions_are_where_clouds_have_them() -> None:
    assert place_of_region("eu-west-1") == place_of_region("eu-west") == DUBLIN
    assert place_of_region("moon-base") is None and place_of_region("7") is None


@pytest.mark.parametrize(("user", "region"), [(NEW_YORK, "us-east"), (PARIS, "eu-west"), (TOKYO, "us-west")])
def test_the_nearest_serves_and_the_others_follow_by_distance(user: Place, region: str) -> None:
    decision = choose(user, VIRGINIA, [node("us-east"), node("eu-west"), node("us-west")])
    assert decision.primary.node.region == region
    distances = [each.distance_km for each in (decision.primary, *decision.fallbacks)]
    assert distances == sorted(distances) and len(distances) == 3


def test_an_unhealthy_node_is_skipped_and_none_is_an_error() -> None:
    assert choose(PARIS, VIRGINIA, [node("us-east"), node("eu-west", healthy=False)]).primary.node.region == "us-east"
    with pytest.raises(Unavailable, match="healthy"):
        choose(PARIS, VIRGINIA, [node("us-east", healthy=False)])


def test_a_slow_link_and_a_busy_node_count_as_farther() -> None:
    boston = Place(42.4, -71.1)
    assert choose(boston, VIRGINIA, [node("us-east"), node("ca-central")]).primary.node.region == "ca-central"
    slow = [node("us-east"), node("ca-central", rtt_ms=250.0)]
    assert choose(boston, VIRGINIA, slow).primary.node.region == "us-east"
    busy = [node("us-east"), node("ca-central", delay_ms=80.0)]
    assert choose(boston, VIRGINIA, busy).primary.node.region == "us-east"


def test_without_a_place_the_measured_round_trip_decides() -> None:
    found = choose(None, VIRGINIA, [node("eu-west", rtt_ms=80.0), node("us-east", rtt_ms=0.0)])
    assert found.primary.node.region == "us-east" and found.primary.distance_km is None
    odd = [node("moon", rtt_ms=30.0), node("mars", rtt_ms=900.0), node("never", rtt_ms=None)]
    ranked = choose(PARIS, None, odd)
    assert [each.node.region for each in (ranked.primary, *ranked.fallbacks)] == ["moon", "mars", "never"]


def test_equal_nodes_share_users_and_each_user_stays() -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    nodes = [Node(f"g{i}", "us-east", f"http://{i}", VIRGINIA, rtt_ms=0.5) for i in range(4)]
    users = [Place(rng.uniform(25, 48), rng.uniform(-120, -70)) for _ in range(400)]
    first = [choose(user, VIRGINIA, nodes).primary.node.name for user in users]
    assert first == [choose(user, VIRGINIA, rng.sample(nodes, 4)).primary.node.name for user in users]
    assert all(first.count(each.name) > 50 for each in nodes)
    without = [choose(user, VIRGINIA, nodes[1:]).primary.node.name for user in users]
    assert all(a == b for a, b in zip(first, without, strict=True) if a != "g0")  # only g0's users move


def test_places_are_given_in_several_forms() -> None:
    expected = {"lat": "40.7", "lon": "-74.0"}
    for form in ((40.7, -74.0), [40.7, -74.0], {"lat": 40.7, "lon": -74.0}, NEW_YORK):
        assert location_query(form) == expected
    assert location_query("203.0.113.7") == {"ip": "203.0.113.7"}
    for bad in (None, (1,), ("a", "b"), {"lat": 1}, (True, 2), 7):
        with pytest.raises(BadInput, match="location"):
            location_query(bad)


def test_a_geoip_database_locates(tmp_path: Path) -> None:
    database = SHARED / "GeoLite2-City-Test.mmdb"
    if not database.exists():
        pytest.skip("needs ../shared/data")
    copy = tmp_path / "city.mmdb"
    copy.write_bytes(database.read_bytes())
    geoip = GeoIp(copy)
    london = geoip.place("81.2.69.160")
    assert london is not None and london.distance_km(Place(51.5, -0.1)) < 30
    assert geoip.place("2001:218::") is not None
    assert geoip.place("127.0.0.1") is None
    copy.write_bytes(b"broken")  # a botched update: the old one goes on
    assert geoip.place("81.2.69.160") == london
    copy.write_bytes(database.read_bytes())
    assert geoip.place("81.2.69.160") == london
    geoip.close()


def test_a_broken_or_missing_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.mmdb").write_bytes(b"nothing")
    for name in ("x.mmdb", "none.mmdb"):
        with pytest.raises(BadInput, match="--geoip"):
            GeoIp(tmp_path / name)


def test_addresses_are_checked() -> None:
    assert check_address(" [2001:DB8::1] ") == "2001:db8::1"
    for bad in ("", "300.1.1.1", "example.org", "1.2.3"):
        with pytest.raises(BadInput, match="ip"):
            check_address(bad)


@pytest.fixture
async def edge(tmp_path: Path) -> AsyncIterator[TestGateway]:
    async with running_gateway(tmp_path) as running:
        yield running


async def route(edge: TestGateway, query: str) -> tuple[int, dict[str, object]]:
    async with edge.http.get(f"{edge.url}/v1/route{query}") as answer:
        return answer.status, json.loads(await answer.read())


BAD_PLACES = (
    ("", "lat"),
    ("?lat=1", "lon"),
    ("?lon=1", "lat"),
    ("?lat=91&lon=0", "lat"),
    ("?lat=nan&lon=0", "lat"),
    ("?lat=0&lon=inf", "lon"),
    ("?lat=x&lon=0", "lat"),
    ("?ip=nowhere", "ip"),
    ("?ip=1.2.3.4&lat=1&lon=1", "ip"),
)


async def test_bad_places_are_refused_by_field(edge: TestGateway) -> None:
    for query, field in BAD_PLACES:
        status, body = await route(edge, query)
        assert status == 400 and body["field"] == field, (query, body)


async def test_a_region_that_stops_answering_is_skipped_until_it_is_back(edge: TestGateway, tmp_path: Path) -> None:
    gateway = edge.gateway
    gateway.probes.options = ProbeOptions(every_s=0.05, timeout_s=1.0, tick_s=0.01)
    probing = asyncio.create_task(gateway.probes.run())
    try:
        async with running_gateway(tmp_path / "far") as far:
            now_ms = 2**52
            gateway.peers.hear(Announcement("gateway-eu-west", "eu-west", far.url, now_ms))

            async def serves(region: str, query: str = "?lat=48.9&lon=2.4") -> bool:
                status, body = await route(edge, query)
                return status == 200 and body["region"] == region

            await eventually(lambda: serves("eu-west"), 10)
            status, body = await route(edge, "?lat=48.9&lon=2.4")
            assert body["primary_node"] == "gateway-eu-west" and body["url"] == far.url
            assert [each["region"] for each in body["fallbacks"]] == ["us-east"]  # type: ignore[attr-defined]
            assert 500 < float(str(body["distance_km"])) < 1200
            status, body = await route(edge, "?ip=203.0.113.7")
            assert status == 200 and body["location"] is None
            # By round trips alone the gateway itself is nearest, as soon as its own loop is not behind.
            await eventually(lambda: serves("us-east", "?ip=203.0.113.7"), 10)
        await eventually(lambda: serves("us-east"), 10)
    finally:
        probing.cancel()
        await asyncio.gather(probing, return_exceptions=True)
