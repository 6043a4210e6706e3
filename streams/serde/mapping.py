"""JSON to Avro and back, for keyspaces whose values users write as JSON objects of their own schema.

Avro's types in JSON: numbers, strings, booleans, null, arrays, objects for records and maps. `bytes` and `fixed` are
strings whose characters are the bytes (U+0000 to U+00FF), as in Avro's own JSON encoding. Unions are not tagged: the
first branch that accepts the value is taken. Logical types `timestamp-millis`, `timestamp-micros` and `date` also
accept ISO 8601; they are read back as integers.
"""

from __future__ import annotations

import math
from datetime import UTC, date, datetime
from typing import Any

from streams.model.errors import BadInput
from streams.serde.tree import Node

_RANGES = {"int": (-(2**31), 2**31 - 1), "long": (-(2**63), 2**63 - 1)}
_FLOAT32_MAX = 3.4028234663852886e38
_TICKS = {"timestamp-millis": 1_000, "timestamp-micros": 1_000_000}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def json_to_avro(node: Node, value: Any, path: str) -> Any:
    """`value` as fastavro writes it for `node`; BadInput whose `field` is the path of what does not fit."""
    kind = node.kind
    if kind == "record":
        return _record(node, value, path)
    if kind == "union":
        return _union(node, value, path)
    if kind in _RANGES:
        return _integer(node, value, path)
    if kind in ("double", "float"):
        return _float(kind, value, path)
    if kind == "array":
        if type(value) is not list:
            raise _wrong(path, value, "an array")
        assert node.items is not None
        return [json_to_avro(node.items, item, f"{path}[{index}]") for index, item in enumerate(value)]
    if kind == "map":
        if type(value) is not dict:
            raise _wrong(path, value, "an object")
        assert node.items is not None
        return {name: json_to_avro(node.items, item, _under(path, name)) for name, item in value.items()}
    return _plain(node, value, path)


def avro_to_json(value: Any) -> Any:
    """A decoded Avro value as JSON: bytes become strings of their characters, NaN and infinities become null."""
    kind = type(value)
    if kind is dict:
        return {name: avro_to_json(item) for name, item in value.items()}
    if kind is list:
        return [avro_to_json(item) for item in value]
    if kind is bytes:
        return value.decode("latin-1")
    if kind is float and not math.isfinite(value):
        return None
    return value


def timestamp(value: Any, path: str, per_second: int) -> int:
    """A time as whole ticks since the epoch, from an integer of ticks or ISO 8601 (without an offset: UTC)."""
    if type(value) is int:
        return _ranged(value, "long", path)
    if not isinstance(value, str):
        raise _wrong(path, value, "ISO 8601 or an integer since the epoch")
    try:
        moment = datetime.fromisoformat(value)
        since = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - _EPOCH
    except (ValueError, OverflowError):
        raise _wrong(path, value, "ISO 8601, as in 2024-05-01T12:00:00Z") from None
    return (since.days * 86_400 + since.seconds) * per_second + since.microseconds * per_second // 1_000_000


def _record(node: Node, value: Any, path: str) -> dict[str, Any]:
    if type(value) is not dict:
        raise _wrong(path, value, f"an object with the fields of {node.name}")
    built = {}
    for member in node.fields:
        where = _under(path, member.name)
        if member.name in value:
            built[member.name] = json_to_avro(member.node, value[member.name], where)
        elif member.has_default:
            built[member.name] = json_to_avro(member.node, member.default, where)
        else:
            raise BadInput("the field is missing", field=where, fix=f"give it: {node.name} has no default for it")
    if len(built) != len(value) or built.keys() != value.keys():
        for name in value:
            if name not in built:
                names = ", ".join(member.name for member in node.fields) or "none"
                raise BadInput(f"{node.name} has no such field", field=_under(path, name[:80]), fix=f"it has: {names}")
    return built


def _union(node: Node, value: Any, path: str) -> Any:
    first: BadInput | None = None
    for branch in node.branches:
        if branch.kind == "null":
            if value is None:
                return None
            continue
        try:
            return (branch.label, json_to_avro(branch, value, path))
        except BadInput as error:
            first = first or error
    others = [branch.label for branch in node.branches if branch.kind != "null"]
    if first is not None and len(others) == 1 and value is not None:
        raise first
    raise _wrong(path, value, " or ".join(branch.label for branch in node.branches))


def _integer(node: Node, value: Any, path: str) -> int:
    if node.logical in _TICKS and type(value) is str:
        return _ranged(timestamp(value, path, _TICKS[node.logical]), node.kind, path)
    if node.logical == "date" and type(value) is str:
        try:
            return (date.fromisoformat(value) - _EPOCH.date()).days
        except ValueError:
            raise _wrong(path, value, "a date, as in 2024-05-01") from None
    if type(value) is not int:
        raise _wrong(path, value, "an integer")
    return _ranged(value, node.kind, path)


def _ranged(value: int, kind: str, path: str) -> int:
    low, high = _RANGES[kind]
    if not low <= value <= high:
        raise BadInput(f"{value} does not fit Avro's {kind}", field=path, fix=f"give {low} to {high}")
    return value


def _float(kind: str, value: Any, path: str) -> float:
    if type(value) is not float and type(value) is not int:
        raise _wrong(path, value, "a number")
    if type(value) is int and abs(value) > 2**53:
        raise BadInput(f"the integer {value} is not exact as a float64", field=path, fix="give at most 2**53")
    if not math.isfinite(value) or (kind == "float" and abs(value) > _FLOAT32_MAX):
        raise BadInput(f"{value} is not a finite {kind}", field=path, fix="give a finite number")
    return float(value)


def _plain(node: Node, value: Any, path: str) -> Any:
    kind = node.kind
    if kind == "null":
        if value is not None:
            raise _wrong(path, value, "null")
        return None
    if kind == "boolean":
        if type(value) is not bool:
            raise _wrong(path, value, "true or false")
        return value
    if type(value) is not str:
        raise _wrong(path, value, "a string")
    if kind == "enum":
        if value not in node.symbols:
            raise _wrong(path, value, f"one of {', '.join(node.symbols)}")
        return value
    if kind == "string":
        return value
    try:
        raw = value.encode("latin-1")
    except UnicodeEncodeError:
        raise _wrong(path, value, "a string of bytes, U+0000 to U+00FF") from None
    if kind == "fixed" and len(raw) != node.size:
        raise BadInput(f"{len(raw)} bytes instead of {node.size}", field=path, fix=f"give {node.size} bytes")
    return raw


def _under(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _wrong(path: str, value: Any, wanted: str) -> BadInput:
    return BadInput(f"{describe(value)} is not {wanted}", field=path or "value", fix=f"give {wanted}")


def describe(value: Any) -> str:
    """A value for an error message, in a few words."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "an array"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return repr(value[:60]) if isinstance(value, str) else str(value)[:60]
