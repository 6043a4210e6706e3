"""The regions of a system and where each listens, as kept in the data directory's `topology.json`."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass, field
from pathlib import Path

from streams.model.errors import BadInput, NotFound

TOPOLOGY_FILE = "topology.json"


@dataclass(frozen=True, slots=True)
class Region:
    """One region. Addresses are `host:port`, several brokers' separated by commas; `gateway_url` is for users.

    `mirror_bootstrap_servers`: where other regions' mirror reads this one, if not at `bootstrap_servers`
    (a test's cutting proxy, or a wide-area listener).
    """

    name: str
    bootstrap_servers: str
    gateway_url: str = ""
    gateway_port: int = 0
    controller_port: int = 0
    mirror_bootstrap_servers: str = ""
    extra: dict[str, str] = field(default_factory=dict)

    @property
    def brokers(self) -> int:
        """How many brokers its addresses name."""
        return self.bootstrap_servers.count(",") + 1


@dataclass(frozen=True, slots=True)
class Topology:
    """All regions, the home region (where definitions are written) first."""

    regions: tuple[Region, ...]

    @property
    def home(self) -> Region:
        """The region whose `definitions` topic is written."""
        return self.regions[0]

    @property
    def names(self) -> tuple[str, ...]:
        """The regions' names, home first."""
        return tuple(region.name for region in self.regions)

    def region(self, name: str) -> Region:
        """The region called `name`; NotFound says which there are."""
        for region in self.regions:
            if region.name == name:
                return region
        raise NotFound(f"no region {name!r}", field="region", fix=f"choose one of {', '.join(self.names)}")

    def others(self, name: str) -> tuple[Region, ...]:
        """Every region but `name`."""
        return tuple(region for region in self.regions if region.name != name)

    def save(self, data: Path) -> None:
        """Write `topology.json` into `data`, atomically."""
        path = data / TOPOLOGY_FILE
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        body = {"home": self.home.name, "regions": [dataclasses.asdict(region) for region in self.regions]}
        temporary.write_text(json.dumps(body, indent=2) + "\n")
        temporary.replace(path)

    @classmethod
    def load(cls, data: Path) -> Topology:
        """The topology kept in `data`; NotFound when nothing was ever started there."""
        path = data / TOPOLOGY_FILE
        try:
            body = json.loads(path.read_text())
            return cls(tuple(Region(**region) for region in body["regions"]))
        except FileNotFoundError:
            raise NotFound(
                f"no system in {data}", field="--data", fix="start one with `streams up`, or name its --data directory"
            ) from None
        except (ValueError, KeyError, TypeError) as error:
            raise BadInput(
                f"{path} cannot be read: {error}", field="--data", fix="restore or remove the file"
            ) from None
