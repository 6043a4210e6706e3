"""Which gateway to talk to: the router's decision, as the client gives it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from streams.model.errors import BadInput


@dataclass(frozen=True, slots=True)
class RouteNode:
    """A gateway that may serve. Estimates are None where neither place nor measurement says anything."""

    node: str
    region: str
    url: str
    distance_km: float | None
    estimated_rtt_ms: float | None


@dataclass(frozen=True, slots=True)
class RouteDecision:
    """The gateway to go to, and where else to go, best first. All of them were healthy when it was made."""

    primary_node: str
    region: str
    url: str
    distance_km: float | None
    estimated_rtt_ms: float | None
    fallbacks: tuple[RouteNode, ...]

    @property
    def nodes(self) -> tuple[RouteNode, ...]:
        """The primary node and the fallbacks, in order."""
        first = RouteNode(self.primary_node, self.region, self.url, self.distance_km, self.estimated_rtt_ms)
        return (first, *self.fallbacks)


def decision_of(body: Mapping[str, Any]) -> RouteDecision:
    """The decision in an answer of `/v1/route`."""
    return RouteDecision(
        body["primary_node"],
        body["region"],
        body["url"],
        body["distance_km"],
        body["estimated_rtt_ms"],
        tuple(RouteNode(**each) for each in body["fallbacks"]),
    )


def location_query(location: object) -> dict[str, str]:
    """The query that names a place: `(latitude, longitude)`, a mapping or an object with `lat` and `lon` or `latitude`
    and `longitude`, or an IP address as text. BadInput for anything else.
    """
    if isinstance(location, str):
        return {"ip": location}
    if isinstance(location, (tuple, list)) and len(location) == 2:
        found: tuple[object, object] = (location[0], location[1])
    else:
        found = (_part(location, "lat", "latitude"), _part(location, "lon", "longitude", "lng"))
    if any(isinstance(each, bool) or not isinstance(each, (int, float)) for each in found):
        raise BadInput(
            f"{str(location)[:60]!r} is no place",
            field="location",
            fix="give (latitude, longitude) in degrees, {'lat': …, 'lon': …}, or an IP address",
        )
    return {"lat": repr(found[0]), "lon": repr(found[1])}


def _part(location: object, *names: str) -> object:
    for name in names:
        found = location.get(name) if isinstance(location, Mapping) else getattr(location, name, None)
        if found is not None:
            return found
    return None
