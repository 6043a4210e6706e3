"""What a put's JSON body means in a keyspace, and what an event's value looks like as JSON."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson

from streams.model.errors import BadInput
from streams.model.keyspace import Keyspace
from streams.serde.codec import SchemaSet, encode
from streams.serde.frame_columns import Columns, Dictionary
from streams.serde.frames import encode_frames
from streams.serde.json_text import dump_json
from streams.serde.mapping import avro_to_json, describe, json_to_avro, timestamp
from streams.serde.schemas import DELETE, PURGE, TABLE_PURGE, AvroSchema, load_builtin

ADD_MAX = 2**53
METRIC_BYTES_MAX = 256
TIME_MS_MAX = 253_402_300_799_999
"""The end of the year 9999."""
AHEAD_MS_MAX = 86_400_000
"""How far a reading's time may be ahead of its acceptance. As much as the grace of late readings (GRACE_MS of
wasm_udfs/telemetry): so a clock that is fast never makes the same device's timely readings late."""

_ADD_FIX = f'send {{"add": n}} with a whole number of at most {ADD_MAX} either way'


def to_avro(keyspace: Keyspace, body: Any, schema: AvroSchema | None = None, now_ms: int | None = None) -> bytes:
    """A put's parsed JSON `body` as wire-format bytes. BadInput names the field that is wrong.

    By `keyspace.schema`: `streams.CounterAdd` takes `{"add": n}`; `streams.Number` a number or `{"value": number}`;
    `streams.Reading` `{"metric", "value", "time"?}` (`now_ms` is the default time); `streams.Json` any JSON value;
    every other schema, given as `schema`, an object with its fields.
    """
    write = _BUILTIN.get(keyspace.schema)
    if write is not None:
        return encode(load_builtin()[keyspace.schema], write(body, now_ms))
    if schema is None:
        raise BadInput(
            f"keyspace {keyspace.name} has no schema {keyspace.schema}",
            field="schema",
            fix=f"register it for the subject {keyspace.subject}",
        )
    return encode(schema, json_to_avro(schema.tree, body, ""))


def from_avro(value: bytes, schemas: SchemaSet) -> Any:
    """The JSON value of wire-format bytes, in the shape that `to_avro` takes; None for deletes and purges.

    BadInput when the bytes are invalid. Free-form values that another client wrote as something else than JSON
    come back as the string that they are.
    """
    schema_id, obj = schemas.decode_value(value)
    name = schemas.known(schema_id).name
    if name in (DELETE, PURGE, TABLE_PURGE):
        return None
    if name == "streams.Json":
        try:
            return orjson.loads(obj["json"])
        except orjson.JSONDecodeError:
            return obj["json"]
    if name == "streams.Number":
        return avro_to_json(obj["value"])
    return avro_to_json(obj)


def delete_value() -> bytes:
    """The value of an event that deletes its key."""
    return encode(load_builtin()[DELETE], {})


def purge_value(generation: int, before_ms: int, last_hlc: int, *, remove: bool, table: str = "") -> bytes:
    """The value of a purge event: drop what began by `generation` or expired by `before_ms`; maybe the row.

    `table`: whose row it is, when it is not the keyspace's own table's.
    """
    purge = {"generation": generation, "before_ms": before_ms, "last_hlc": last_hlc, "remove": remove}
    if table:
        return encode(load_builtin()[TABLE_PURGE], {**purge, "table": table})
    return encode(load_builtin()[PURGE], purge)


def purge_frames(purges: Sequence[tuple[bytes, int, int, int, bool]], table: str = "") -> list[bytes]:
    """Purges of rows of one table as frames (`is_frame`), each a record's value for the partition of those rows.

    `purges`: (key, and what `purge_value` takes: generation, before_ms, last_hlc, remove).
    """
    keys, generation, before_ms, last_hlc, remove = zip(*purges, strict=True)
    numbers = {"generation": generation, "before_ms": before_ms, "last_hlc": last_hlc}
    value: dict[str, Any] = {name: np.array(given, np.int64) for name, given in numbers.items()}
    value["remove"] = np.array(remove, np.bool_)
    if table:
        value["table"] = Dictionary([table], np.zeros(len(keys), np.int64))
    schema = load_builtin()[TABLE_PURGE if table else PURGE]
    frames = encode_frames(
        Columns(keys, value), schema, lambda _blob, starts, _lengths: np.zeros(len(starts), np.int32)
    )
    return [frame.value for frame in frames]


