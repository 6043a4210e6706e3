"""`/v1/loads`: what of a bulk load is durable, so that one which was interrupted goes on without counting twice."""

from __future__ import annotations

from streams.gateway.context import Gateway, refuse_sequenced
from streams.gateway.endpoint import Operation
from streams.gateway.http import Call, Reply, reply
from streams.gateway.params import Param
from streams.gateway.subscription import feed_of, start_positions
from streams.kafka.loads import check_load_id, durable_places, place_text
from streams.model.token import Input, Token

ID = Param("id", "path", "The load, as in the header Load-Id", {"type": "string"}, True)
KEYSPACE = Param("keyspace", "query", "The keyspace that is loaded", {"type": "string"}, True)
FROM = Param("from", "query", "The `start` of an earlier answer, before the load began", {"type": "string"})


class LoadRoutes:
    """Handler of loads."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def operations(self) -> list[Operation]:
        """The route."""
        return [
            Operation(
                "GET",
                "/v1/loads/{id}",
                self.get_load,
                "What of a load is durable: by partition the last chunk, for the header Load-Done",
                "read",
                (ID, KEYSPACE, FROM),
                answers={404: "No such keyspace", 409: "The log no longer reaches back to `from`"},
                tag="keys",
            )
        ]

    async def get_load(self, call: Call) -> Reply:
        """Without `from`: nothing, and where the log ends now. With it: what the log holds after it."""
        gateway = self._gateway
        ident = check_load_id(call.part("id"), "id")
        keyspace = gateway.keyspace(call, KEYSPACE.required_text(call), "read")
        refuse_sequenced(keyspace)
        topic, since = keyspace.events_topic, FROM.text(call)
        found = await start_positions(gateway, feed_of(keyspace, None), since)
        positions = {partition: place.offset for (_, partition), place in found.items()}
        start = Token({Input(gateway.region.name, topic, n): offset for n, offset in positions.items()}).encode()
        durable = {}
        if since is not None:
            durable = await durable_places(gateway.region.bootstrap_servers, topic, positions, ident)
        return reply({"start": start, "durable": {str(n): place_text(place) for n, place in durable.items()}})
