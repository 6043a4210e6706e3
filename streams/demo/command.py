"""`streams demo [USE_CASE]`: start a system of its own, run the use case, print its numbers, serve until Ctrl-C."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from streams.model.errors import BadInput
from streams.model.topology import Topology
from streams.region import up
from streams.region.paths import data_dir

USE_CASES = ("leaderboards",)


def run_demo(use_case: str, data: Path | None, *, once: bool, say: up.Say) -> None:
    """Blocks until Ctrl-C, or until the use case is done when `once`. BadInput names an unknown use case.

    The data directory is kept: `data`, else `demo` within the user's own.
    """
    if use_case not in USE_CASES:
        raise BadInput(f"no demo {use_case!r}", field="USE_CASE", fix=f"choose one of {', '.join(USE_CASES)}")
    place = data or data_dir() / "demo"

    async def show(topology: Topology) -> None:
        from streams.demo import leaderboard

        await leaderboard.run(topology, say)
        for region in topology.regions:
            say(f"gateway of {region.name}: {region.gateway_url}")
        if not once:
            say(f"serving until Ctrl-C; data in {place}; try: streams top score -n 10 --data {place}")

    options = up.UpOptions(place)
    up.run(dataclasses.replace(options, when_ready=show, serve=not once), say)
