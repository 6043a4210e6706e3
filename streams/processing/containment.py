"""What keeps a UDF's trouble to itself: pauses, waits after traps, its rate. One a UDF and process."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import replace

from streams.wasm.engine import Limits
from streams.wasm.fold_host import Allowance
from streams.wasm.quarantine import OnTrap, TrapPolicy, TrapWindow

SEARCH_S = 2.0
"""How long one fold looks for culprits before what it has is committed."""
RATE_SLICE_S = 0.25
"""Under a rate, runs are folded in pieces of about so much time's worth."""


class Containment:
    """Decides when a UDF may fold and how many culprits it may put aside. From any thread; `on_resume` is called by
    whoever resumes. Seconds are of one monotonic clock. `untried`: it was resumed, and nothing was folded since.
    """

    def __init__(self, limits: Limits, policy: TrapPolicy, now_s: Callable[[], float] = time.monotonic) -> None:
        self.policy = policy
        self.events_per_s = limits.events_per_s
        self.resumes = 0
        self.untried = False
        self._now_s = now_s
        self._lock = threading.Lock()
        self._window = TrapWindow(policy)
        self._paused = ""
        self._rate_free_s = -math.inf
        self._resumed: list[Callable[[], None]] = []

    @property
    def paused(self) -> str:
        """Why nothing is folded until somebody resumes it; empty: it is not paused."""
        return self._paused

    @property
    def resting(self) -> str:
        """Why nothing is folded just now; empty: it may fold."""
        late = "waiting for its rate" if self._rate_free_s > self._now_s() else ""
        return self._paused or self.throttled or late

    @property
    def throttled(self) -> str:
        """Why it waits after traps; empty: it does not."""
        with self._lock:
            now_s = self._now_s()
            waits = self._rests_until(now_s) > now_s
            return f"waits after {len(self._window)} traps ({self.policy})" if waits else ""

    def wait_s(self) -> float:
        """How long until the next fold may begin: at most 0 for now, infinity while it is paused."""
        if self._paused:
            return math.inf
        with self._lock:
            now_s = self._now_s()
            return max(self._rests_until(now_s), self._rate_free_s) - now_s

    def _rests_until(self, now_s: float) -> float:
        return self._window.free_at(now_s) if self.policy.on_trap is OnTrap.SKIP else now_s

    @property
    def slice_events(self) -> int | None:
        """How many offsets to fold at once under the rate; None: as they come."""
        return None if self.events_per_s is None else max(1, int(self.events_per_s * RATE_SLICE_S))

    def allowance(self, free_offset: int = -1) -> Allowance:
        """How far the fold that begins now may go with culprits."""
        with self._lock:
            allowed = self._window.allowed(self._now_s())
        hold = self.policy.on_trap is OnTrap.PAUSE
        return Allowance(allowed if hold else max(1, allowed), hold, free_offset, SEARCH_S)

    def searching(self) -> Allowance:
        """The same for a UDF whose pause begins after the culprit, which is put aside: a map."""
        found = self.allowance()
        return replace(found, traps=max(1, found.traps), hold=False)

    def folded(self, events: int) -> None:
        """So many events were folded: under a rate, the next may not begin before their time has passed."""
        self.untried = False
        if self.events_per_s is not None:
            with self._lock:
                now_s = self._now_s()
                self._rate_free_s = max(now_s, self._rate_free_s) + events / self.events_per_s

    def trapped(self, count: int) -> None:
        """So many culprits were put aside."""
        with self._lock:
            self._window.trapped(self._now_s(), count)

    def judge_late(self) -> None:
        """Culprits that showed only when rows were taken are put aside in any case: pause if they are too many."""
        with self._lock:
            now_s = self._now_s()
            over = self.policy.on_trap is OnTrap.PAUSE and self._window.allowed(now_s) == 0
            over = over and len(self._window) >= self.policy.trap_limit
        if over:
            self.pause(f"{len(self._window)} traps ({self.policy})")

    def pause(self, reason: str) -> None:
        """Fold nothing more until `resume`. The first reason stays."""
        with self._lock:
            self._paused = self._paused or reason

    def resume(self) -> None:
        """Go on where it stopped, with an empty window. The first event of each partition may trap without counting."""
        with self._lock:
            self._paused = ""
            self._window.clear()
            self.resumes += 1
            self.untried = True
            resumed = list(self._resumed)
        for each in resumed:
            each()

    def on_resume(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call back after `resume`, on its thread; returns what unsubscribes."""
        with self._lock:
            self._resumed.append(callback)

        def unsubscribe() -> None:
            with self._lock:
                if callback in self._resumed:
                    self._resumed.remove(callback)

        return unsubscribe
