"""Faults of a running system, drawn from a seed: who is killed, when the regions' link is cut or slow, for how long."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from tests.support.strong_load import StrongLoad
from tests.support.tcp_proxy import TcpProxy
from tests.support.whole_system import lasts

PROGRESS = 40
"""Operations that must be answered between two faults."""


@dataclass
class Evidence:
    """What really happened: processes that were killed, connections that were cut, pieces that came late."""

    killed: dict[str, list[int]] = field(default_factory=dict)
    cuts: int = 0
    connections_cut: int = 0
    delays: int = 0
    pieces_delayed: int = 0
    log: list[str] = field(default_factory=list)

    @property
    def kills(self) -> Counter[str]:
        """Kills by kind of process."""
        return Counter(name.partition("-")[0] for name, pids in self.killed.items() for _ in pids)


class Nemesis:
    """Makes one fault after the other, while a load runs that must get on between them.

    `kill(name)` kills and tells the pid; `victims` are names, or functions that choose one when its turn comes; with
    `link` (its proxies, and how to cut and heal them) the link is cut and delayed too. Faults overlap: nobody waits
    for what was killed before the end, `recovered` does.
    """

    def __init__(
        self,
        kill: Callable[[str], int],
        victims: Sequence[str | Callable[[], Awaitable[str]]],
        link: tuple[Sequence[TcpProxy], Callable[[], None], Callable[[], None]] | None = None,
    ) -> None:
        self._kill, self._victims, self._link = kill, list(victims), link
        self.evidence = Evidence()

    async def torment(self, load: StrongLoad, rng: random.Random) -> None:
        """Every fault once, in an order and for durations that `rng` draws."""
        faults: list[Callable[[], Awaitable[None]]] = [self._killing(victim) for victim in self._victims]
        if self._link is not None:
            faults += [lambda: self._cut(rng.uniform(0.5, 2.5)), lambda: self._delay(rng)]
        rng.shuffle(faults)
        for fault in faults:
            await load.more(PROGRESS)
            await fault()
            load.generation += 1
        await load.more(PROGRESS)

    async def recovered(self, back: Callable[[str, int], Awaitable[None]]) -> None:
        """Wait until all that was killed runs again."""
        for name, pids in self.evidence.killed.items():
            await back(name, pids[-1])

    def _killing(self, victim: str | Callable[[], Awaitable[str]]) -> Callable[[], Awaitable[None]]:
        async def kill() -> None:
            name = victim if isinstance(victim, str) else await victim()
            pid = await asyncio.to_thread(self._kill, name)
            self.evidence.killed.setdefault(name, []).append(pid)
            self._say(f"killed {name} ({pid})")

        return kill

    async def _cut(self, seconds: float) -> None:
        assert self._link is not None
        proxies, cut, heal = self._link
        before = _cut_connections(proxies)
        await asyncio.to_thread(cut)
        try:
            await lasts(seconds)
        finally:
            await asyncio.to_thread(heal)
        self.evidence.cuts += 1
        self.evidence.connections_cut += _cut_connections(proxies) - before
        self._say(f"cut the link for {seconds:.1f} s")

    async def _delay(self, rng: random.Random) -> None:
        assert self._link is not None
        proxies, delay_s, seconds = self._link[0], rng.uniform(0.02, 0.3), rng.uniform(0.5, 2.5)
        before = sum(each.delayed for each in proxies)
        try:
            for each in proxies:
                each.delay_s = delay_s
            await lasts(seconds)
        finally:
            for each in proxies:
                each.delay_s = 0.0
        self.evidence.delays += 1
        self.evidence.pieces_delayed += sum(each.delayed for each in proxies) - before
        self._say(f"delayed the link by {delay_s * 1e3:.0f} ms for {seconds:.1f} s")

    def _say(self, what: str) -> None:
        self.evidence.log.append(what)
        print(what)


def _cut_connections(proxies: Sequence[TcpProxy]) -> int:
    return sum(each.dropped + each.refused for each in proxies)
