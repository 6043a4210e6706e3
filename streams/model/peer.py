"""What a gateway announces of itself, for the other regions' gateways."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from streams.model.errors import BadInput

GATEWAYS_TOPIC = "gateways"
"""Each region's own announcements; another region's are mirrored to `<region>.gateways`."""

NODE_CHARS_MAX = 128
URL_CHARS_MAX = 512
TTL_MS = 35_000
"""How long an announcement counts: three refreshes may be lost."""


@dataclass(frozen=True, slots=True)
class Announcement:
    """A gateway: `node` names it in its region, `url` is where others reach it. `latitude`, `longitude` in degrees.

    It counts from `time_ms` (the gateway's clock, epoch milliseconds) for `ttl_ms`.
    """

    node: str
    region: str
    url: str
    time_ms: int
    ttl_ms: int = TTL_MS
    latitude: float | None = None
    longitude: float | None = None

    def is_live(self, now_ms: int) -> bool:
        """Whether it still counts; not when it is of a clock that is further ahead than announcements last."""
        return self.time_ms - self.ttl_ms <= now_ms < self.time_ms + self.ttl_ms

    def to_json(self) -> dict[str, Any]:
        """The form in the topic."""
        return {
            "node": self.node,
            "region": self.region,
            "url": self.url,
            "time_ms": self.time_ms,
            "ttl_ms": self.ttl_ms,
            "latitude": self.latitude,
            "longitude": self.longitude,
        }

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Announcement:
        """The inverse of `to_json`; BadInput names the field that is wrong."""
        times = {name: body.get(name, TTL_MS) for name in ("time_ms", "ttl_ms")}
        for name, value in times.items():
            if type(value) is not int or not 0 <= value < 2**53:
                raise BadInput("no time in milliseconds", field=name)
        latitude, longitude = check_location(body.get("latitude"), body.get("longitude"))
        return cls(
            check_node(body.get("node")),
            str(body.get("region", ""))[:NODE_CHARS_MAX],
            check_url(body.get("url")),
            times["time_ms"],
            times["ttl_ms"],
            latitude,
            longitude,
        )


def check_node(node: object) -> str:
    """A node's name; BadInput when it is empty, too long, or not printable ASCII without spaces."""
    if not isinstance(node, str) or not 0 < len(node) <= NODE_CHARS_MAX or not all("!" <= c <= "~" for c in node):
        raise BadInput(
            f"{str(node)[:40]!r} does not name a node", field="node", fix=f"use 1 to {NODE_CHARS_MAX} of ASCII"
        )
    return node


def check_url(url: object, field: str = "url") -> str:
    """A gateway's URL without a slash at its end; BadInput when it is none."""
    text = url.rstrip("/") if isinstance(url, str) else ""
    try:
        parts = urlsplit(text)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        usable = False
    if not usable or len(text) > URL_CHARS_MAX or not text.isprintable() or "?" in text or "#" in text or "@" in text:
        raise BadInput(
            f"{str(url)[:80]!r} is not the URL of a gateway", field=field, fix="write it as http://host:port"
        )
    return text


def check_location(latitude: object, longitude: object) -> tuple[float | None, float | None]:
    """Degrees, or None for both; BadInput otherwise."""
    if latitude is None and longitude is None:
        return None, None
    found = []
    for name, value, most in (("latitude", latitude, 90), ("longitude", longitude, 180)):
        if type(value) not in (int, float) or not math.isfinite(value) or abs(value) > most:  # type: ignore[arg-type]
            raise BadInput(f"{str(value)[:40]!r} are no degrees", field=name, fix=f"give -{most} to {most}")
        found.append(float(value))  # type: ignore[arg-type]
    return found[0], found[1]
