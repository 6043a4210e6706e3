"""Panes into windows: tumbling, hopping and session windows by event time, all by sorting and reducing columns.

Merging is associative, so panes may come in any portions: portions are reduced by themselves and then together.
Counts, minima and maxima are exact. Variances merge as Chan, Golub and LeVeque's; sketches by adding up buckets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from streams.model.errors import BadInput
from streams.use_cases.telemetry.panes import Doubles, Longs, Panes

BUCKETS_PER_OCTAVE = 50
QUANTILE_ERROR = 1 / (2 * BUCKETS_PER_OCTAVE + 1)
"""The relative error of a bucket's estimate: 0.99 %."""

_INDEX_BIAS, _INDEX_BITS = 1 << 17, 18
_EXPANDED_MAX = 5_000_000


def merged(panes: Panes, begins: NDArray[np.bool_]) -> Panes:
    """One pane for each stretch of panes: `begins` says where one starts (the first always does)."""
    if not len(panes):
        return panes
    at = np.flatnonzero(begins)
    group = np.cumsum(begins) - 1
    with np.errstate(over="ignore", invalid="ignore"):
        count, total = np.add.reduceat(panes.count, at), np.add.reduceat(panes.sum, at)
        apart = panes.sum / panes.count - (total / count)[group]
        m2 = np.add.reduceat(panes.m2 + panes.count * apart * apart, at)
    sizes, index, weight = _merged_sketches(panes, group, len(at))
    return Panes(
        panes.series[at], panes.slot[at],
        np.minimum.reduceat(panes.first_ms, at), np.maximum.reduceat(panes.last_ms, at),
        count, total, np.minimum.reduceat(panes.min, at), np.maximum.reduceat(panes.max, at), m2,
        sizes, index, weight,
    )  # fmt: skip


def _merged_sketches(panes: Panes, group: Longs, groups: int) -> tuple[Longs, Longs, Doubles]:
    """Buckets of equal index added up within each group: sizes by group, indexes, weights."""
    code = np.repeat(group, panes.sizes) << _INDEX_BITS | panes.index + _INDEX_BIAS
    order = np.argsort(code, kind="stable")
    code = code[order]
    at = np.flatnonzero(np.concatenate([[True], code[1:] != code[:-1]]))
    kept = code[at]
    sizes = np.bincount(kept >> _INDEX_BITS, minlength=groups)
    return sizes, (kept & (1 << _INDEX_BITS) - 1) - _INDEX_BIAS, np.add.reduceat(panes.weight[order], at)


def _begins(*columns: Longs) -> NDArray[np.bool_]:
    """Where a sorted run of equal values begins."""
    found = np.zeros(len(columns[0]), bool)
    found[:1] = True
    for column in columns:
        found[1:] |= column[1:] != column[:-1]
    return found


def by_slot(panes: Panes) -> Panes:
    """Panes of one series and slot merged, sorted by series and slot."""
    panes = panes.taken(np.lexsort((panes.slot, panes.series)))
    return merged(panes, _begins(panes.series, panes.slot))


