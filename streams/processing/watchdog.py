"""The lag watchdog: notices a partition that stands still while its input grows. Pure; time comes in as an argument.

Faust's agents and fetchers have died silently (faust#523, #532, #629): so progress is judged by the committed position
against the input's end as asked from the broker, by nothing that the consumer itself says.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum


@dataclass(frozen=True, slots=True)
class WatchdogOptions:
    """`stall_s`: seconds without progress, with events waiting, before a restart. `restarts_max`: restarts of one
    partition without progress between them, after which the process must go (its supervisor starts another).
    """

    stall_s: float = 10.0
    restarts_max: int = 3


class Verdict(Enum):
    """What to do about a partition."""

    FINE = "fine"
    RESTART = "restart"
    GIVE_UP = "give up"


@dataclass(slots=True)
class _Seen:
    committed: int
    since_s: float
    restarts: int = 0


@dataclass(slots=True)
class LagWatchdog:
    """Judges partitions by name. `forget` those that were revoked."""

    options: WatchdogOptions
    restarts: int = 0
    _seen: dict[str, _Seen] = field(default_factory=dict)

    def judge(self, name: str, committed: int, end: int, now_s: float, *, excused: bool = False) -> Verdict:
        """The verdict on a partition committed up to `committed` whose input ends at `end`.

        `excused`: it is restoring, or stands in an error that a restart cannot mend; its time does not count.
        """
        seen = self._seen.get(name)
        if seen is None or committed > seen.committed or committed >= end >= 0:
            self._seen[name] = _Seen(committed, now_s)
            return Verdict.FINE
        if excused:
            seen.since_s = now_s
            return Verdict.FINE
        if now_s - seen.since_s < self.options.stall_s:
            return Verdict.FINE
        if seen.restarts >= self.options.restarts_max:
            return Verdict.GIVE_UP
        seen.restarts += 1
        seen.since_s = now_s
        self.restarts += 1
        return Verdict.RESTART

    def forget(self, name: str) -> None:
        """Stop judging a partition."""
        self._seen.pop(name, None)
