"""What a bench answers: results beside peers, as the contract's JSON or as a table for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

from streams.bench.machine import machine

PEER_NAMES = ("kafka-streams-eos-v2", "kafka-streams", "quix", "faust", "python")


@dataclass(frozen=True, slots=True)
class Result:
    """One number of ours (`value`, in `unit`; None when ours was not run) and the peers' in the same unit.

    `goal` is a short sentence and `met` its verdict; both are None where there is no goal or ours was not run.
    """

    what: str
    value: float | None
    unit: str
    peers: Mapping[str, float] = field(default_factory=dict)
    goal: str | None = None
    met: bool | None = None

    @property
    def ratio(self) -> dict[str, float]:
        """Our value divided by each peer's; empty when ours was not run."""
        if self.value is None:
            return {}
        return {name: round(self.value / peer, 3) for name, peer in self.peers.items() if peer}

    def to_dict(self) -> dict[str, Any]:
        """The contract's JSON object of this result."""
        return {
            "what": self.what,
            "value": _rounded(self.value),
            "unit": self.unit,
            "peers": {name: _rounded(value) for name, value in self.peers.items()},
            "ratio": self.ratio,
            "goal": self.goal,
            "met": self.met,
        }


def at_most(what: str, value: float, unit: str, limit: float | None = None) -> Result:
    """A result whose goal is to stay under `limit` (None: no goal)."""
    if limit is None:
        return Result(what, value, unit)
    return Result(what, value, unit, goal=f"< {limit:g} {unit}", met=value < limit)


def at_least(what: str, value: float, unit: str, limit: float) -> Result:
    """A result whose goal is to reach `limit`."""
    return Result(what, value, unit, goal=f">= {limit:,.0f} {unit}", met=value >= limit)


@dataclass(frozen=True, slots=True)
class Report:
    """The answer of one `streams bench` command."""

    bench: str
    results: Sequence[Result]
    machine: Mapping[str, Any] = field(default_factory=machine)

    def to_dict(self) -> dict[str, Any]:
        """The contract's JSON object."""
        results = [result.to_dict() for result in self.results]
        return {"bench": self.bench, "machine": dict(self.machine), "results": results}

    def show(self, console: Console) -> None:
        """Print the report as a table, with the machine below it."""
        table = Table(title=f"streams bench {self.bench}", title_justify="left")
        table.add_column("what")
        for column in ("streams", "unit"):
            table.add_column(column, justify="right")
        named = [name for name in PEER_NAMES if any(name in result.peers for result in self.results)]
        for name in named:
            table.add_column(name, justify="right")
        table.add_column("goal")
        table.add_column("met")
        for result in self.results:
            peers = [_with_ratio(result, name) for name in named]
            verdict = {None: "", True: "yes", False: "[red]no[/red]"}[result.met]
            table.add_row(result.what, _shown(result.value), result.unit, *peers, result.goal or "", verdict)
        console.print(table)
        console.print(
            ", ".join(f"{name} {value}" for name, value in self.machine.items()), style="dim", highlight=False
        )


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")


def _shown(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _with_ratio(result: Result, name: str) -> str:
    if name not in result.peers:
        return ""
    ratio = result.ratio.get(name)
    return _shown(result.peers[name]) + (f" ({ratio:.3g}×)" if ratio is not None else "")
