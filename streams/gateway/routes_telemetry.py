"""`/v1/telemetry`: windows over devices' readings."""

from __future__ import annotations

from streams.gateway.context import Gateway
from streams.gateway.endpoint import Operation
from streams.gateway.http import Call, Reply
from streams.gateway.params import CAUSAL_TOKEN, MAX_STALENESS, STRING, Param
from streams.use_cases.telemetry import window_query
from streams.use_cases.telemetry.service import TABLE

_SPAN: dict[str, object] = {"type": "string", "pattern": "^[0-9]+[smhdw]?$", "examples": ["60", "5m", "1h"]}
_TIME = "epoch seconds, epoch milliseconds (from 1e11 on) or ISO 8601"
_PARAMS = (
    Param("partition", "path", "`iot:region:<name>`: the readings that this region's gateways took", STRING),
    Param("window", "query", "Width of a window in whole seconds, or as 5m, 1h; default 60", _SPAN),
    Param("hop", "query", "How often a window begins, at most `window`; default: as wide as it, tumbling", _SPAN),
    Param("gap", "query", "Sessions instead: readings at most this far apart belong together", _SPAN),
    Param("by", "query", "`device` (the default): each device by itself; `region`: all of them together",
          {"type": "string", "enum": ["device", "region"], "default": "device"}),
    Param("from", "query", f"Only windows that end after this, whole: {_TIME}", STRING),
    Param("to", "query", f"Only windows that begin before this, whole: {_TIME}", STRING),
    Param("device", "query", "Only this device: the {id} of device:{id}:telemetry", STRING),
    Param("metric", "query", "Only this metric", STRING),
    CAUSAL_TOKEN,
    MAX_STALENESS,
)  # fmt: skip
_NUMBER: dict[str, object] = {"type": ["number", "null"]}
_WINDOW: dict[str, object] = {
    "start": {"type": "number", "description": "Epoch seconds; of a session, its first event time"},
    "end": {"type": "number", "description": "Epoch seconds, exclusive; of a session, its last event time and the gap"},
    "device": {"type": ["string", "null"], "description": "null by region"},
    "metric": STRING,
    "count": {"type": "integer"},
    **dict.fromkeys(("sum", "min", "max", "mean"), _NUMBER),
    "stddev": {**_NUMBER, "description": "Of a sample (divisor n - 1); 0 for one reading"},
    **{name: {**_NUMBER, "description": "Within 1 % of its magnitude"} for name in ("p50", "p95", "p99")},
    "closed": {"type": "boolean", "description": "The watermark has passed it, or its devices are quiet"},
}
_ANSWER: dict[str, object] = {
    "type": "object",
    "required": ["windows", "watermark", "late"],
    "properties": {
        "windows": {
            "type": "array",
            "items": {"type": "object", "required": list(_WINDOW), "properties": _WINDOW},
        },
        "watermark": {"type": ["number", "null"], "description": "The latest event time, epoch seconds"},
        "late": {"type": "integer", "description": "Readings that came too late and are in no window"},
    },
}


class TelemetryRoutes:
    """Handlers of telemetry."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def operations(self) -> list[Operation]:
        """The routes."""
        answers = {
            400: "A parameter is wrong, or asks for too many windows: `field` names it",
            404: "No such partition; the answer names those that there are",
            429: "Too many queries are under way",
            504: "Not caught up in time",
        }
        return [
            Operation(
                "GET",
                "/v1/telemetry/{partition}:aggregate",
                self.aggregate_telemetry,
                "Windows by event time: count, sum, extremes, mean, deviation, quantiles",
                "read",
                _PARAMS,
                answers=answers,
                answer=_ANSWER,
                tag="telemetry",
            )
        ]

    async def aggregate_telemetry(self, call: Call) -> Reply:
        """All windows in range, open ones too."""
        gateway = self._gateway
        query = window_query(call.part("partition"), call.query, gateway.topology.names)
        table = gateway.table(call, TABLE)
        _, headers = await gateway.settle(call, TABLE)
        body = await gateway.telemetry.aggregate(table, query)
        return Reply(body, headers=headers)
