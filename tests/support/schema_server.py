"""The registry's routes alone, on a real HTTP server, over definitions on real Kafka. Run as a process of its own."""

from __future__ import annotations

import asyncio
import sys

from granian.constants import Interfaces
from granian.server.embed import Server
from starlette.applications import Starlette

from streams.definitions import Definitions, DefinitionsOptions, KafkaLogOptions
from streams.gateway.routes_schemas import schema_routes
from streams.model.topology import Region, Topology


async def serve(bootstrap_servers: str, topic: str, port: int) -> None:
    """Serve on `port` of 127.0.0.1 until the process is ended."""
    topology = Topology((Region("us-east", bootstrap_servers),))
    options = DefinitionsOptions(kafka=KafkaLogOptions(topic=topic))
    async with Definitions(topology, "us-east", options) as definitions:
        app = Starlette(routes=list(schema_routes(definitions)))
        server = Server(app, address="127.0.0.1", port=port, interface=Interfaces.ASGI)
        await server.serve()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], sys.argv[2], int(sys.argv[3])))
