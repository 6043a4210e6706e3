"""A query over one origin's rows, answered: windows with their aggregates, what is closed, the watermark, late ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from streams.edge.edge_table import OriginView
from streams.model.errors import BadInput
from streams.use_cases.telemetry import windows
from streams.use_cases.telemetry.panes import DeviceStates, Longs, Panes, joined
from streams.use_cases.telemetry.query import WindowQuery
from streams.use_cases.telemetry.reader import Reader

QUANTILES = (0.5, 0.95, 0.99)
_FIELDS = ("start", "end", "device", "metric", "count", "sum", "min", "max", "mean", "stddev", "p50", "p95", "p99")
_COMPACT_BYTES = 64 << 20
_ENCODED_AT_ONCE = 2_000
_NEVER_MS = np.iinfo(np.int64).max


@dataclass(frozen=True, slots=True)
class AnswerLimits:
    """`rows_max`, `bytes_max`: ten-second segments that a query may read, and their bytes. `windows_max`: windows in an
    answer. `pane_bytes_max`: what merged panes may take. `idle_ms`: after how long without readings a device counts as
    quiet."""

    rows_max: int = 1_000_000
    bytes_max: int = 512 << 20
    windows_max: int = 100_000
    pane_bytes_max: int = 256 << 20
    idle_ms: int = 10_000


def answer(view: OriginView, query: WindowQuery, limits: AnswerLimits) -> bytes:
    """The JSON of a query's answer. Blocking, seconds at worst. BadInput names the parameter that asks for too much."""
    reader = Reader(view, query, limits.rows_max, limits.bytes_max)
    found = _windows(reader, query, limits)
    states = reader.states()
    body = orjson.dumps(_summary(states))[1:]
    parts = list(_encoded(found, reader, states, view, limits))
    return b'{"windows":[' + b",".join(parts) + b"]," + body


def _summary(states: DeviceStates) -> dict[str, Any]:
    latest = float(states.watermark_ms.max()) / 1000 if len(states.device) else None
    return {"watermark": latest, "late": int(states.late.sum())}


def _windows(reader: Reader, query: WindowQuery, limits: AnswerLimits) -> Panes:
    """All windows asked for, in order of series number and time."""
    gap_ms = None if query.gap_s is None else query.gap_s * 1000

    def reduced(panes: Panes) -> Panes:
        return windows.by_slot(panes) if gap_ms is None else windows.sessions(panes, gap_ms)

    parts: list[Panes] = []
    held_bytes, compact_at = 0, _COMPACT_BYTES
    for panes in reader.panes():
        panes = reduced(panes) if gap_ms is not None else windows.into_slots(panes, query.base_s)
        parts.append(panes)
        held_bytes += panes.bytes
        if held_bytes > compact_at:
            parts = [reduced(joined(parts))]
            held_bytes = parts[0].bytes
            compact_at = held_bytes + _COMPACT_BYTES
            if held_bytes > limits.pane_bytes_max or len(parts[0]) > limits.windows_max * _bases(query):
                raise _too_many(len(parts[0]), query, limits)
    found = reduced(joined(parts))
    if gap_ms is None and query.hop_s != query.window_s:
        found = windows.hopping(found, query.base_s, query.window_s, query.hop_s)
    found = _in_range(found, query)
    if len(found) > limits.windows_max:
        raise _too_many(len(found), query, limits)
    return found


def _bases(query: WindowQuery) -> int:
    """How many merged panes at most stand for one window more."""
    return 1 if query.gap_s is not None else query.hop_s // query.base_s


def _too_many(count: int, query: WindowQuery, limits: AnswerLimits) -> BadInput:
    field = "window" if query.gap_s is None else "gap"
    return BadInput(
        f"{count:,} windows or more; an answer has at most {limits.windows_max:,}",
        field=field,
        fix=f"take a longer {field}, narrow from and to, name a device or a metric, or use by=region",
    )


