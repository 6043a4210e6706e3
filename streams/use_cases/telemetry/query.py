"""What is asked of telemetry: which readings, into which windows. Parsed from text, checked, in milliseconds."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from streams.model.errors import BadInput
from streams.model.partition import region_of

DEFAULT_WINDOW_S = 60
SECONDS_MAX = 100 * 31_557_600
"""The longest window, hop and gap: 100 years."""

MILLISECONDS_FROM = 1e11
"""Times from here on are epoch milliseconds: as seconds they would lie beyond the year 5138."""

TIME_MAX_MS = 253_402_300_800_000
_UNITS_S = {"": 1, "s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_SPAN = re.compile(r"(\d{1,12}(?:\.0{1,9})?)\s*([smhdw]?)\Z")
_NUMBER = re.compile(r"\d{1,15}(?:\.\d{1,9})?\Z")
_TIME_FIX = "give epoch seconds, epoch milliseconds, or ISO 8601 as in 2024-05-01T12:00:00Z"


@dataclass(frozen=True, slots=True)
class WindowQuery:
    """Windows of an origin's readings, by device or over the region.

    Sessions when `gap_s` is set, else windows of `window_s` that begin every `hop_s` (equal to it: tumbling), aligned
    to the epoch. Those that overlap [`from_ms`, `to_ms`), whole. `device`, `metric`: only these; None for all.
    """

    origin: str
    window_s: int = DEFAULT_WINDOW_S
    hop_s: int = DEFAULT_WINDOW_S
    gap_s: int | None = None
    by_device: bool = True
    from_ms: int | None = None
    to_ms: int | None = None
    device: str | None = None
    metric: str | None = None

    @property
    def base_s(self) -> int:
        """The stretch of time that panes are first merged to: it divides window and hop."""
        return math.gcd(self.window_s, self.hop_s)

    def seconds(self) -> tuple[int | None, int | None]:
        """The event times, in whole seconds [from, to), that can be in one of the windows. Of sessions: all, since only
        the whole series says where one begins."""
        if self.gap_s is not None:
            return None, None
        first, beyond = self.slots()
        low = None if first is None else first * self.hop_s
        return low, None if beyond is None else (beyond - 1) * self.hop_s + self.window_s

    def slots(self) -> tuple[int | None, int | None]:
        """The numbers [first, beyond) of the windows that overlap the range; a window begins at number * hop."""
        first = beyond = None
        if self.from_ms is not None:  # the least k with (k * hop + window) seconds > from
            first = (self.from_ms // 1000 - self.window_s) // self.hop_s + 1
        if self.to_ms is not None:  # the least k with k * hop seconds >= to
            beyond = -(-self.to_ms // (self.hop_s * 1000))
        return first, beyond


def window_query(partition: str, given: Mapping[str, str], regions: Sequence[str]) -> WindowQuery:
    """The query of a request: `partition` as in iot:region:us-east, `given` its parameters as text.

    NotFound for a partition that there is not, naming those that there are; BadInput names the parameter.
    """
    origin = region_of(partition, regions)
    by = given.get("by", "device")
    if by not in ("device", "region"):
        raise BadInput(f"{by[:40]!r} is neither device nor region", field="by", fix="use by=device or by=region")
    gap_s = _span(given, "gap")
    window_s, hop_s = _span(given, "window"), _span(given, "hop")
    if gap_s is not None and (window_s is not None or hop_s is not None):
        name = "window" if window_s is not None else "hop"
        raise BadInput("sessions have no width: `gap` says when one ends", field=name, fix=f"leave out {name} or gap")
    window_s = DEFAULT_WINDOW_S if window_s is None else window_s
    hop_s = window_s if hop_s is None else hop_s
    if hop_s > window_s:
        raise BadInput(
            f"a hop of {hop_s} s would leave readings out of windows of {window_s} s", field="hop", fix="hop <= window"
        )
    from_ms, to_ms = _time(given, "from"), _time(given, "to")
    if from_ms is not None and to_ms is not None and to_ms <= from_ms:
        raise BadInput("`to` is not after `from`", field="to", fix="give a later time, or leave it out")
    device, metric = given.get("device"), given.get("metric")
    if device is not None and by == "region":
        raise BadInput("by=region is about all devices", field="device", fix="leave it out, or use by=device")
    if device is not None:
        if device.startswith("device:") and device.endswith(":telemetry"):  # the whole key
            device = device[len("device:") : -len(":telemetry")]
        if not device:
            raise BadInput("no device has an empty name", field="device", fix="name one, or leave it out")
    return WindowQuery(origin, window_s, hop_s, gap_s, by == "device", from_ms, to_ms, device, metric)


def _span(given: Mapping[str, str], name: str) -> int | None:
    text = given.get(name)
    if text is None:
        return None
    match = _SPAN.match(text.strip())
    seconds = int(float(match[1])) * _UNITS_S[match[2]] if match else 0
    if not 1 <= seconds <= SECONDS_MAX:
        raise BadInput(
            f"{text[:40]!r} is not whole seconds from 1 to {SECONDS_MAX}", field=name, fix="as in 60, 90s, 5m, 1h, 7d"
        )
    return seconds


def _time(given: Mapping[str, str], name: str) -> int | None:
    text = given.get(name)
    if text is None:
        return None
    text = text.strip()
    if _NUMBER.match(text):
        number = float(text)
        time_ms = int(text) if number >= MILLISECONDS_FROM and text.isdigit() else round(number * 1000)
    else:
        try:
            # In a query, a `+` that was not percent-encoded has become a space.
            moment = datetime.fromisoformat(re.sub(r" (\d\d:?\d\d)\Z", r"+\1", text) if "T" in text else text)
        except ValueError:
            raise BadInput(f"{text[:40]!r} is not a time", field=name, fix=_TIME_FIX) from None
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        time_ms = int((moment - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds() * 1000)
    if not 0 <= time_ms <= TIME_MAX_MS:
        raise BadInput(f"{text[:40]!r} is not from 1970 to 9999", field=name, fix=_TIME_FIX)
    return time_ms
