"""Times to live: from 1 second to 100 years, as numbers of seconds or as words such as `90s`, `15m`, `1h`, `7d`."""

from __future__ import annotations

import math
import re

from streams.model.errors import BadInput

TTL_MS_MIN = 1_000
TTL_MS_MAX = 100 * 36525 * 24 * 3600 * 10
"""100 years of 365.25 days, in milliseconds."""

_UNITS_MS = {
    "": 1_000,
    "ms": 1,
    "s": 1_000,
    "m": 60_000,
    "h": 3_600_000,
    "d": 86_400_000,
    "w": 604_800_000,
    "y": 31_557_600_000,
}
_FORM = re.compile(r"([+-]?\d{1,15}(?:\.\d{1,9})?)\s*(ms|s|m|h|d|w|y|)\Z")
_FIX = "give 1 second to 100 years, as seconds (3600) or with a unit (90s, 15m, 1h, 7d, 1y)"


def parse_ttl_ms(value: str | int | float, *, field: str = "ttl") -> int:
    """A TTL in milliseconds. BadInput naming `field` for zero, negative, absurd or unreadable values."""
    if isinstance(value, bool):
        raise BadInput("the TTL is not a number", field=field, fix=_FIX)
    if isinstance(value, int | float):
        if isinstance(value, float) and not math.isfinite(value):
            raise BadInput("the TTL is not a finite number", field=field, fix=_FIX)
        ttl_ms = int(value * 1_000)
    else:
        match = _FORM.match(value.strip())
        if not match:
            raise BadInput(f"{value[:40]!r} is not a TTL", field=field, fix=_FIX)
        ttl_ms = int(float(match[1]) * _UNITS_MS[match[2]])
    return check_ttl_ms(ttl_ms, field=field)


def check_ttl_ms(ttl_ms: int, *, field: str = "ttl") -> int:
    """`ttl_ms` itself when within limits; BadInput naming `field` otherwise."""
    if not TTL_MS_MIN <= ttl_ms <= TTL_MS_MAX:
        raise BadInput(f"a TTL of {ttl_ms / 1000:g} s is out of range", field=field, fix=_FIX)
    return ttl_ms
