"""What happens to a UDF that traps again and again: skip, at a bounded rate, or pause. Pure: time comes in."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import Enum

from streams.model.errors import BadInput

TRAP_LIMIT_MAX = 100_000
TRAP_WINDOW_MAX_S = 86_400.0


class OnTrap(Enum):
    """`skip`: what traps is put aside and the UDF goes on. `pause`: at the limit it stops before what traps."""

    SKIP = "skip"
    PAUSE = "pause"


@dataclass(frozen=True, slots=True)
class TrapPolicy:
    """A manifest's `on_trap`, `trap_limit` and `trap_window_s`.

    skip: at most `trap_limit` traps in any `trap_window_s`; then the UDF waits, so it is never a tight loop.
    pause: at the `trap_limit`-th trap within `trap_window_s` it pauses.
    """

    on_trap: OnTrap = OnTrap.SKIP
    trap_limit: int = 100
    trap_window_s: float = 10.0

    def __post_init__(self) -> None:
        if not 1 <= self.trap_limit <= TRAP_LIMIT_MAX:
            raise BadInput(f"is not from 1 to {TRAP_LIMIT_MAX}", field="trap_limit")
        if not 0 < self.trap_window_s <= TRAP_WINDOW_MAX_S:
            raise BadInput(f"is not over 0 and at most {TRAP_WINDOW_MAX_S:g}", field="trap_window_s")

    def __str__(self) -> str:
        """As an operator reads it."""
        return f"on_trap = {self.on_trap.value}, {self.trap_limit} within {self.trap_window_s:g} s"


class TrapWindow:
    """The traps of the last `trap_window_s`, and what a policy allows after them. Times: one clock's seconds."""

    def __init__(self, policy: TrapPolicy) -> None:
        self.policy = policy
        self._at: deque[float] = deque()

    def allowed(self, now_s: float) -> int:
        """How many traps may be put aside now: for `pause` one fewer than the limit, since that one stops it."""
        self._forget(now_s)
        most = self.policy.trap_limit - (self.policy.on_trap is OnTrap.PAUSE)
        return max(0, most - len(self._at))

    def free_at(self, now_s: float) -> float:
        """`skip`: when the next trap may be put aside; now, or when the oldest of a full window is forgotten."""
        self._forget(now_s)
        full = len(self._at) >= self.policy.trap_limit
        return self._at[len(self._at) - self.policy.trap_limit] + self.policy.trap_window_s if full else now_s

    def trapped(self, now_s: float, count: int = 1) -> None:
        """So many were put aside."""
        self._at.extend([now_s] * min(count, TRAP_LIMIT_MAX))
        while len(self._at) > 2 * TRAP_LIMIT_MAX:
            self._at.popleft()

    def clear(self) -> None:
        """Begin anew."""
        self._at.clear()

    def __len__(self) -> int:
        """Traps in the window, as of the last question."""
        return len(self._at)

    def _forget(self, now_s: float) -> None:
        while self._at and self._at[0] + self.policy.trap_window_s <= now_s:
            self._at.popleft()