def _in_range(found: Panes, query: WindowQuery) -> Panes:
    """The windows that overlap the range asked for."""
    if query.gap_s is not None:
        low = np.ones(len(found), bool)
        if query.from_ms is not None:
            low &= found.last_ms + query.gap_s * 1000 > query.from_ms
        if query.to_ms is not None:
            low &= found.first_ms < query.to_ms
        return found.taken(low)
    first, beyond = query.slots()
    inside = np.ones(len(found), bool)
    if first is not None:
        inside &= found.slot >= first
    if beyond is not None:
        inside &= found.slot < beyond
    return found if inside.all() else found.taken(inside)


def _bounds_ms(found: Panes, query: WindowQuery) -> tuple[Longs, Longs]:
    """Begin and end of each window."""
    if query.gap_s is not None:
        return found.first_ms, found.last_ms + query.gap_s * 1000
    begin_ms = found.slot * query.hop_s * 1000
    return begin_ms, begin_ms + query.window_s * 1000


def _encoded(
    found: Panes, reader: Reader, states: DeviceStates, view: OriginView, limits: AnswerLimits
) -> Iterator[bytes]:
    """Windows as JSON, some at a time, ordered by device, metric and time."""
    if not len(found):
        return
    query = reader.query
    names = list(reader.series.numbers)
    rank = np.empty(len(names), np.int64)
    rank[sorted(range(len(names)), key=names.__getitem__)] = np.arange(len(names))
    found = found.taken(np.lexsort((found.slot, rank[found.series])))
    begin_ms, end_ms = _bounds_ms(found, query)
    closed = _closed(found, end_ms, reader, states, view, limits.idle_ms)
    with np.errstate(over="ignore", invalid="ignore"):
        mean = found.sum / found.count
    numbers = (
        found.count.astype(np.int64), found.sum, found.min, found.max, mean, windows.stddev(found),
        *windows.quantiles(found, QUANTILES), closed,
    )  # fmt: skip
    texts = [(device.decode() if query.by_device else None, metric.decode()) for device, metric in names]
    for at in range(0, len(found), _ENCODED_AT_ONCE):
        here = slice(at, at + _ENCODED_AT_ONCE)
        who = [texts[number] for number in found.series[here].tolist()]
        times = ((begin_ms[here] / 1000).tolist(), (end_ms[here] / 1000).tolist())
        columns = (*times, *zip(*who, strict=True), *(column[here].tolist() for column in numbers))
        rows = [dict(zip((*_FIELDS, "closed"), row, strict=True)) for row in zip(*columns, strict=True)]
        yield orjson.dumps(rows)[1:-1]


def _closed(
    found: Panes, end_ms: Longs, reader: Reader, states: DeviceStates, view: OriginView, idle_ms: int
) -> NDArray[np.bool_]:
    """Which windows have ended for all devices that are theirs: the device's watermark has reached the end, or the
    device is quiet (it appended nothing for the idle time) and the clock has passed the end by the idle time.

    The clock is what the origin's log has passed, so that a window never closes over readings that are merely late
    in coming here.
    """
    by_device, names = reader.query.by_device, list(reader.series.numbers)
    count = len(reader.devices.numbers) if by_device else 1
    owner = states.device if by_device else np.zeros(len(states.device), np.int64)
    quiet = states.appended_ms + idle_ms <= view.passed_ms
    waiting, resting = np.full(count + 1, _NEVER_MS), np.full(count + 1, _NEVER_MS)
    np.minimum.at(waiting, owner[~quiet], states.watermark_ms[~quiet])
    np.minimum.at(resting, owner[quiet], states.watermark_ms[quiet])
    unknown = np.bincount(owner, minlength=count + 1) == 0
    resting[unknown] = np.iinfo(np.int64).min
    number = np.zeros(len(names), np.int64)
    if by_device:
        known = reader.devices.numbers
        number[:] = [known.get((device,), count) for device, _ in names]
    whose = number[found.series]
    passed = end_ms + idle_ms <= view.passed_ms
    reached: NDArray[np.bool_] = (end_ms <= waiting[whose]) & (passed | (end_ms <= resting[whose]))
    return reached
