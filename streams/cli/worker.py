"""`streams worker`: one worker process, as the supervisor or a many-machine deployment starts it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from streams.cli.errors import one_line_errors
from streams.cli.udf_caps import with_udf_caps
from streams.model.topology import Topology
from streams.processing.main import run_worker
from streams.processing.options import WorkerOptions
from streams.region.paths import data_dir
from streams.wasm.caps import caps_from_env


@one_line_errors
@with_udf_caps
def worker(
    region: Annotated[str, typer.Option(help="The region this worker belongs to.")],
    bootstrap_servers: Annotated[
        str | None, typer.Option(help="host:port of the region's Kafka, comma separated; default: the topology's.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="The data directory; partitions are kept in DIR/worker.")] = None,
    udf: Annotated[
        str, typer.Option(help="A deployed UDF, or NAME.gN, one generation of its rows; without it, the built-in ones.")
    ] = "",
    metrics_port: Annotated[int, typer.Option(help="Prometheus metrics on 127.0.0.1:PORT/metrics; 0 for none.")] = 0,
) -> None:
    """Fold events into tables until stopped. Start as many as you like: the group shares the partitions."""
    place = data_dir(data)
    servers = bootstrap_servers or Topology.load(place).region(region).bootstrap_servers
    caps = caps_from_env(os.environ)
    raise typer.Exit(run_worker(WorkerOptions(region, servers, place, udf, metrics_port, caps=caps)))
