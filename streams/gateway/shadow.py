"""Comparing two tables of one log: which rows differ, and not merely because one is a moment behind."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from streams.edge.edge_table import EdgeTable
from streams.model.errors import Timeout
from streams.model.merge import Merged

Pair = tuple[Merged | None, Merged | None]
_SLICE = 200


@dataclass(frozen=True, slots=True)
class CompareOptions:
    """`rows_max`: rows looked at, within `pass_s` seconds; `keys_max`: differing keys that are looked at again;
    `rounds`: how often, until they stand still; `step_s`: how long the event loop is held."""

    rows_max: int = 2_000_000
    keys_max: int = 10_000
    rounds: int = 3
    pass_s: float = 20.0
    step_s: float = 0.001


@dataclass(slots=True)
class Comparison:
    """What was found. `differences`: the first confirmed ones, by key. `unsettled`: keys that changed whenever they
    were looked at. `unchecked`: keys that differed, beyond those that were looked at again. `complete`: all rows were
    compared, and nothing is unchecked. `settled`: both tables passed the same positions meanwhile.
    """

    rows: tuple[int, int] = (0, 0)
    equal: int = 0
    differ: int = 0
    only: tuple[int, int] = (0, 0)
    unsettled: int = 0
    unchecked: int = 0
    complete: bool = True
    settled: bool = True
    differences: list[tuple[bytes, Pair]] = field(default_factory=list)


async def compare(
    one: EdgeTable,
    other: EdgeTable,
    pass_each_other: Callable[[], Awaitable[None]],
    limit: int,
    options: CompareOptions = CompareOptions(),
) -> Comparison:
    """The rows of `one` and `other` that differ in value or expiry; at most `limit` of them are shown.

    `pass_each_other` returns once both have applied what either had when it was called; Timeout. A key differs if, over
    such a wait, neither table's row of it changed: so both are compared as of one position of the log.
    """
    found = Comparison()
    suspects = await _first_pass(one, other, found, options)
    confirmed: list[tuple[bytes, Pair]] = []
    for _ in range(options.rounds):
        if not suspects:
            break
        before = await _look(one, other, suspects)
        try:
            await pass_each_other()
        except Timeout:
            found.settled = False
            break
        after = await _look(one, other, suspects)
        left = []
        for key, was, now in zip(suspects, before, after, strict=True):
            if _equal(now):
                found.equal += now != (None, None)
            elif was == now:
                confirmed.append((key, now))
            else:
                left.append(key)
        suspects = left
    found.unsettled = len(suspects)
    confirmed.sort(key=lambda each: each[0])
    found.differ = len(confirmed)
    found.only = (sum(pair[1] is None for _, pair in confirmed), sum(pair[0] is None for _, pair in confirmed))
    found.differences = confirmed[:limit]
    found.complete = found.complete and not found.unchecked
    return found


async def _first_pass(one: EdgeTable, other: EdgeTable, found: Comparison, options: CompareOptions) -> list[bytes]:
    """Count, and collect the keys that seem to differ."""
    suspects: list[bytes] = []
    counts = [0, 0]
    until = time.monotonic() + options.pass_s
    async for key, pair in _joined(one, other, options.step_s):
        counts[0] += pair[0] is not None
        counts[1] += pair[1] is not None
        if _equal(pair):
            found.equal += 1
        elif len(suspects) < options.keys_max:
            suspects.append(key)
        else:
            found.unchecked += 1
        if sum(counts) >= options.rows_max or time.monotonic() > until:
            found.complete = False
            break
    found.rows = (counts[0], counts[1])
    return suspects


async def _joined(one: EdgeTable, other: EdgeTable, step_s: float) -> AsyncIterator[tuple[bytes, Pair]]:
    """All keys of both, in order, with both rows; lets others run every `step_s`."""
    now_ms = one.now_ms()
    sides = [iter(row for chunk in table.chunks(now_ms) for row in chunk) for table in (one, other)]
    heads = [next(side, None) for side in sides]
    until = time.perf_counter() + step_s
    while heads[0] is not None or heads[1] is not None:
        key = min(head[0] for head in heads if head is not None)
        pair = [head[1] if head is not None and head[0] == key else None for head in heads]
        yield key, (pair[0], pair[1])
        heads = [
            next(side, None) if row is not None else head for side, row, head in zip(sides, pair, heads, strict=True)
        ]
        if time.perf_counter() > until:
            await asyncio.sleep(0)
            until = time.perf_counter() + step_s


async def _look(one: EdgeTable, other: EdgeTable, keys: Sequence[bytes]) -> list[Pair]:
    pairs: list[Pair] = []
    for at in range(0, len(keys), _SLICE):
        some, now_ms = list(keys[at : at + _SLICE]), one.now_ms()
        pairs += zip(one.merged_many(some, now_ms), other.merged_many(some, now_ms), strict=True)
        await asyncio.sleep(0)
    return pairs


def _equal(pair: Pair) -> bool:
    one, other = pair
    if one is None or other is None:
        return one is other
    return (one.value, one.expires_ms) == (other.value, other.expires_ms)