def _counter(body: Any, _now_ms: int | None) -> dict[str, int]:
    if type(body) is not dict:
        raise BadInput(f"{describe(body)} is not an object with `add`", field="add", fix=_ADD_FIX)
    if "add" not in body:
        raise BadInput("the field is missing", field="add", fix=_ADD_FIX)
    _only(body, ("add",), _ADD_FIX)
    add = body["add"]
    if type(add) is not int:
        raise BadInput(f"{describe(add)} is not an integer", field="add", fix=_ADD_FIX)
    if abs(add) > ADD_MAX:
        raise BadInput(f"{add} is too large", field="add", fix=_ADD_FIX)
    return {"add": add}


def _number(body: Any, _now_ms: int | None) -> dict[str, float]:
    fix = 'send a finite number, or {"value": number}'
    if type(body) is dict:
        if "value" not in body:
            raise BadInput("the field is missing", field="value", fix=fix)
        _only(body, ("value",), fix)
        body = body["value"]
    return {"value": _finite(body, fix)}


def _reading(body: Any, now_ms: int | None) -> dict[str, Any]:
    fix = 'send {"metric": name, "value": number, "time": ISO 8601 or epoch milliseconds}'
    if type(body) is not dict:
        raise BadInput(f"{describe(body)} is not an object", field="value", fix=fix)
    _only(body, ("metric", "value", "time"), fix)
    for name in ("metric", "value"):
        if name not in body:
            raise BadInput("the field is missing", field=name, fix=fix)
    now_ms = time.time_ns() // 1_000_000 if now_ms is None else now_ms
    metric = body["metric"]
    if type(metric) is not str or not metric or len(metric.encode()) > METRIC_BYTES_MAX:
        raise BadInput(f"{describe(metric)} is not a metric", field="metric", fix="give 1 to 256 bytes of text")
    if body.get("time") is None:
        time_ms = now_ms
    else:
        time_ms = timestamp(body["time"], "time", 1_000)
        if not 0 <= time_ms <= TIME_MS_MAX:
            raise BadInput(f"{time_ms} ms is out of range", field="time", fix="give a time from 1970 to 9999")
        if time_ms > now_ms + AHEAD_MS_MAX:
            raise BadInput(
                f"{time_ms} ms is {(time_ms - now_ms) / 3_600_000:.1f} hours ahead of the clock here",
                field="time",
                fix="give epoch milliseconds or ISO 8601, at most 24 hours ahead; check the device's clock",
            )
    return {"metric": metric, "value": _finite(body["value"], fix), "time": time_ms}


def _json(body: Any, _now_ms: int | None) -> dict[str, str]:
    try:
        return {"json": dump_json(body).decode()}
    except TypeError as error:
        raise BadInput(f"not JSON: {error}", field="value", fix="send a JSON value") from None


_BUILTIN = {
    "streams.CounterAdd": _counter,
    "streams.Number": _number,
    "streams.Reading": _reading,
    "streams.Json": _json,
}


def _finite(value: Any, fix: str) -> float:
    if type(value) is not int and type(value) is not float:
        raise BadInput(f"{describe(value)} is not a number", field="value", fix=fix)
    if type(value) is int and abs(value) > 2**53:
        raise BadInput(f"the integer {value} is not exact as a float64", field="value", fix="give at most 2**53")
    if not math.isfinite(value):
        raise BadInput(f"{value} is not a finite number", field="value", fix=fix)
    return float(value)


def _only(body: dict[str, Any], names: tuple[str, ...], fix: str) -> None:
    for name in body:
        if name not in names:
            raise BadInput("there is no such field here", field=name[:80], fix=fix)
