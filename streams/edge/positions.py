"""What the edge has applied, as positions in the origins' inputs, and whoever waits for more."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

from streams.edge.options import TableSpec
from streams.model.errors import BadInput, Timeout
from streams.model.marker import Marker
from streams.model.token import Input, Token

_FIX = "send back the Causal-Token of an earlier answer, unchanged"


@dataclass(slots=True)
class _Waiter:
    table: str | None
    position: int
    future: asyncio.Future[None]


class Positions:
    """Applied positions by table and input. An input that feeds several tables counts as far as the slowest is."""

    def __init__(self, regions: tuple[str, ...]) -> None:
        self._regions = regions
        self._tables: dict[str, TableSpec] = {}
        self._partitions: dict[str, int] = {}
        self._applied: dict[Input, dict[str, int]] = {}
        self._waiters: dict[Input, list[_Waiter]] = {}
        self._token: Token | None = None
        self._by_table: dict[str, Token] = {}

    def set_tables(self, specs: Iterable[TableSpec]) -> None:
        """The tables whose inputs may be named in tokens."""
        self._tables = {spec.name: spec for spec in specs}
        self._partitions = {}
        for spec in self._tables.values():
            for topic in spec.inputs:
                self._partitions[topic] = max(spec.partitions_of(topic), self._partitions.get(topic, 0))
        for key, tables in self._applied.items():
            for name in [each for each in tables if each not in self._tables]:
                del tables[name]
                self._wake(key)
        self._applied = {key: tables for key, tables in self._applied.items() if tables}
        self._token = None
        self._by_table = {}

    @property
    def token(self) -> Token:
        """What every table that takes an input has applied of it."""
        if self._token is None:
            self._token = Token({key: min(tables.values()) for key, tables in self._applied.items()})
        return self._token

    def position(self, key: Input, table: str | None = None) -> int:
        """The applied position of an input, in one table or in all that take it; 0 before the first marker."""
        tables = self._applied.get(key)
        if not tables:
            return 0
        return min(tables.values()) if table is None else tables.get(table, 0)

    def applied_by(self, table: str) -> Token:
        """What one table has applied of its inputs."""
        found = self._by_table.get(table)
        if found is None:
            inputs, applied = self._tables[table].inputs, self._applied.items()
            found = Token({key: at[table] for key, at in applied if key.topic in inputs and table in at})
            self._by_table[table] = found
        return found

    def advance(self, table: str, origin: str, marker: Marker) -> None:
        """A marker of `origin` was applied to `table`; wakes who waited for it."""
        for name, at in marker.inputs.items():
            topic, _, partition = name.rpartition("/")
            key = Input(origin, topic, int(partition))
            tables = self._applied.setdefault(key, {})
            if tables.get(table) == at.next:
                continue
            tables[table] = at.next
            self._token = None
            self._by_table.pop(table, None)
            self._wake(key)

    def _wake(self, key: Input) -> None:
        waiters = self._waiters.get(key)
        if not waiters:
            return
        left = []
        for waiter in waiters:
            if waiter.future.done():
                continue
            if self.position(key, waiter.table) >= waiter.position:
                waiter.future.set_result(None)
            else:
                left.append(waiter)
        if left:
            self._waiters[key] = left
        else:
            del self._waiters[key]

    def check(self, token: Token) -> None:
        """BadInput when the token names an origin, topic or partition that cannot be."""
        for key in token.positions:
            if key.origin not in self._regions:
                raise BadInput(f"the token names region {key.origin[:64]!r}", field="Causal-Token", fix=_FIX)
            if key.topic not in self._partitions:
                raise BadInput(f"the token names topic {key.topic[:80]!r}", field="Causal-Token", fix=_FIX)
            if key.partition >= self._partitions[key.topic]:
                raise BadInput(f"the token names partition {str(key)[:120]!r}", field="Causal-Token", fix=_FIX)

    async def wait_for(self, token: Token, timeout_s: float, table: str | None = None) -> None:
        """Return when everything in `token` (that `table` takes, if given) is applied. BadInput, Timeout."""
        self.check(token)
        wanted = token.positions
        if table is not None:
            wanted = token.restrict(self._tables[table].inputs).positions
        missing = [(key, at) for key, at in wanted.items() if self.position(key, table) < at]
        if not missing:
            return
        waiters = [(key, _Waiter(table, at, asyncio.get_running_loop().create_future())) for key, at in missing]
        for key, waiter in waiters:
            self._waiters.setdefault(key, []).append(waiter)
        try:
            _, late = await asyncio.wait([waiter.future for _, waiter in waiters], timeout=timeout_s)
        finally:
            for key, waiter in waiters:
                if not waiter.future.done():
                    waiter.future.cancel()
                    self._forget(key, waiter)
        if late:
            behind = next(
                f"{key} at {self.position(key, table)} of {w.position}" for key, w in waiters if w.future in late
            )
            raise Timeout(
                f"not applied here within {timeout_s:g} s: {behind}",
                field="Causal-Token",
                fix="try again, or read without the token",
                retry_after_s=max(1.0, timeout_s),
            )

    def _forget(self, key: Input, waiter: _Waiter) -> None:
        waiters = self._waiters.get(key, [])
        if waiter in waiters:
            waiters.remove(waiter)
        if not waiters:
            self._waiters.pop(key, None)
