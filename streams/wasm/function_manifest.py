"""What udf.toml says of a function: what it may do, and what one request of it may use."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from streams.model.errors import BadInput
from streams.model.keys import check_name
from streams.wasm.limits import Limits

KIND = "function"
CAPABILITIES = ("tables.read", "put", "clock", "random", "log")
NAMES_MAX = 16
FIELDS = ("capabilities", "tables", "puts", "idempotent")
"""The fields that only functions have."""
_COUNTS = ("concurrency", "table_rows", "events", "log_bytes")
_LIMITS = ("memory_bytes", "deadline_s", "output_bytes", "fuel", *_COUNTS)


@dataclass(frozen=True, slots=True)
class FunctionCaps:
    """The most that a function's limits may be: what the operator allows."""

    memory_bytes: int = 128 << 20
    deadline_s: float = 10.0
    output_bytes: int = 16 << 20
    fuel: int = 10_000_000_000
    concurrency: int = 1_024
    table_rows: int = 10_000
    events: int = 64
    log_bytes: int = 64 << 10


@dataclass(frozen=True, slots=True)
class FunctionPart:
    """What a function may do: `capabilities`; `tables` that it may read; keyspaces that it `puts` to; whether running a
    request twice does no harm (`idempotent`).

    Limits of one request: `table_rows` read, `events` put, `log_bytes`, `fuel` (None: not counted); `concurrency` of
    requests at once in one gateway.
    """

    capabilities: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()
    puts: tuple[str, ...] = ()
    idempotent: bool = False
    concurrency: int = 256
    table_rows: int = 1_000
    events: int = 16
    log_bytes: int = 8 << 10
    fuel: int | None = None


def parse_function(data: Mapping[str, Any]) -> tuple[FunctionPart, Limits]:
    """The function's part of a udf.toml, and the limits that all kinds have. BadInput names the field."""
    capabilities = _names(data, "capabilities")
    for each in capabilities:
        if each not in CAPABILITIES:
            raise BadInput(
                f"{each[:40]!r} is no capability", field="capabilities", fix=f"use some of {', '.join(CAPABILITIES)}"
            )
    tables, puts = _names(data, "tables"), _names(data, "puts")
    for field, names, needs in (("tables", tables, "tables.read"), ("puts", puts, "put")):
        for name in names:
            check_name(name, field=field)
        if bool(names) != (needs in capabilities):
            what = f"capability {needs} is not named" if names else f"capability {needs} needs it"
            raise BadInput(what, field=field, fix=f'as in capabilities = ["{needs}"] and {field} = ["kv"]')
    idempotent = data.get("idempotent", False)
    if not isinstance(idempotent, bool):
        raise BadInput("is neither true nor false", field="idempotent", fix="idempotent = true")
    given = _limits(data.get("limits", {}))
    counts: dict[str, Any] = {name: int(given[name]) for name in (*_COUNTS, "fuel") if name in given}
    limits = Limits(
        memory_bytes=int(given.get("memory_bytes", 16 << 20)),
        deadline_s=given.get("deadline_s", 1.0),
        output_bytes=int(given.get("output_bytes", 1 << 20)),
    )
    return FunctionPart(capabilities, tables, puts, idempotent, **counts), limits


def caps_within(caps: FunctionCaps, most: Limits) -> FunctionCaps:
    """A function's caps, none over the operator's own for all UDFs (`--udf-memory-max-bytes` and so on)."""
    return replace(
        caps,
        memory_bytes=min(caps.memory_bytes, most.memory_bytes),
        deadline_s=min(caps.deadline_s, most.deadline_s),
        output_bytes=min(caps.output_bytes, most.output_bytes),
        fuel=min(caps.fuel, most.fuel),
    )


def check_function_caps(part: FunctionPart, limits: Limits, caps: FunctionCaps) -> None:
    """BadInput when a limit, also one by default, is over what the operator allows."""
    for name in _LIMITS:
        asked = getattr(limits, name) if name in ("memory_bytes", "deadline_s", "output_bytes") else getattr(part, name)
        most = getattr(caps, name)
        if asked is not None and asked > most:
            raise BadInput(
                f"{asked:g} is over the operator's {most:g}",
                field=f"limits.{name}",
                fix="ask for less in udf.toml, or raise the gateways' cap",
            )


def _names(data: Mapping[str, Any], field: str) -> tuple[str, ...]:
    value = data.get(field, [])
    good = isinstance(value, list) and all(isinstance(each, str) for each in value)
    if not good or len(value) > NAMES_MAX or len(set(value)) != len(value):
        raise BadInput(
            f"is not a list of at most {NAMES_MAX} different names", field=field, fix=f'as in {field} = ["kv"]'
        )
    return tuple(value)


def _limits(table: Any) -> dict[str, Any]:
    if not isinstance(table, dict):
        raise BadInput("is not a table", field="limits", fix="write [limits]")
    for name, value in table.items():
        if name not in _LIMITS or isinstance(value, bool) or not isinstance(value, int | float):
            raise BadInput(
                "is no limit, or not a number", field=f"limits.{name:.40}", fix=f"one of {', '.join(_LIMITS)}"
            )
        if not math.isfinite(value) or value <= 0:
            raise BadInput("must be positive", field=f"limits.{name}")
    return dict(table)
