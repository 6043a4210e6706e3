"""`/v1/gateways`: the gateways of all regions, as they announce themselves."""

from __future__ import annotations

from streams.gateway.context import Gateway
from streams.gateway.endpoint import Operation
from streams.gateway.http import Call, Reply, reply


class PeerRoutes:
    """Handler of the gateways' list."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def operations(self) -> list[Operation]:
        """The route."""
        summary = "The regions, and the gateways that have announced themselves"
        return [Operation("GET", "/v1/gateways", self.list_gateways, summary, tag="system")]

    async def list_gateways(self, call: Call) -> Reply:
        """`live` is false once an announcement was not renewed in time. `announced_at`: epoch milliseconds. `healthy`,
        `rtt_ms`: by this gateway's probes.
        """
        peers = self._gateway.peers
        seen = {(node.region, node.name): node for node in await self._gateway.probes.nodes()}
        rows = [
            {
                "node": each.node,
                "region": each.region,
                "url": each.url,
                "latitude": each.latitude,
                "longitude": each.longitude,
                "announced_at": each.time_ms,
                "live": peers.is_live(each),
                "healthy": seen[each.region, each.node].healthy,
                "rtt_ms": seen[each.region, each.node].rtt_ms,
            }
            for each in peers.announcements
        ]
        return reply({"regions": list(peers.regions), "gateways": rows})
