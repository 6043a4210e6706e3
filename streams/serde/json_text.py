"""JSON in and out, exact or refused: no duplicate names, no number that would change, no bottomless nesting."""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

import orjson

from streams.model.errors import BadInput

DEPTH_MAX = 100
"""How deep arrays and objects may nest."""

_BIG_DIGITS = re.compile(rb"\d{19}")
_SPACED_COLON = re.compile(rb'"[ \t\r\n]+:')
_INT_MIN, _INT_MAX = -(2**63), 2**64 - 1


class _Refused(Exception):
    """Raised inside the standard library's JSON parser to get out of it; never leaves this module."""

    def __init__(self, detail: str, fix: str) -> None:
        super().__init__(detail)
        self.detail, self.fix = detail, fix


def parse_json(raw: bytes | str, *, field: str = "body") -> Any:
    """The JSON value of `raw`. BadInput naming `field` when it is not RFC 8259 JSON, not UTF-8, or not exact.

    Refused: NaN and infinities, numbers too large for a float64, integers outside [-2**63, 2**64), duplicate names in
    an object, lone surrogates, and nesting deeper than `DEPTH_MAX`.
    """
    data = raw.encode("utf-8", "surrogatepass") if isinstance(raw, str) else raw
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise BadInput(f"not JSON: {str(error)[:160]}", field=field, fix=_fix_for(data)) from None
    nesting = data.count(b"[") + data.count(b"{")
    if nesting > DEPTH_MAX or data.count(b"{"):
        names = _count_names(value, field)
        doubtful = data.count(b'":') != names or _SPACED_COLON.search(data) is not None
    else:
        doubtful = False
    if doubtful or _BIG_DIGITS.search(data):
        _parse_slowly(data, field)
    return value


def dump_json(value: Any) -> bytes:
    """Compact JSON, UTF-8. NaN and infinities, which JSON cannot say, become null."""
    return orjson.dumps(value)


def _fix_for(data: bytes) -> str:
    if not data.strip():
        return 'send a JSON value, as in 42, "text" or {"add": 1}'
    if re.search(rb"NaN|Infinity", data):
        return "JSON has no NaN or Infinity; leave the value out or send null"
    return "send one JSON value, encoded as UTF-8"


def _count_names(value: Any, field: str) -> int:
    """How many names the objects inside `value` have; BadInput if it nests deeper than `DEPTH_MAX`."""
    names, level, depth = 0, [value], 0
    while level:
        inner: list[Any] = []
        nested = False
        for item in level:
            if type(item) is dict:
                names += len(item)
                nested = True
                inner.extend(item.values())
            elif type(item) is list:
                nested = True
                inner.extend(item)
        depth += nested
        if depth > DEPTH_MAX:
            raise BadInput(f"nested deeper than {DEPTH_MAX} levels", field=field, fix="flatten the value")
        level = [item for item in inner if type(item) is dict or type(item) is list]
    return names


def _parse_slowly(data: bytes, field: str) -> None:
    """Parse again with a parser that shows every name and integer; BadInput for what orjson would have changed."""
    try:
        json.loads(data, object_pairs_hook=_no_duplicates, parse_int=_exact_int)
    except _Refused as error:
        raise BadInput(error.detail, field=field, fix=error.fix) from None


def _no_duplicates(pairs: list[tuple[str, Any]]) -> None:
    seen: set[str] = set()
    for name, _ in pairs:
        if name in seen:
            _refuse(f"the name {name[:80]!r} occurs twice in an object", "send each name once")
        seen.add(name)


def _exact_int(text: str) -> int:
    if len(text) > 20 or not _INT_MIN <= int(text) <= _INT_MAX:
        _refuse(f"the integer {text[:40]} does not fit 64 bits", "send it as a string")
    return 0


def _refuse(detail: str, fix: str) -> NoReturn:
    raise _Refused(detail, fix)