def into_slots(panes: Panes, width_s: int) -> Panes:
    """Panes of seconds as panes of `width_s` seconds, aligned to the epoch."""
    return by_slot(replace(panes, slot=panes.slot // width_s))


def hopping(panes: Panes, base_s: int, window_s: int, hop_s: int) -> Panes:
    """Windows that begin every `hop_s` seconds, out of panes of `base_s`, which divides both. A window's slot is its
    number: it begins at slot * hop_s. BadInput when readings would have to be counted in too many windows."""
    begin_s = panes.slot * base_s
    first = -((window_s - base_s - begin_s) // hop_s)
    copies = begin_s // hop_s - first + 1
    expanded = int(copies.sum())
    if max(expanded, int((panes.sizes * copies).sum())) > _EXPANDED_MAX:
        raise BadInput(
            f"each reading is in {window_s // hop_s} windows, which makes {expanded} entries",
            field="hop",
            fix="take longer hops, or narrow from and to, device or metric",
        )
    found = panes.taken(np.repeat(np.arange(len(panes)), copies))
    steps = np.arange(expanded) - np.repeat(np.cumsum(copies) - copies, copies)
    return by_slot(replace(found, slot=np.repeat(first, copies) + steps))


def sessions(panes: Panes, gap_ms: int) -> Panes:
    """Sessions: readings of a series that are at most `gap_ms` apart. A session's slot is its first event time.

    Panes are stretches from first to last reading; those inside of one are less than a second apart, so with gaps of a
    second or more no pane is split.
    """
    panes = panes.taken(np.lexsort((panes.first_ms, panes.series)))
    found = merged(panes, _breaks(panes, gap_ms))
    return replace(found, slot=found.first_ms)


def _breaks(panes: Panes, gap_ms: int) -> NDArray[np.bool_]:
    """Where a session begins, in panes sorted by series and first event time."""
    if not len(panes):
        return np.zeros(0, bool)
    # The latest time so far within a series is a running maximum, once each series is lifted above the one before.
    low, high = int(panes.first_ms.min()), int(panes.last_ms.max())
    lift = high - low + gap_ms + 2
    number = np.cumsum(_begins(panes.series)) - 1
    found = np.zeros(len(panes), bool)
    at_once = max(1, (1 << 62) // lift)
    for begin in range(0, int(number[-1]) + 1, at_once):
        here = slice(*np.searchsorted(number, [begin, begin + at_once]))
        lifted = (number[here] - begin) * lift
        reached = np.maximum.accumulate(panes.last_ms[here] - low + lifted)
        starts = panes.first_ms[here] - low + lifted
        found[here][1:] = starts[1:] > reached[:-1] + gap_ms
        found[here][:1] = True
    return found


def stddev(panes: Panes) -> Doubles:
    """The sample standard deviation (divisor n - 1); 0 for one reading."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.sqrt(panes.m2 / np.maximum(panes.count - 1, 1))


def quantiles(panes: Panes, wanted: Sequence[float]) -> list[Doubles]:
    """Quantiles of each pane, interpolated linearly between readings as numpy and pandas do by default.

    Each of the two readings is known within `QUANTILE_ERROR` of its magnitude, so the quantile is within that of the
    exact one when both have one sign. The least and the greatest reading are exact.
    """
    totals = np.add.reduceat(panes.weight, np.cumsum(panes.sizes) - panes.sizes) if len(panes) else np.empty(0)
    passed = np.cumsum(panes.weight)
    before = np.cumsum(totals) - totals
    values = estimates(panes.index)
    found = []
    with np.errstate(over="ignore", invalid="ignore"):
        for each in wanted:
            rank = each * (totals - 1)
            low = np.floor(rank)
            part = rank - low
            ends = [_at_rank(panes, totals, passed, before, values, place) for place in (low, np.ceil(rank))]
            found.append(np.where(part == 0, ends[0], ends[0] * (1 - part) + ends[1] * part))
    return found


def _at_rank(
    panes: Panes, totals: Doubles, passed: Doubles, before: Doubles, values: Doubles, rank: Doubles
) -> Doubles:
    """The estimate of each pane's reading of this rank, from 0."""
    at = np.searchsorted(passed, before + rank, side="right")
    value = np.clip(values[np.minimum(at, len(values) - 1)] if len(values) else values, panes.min, panes.max)
    value = np.where(rank >= totals - 1, panes.max, value)
    return np.where(rank <= 0, panes.min, value)


def estimates(index: Longs) -> Doubles:
    """The value that stands for a bucket: within `QUANTILE_ERROR` of all in it (streams.TelemetryPanes says which
    they are). The harmonic middle of its bounds has the same relative distance to both."""
    magnitude = np.abs(index)
    low = 1 + magnitude % BUCKETS_PER_OCTAVE / BUCKETS_PER_OCTAVE
    high = low + 1 / BUCKETS_PER_OCTAVE
    middle = 2 * low * high / (low + high)
    value = np.ldexp(middle, (magnitude // BUCKETS_PER_OCTAVE - 1023).astype(np.int32))
    return np.where(index == 0, 0.0, np.copysign(value, index))
