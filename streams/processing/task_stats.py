"""What a partition's task counts."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass


@dataclass(slots=True)
class TaskStats:
    """Counters since the task began. Durations are sums in seconds."""

    events: int = 0
    runs: int = 0
    commits: int = 0
    heartbeats: int = 0
    rows: int = 0
    dead_letters: int = 0
    outputs: int = 0
    seeks_back: int = 0
    skipped: int = 0
    decode_s: float = 0.0
    fold_s: float = 0.0
    take_s: float = 0.0
    commit_s: float = 0.0
    apply_s: float = 0.0
    restore_s: float = 0.0

    def __add__(self, other: TaskStats) -> TaskStats:
        """Field by field."""
        names = (each.name for each in dataclasses.fields(self))
        return TaskStats(**{name: getattr(self, name) + getattr(other, name) for name in names})

    def __sub__(self, other: TaskStats) -> TaskStats:
        """What was counted since `other`."""
        names = (each.name for each in dataclasses.fields(self))
        return TaskStats(**{name: getattr(self, name) - getattr(other, name) for name in names})
