"""The `memory` bench: what the whole two-region default takes when nobody uses it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from streams.bench.own_system import OwnSystem, memory_of, own_system, with_descendants
from streams.bench.report import Result, at_most
from streams.model.errors import StreamsError

GOAL_BYTES = 2_500_000_000
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class MemoryOptions:
    """How long the system is left alone before it is looked at."""

    idle_s: float = 10.0


def bench_memory(options: MemoryOptions, say: Say) -> list[Result]:
    """Start the default, leave it idle, sum its processes' memory: each of them, and the supervisor."""
    say("starting two regions")
    with own_system() as system:
        time.sleep(options.idle_s)
        everything = with_descendants(set(system.pids.values()) | supervisor_pids(system))
        if len(everything) < len(system.gateways) * 3:
            raise StreamsError(f"only {len(everything)} processes were found")
        memory = memory_of(everything)
        each = {name: memory_of(with_descendants({pid})) for name, pid in system.pids.items()}
    limit = GOAL_BYTES / 1e6
    what = f"memory of the idle two-region default, {len(everything)} processes, PSS"
    results = [
        at_most(what, memory.pss_bytes / 1e6, "MB", limit),
        Result("the same, RSS (shared pages counted in every process)", memory.rss_bytes / 1e6, "MB"),
    ]
    return results + [Result(f"{name}, PSS", taken.pss_bytes / 1e6, "MB") for name, taken in sorted(each.items())]


def supervisor_pids(system: OwnSystem) -> set[int]:
    """The supervisor's process id, from its file in the data directory; StreamsError when it has none."""
    file = Path(system.data) / "supervisor.json"
    try:
        return {int(json.loads(file.read_text())["pid"])}
    except (OSError, KeyError, ValueError) as error:
        raise StreamsError(f"{file.name} names no process: {error}") from None
