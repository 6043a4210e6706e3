"""What `aggregate_telemetry` asks and answers."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

Time = float | str | datetime
"""Epoch seconds, ISO 8601, or a datetime (naive: UTC)."""


class _ByName:
    """Fields are found as attributes and, as in the JSON, by name."""

    __slots__ = ()

    def __getitem__(self, name: str) -> Any:
        if name not in type(self).__dataclass_fields__:  # type: ignore[attr-defined]
            raise KeyError(name)
        return getattr(self, name)


@dataclass(frozen=True, slots=True)
class TelemetryWindow(_ByName):
    """A window's readings of one metric. `start`, `end`: epoch seconds, [start, end). `device`: None over a region.

    Count, minimum and maximum are exact; `stddev` is of a sample, 0 for one reading; quantiles are within 1 % of their
    magnitude. `closed`: the watermark has passed it, or its devices are quiet.
    """

    start: float
    end: float
    device: str | None
    metric: str
    count: int
    sum: float
    min: float
    max: float
    mean: float
    stddev: float
    p50: float
    p95: float
    p99: float
    closed: bool


@dataclass(frozen=True, slots=True)
class TelemetryWindows(_ByName):
    """Windows ordered by device, metric and time; the latest event time (epoch seconds, None without readings); how
    many readings came too late and are in no window."""

    windows: list[TelemetryWindow]
    watermark: float | None
    late: int


def aggregate_request(
    partition: str,
    window: float | str | None,
    by: str,
    start: Time | None,
    end: Time | None,
    others: dict[str, float | str | None],
) -> tuple[str, dict[str, str]]:
    """The path and query of an aggregate."""
    times = {"from": _time(start), "to": _time(end)}
    given = {"window": window, "by": by, **times, **others}
    path = f"/v1/telemetry/{quote(partition, safe=':')}:aggregate"
    return path, {name: _text(value) for name, value in given.items() if value is not None}


def aggregate_answer(body: dict[str, Any]) -> TelemetryWindows:
    """The answer of an aggregate."""
    found = [TelemetryWindow(**each) for each in body["windows"]]
    return TelemetryWindows(found, body["watermark"], body["late"])


def _time(value: Time | None) -> float | str | None:
    if not isinstance(value, datetime):
        return value
    return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()


def _text(value: float | str) -> str:
    """Numbers in plain digits: the gateway reads no exponents."""
    if isinstance(value, float):
        return f"{value:.3f}" if value % 1 else f"{value:.0f}"
    return str(value)
