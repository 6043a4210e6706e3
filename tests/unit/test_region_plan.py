"""Ports are kept, and chosen again where busy; a data directory keeps its regions."""

from __future__ import annotations

import dataclasses
import socket
from pathlib import Path

import pytest

from streams.model.errors import BadInput
from streams.model.topology import Region, Topology
from streams.region.plan import CLUSTER_ID, brokers_of, parse_regions, plan
from streams.region.processes import PortLocks


def ports(topology: Topology) -> list[int]:
    found = []
    for region in topology.regions:
        found += [int(region.bootstrap_servers.split(":")[1]), region.controller_port, region.gateway_port]
    return found


def test_ports_differ_and_are_remembered(tmp_path: Path) -> None:
    first = plan(tmp_path, None)
    assert first.names == ("us-east", "eu-west")
    assert len(set(ports(first))) == 6
    assert plan(tmp_path, None) == first == plan(tmp_path, ["us-east", "eu-west"]) == Topology.load(tmp_path)


def test_a_busy_port_is_avoided(tmp_path: Path) -> None:
    first = plan(tmp_path, ("a", "b"))
    with socket.socket() as squatter:
        squatter.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        squatter.bind(("127.0.0.1", first.regions[0].gateway_port))
        squatter.listen()
        second = plan(tmp_path, None)
    assert second.regions[0].gateway_port not in ports(first)
    assert second.regions[0].gateway_url.endswith(f":{second.regions[0].gateway_port}")
    assert ports(second)[:2] == ports(first)[:2] and ports(second)[3:] == ports(first)[3:]


def test_other_regions_are_refused(tmp_path: Path) -> None:
    plan(tmp_path, ("a", "b"))
    with pytest.raises(BadInput, match="holds the regions a,b, not b,a"):
        plan(tmp_path, ("b", "a"))


def test_a_mirror_proxy_gets_a_listener(tmp_path: Path) -> None:
    first = plan(tmp_path, ("a", "b"))
    proxied = tuple(dataclasses.replace(region, mirror_bootstrap_servers="127.0.0.1:7") for region in first.regions)
    Topology(proxied).save(tmp_path)
    second = plan(tmp_path, None)
    assert len({*ports(second), *(int(region.extra["mirror_port"]) for region in second.regions)}) == 8


@pytest.mark.parametrize("text", ["", "a,,b", "A", "a,a", "a b", "../x", "-a", "a_b", "a" * 40])
def test_bad_region_names(text: str) -> None:
    with pytest.raises(BadInput, match="--regions"):
        parse_regions(text)


def test_good_region_names() -> None:
    assert parse_regions("us-east, eu-west,x") == ("us-east", "eu-west", "x")


def test_two_systems_starting_at_once_differ(tmp_path: Path) -> None:
    ours = PortLocks()
    first = plan(tmp_path / "a", None, ours.claim)
    second = plan(tmp_path / "b", None, PortLocks().claim)
    assert not set(ports(first)) & set(ports(second))
    assert plan(tmp_path / "a", None, ours.claim) == first


def test_three_brokers_have_ports_of_their_own_and_are_remembered(tmp_path: Path) -> None:
    first = plan(tmp_path, ("a", "b"), brokers=3)
    again = plan(tmp_path, None)
    assert again == first == plan(tmp_path, ("a", "b"), brokers=3)
    found = [
        port for region in first.regions for each in brokers_of(region) for port in (each.port, each.controller_port)
    ]
    assert len({*found, *(region.gateway_port for region in first.regions)}) == 14
    assert [region.brokers for region in first.regions] == [3, 3]
    assert len({region.extra[CLUSTER_ID] for region in first.regions}) == 2
    with pytest.raises(BadInput, match="holds 3 broker"):
        plan(tmp_path, None, brokers=1)
    for count in (0, 2, 4):
        with pytest.raises(BadInput, match="--brokers"):
            plan(tmp_path / "new", None, brokers=count)


def test_each_of_three_brokers_has_a_listener_behind_its_mirror_proxy(tmp_path: Path) -> None:
    proxies = "127.0.0.1:7,127.0.0.1:8,127.0.0.1:9"
    Topology((Region("a", "", mirror_bootstrap_servers=proxies),)).save(tmp_path)
    brokers = brokers_of(plan(tmp_path, None, brokers=3).regions[0])
    assert [each.mirror_advertised_port for each in brokers] == [7, 8, 9]
    assert len({port for each in brokers for port in (each.port, each.controller_port, each.mirror_port)}) == 9
