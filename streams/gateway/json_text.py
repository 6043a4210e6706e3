"""JSON out. (JSON in is `streams.serde.parse_json`, which refuses what it cannot keep exactly.)"""

from __future__ import annotations

import json

import orjson


def dump(value: object) -> bytes:
    """`value` as compact JSON. Integers of any size are written out in full: sums may pass 64 bits."""
    try:
        return orjson.dumps(value)
    except TypeError:
        return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
