"""The ASGI application of a gateway: every route in one list, served and documented from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.routing import Route, Router

from streams.gateway.context import Gateway
from streams.gateway.endpoint import Operation, routes_of
from streams.gateway.http import Call, Receive, Scope, Send, send_reply
from streams.gateway.openapi import document
from streams.gateway.problem import problem
from streams.gateway.routes_batch import BatchRoutes
from streams.gateway.routes_books import BookRoutes
from streams.gateway.routes_functions import FunctionRoutes
from streams.gateway.routes_keyspaces import KeyspaceRoutes
from streams.gateway.routes_kv import KeyValueRoutes
from streams.gateway.routes_loads import LoadRoutes
from streams.gateway.routes_machines import MachineRoutes
from streams.gateway.routes_orders import OrderRoutes
from streams.gateway.routes_peers import PeerRoutes
from streams.gateway.routes_route import RouteRoutes
from streams.gateway.routes_streams import StreamRoutes
from streams.gateway.routes_strong import StrongRoutes
from streams.gateway.routes_system import SystemRoutes
from streams.gateway.routes_tables import TableRoutes
from streams.gateway.routes_telemetry import TelemetryRoutes
from streams.gateway.routes_udf_versions import UdfVersionRoutes
from streams.gateway.routes_udfs import UdfRoutes
from streams.model.errors import NotFound


class GatewayApp:
    """ASGI. A new route: an `Operation` in one of the `routes_*.py`, and its class in this list.

    `foreign` are routes of other rooms (the schema registry's); they come last.
    """

    def __init__(self, gateway: Gateway, foreign: Sequence[Route] = ()) -> None:
        self.operations: list[Operation] = [
            *KeyValueRoutes(gateway).operations(),
            *FunctionRoutes(gateway).operations(),  # early: the router tries one after the other
            *BatchRoutes(gateway).operations(),
            *LoadRoutes(gateway).operations(),
            *StrongRoutes(gateway).operations(),
            *MachineRoutes(gateway).operations(),
            *OrderRoutes(gateway).operations(),
            *BookRoutes(gateway).operations(),
            *StreamRoutes(gateway).operations(),
            *PeerRoutes(gateway).operations(),
            *RouteRoutes(gateway).operations(),
            *TableRoutes(gateway).operations(),
            *TelemetryRoutes(gateway).operations(),
            *KeyspaceRoutes(gateway).operations(),
            *UdfVersionRoutes(gateway).operations(),
            *UdfRoutes(gateway).operations(),
            *SystemRoutes(gateway, self.openapi).operations(),
        ]
        self._foreign = foreign
        self.routes: list[Route] = [*routes_of(gateway, self.operations), *foreign]
        self._router = Router(self.routes, redirect_slashes=False, default=_no_route)

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document of everything that is routed."""
        return document(self.operations, self._foreign)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection; the lifespan protocol is the server's business (`streams.gateway.server`)."""
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
        else:
            await self._router(scope, receive, send)  # type: ignore[arg-type]


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        kind = (await receive())["type"]
        await send({"type": f"{kind}.complete"})
        if kind == "lifespan.shutdown":
            return


async def _no_route(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] != "http":
        await send({"type": "websocket.close", "code": 4404})
        return
    error = NotFound(f"nothing is at {scope['path'][:200]!r}", field="path", fix="see /docs for what there is")
    if scope["method"] in ("PUT", "POST"):
        await Call(scope, receive, 0).drain()
    await send_reply(problem(error), receive, send)
