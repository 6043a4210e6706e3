"""`streams gateway`: one gateway process, as the supervisor or a many-machine deployment starts it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from streams.cli.lifecycle import one_line_errors


@one_line_errors
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
    from streams.region.paths import data_dir

    limits = GatewayOptions(body_limit_bytes=body_limit_mib << 20)
    purge = PurgeOptions.remembering(delete_grace_s)
    options = ServerOptions(region, data_dir(data), bootstrap_servers, host, port, tokens, limits, purge)
    raise typer.Exit(run_gateway(options))
