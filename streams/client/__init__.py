"""The Python client: `connect` for asyncio, `connect_sync` for scripts and notebooks."""

from __future__ import annotations

from streams.client.invoke import Invocation
from streams.client.routing import RouteDecision, RouteNode
from streams.client.session import AsyncClient
from streams.client.sync import Client
from streams.client.telemetry import TelemetryWindow, TelemetryWindows
from streams.client.transport import CATCH_UP_S
from streams.client.types import BatchReceipt, Digest, Event, RankedRow, Receipt, Rejected, Row
from streams.model.token import Token

__all__ = [
    "AsyncClient",
    "BatchReceipt",
    "Client",
    "Digest",
    "Event",
    "Invocation",
    "RankedRow",
    "Receipt",
    "Rejected",
    "RouteDecision",
    "RouteNode",
    "Row",
    "TelemetryWindow",
    "TelemetryWindows",
    "connect",
    "connect_sync",
]


def connect(
    url: str,
    *,
    token: str | Token | None = None,
    bearer: str | None = None,
    bootstrap_servers: str | None = None,
    catch_up_s: float = CATCH_UP_S,
) -> AsyncClient:
    """A session with the gateway at `url`, to be used as `async with connect(url) as edge`.

    `token`: carry on from another session. `bearer`: the token that authorises, where gateways ask for one.
    `bootstrap_servers`: the region's Kafka, to which `put_many` then goes straight, the fastest way.
    `catch_up_s`: how long reads wait for the region to have what the session has seen; then Timeout.
    """
    return AsyncClient(url, token=token, bearer=bearer, bootstrap_servers=bootstrap_servers, catch_up_s=catch_up_s)


def connect_sync(
    url: str,
    *,
    token: str | Token | None = None,
    bearer: str | None = None,
    bootstrap_servers: str | None = None,
    catch_up_s: float = CATCH_UP_S,
) -> Client:
    """The synchronous twin of `connect`: `with connect_sync(url) as edge`."""
    return Client(
        lambda: AsyncClient(url, token=token, bearer=bearer, bootstrap_servers=bootstrap_servers, catch_up_s=catch_up_s)
    )
