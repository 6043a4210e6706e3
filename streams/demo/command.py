"""`streams demo [USE_CASE]`: start a system of its own, run the use case, print its numbers, serve until Ctrl-C."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from streams.model.errors import BadInput, StreamsError
from streams.model.topology import Topology
from streams.region import up
from streams.region.paths import data_dir

USE_CASES = ("leaderboards", "web", "trading")
TRY = {
    "leaderboards": "top score -n 10",
    "web": 'invoke handle_request \'{"user": "lucy"}\' -v',
    "trading": "status",
}


def demo(
    use_case: Annotated[str, typer.Argument(help=f"One of: {', '.join(USE_CASES)}.")] = USE_CASES[0],
    data: Annotated[Path | None, typer.Option(help="The demo's data directory; kept between runs.")] = None,
    once: Annotated[bool, typer.Option("--once", help="Stop when the use case is done.")] = False,
) -> None:
    """Start two regions, run a use case on real data, check it, and serve until Ctrl-C."""
    try:
        run_demo(use_case, data, once=once, say=lambda line: print(line, flush=True))
    except StreamsError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from None


def run_demo(use_case: str, data: Path | None, *, once: bool, say: up.Say) -> None:
    """Blocks until Ctrl-C, or until the use case is done when `once`. BadInput names an unknown use case.

    The data directory is kept: `data`, else `demo` within the user's own.
    """
    if use_case not in USE_CASES:
        raise BadInput(f"no demo {use_case!r}", field="USE_CASE", fix=f"choose one of {', '.join(USE_CASES)}")
    place = data_dir(data) if data else data_dir() / ("demo-web" if use_case == "web" else "demo")

    async def show(topology: Topology) -> None:
        from streams.demo import leaderboard, trading, web

        runs = {"leaderboards": leaderboard.run, "web": web.run, "trading": trading.run}
        await runs[use_case](topology, say)
        for region in topology.regions:
            say(f"gateway of {region.name}: {region.gateway_url}")
        if not once:
            say(f"serving until Ctrl-C; data in {place}; try: streams {TRY[use_case]} --data {place}")

    up.run(up.UpOptions(place, when_ready=show, serve=not once), say)
