"""The black box of a trap: what running it again needs, as the header `dead_letter_box` of its dead letter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from streams.model.errors import BadInput
from streams.serde import SchemaSet, decode_body, encode, load_builtin, project, wire_schema_id
from streams.wasm.batch import Event
from streams.wasm.engine import Limits
from streams.wasm.fold_host import TrapReport

HEADER = "dead_letter_box"
SCHEMA = "streams.BlackBox"
_TEXT_MAX = 500
FOLD = "fold"


@dataclass(frozen=True, slots=True)
class UdfInfo:
    """Which UDF it was, and under what it ran. `outputs`: topics of a fold, keyspaces of the other kinds."""

    udf: str
    version: str
    table: str
    sha256: str
    merge: int
    outputs: int
    limits: Limits
    abi: int = 1
    kind: str = FOLD


@dataclass(frozen=True, slots=True)
class BlackBox:
    """A trap, read back. `backtrace`: innermost frame first; `held`: the UDF paused before the event, which is kept."""

    info: UdfInfo
    event: Event
    kind: str
    reason: str
    call: str
    metered: bool
    memory_bytes: int
    backtrace: tuple[str, ...]
    rows: tuple[tuple[bytes, bytes | None], ...]
    rows_whole: bool
    held: bool


def encode_box(info: UdfInfo, event: Event, report: TrapReport, *, held: bool) -> bytes:
    """The box in wire format; at most about 600 KiB. The event's key and value are the dead letter's own."""
    return encode(
        load_builtin()[SCHEMA],
        {
            "udf": info.udf,
            "version": info.version,
            "table": info.table,
            "sha256": info.sha256,
            "abi": info.abi,
            "merge": info.merge,
            "outputs": info.outputs,
            "udf_kind": info.kind,
            "limits": {name: float(value) for name, value in info.limits.numbers().items()},
            "kind": report.kind.value,
            "reason": report.detail[:_TEXT_MAX],
            "call": report.call,
            "metered": report.metered,
            "memory_bytes": report.memory_bytes,
            "backtrace": list(report.frames),
            **{name: getattr(event, name) for name in _EVENT},
            "rows": [{"key": key, "row": row} for key, row in report.rows],
            "rows_whole": report.rows_whole,
            "held": held,
        },
    )


_EVENT = ("append_ms", "hlc", "expires_ms", "generation", "op", "offset", "part")


def decode_box(raw: bytes, key: bytes | None, value: bytes | None, known: SchemaSet | None = None) -> BlackBox:
    """The box of a dead letter with this key and value. BadInput when it cannot be read.

    `known`: the schemas that it may be written with; those of other versions are resolved to this one's.
    """
    schema = load_builtin()[SCHEMA]
    try:
        writer = (known or SchemaSet([schema])).known(wire_schema_id(raw))
        body: dict[str, Any] = dict(decode_body(schema, project(raw, writer, schema)))
    except BadInput as error:
        raise BadInput(f"the header {HEADER} cannot be read: {error.detail}", field="RECORD") from None
    limits = _limits(body["limits"])
    info = UdfInfo(
        body["udf"],
        body["version"],
        body["table"],
        body["sha256"],
        body["merge"],
        body["outputs"],
        limits,
        body["abi"],
        body["udf_kind"],
    )
    event = Event(key=key or b"", value=value or b"", **{name: body[name] for name in _EVENT})
    return BlackBox(
        info,
        event,
        body["kind"],
        body["reason"],
        body["call"],
        body["metered"],
        body["memory_bytes"],
        tuple(body["backtrace"]),
        tuple((bytes(each["key"]), None if each["row"] is None else bytes(each["row"])) for each in body["rows"]),
        body["rows_whole"],
        body["held"],
    )


def _limits(numbers: Mapping[str, float]) -> Limits:
    """Those that this version knows; a newer one's others had no part in a trap that this one can show."""
    known = {each.name for each in fields(Limits)}
    whole = {name: value if name.endswith("_s") else int(value) for name, value in numbers.items() if name in known}
    return Limits(**whole)  # type: ignore[arg-type]
