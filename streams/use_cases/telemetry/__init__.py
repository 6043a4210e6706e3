"""Windows over devices' readings, computed from the panes of the `telemetry` table when they are asked for."""

from streams.use_cases.telemetry.query import WindowQuery, window_query
from streams.use_cases.telemetry.service import TelemetryOptions, TelemetryService

__all__ = ["TelemetryOptions", "TelemetryService", "WindowQuery", "window_query"]
