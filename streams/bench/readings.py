"""The readings of the `ingest` bench: the same for everybody, and what every window must hold in the end."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from streams.bench.load import splitmix64
from streams.model.errors import StreamsError

WINDOW_MS = 10_000
METRIC = "temperature"
_CHUNK = 1 << 20

Floats = npt.NDArray[np.float64]
Longs = npt.NDArray[np.int64]
Found = tuple[str, int, float, float, float, float]
"""Of a window as a contender has it: the device's key, the start in epoch ms, count, sum, min, max."""


@dataclass(frozen=True, slots=True)
class Readings:
    """Reading i, i = 0, 1, 2, …: of a random device (the high half of splitmix64(i), scaled to `devices`), with a
    random multiple of 0.25 below 256 (so that sums are exact in whatever order), at `base_ms` + i * 1000 /
    `per_event_s`.
    """

    devices: int
    base_ms: int
    per_event_s: int = 1_000_000

    def columns(self, first: int, count: int) -> tuple[Longs, Floats]:
        """The devices' numbers and the values of `count` readings from `first` on."""
        mixed = splitmix64(np.arange(first, first + count, dtype=np.uint64))
        devices = (mixed >> np.uint64(32)) * np.uint64(self.devices) >> np.uint64(32)
        return devices.astype(np.int64), (mixed & np.uint64(1023)).astype(np.float64) * 0.25

    def times_ms(self, first: int, count: int) -> Longs:
        """Their times."""
        return self.base_ms + np.arange(first, first + count, dtype=np.int64) * 1000 // self.per_event_s

    @staticmethod
    def name(device: int) -> str:
        """A device's key."""
        return f"device:{device:07d}:telemetry"

    def last(self, total: int) -> Longs:
        """By device, its latest of the first `total` readings; -1 for none."""
        found = np.full(self.devices, -1, np.int64)
        for first in range(0, total, _CHUNK):
            count = min(_CHUNK, total - first)
            found[self.columns(first, count)[0]] = np.arange(first, first + count)  # the later one stays
        return found

    def truth(self, total: int) -> Windows:
        """The windows of the first `total` readings."""
        start = self.base_ms // WINDOW_MS
        last_ms = self.base_ms + max(0, total - 1) * 1000 // self.per_event_s
        found = Windows.empty(self.devices, start, last_ms // WINDOW_MS - start + 1)
        for first in range(0, total, _CHUNK):
            count = min(_CHUNK, total - first)
            windows = self.times_ms(first, count) // WINDOW_MS - start
            codes, values = self.columns(first, count)
            found.add(codes * found.windows + windows, values)
        return found


@dataclass(frozen=True, slots=True)
class Windows:
    """Count, sum, min and max by device and window, in one row a device: `windows` of them from window `start` on."""

    devices: int
    start: int
    windows: int
    count: Floats
    sum: Floats
    min: Floats
    max: Floats

    @classmethod
    def empty(cls, devices: int, start: int, windows: int) -> Windows:
        """No readings yet."""
        size = devices * windows
        zeros = (np.zeros(size), np.zeros(size), np.full(size, np.inf), np.full(size, -np.inf))
        return cls(devices, start, windows, *zeros)

    def add(self, at: Longs, values: Floats) -> None:
        """Take in readings; `at`: device * windows + window of each."""
        size = len(self.count)
        self.count[:] += np.bincount(at, minlength=size)
        self.sum[:] += np.bincount(at, values, minlength=size)
        np.minimum.at(self.min, at, values)
        np.maximum.at(self.max, at, values)

    def rows(self, devices: Sequence[int] | None = None) -> dict[tuple[str, int], tuple[float, float, float, float]]:
        """(device's key, start in epoch ms) → count, sum, min, max, of these devices (default: all)."""
        found = {}
        for device in range(self.devices) if devices is None else devices:
            for window in range(self.windows):
                at = device * self.windows + window
                if self.count[at]:
                    key = (Readings.name(device), (self.start + window) * WINDOW_MS)
                    found[key] = (float(self.count[at]), float(self.sum[at]), float(self.min[at]), float(self.max[at]))
        return found

    def by_window(self) -> dict[int, tuple[float, float, float, float]]:
        """Start in epoch ms → count, sum, min, max over all devices."""
        shape = (self.devices, self.windows)
        columns = (
            self.count.reshape(shape).sum(0),
            self.sum.reshape(shape).sum(0),
            self.min.reshape(shape).min(0),
            self.max.reshape(shape).max(0),
        )
        pairs = enumerate(zip(*(column.tolist() for column in columns), strict=True))
        return {(self.start + number) * WINDOW_MS: row for number, row in pairs if row[0]}

    def seen(self) -> npt.NDArray[np.bool_]:
        """Which devices have readings at all."""
        found: npt.NDArray[np.bool_] = self.count.reshape(self.devices, self.windows).sum(1) > 0
        return found


def verify_windows(who: str, truth: Windows, found: Iterable[Found]) -> None:
    """StreamsError unless `found` is exactly the truth: counts, sums, mins, maxs, no window missing, none too many."""
    wanted = truth.rows()
    compare(who, "windows", wanted, {(key, start): (count, *rest) for key, start, count, *rest in found})


def compare(who: str, what: str, wanted: object, found: object) -> None:
    """StreamsError unless two mappings are equal; it says how many entries differ, and shows one."""
    assert isinstance(wanted, dict) and isinstance(found, dict)
    if wanted == found:
        return
    wrong = [key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key)]
    one = min(wrong)
    raise StreamsError(
        f"{who} aggregated wrong: {len(wrong)} of {len(wanted)} {what} differ, as {one}: {found.get(one)}, "
        f"not {wanted.get(one)}"
    )
