"""How data commands find a gateway, and how they run."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from streams.model.errors import NotFound, StreamsError
from streams.model.topology import Topology

if TYPE_CHECKING:
    from streams.client import AsyncClient

RegionOption = Annotated[str | None, typer.Option("--region", help="The region to talk to; default: the first.")]
UrlOption = Annotated[str | None, typer.Option("--url", help="A gateway's URL, instead of finding one.")]
DataOption = Annotated[
    Path | None,
    typer.Option("--data", help="The system's data directory (default: STREAMS_DATA, else one of the user's)."),
]
BEARER = "STREAMS_TOKEN"


def gateway_url(region: str | None, url: str | None, data: Path | None) -> str:
    """The gateway to talk to: `url`, or that of `region` in the data directory's topology. NotFound, with the fix."""
    if url:
        return url if "://" in url else f"http://{url}"
    from streams.region.paths import data_dir

    topology = Topology.load(data_dir(data))
    chosen = topology.region(region) if region else topology.home
    if not chosen.gateway_url:
        raise NotFound(f"region {chosen.name} has no gateway", field="--region", fix="give --url")
    return chosen.gateway_url


def run(work: Callable[[AsyncClient], Awaitable[None]], region: str | None, url: str | None, data: Path | None) -> None:
    """Run `work` with a client of the chosen gateway. Errors: one line on standard error, exit status 1."""
    try:
        asyncio.run(_with_client(work, gateway_url(region, url, data)))
    except StreamsError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    except BrokenPipeError:
        # The reader of our output (head, less) has left; nothing is wrong.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(0) from None


async def _with_client(work: Callable[[AsyncClient], Awaitable[None]], url: str) -> None:
    from streams.client import connect

    async with connect(url, bearer=os.environ.get(BEARER)) as edge:
        await work(edge)
