"""The transport's bookkeeping: what an agent holds, and where each partition's next Run must begin. No Faust here."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping

from streams.kafka.run import TP, Run


class Flow:
    """What each partition's agent holds, and where its next Run must begin."""

    def __init__(self, budget_bytes: int, budget_runs: int) -> None:
        self._budget_bytes, self._budget_runs = budget_bytes, budget_runs
        self._next: dict[TP, int] = {}
        self._held: dict[TP, dict[int, tuple[int, int]]] = {}
        self.void: set[TP] = set()
        """Partitions that have nothing at their position any more: not to be fetched until a seek."""
        self.freed = asyncio.Event()

    def restart(self, positions: Mapping[TP, int]) -> None:
        """Forget everything; Runs of these partitions begin at these positions."""
        self._next = dict(positions)
        self._held = {tp: {} for tp in positions}
        self.void.clear()
        self.freed.set()

    def drop(self, tps: Iterable[TP]) -> None:
        """These partitions belong to somebody else now."""
        for tp in tps:
            self._next.pop(tp, None)
            self._held.pop(tp, None)
            self.void.discard(tp)

    def expected(self, tp: TP) -> int | None:
        """Where the next Run must begin; None when the partition is not ours."""
        return self._next.get(tp)

    def has_room(self, tp: TP) -> bool:
        """Whether the agent may be given another Run of this partition."""
        held = self._held.get(tp)
        if not held:
            return True
        return len(held) < self._budget_runs and sum(size for size, _ in held.values()) < self._budget_bytes

    def deliver(self, run: Run) -> None:
        """The Run goes to the agent now."""
        self._next[run.tp] = run.next
        self._held[run.tp][run.next - 1] = (run.size_bytes, run.base)

    def acknowledge(self, tp: TP, offset: int) -> None:
        """The agent is done with the Run that ended at `offset`."""
        if self._held.get(tp, {}).pop(offset, None) is not None:
            self.freed.set()

    def done_before(self, tp: TP) -> int | None:
        """Everything before this position is acknowledged (None: everything given)."""
        held = self._held.get(tp)
        return min(base for _, base in held.values()) if held else None
