"""Parameters of routes: declared once, read by handlers and described in OpenAPI from the same object."""

from __future__ import annotations

import math
from dataclasses import dataclass

from streams.gateway.http import Call
from streams.model.errors import BadInput


@dataclass(frozen=True, slots=True)
class Param:
    """A parameter of a route. `where`: path, query or header. `schema`: its JSON Schema."""

    name: str
    where: str
    description: str
    schema: dict[str, object]
    required: bool = False

    def text(self, call: Call) -> str | None:
        """The parameter as it came; None when absent."""
        if self.where == "query":
            return call.query.get(self.name)
        if self.where == "header":
            return call.header(self.name.lower().encode())
        return call.part(self.name)

    def required_text(self, call: Call) -> str:
        """The parameter; BadInput when absent or empty."""
        value = self.text(call)
        if not value:
            raise BadInput("the parameter is missing", field=self.name, fix=f"add ?{self.name}=")
        return value

    def to_openapi(self) -> dict[str, object]:
        """The parameter object of OpenAPI 3.1."""
        return {
            "name": self.name,
            "in": self.where,
            "description": self.description,
            "required": self.required or self.where == "path",
            "schema": self.schema,
        }


@dataclass(frozen=True, slots=True)
class IntParam:
    """A whole number in the query within [low, high]; out of range is BadInput, never silently clamped."""

    name: str
    description: str
    low: int
    high: int
    default: int | None = None

    def read(self, call: Call) -> int | None:
        """The number; the default when absent; BadInput names the parameter and the allowed range."""
        text = call.query.get(self.name)
        if text is None:
            return self.default
        digits = text[1:] if text[:1] in "+-" else text
        readable = len(digits) <= 20 and digits.isascii() and digits.isdigit()
        if not readable or not self.low <= int(text) <= self.high:
            raise BadInput(
                f"{text[:40]!r} is not a whole number from {self.low} to {self.high}",
                field=self.name,
                fix=f"give {self.name} between {self.low} and {self.high}",
            )
        return int(text)

    def to_openapi(self) -> dict[str, object]:
        """The parameter object of OpenAPI 3.1."""
        schema: dict[str, object] = {"type": "integer", "minimum": self.low, "maximum": self.high}
        if self.default is not None:
            schema["default"] = self.default
        return {
            "name": self.name,
            "in": "query",
            "description": self.description,
            "required": False,
            "schema": schema,
        }


@dataclass(frozen=True, slots=True)
class FloatParam:
    """A number in the query within [low, high]; out of range, infinite or NaN is BadInput."""

    name: str
    description: str
    low: float
    high: float

    def read(self, call: Call) -> float | None:
        """The number; None when absent; BadInput names the parameter and the allowed range."""
        text = call.query.get(self.name)
        if text is None:
            return None
        try:
            value = float(text) if len(text) <= 40 else math.nan
        except ValueError:
            value = math.nan
        if not self.low <= value <= self.high:  # NaN is in no range
            raise BadInput(
                f"{text[:40]!r} is not a number from {self.low:g} to {self.high:g}",
                field=self.name,
                fix=f"give {self.name} between {self.low:g} and {self.high:g}",
            )
        return value

    def to_openapi(self) -> dict[str, object]:
        """The parameter object of OpenAPI 3.1."""
        return {
            "name": self.name,
            "in": "query",
            "description": self.description,
            "required": False,
            "schema": {"type": "number", "minimum": self.low, "maximum": self.high},
        }


AnyParam = Param | IntParam | FloatParam

STRING: dict[str, object] = {"type": "string"}
KEY_PATH = Param("key", "path", "A key, keyspace:rest, percent-encoded; any characters", STRING)
KEY_QUERY = Param("key", "query", "A key, keyspace:rest", STRING, required=True)
TABLE = Param("table", "path", "The name of a table", STRING)
NAME = Param("name", "path", "The name of a keyspace", STRING)
TTL = Param("ttl", "query", "Time to live: 1 s to 100 years, as seconds or with a unit (90s, 15m, 1h, 7d)", STRING)
PREFIX = Param("prefix", "query", "Only keys that start with this", STRING)
CURSOR = Param("cursor", "query", "Where to go on: the `cursor` of the previous answer", STRING)
BY = Param("by", "query", "Order by this field of the value (dots go deeper) instead of by the value", STRING)
CONSISTENCY = Param("consistency", "query", "Of a strong keyspace: `strong` (default) or `eventual`", STRING)
CAUSAL_TOKEN = Param("Causal-Token", "header", "Answer no earlier than these writes and reads", STRING)
IDEMPOTENCY_KEY = Param("Idempotency-Key", "header", "The same key again gets the first answer again", STRING)
IF_MATCH = Param("If-Match", "header", "Write if the key has this version: on strong keyspaces only", STRING)
IF_NONE_MATCH = Param("If-None-Match", "header", "`*`: write if the key is absent: on strong keyspaces only", STRING)
LIMIT = IntParam("limit", "How many rows at most", 1, 10_000, 100)
TOP_N = IntParam("n", "How many rows", 1, 10_000, 100)
AROUND_N = IntParam("n", "How many rows on either side", 1, 10_000, 5)
MAX_STALENESS = IntParam("max_staleness", "Wait until the data is at most this many milliseconds old", 0, 3_600_000)
