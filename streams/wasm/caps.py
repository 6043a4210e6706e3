"""What the operator allows every UDF: one flag and one environment variable a limit.

The variables carry what `streams up` was given to the workers and gateways that it starts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from streams.model.errors import BadInput
from streams.wasm.limits import ROW_BYTES_MAX, STACK_BYTES_MAX, STACK_BYTES_MIN, Limits
from streams.wasm.manifest import Manifest

DEFAULT_CAPS = Limits(
    memory_bytes=1 << 30,
    deadline_s=10.0,
    fuel=10_000_000_000,
    fuel_deadline_s=60.0,
    output_bytes=256 << 20,
    stack_bytes=1 << 20,
    row_bytes=ROW_BYTES_MAX,
)


@dataclass(frozen=True, slots=True)
class Cap:
    """One limit's cap: its name in `[limits]`, the flag, whether it is a whole number, and what `--help` says."""

    limit: str
    flag: str
    whole: bool
    help: str

    @property
    def variable(self) -> str:
        """The environment variable."""
        return "STREAMS_" + self.flag.removeprefix("--").replace("-", "_").upper()

    @property
    def parameter(self) -> str:
        """The flag as a parameter's name."""
        return self.flag.removeprefix("--").replace("-", "_")


CAPS = (
    Cap("memory_bytes", "--udf-memory-max-bytes", True, "Most linear memory of a UDF's instance, bytes."),
    Cap("deadline_s", "--udf-deadline-max-s", False, "Longest call into a UDF, seconds."),
    Cap("fuel", "--udf-fuel-max", True, "Most instructions of a call that is judged by them."),
    Cap("fuel_deadline_s", "--udf-fuel-deadline-max-s", False, "Longest call that is judged by instructions, seconds."),
    Cap("output_bytes", "--udf-output-max-bytes", True, "Largest single answer of a UDF, bytes."),
    Cap("stack_bytes", "--udf-stack-max-bytes", True, "Largest native stack of a UDF, bytes."),
    Cap("row_bytes", "--udf-row-max-bytes", True, "Longest row that a UDF may write, bytes."),
    Cap("table_rows", "--udf-table-max-rows", True, "Most rows of a UDF's table in a worker; it pauses there."),
    Cap("table_bytes", "--udf-table-max-bytes", True, "Most bytes of those rows and their keys; it pauses there."),
    Cap("events_per_s", "--udf-events-max-per-s", False, "Fastest that a UDF's worker folds, events a second."),
)


def parse_cap(cap: Cap, text: str) -> float:
    """The number of a flag or a variable. BadInput names the flag."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value <= 0 or (cap.whole and value != int(value)):
        kind = "whole number" if cap.whole else "number"
        raise BadInput(f"{text[:40]!r} is no positive {kind}", field=cap.flag, fix=f"see {cap.flag} in --help")
    if cap.limit == "stack_bytes" and not STACK_BYTES_MIN <= value <= STACK_BYTES_MAX:
        raise BadInput(f"{value:g} is not from {STACK_BYTES_MIN} to {STACK_BYTES_MAX}", field=cap.flag)
    if cap.limit == "row_bytes" and value > ROW_BYTES_MAX:
        raise BadInput(f"{value:g} is over {ROW_BYTES_MAX}: such a row fits no record", field=cap.flag)
    if cap.limit == "memory_bytes" and value > 4 << 30:
        raise BadInput(f"{value:g} is over 4 GiB, which is a module's most", field=cap.flag)
    return int(value) if cap.whole else value


def caps_from_env(environ: Mapping[str, str]) -> Limits:
    """The operator's caps, the defaults where no variable says otherwise. BadInput names the flag."""
    given: dict[str, Any] = {cap.limit: parse_cap(cap, text) for cap in CAPS if (text := environ.get(cap.variable, ""))}
    return replace(DEFAULT_CAPS, **given)


def capped(manifest: Manifest, caps: Limits) -> Limits:
    """The limits under which a UDF runs: those it asks for, the others at most the operator's.

    BadInput names the limit when it asks for more than it may have.
    """
    limits = manifest.limits
    lowered: dict[str, Any] = {}
    for name, most in caps.numbers().items():
        asked = getattr(limits, name)
        if asked is not None and asked <= most:
            continue
        if name in manifest.asked:
            flag = next(cap.flag for cap in CAPS if cap.limit == name)
            raise BadInput(
                f"{asked:g} is over the operator's {most:g}",
                field=f"limits.{name}",
                fix=f"ask for less, or raise {flag} of gateways and workers",
            )
        lowered[name] = most
    return replace(limits, **lowered)
