"""Walks the `telemetry` table of one origin: the rows of the series asked for, leaping over the others.

Keys (wasm_udfs/telemetry): `device:{id} 1f` a device; `device:{id} 1f {metric} 1f {segment}` its panes; `device: 1f
{metric} 1f {segment}` all devices' of the partition. 1f sorts below every byte of a device or metric.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from streams.edge.edge_table import OriginView
from streams.model.errors import BadInput
from streams.state.cursor import TableCursor
from streams.use_cases.telemetry.panes import SEGMENT_S, DeviceStates, Panes, decode_devices, decode_segments
from streams.use_cases.telemetry.query import WindowQuery

_HEAD = b"device:"
_SEPARATOR, _AFTER_SEPARATOR = b"\x1f", b"\x20"
_SEGMENT_BIAS = 1 << 39
_AFTER_SEGMENTS = b"g"
"""Above every hexadecimal digit."""

BATCH_ROWS, BATCH_BYTES = 20_000, 8 << 20
_STEP_ROWS = 500


@dataclass(slots=True)
class Names:
    """Numbers for names, in order of first appearance."""

    numbers: dict[tuple[bytes, ...], int] = field(default_factory=dict)

    def number(self, *name: bytes) -> int:
        """The number of a name; a new one when it is new."""
        return self.numbers.setdefault(name, len(self.numbers))


@dataclass(slots=True)
class Reader:
    """One walk through a view, in one thread. `series` are named (device, metric), or (b"", metric) of a region.

    `rows_max`, `bytes_max` bound the segments that may be read: BadInput names what to narrow.
    """

    view: OriginView
    query: WindowQuery
    rows_max: int
    bytes_max: int
    series: Names = field(default_factory=Names)
    devices: Names = field(default_factory=Names)
    rows: int = 0
    read_bytes: int = 0
    _states: list[bytes] = field(default_factory=list)
    _state_devices: list[int] = field(default_factory=list)
    _held: list[bytes] = field(default_factory=list)
    _held_series: list[int] = field(default_factory=list)
    _held_bytes: int = 0

    def panes(self) -> Iterator[Panes]:
        """The panes of the series asked for, in portions. Afterwards `states` is complete."""
        for cursor in self.view.cursors:
            walk = self._device_rows(cursor) if self.query.by_device else self._region_rows(cursor)
            for _ in walk:
                yield self._decoded()
        if self._held:
            yield self._decoded()

    def states(self) -> DeviceStates:
        """What is known of the devices asked for."""
        return decode_devices(self._states, np.array(self._state_devices, np.int64), self.view.now_ms)

    def _device_rows(self, cursor: TableCursor) -> Iterator[None]:
        """Collect rows; yields when there is a portion."""
        wanted = self.query.device
        start = _HEAD + (_AFTER_SEPARATOR if wanted is None else wanted.encode() + _SEPARATOR)
        key = cursor.seek(start)
        while key is not None and key.startswith(_HEAD):
            device, _, rest = key[len(_HEAD) :].partition(_SEPARATOR)
            if wanted is not None and device != wanted.encode():
                return
            if rest:
                yield from self._series_rows(cursor, key, device, rest)
                key = cursor.key
            else:
                self._note_device(cursor, device)
                key = cursor.advance()

    def _region_rows(self, cursor: TableCursor) -> Iterator[None]:
        key = cursor.seek(_HEAD + _SEPARATOR)
        while key is not None and key.startswith(_HEAD + _SEPARATOR):
            yield from self._series_rows(cursor, key, b"", key[len(_HEAD) + 1 :])
            key = cursor.key
        while key is not None and key.startswith(_HEAD):
            device, _, rest = key[len(_HEAD) :].partition(_SEPARATOR)
            if not rest:
                self._note_device(cursor, device)
            key = cursor.seek(_HEAD + device + _AFTER_SEPARATOR)

    def _note_device(self, cursor: TableCursor, device: bytes) -> None:
        self._states.append(cursor.row)
        self._state_devices.append(self.devices.number(device))

    def _series_rows(self, cursor: TableCursor, key: bytes, device: bytes, rest: bytes) -> Iterator[None]:
        """Collect the rows in range of the series that the cursor stands in, and leave it behind."""
        metric = rest.partition(_SEPARATOR)[0]
        head = key[: len(key) - len(rest) + len(metric) + 1]
        if self.query.metric is not None and metric != self.query.metric.encode():
            cursor.seek(head + _AFTER_SEGMENTS)
            return
        from_s, to_s = self.query.seconds()
        if from_s is not None:
            cursor.seek(head + _segment(from_s // SEGMENT_S))
        end = head + (_AFTER_SEGMENTS if to_s is None else _segment((to_s - 1) // SEGMENT_S + 1))
        number = self.series.number(device, metric)
        while taken := cursor.take(end, _STEP_ROWS, self._held):
            self._held_series += [number] * taken
            size = sum(map(len, self._held[-taken:]))
            self._held_bytes += size
            self.rows += taken
            self.read_bytes += size
            if self.rows > self.rows_max or self.read_bytes > self.bytes_max:
                raise self._too_much()
            if len(self._held) >= BATCH_ROWS or self._held_bytes >= BATCH_BYTES:
                yield
        if to_s is not None:
            cursor.seek(head + _AFTER_SEGMENTS)

    def _too_much(self) -> BadInput:
        name = "gap" if self.query.gap_s is not None else "from"
        return BadInput(
            f"more than {self.rows_max:,} stretches of ten seconds ({self.bytes_max >> 20} MiB) would have to be read",
            field=name,
            fix="name a device or a metric, use by=region, or, for windows that are no sessions, narrow from and to",
        )

    def _decoded(self) -> Panes:
        held, self._held = self._held, []
        series, self._held_series = self._held_series, []
        self._held_bytes = 0
        panes = decode_segments(held, np.array(series, np.int64), self.view.now_ms)
        from_s, to_s = self.query.seconds()
        if from_s is None and to_s is None:
            return panes
        inside = np.ones(len(panes), bool)
        if from_s is not None:
            inside &= panes.slot >= from_s
        if to_s is not None:
            inside &= panes.slot < to_s
        return panes if inside.all() else panes.taken(inside)


def _segment(number: int) -> bytes:
    """A segment's name in keys."""
    return b"%010x" % min(max(number + _SEGMENT_BIAS, 0), (1 << 40) - 1)
