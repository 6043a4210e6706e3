"""`/v1/route`: which region's gateway a user should talk to."""

from __future__ import annotations

from streams.gateway.context import Gateway
from streams.gateway.endpoint import Operation
from streams.gateway.http import Call, Reply, reply
from streams.gateway.params import FloatParam, Param
from streams.model.errors import BadInput
from streams.model.place import Place
from streams.use_cases.routing import choose
from streams.use_cases.routing.geoip import check_address

LAT = FloatParam("lat", "The user's latitude, degrees north", -90.0, 90.0)
LON = FloatParam("lon", "The user's longitude, degrees east", -180.0, 180.0)
IP = Param(
    "ip", "query", "The user's IP address, located by the GeoIP database, if one is configured", {"type": "string"}
)


class RouteRoutes:
    """Handler of the router."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def operations(self) -> list[Operation]:
        """The route."""
        summary = "The nearest healthy gateway for a place or an IP address, and fallbacks"
        return [Operation("GET", "/v1/route", self.route, summary, params=(LAT, LON, IP), tag="routing")]

    async def route(self, call: Call) -> Reply:
        """By estimated round trip: distance, and what probes measured above it. Unhealthy gateways are left out; 503
        when none is healthy. An address that no database locates is routed as if the user were at this gateway.
        """
        user, located_by = self._place(call)
        probes = self._gateway.probes
        decision = choose(user, probes.place, await probes.nodes())
        place = None if user is None else {"lat": user.latitude, "lon": user.longitude}
        return reply({**decision.to_json(), "location": place, "located_by": located_by})

    def _place(self, call: Call) -> tuple[Place | None, str | None]:
        lat, lon, ip = LAT.read(call), LON.read(call), IP.text(call)
        if ip is not None:
            if lat is not None or lon is not None:
                raise BadInput("an address and coordinates are both given", field="ip", fix="give one of them")
            address = check_address(ip)
            place = None if self._gateway.geoip is None else self._gateway.geoip.place(address)
            return place, None if place is None else "geoip"
        if lat is None or lon is None:
            missing = "lat" if lat is None else "lon"
            raise BadInput("the parameter is missing", field=missing, fix="give ?lat= and &lon= in degrees, or ?ip=")
        return Place(lat, lon), "coordinates"
