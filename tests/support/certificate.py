"""A history's verdict, as `streams verify` gives it, and what a run must have been through to count."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from tests.support.nemesis import Evidence
from tests.support.small_system import ROOT
from tests.support.strong_load import Tally

OK, ILLEGAL = 0, 1
KINDS = {"get": 60, "put": 25, "cas": 25, "delete": 8, "txn": 25}
"""How many of each must have been answered."""
TRADES = {"place": 40, "cancel": 8, "replace": 8, "book": 12}


async def verify(history: Path) -> tuple[int, dict[str, Any]]:
    """Exit status and report of `streams verify HISTORY --json`."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "streams.cli.main", "verify", str(history), "--json", "--timeout", "120s"),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    told, complaint = await process.communicate()
    assert process.returncode is not None and told, complaint.decode()
    return process.returncode, json.loads(told)


def check_not_empty(tally: Tally, floor: float = 1.0) -> None:
    """The load was one: operations of every kind, at every gateway, and answers that were lost and found."""
    print(tally)
    for kind, count in KINDS.items():
        assert tally.by[kind] >= count * floor, f"only {tally.by[kind]} {kind}"
    assert tally.by["here"] >= 80 * floor
    assert tally.unknown and sum(tally.resolved.values()), "no outcome was ever unknown"
    assert tally.replayed, "nothing was ever sent again"


def check_traded(tally: Tally, floor: float = 1.0) -> None:
    """The traders traded: orders, changes and looks at the books."""
    print(f"orders: {tally}")
    for kind, count in TRADES.items():
        assert tally.by[kind] >= count * floor, f"only {tally.by[kind]} {kind}"


def check_faults(evidence: Evidence, kinds: set[str], *, link: bool) -> None:
    """Every kind of fault really happened."""
    print(f"kills {dict(evidence.kills)}, connections cut {evidence.connections_cut}, late {evidence.pieces_delayed}")
    assert kinds <= evidence.kills.keys(), evidence.kills
    if link:
        assert evidence.cuts and evidence.connections_cut, "the cut cut nothing"
        assert evidence.delays and evidence.pieces_delayed > 10, "the delay delayed nothing"
