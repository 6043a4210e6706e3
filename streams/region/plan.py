"""Which regions a data directory holds and on which ports: chosen once, remembered, chosen again where busy."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from streams.model.errors import BadInput, NotFound
from streams.model.topology import Region, Topology
from streams.region.kafka_server import new_cluster_id
from streams.region.processes import next_free_port, port_is_free

FIRST_GATEWAY_PORT = 8101
FIRST_KAFKA_PORT = 19_092  # below the range of outgoing connections, which could take a restarting broker's port
DEFAULT_REGIONS = ("us-east", "eu-west")
MIRROR_PORT = "mirror_port"  # in Region.extra: the ports of the brokers' own listeners behind mirror proxies
CONTROLLER_PORTS = "controller_ports"  # in Region.extra, where there are several brokers: of each
CLUSTER_ID = "cluster_id"  # likewise: what they are formatted with
BROKERS = (1, 3)
"""How many brokers a region may have here: any two of three can go on without the third."""
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?")


def parse_regions(text: str) -> tuple[str, ...]:
    """Region names of `--regions a,b`; BadInput when one is malformed or named twice."""
    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        if not _NAME.fullmatch(name):
            raise BadInput(
                f"{name!r} is not a region name", field="--regions", fix="use 1 to 32 of a-z, 0-9 and inner hyphens"
            )
    if len(set(names)) < len(names):
        raise BadInput("a region is named twice", field="--regions", fix="name each once")
    return names


def plan(
    data: Path,
    names: Sequence[str] | None,
    usable: Callable[[int], bool] = port_is_free,
    brokers: int | None = None,
) -> Topology:
    """The topology to start in `data`: the one kept there, else a new one of `names`; saved with usable ports.

    Ports kept from the last start are used again if they are `usable` now (`PortLocks.claim` also claims them).
    BadInput when `names` or `brokers` (a region's) differ from what the directory holds: its data belong to those.
    """
    if brokers is not None and brokers not in BROKERS:
        raise BadInput(
            f"{brokers} brokers cannot be had", field="--brokers", fix="use 1, or 3: any one may be lost then"
        )
    data.mkdir(parents=True, exist_ok=True)
    try:
        kept = Topology.load(data)
    except NotFound:
        kept = Topology(tuple(Region(name, bootstrap_servers="") for name in names or DEFAULT_REGIONS))
    if names and tuple(names) != kept.names:
        raise BadInput(
            f"{data} holds the regions {','.join(kept.names)}, not {','.join(names)}",
            field="--regions",
            fix="leave --regions out, or choose another --data",
        )
    for region in kept.regions:
        if brokers not in (None, region.brokers) and region.bootstrap_servers:
            raise BadInput(
                f"{data} holds {region.brokers} broker(s) a region, not {brokers}",
                field="--brokers",
                fix="leave --brokers out, or choose another --data",
            )
    kept_ports = {port for region in kept.regions for port in _ports(region) if port}
    taken: set[int] = set()
    topology = Topology(
        tuple(
            _with_ports(region, FIRST_GATEWAY_PORT + index, brokers or 1, _Ports(kept_ports, taken, usable))
            for index, region in enumerate(kept.regions)
        )
    )
    topology.save(data)
    return topology


def _numbers(text: str) -> list[int]:
    """The ports in `host:port,host:port` or `port,port`."""
    return [int(each.rpartition(":")[2] or 0) for each in text.split(",")]


def _ports(region: Region) -> list[int]:
    """The ports a region was given before (0: none)."""
    return [
        each for broker in brokers_of(region) for each in (broker.port, broker.controller_port, broker.mirror_port)
    ] + [region.gateway_port]


@dataclass(frozen=True, slots=True)
class Broker:
    """One broker's ports on 127.0.0.1; 0: not chosen yet, or no mirror listener."""

    port: int
    controller_port: int
    mirror_port: int = 0
    mirror_advertised_port: int = 0


def brokers_of(region: Region) -> list[Broker]:
    """The brokers of a planned region, in the order of their ids."""
    count = region.brokers
    ports = _numbers(region.bootstrap_servers)
    controllers = _numbers(region.extra.get(CONTROLLER_PORTS, str(region.controller_port)))
    mirrors, advertised = _numbers(region.extra.get(MIRROR_PORT, "")), _numbers(region.mirror_bootstrap_servers)
    lists = [(each + [0] * count)[:count] for each in (ports, controllers, mirrors, advertised)]
    return [Broker(*each) for each in zip(*lists, strict=True)]


@dataclass(frozen=True, slots=True)
class _Ports:
    """Ports kept from the last start (each left to its region), those taken now, and which can be used."""

    kept: set[int]
    taken: set[int]
    usable: Callable[[int], bool]

    def choose(self, kept: int, start: int) -> int:
        """The kept port if it can be used, else the next from `start` up; it is taken then."""
        again = kept and kept not in self.taken and self.usable(kept)
        port = kept if again else next_free_port(start, self.taken | self.kept, self.usable)
        self.taken.add(port)
        return port


def _with_ports(region: Region, gateway_start: int, brokers: int, ports: _Ports) -> Region:
    """The region with usable ports; `brokers`: how many it has if none were ever started."""
    count = region.brokers if region.bootstrap_servers else max(brokers, region.mirror_bootstrap_servers.count(",") + 1)
    before = (brokers_of(region) + [Broker(0, 0)] * count)[:count]
    clients = [ports.choose(each.port, FIRST_KAFKA_PORT) for each in before]
    controllers = [ports.choose(each.controller_port, FIRST_KAFKA_PORT) for each in before]
    gateway_port = ports.choose(region.gateway_port, gateway_start)
    extra = dict(region.extra)
    if region.mirror_bootstrap_servers:
        extra[MIRROR_PORT] = ",".join(str(ports.choose(each.mirror_port, FIRST_KAFKA_PORT)) for each in before)
    if count > 1:
        extra[CONTROLLER_PORTS] = ",".join(map(str, controllers))
        extra.setdefault(CLUSTER_ID, new_cluster_id())
    return replace(
        region,
        bootstrap_servers=",".join(f"127.0.0.1:{port}" for port in clients),
        controller_port=controllers[0],
        gateway_port=gateway_port,
        gateway_url=f"http://127.0.0.1:{gateway_port}",
        extra=extra,
    )
