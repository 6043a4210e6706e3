"""`streams worker`: one worker process, as the supervisor or a many-machine deployment starts it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from streams.processing.main import run_worker
from streams.processing.options import WorkerOptions


def worker(
    region: Annotated[str, typer.Option(help="The region this worker belongs to.")],
    bootstrap_servers: Annotated[str, typer.Option(help="host:port of the region's Kafka, comma separated.")],
    data: Annotated[Path, typer.Option(help="The data directory; partitions are kept in DIR/worker.")],
    udf: Annotated[str, typer.Option(help="A deployed UDF; without it, the built-in ones.")] = "",
    metrics_port: Annotated[int, typer.Option(help="Prometheus metrics on 127.0.0.1:PORT/metrics; 0 for none.")] = 0,
) -> None:
    """Fold events into tables until stopped. Start as many as you like: the group shares the partitions."""
    raise typer.Exit(run_worker(WorkerOptions(region, bootstrap_servers, data, udf, metrics_port)))
