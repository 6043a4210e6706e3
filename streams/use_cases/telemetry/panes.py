"""Rows of the `telemetry` table as columns, decoded many at a time.

A row holds ten seconds of a metric (schema streams.TelemetryPanes, written by wasm_udfs/telemetry): columns as Avro
arrays of one block each, so every value's place follows from the number of panes, and numpy reads all rows at once;
sketches are packed, and unpacked for all rows at once too. Rows of the schema before (streams.TelemetrySegment) have
them as arrays.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streams.model.row import HEADER_BYTES, ROW_VERSION, MergeType
from streams.serde import load_builtin

Longs = NDArray[np.int64]
Doubles = NDArray[np.float64]

SEGMENT_S = 10
_CELL = HEADER_BYTES
_EXPIRES, _BODY = _CELL + 16, _CELL + 28
_PREFIX_BYTES = 5
_VARINT_BYTES = 10
_PAD = bytes(16)
_BUCKETS_MAX = 2 * (2047 * 50 + 49) + 1
_NUMBER_BYTES = 5


@dataclass(frozen=True, slots=True)
class Panes:
    """Aggregates, one an entry: of a second as stored, or of a window. Columns of equal length.

    `series`: which series, by number; `slot`: which stretch of time, by number (a second's, a window's). `first_ms`,
    `last_ms`: event times of the earliest and the latest reading. `m2`: sum of squared deviations from the mean.
    `sizes`: how many entries of `index` and `weight` are the pane's: its quantile sketch, ascending by index.
    """

    series: Longs
    slot: Longs
    first_ms: Longs
    last_ms: Longs
    count: Doubles
    sum: Doubles
    min: Doubles
    max: Doubles
    m2: Doubles
    sizes: Longs
    index: Longs
    weight: Doubles

    def __len__(self) -> int:
        """How many panes."""
        return len(self.series)

    @property
    def bytes(self) -> int:
        """What the columns take."""
        return sum(getattr(self, name).nbytes for name in _COLUMNS)

    def taken(self, chosen: NDArray[Any]) -> Panes:
        """Some panes: by numbers, repeated as often as named, or by a mask."""
        if chosen.dtype == np.bool_:
            chosen = np.flatnonzero(chosen)
        starts = np.cumsum(self.sizes) - self.sizes
        sizes = self.sizes[chosen]
        at = np.repeat(starts[chosen] - (np.cumsum(sizes) - sizes), sizes) + np.arange(int(sizes.sum()))
        columns: dict[str, NDArray[Any]] = {name: getattr(self, name)[chosen] for name in _COLUMNS[:9]}
        return Panes(**columns, sizes=sizes, index=self.index[at], weight=self.weight[at])


_COLUMNS = ("series", "slot", "first_ms", "last_ms", "count", "sum", "min", "max", "m2", "sizes", "index", "weight")
_DOUBLES = ("count", "sum", "min", "max", "m2", "weight")


def joined(parts: Sequence[Panes]) -> Panes:
    """All of them, one after another."""
    if len(parts) == 1:
        return parts[0]
    if not parts:
        empty: dict[str, NDArray[Any]] = {
            name: np.empty(0, np.float64 if name in _DOUBLES else np.int64) for name in _COLUMNS
        }
        return Panes(**empty)
    columns: dict[str, NDArray[Any]] = {
        name: np.concatenate([getattr(part, name) for part in parts]) for name in _COLUMNS
    }
    return Panes(**columns)


class MalformedRow(ValueError):
    """A row that the telemetry UDF of this version does not write: the table is corrupt, or of another version."""


@functools.cache
def _schema_id(name: str) -> int:
    return load_builtin()[name].id


class _Bytes:
    """Rows as one buffer, read at any positions as numbers of any kind."""

    def __init__(self, rows: Sequence[bytes]) -> None:
        self._data = b"".join([*rows, _PAD])
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        self.ends = np.cumsum(lengths)
        self.starts = self.ends - lengths

    def at(self, kind: str, positions: Longs) -> NDArray[Any]:
        """The numbers of a kind that stand there; MalformedRow beyond the buffer."""
        width = np.dtype(kind).itemsize
        last = len(self._data) - width
        if len(positions) and (int(positions.min()) < 0 or int(positions.max()) > last):
            raise MalformedRow("a row's columns reach beyond it")
        # Overlapping on purpose: item i begins at byte i, whatever its alignment.
        view: NDArray[Any] = np.ndarray((last + 1,), np.dtype(kind), self._data, strides=(1,))
        return view[positions]

    def varints(self, positions: Longs) -> tuple[Longs, Longs]:
        """Avro longs that stand there, and where each ends."""
        cells = self.at("u1", positions[:, None] + np.arange(_VARINT_BYTES)).astype(np.uint64)
        length = np.argmax(cells < 128, axis=1) + 1
        used = np.arange(_VARINT_BYTES) < length[:, None]
        shifts = (7 * np.arange(_VARINT_BYTES)).astype(np.uint64)
        raw = np.bitwise_or.reduce(np.where(used, (cells & np.uint64(127)) << shifts, np.uint64(0)), axis=1)
        value = (raw >> np.uint64(1)).astype(np.int64) ^ -(raw & np.uint64(1)).astype(np.int64)
        return value, positions + length


def _live(data: _Bytes, now_ms: int, *names: str) -> tuple[Longs, Longs]:
    """The rows that have a cell which has not expired, by number, and which of the schemas each cell is of.

    MalformedRow for those of another kind.
    """
    starts = data.starts
    if len(starts) and bool((data.ends - starts < HEADER_BYTES).any()):
        raise MalformedRow("a row is cut off")
    cells = data.at("<u2", starts + 2)
    heads = data.at("u1", starts), data.at("u1", starts + 1)
    if bool(((heads[0] != ROW_VERSION) | (heads[1] != MergeType.OPAQUE) | (cells > 1)).any()):
        raise MalformedRow("a row of another kind stands in the table")
    live = np.flatnonzero(cells == 1)
    bodies = starts[live] + _BODY
    if bool((bodies + _PREFIX_BYTES + 1 > data.ends[live]).any()):
        raise MalformedRow("a row is cut off")
    ids, kinds = data.at(">u4", bodies + 1), np.full(len(live), -1, np.int64)
    for number, name in enumerate(names):
        kinds[ids == _schema_id(name)] = number
    if bool((kinds < 0).any()):
        raise MalformedRow(f"a row holds something else than {' or '.join(names)}")
    kept = data.at("<i8", starts[live] + _EXPIRES) > now_ms
    return live[kept], kinds[kept]


def _within(sizes: Longs) -> tuple[Longs, Longs]:
    """For each of `sizes[i]` items of every i: i, and its place among them."""
    owner = np.repeat(np.arange(len(sizes)), sizes)
    return owner, np.arange(len(owner)) - np.repeat(np.cumsum(sizes) - sizes, sizes)


def decode_segments(rows: Sequence[bytes], series: Longs, now_ms: int) -> Panes:
    """The panes of rows that have not expired; `series` says whose each row is. Slots are seconds since the epoch."""
    data = _Bytes(rows)
    live, kinds = _live(data, now_ms, "streams.TelemetryPanes", "streams.TelemetrySegment")
    parts = [
        _decoded(data, live[kinds == kind], series, unpack) for kind, unpack in enumerate((_packed_sketches, _sketches))
    ]
    return joined([part for part in parts if len(part)])


def _decoded(data: _Bytes, live: Longs, series: Longs, unpack: Callable[..., tuple[Longs, Doubles]]) -> Panes:
    """The panes of some rows, all of one schema."""
    if not len(live):
        return joined([])
    start_ms, at = data.varints(data.starts[live] + _BODY + _PREFIX_BYTES)
    n = data.at("u1", at).astype(np.int64) >> 1
    if bool(((n < 1) | (n > SEGMENT_S)).any()):
        raise MalformedRow("a row has no panes, or too many")
    floats, doubles = 4 * n + 2, 8 * n + 2
    row, place = _within(n)

    def single(column: int) -> Longs:
        found: Longs = data.at("<f4", (at + column * floats + 1)[row] + 4 * place).astype(np.int64)
        return found

    def double(column: int) -> Doubles:
        return data.at("<f8", (at + 4 * floats + column * doubles + 1)[row] + 8 * place)

    second, first, last, sizes = (single(column) for column in range(4))
    if bool(((sizes < 1) | (sizes > _BUCKETS_MAX)).any()):
        raise MalformedRow("a row's sketches do not add up")
    index, weight = unpack(data, at + 4 * floats + 5 * doubles, data.ends[live], row, sizes)
    slot = start_ms[row] // 1000 + second
    return Panes(
        series[live][row], slot, slot * 1000 + first, slot * 1000 + last,
        double(0), double(1), double(2), double(3), double(4), sizes, index, weight,
    )  # fmt: skip


def _sketches(data: _Bytes, at: Longs, ends: Longs, row: Longs, sizes: Longs) -> tuple[Longs, Doubles]:
    """Index and weight of all buckets, of rows that have them as two arrays."""
    entries, sketch = data.varints(at)
    again, weights = data.varints(sketch + 4 * entries + 1)
    if bool((again != entries).any() or (weights + 4 * entries + 1 != ends).any()):
        raise MalformedRow("a row's columns do not fill it")
    if bool((np.bincount(row, sizes, len(ends)).astype(np.int64) != entries).any()):
        raise MalformedRow("a row's sketches do not add up")
    entry_row, entry = _within(entries)
    index = data.at("<f4", sketch[entry_row] + 4 * entry).astype(np.int64)
    return index, data.at("<f4", weights[entry_row] + 4 * entry).astype(np.float64)


def _packed_sketches(data: _Bytes, at: Longs, ends: Longs, row: Longs, sizes: Longs) -> tuple[Longs, Doubles]:
    """Index and weight of all buckets, of rows that have them as pairs of LEB128 numbers."""
    lengths, at = data.varints(at)
    if bool((at + lengths != ends).any()) or bool((lengths < 1).any()):
        raise MalformedRow("a row's columns do not fill it")
    owner, byte = _within(lengths)
    packed = data.at("u1", at[owner] + byte)
    lasts = np.flatnonzero(packed < 128)
    numbers = np.bincount(owner[lasts], minlength=len(ends))
    filled = bool((packed[np.cumsum(lengths) - 1] < 128).all())
    if not filled or bool((numbers != 2 * np.bincount(row, sizes, len(ends)).astype(np.int64)).any()):
        raise MalformedRow("a row's sketches do not add up")
    firsts = np.concatenate((np.zeros(1, np.int64), lasts[:-1] + 1))
    width = lasts - firsts
    if int(width.max()) >= _NUMBER_BYTES:
        raise MalformedRow("a sketch holds a number that is too large")
    values = packed[firsts].astype(np.int64) & 127
    for more in range(1, int(width.max()) + 1):
        longer = np.flatnonzero(width >= more)
        values[longer] |= (packed[firsts[longer] + more].astype(np.int64) & 127) << (7 * more)
    deltas, weights = values[::2], values[1::2].astype(np.float64)
    first = np.cumsum(sizes) - sizes
    deltas[first] = deltas[first] >> 1 ^ -(deltas[first] & 1)
    index = np.cumsum(deltas)
    return index - np.repeat(index[first] - deltas[first], sizes), weights


@dataclass(frozen=True, slots=True)
class DeviceStates:
    """What the table knows of devices: latest event time, late readings, when the latest was appended. Milliseconds.

    `device`: which device, by number; one that writes to several partitions occurs once for each.
    """

    device: Longs
    watermark_ms: Longs
    late: Longs
    appended_ms: Longs


def decode_devices(rows: Sequence[bytes], device: Longs, now_ms: int) -> DeviceStates:
    """The states in rows that have not expired (schema streams.TelemetryDevice); `device` says whose each is."""
    data = _Bytes(rows)
    live, _ = _live(data, now_ms, "streams.TelemetryDevice")
    watermark_ms, at = data.varints(data.starts[live] + _BODY + _PREFIX_BYTES)
    late, at = data.varints(at)
    appended_ms, at = data.varints(at)
    if bool((at != data.ends[live]).any()):
        raise MalformedRow("a device's row is of another form")
    return DeviceStates(device[live], watermark_ms, late, appended_ms)
