"""`streams gateway`: one gateway process, as the supervisor or a many-machine deployment starts it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from streams.cli.errors import one_line_errors
from streams.cli.udf_caps import with_udf_caps
from streams.model.errors import BadInput

KeepOption = Annotated[
    float,
    typer.Option(help="A replaced UDF version is kept so long at most, seconds.", min=0, envvar="STREAMS_UDF_KEEP_S"),
]


@one_line_errors
@with_udf_caps
def gateway(
    region: Annotated[str, typer.Option(help="The region this gateway serves.")],
    data: Annotated[Path | None, typer.Option(help="The data directory; tables are kept in DIR/gateway.")] = None,
    bootstrap_servers: Annotated[
        str | None, typer.Option(help="host:port of the region's Kafka; default: the topology's.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0: the topology's.", min=0, max=65535)] = 0,
    tokens: Annotated[Path | None, typer.Option(help="Bearer tokens; default DIR/tokens.json, if there.")] = None,
    body_limit_mib: Annotated[int, typer.Option(help="Largest body of a put, MiB.", min=1, max=19)] = 16,
    advertised_url: Annotated[
        str | None,
        typer.Option(help="Where other regions' gateways reach this one; default: the topology's, else host and port."),
    ] = None,
    node: Annotated[str | None, typer.Option(help="This gateway's name among all; default: gateway-REGION.")] = None,
    location: Annotated[str | None, typer.Option(help="LATITUDE,LONGITUDE of this gateway, in degrees.")] = None,
    geoip: Annotated[
        Path | None,
        typer.Option(help="A database in MaxMind's format, for routing by IP address.", envvar="STREAMS_GEOIP"),
    ] = None,
    subscribers_max: Annotated[int, typer.Option(help="How many event streams at once.", min=1, max=10_000)] = 256,
    stall_s: Annotated[
        float, typer.Option(help="A subscriber that reads nothing for so long is disconnected, seconds.", min=0.1)
    ] = 30.0,
    udf_module_mib: Annotated[int, typer.Option(help="Largest module that is deployed, MiB.", min=1, max=12)] = 8,
    udfs_max: Annotated[int, typer.Option(help="Most UDFs deployed at once.", min=0, max=1000)] = 32,
    udf_keep_s: KeepOption = 3600.0,
    delete_grace_s: Annotated[
        float,
        typer.Option(
            help="How long a delete is remembered at least, seconds: longer than any mirror may be cut unnoticed.",
            min=0,
            envvar="STREAMS_DELETE_GRACE_S",
        ),
    ] = 600.0,
) -> None:
    """Serve a region's tables and accept puts over HTTP until stopped."""
    from streams.edge.purger import PurgeOptions
    from streams.gateway.context import GatewayOptions
    from streams.gateway.server import ServerOptions, run_gateway
    from streams.gateway.subscribers import StreamOptions
    from streams.region.paths import data_dir
    from streams.wasm.admission import DeployCaps
    from streams.wasm.caps import caps_from_env

    streams = StreamOptions(stall_s=stall_s, subscribers_max=subscribers_max)
    limits = GatewayOptions(body_limit_bytes=body_limit_mib << 20, streams=streams)
    caps = DeployCaps(
        module_bytes=udf_module_mib << 20, udfs=udfs_max, keep_s=udf_keep_s, limits=caps_from_env(os.environ)
    )
    purge = PurgeOptions.remembering(delete_grace_s)
    options = ServerOptions(
        region,
        data_dir(data),
        bootstrap_servers,
        host,
        port,
        tokens,
        limits,
        purge,
        advertised_url,
        node,
        _location(location),
        geoip,
        udfs=caps,
    )
    raise typer.Exit(run_gateway(options))


def _location(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    try:
        latitude, longitude = map(float, text.split(","))
    except ValueError:
        raise BadInput(
            f"{text[:40]!r} is no place", field="--location", fix="write it as 38.95,-77.45: latitude, longitude"
        ) from None
    return latitude, longitude
