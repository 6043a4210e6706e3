"""Which regions a data directory holds and on which ports: chosen once, remembered, chosen again where busy."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from streams.model.errors import BadInput, NotFound
from streams.model.topology import Region, Topology
from streams.region.processes import next_free_port, port_is_free

FIRST_GATEWAY_PORT = 8101
FIRST_KAFKA_PORT = 19_092  # below the range of outgoing connections, which could take a restarting broker's port
DEFAULT_REGIONS = ("us-east", "eu-west")
MIRROR_PORT = "mirror_port"  # in Region.extra: the port of the broker's own listener behind a mirror proxy
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


def plan(data: Path, names: Sequence[str] | None, usable: Callable[[int], bool] = port_is_free) -> Topology:
    """The topology to start in `data`: the one kept there, else a new one of `names`; saved with usable ports.

    Ports kept from the last start are used again if they are `usable` now (`PortLocks.claim` also claims them).
    BadInput when `names` differ from what the directory holds: its data belong to those regions.
    """
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
    kept_ports = {port for region in kept.regions for port in _ports(region) if port}
    taken: set[int] = set()
    topology = Topology(
        tuple(
            _with_ports(region, FIRST_GATEWAY_PORT + index, _Ports(kept_ports, taken, usable))
            for index, region in enumerate(kept.regions)
        )
    )
    topology.save(data)
    return topology


def _ports(region: Region) -> tuple[int, int, int, int]:
    """The ports a region was given before (0: none): Kafka's clients and controller, gateway, mirror listener."""
    kafka = int(region.bootstrap_servers.rpartition(":")[2] or 0)
    return kafka, region.controller_port, region.gateway_port, int(region.extra.get(MIRROR_PORT, 0))


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


def _with_ports(region: Region, gateway_start: int, ports: _Ports) -> Region:
    """The region with usable ports."""
    kafka, controller, gateway, mirror = _ports(region)
    port = ports.choose(kafka, FIRST_KAFKA_PORT)
    controller_port = ports.choose(controller, FIRST_KAFKA_PORT)
    gateway_port = ports.choose(gateway, gateway_start)
    extra = dict(region.extra)
    if region.mirror_bootstrap_servers:
        extra[MIRROR_PORT] = str(ports.choose(mirror, FIRST_KAFKA_PORT))
    return replace(
        region,
        bootstrap_servers=f"127.0.0.1:{port}",
        controller_port=controller_port,
        gateway_port=gateway_port,
        gateway_url=f"http://127.0.0.1:{gateway_port}",
        extra=extra,
    )
