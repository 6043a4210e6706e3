"""Tables of puts checked as single puts are (puts.py), by column: bad rows are left out and told, the rest goes on."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from streams.model.errors import BadInput
from streams.model.keys import KEY_BYTES_MAX
from streams.model.keyspace import Keyspace
from streams.model.ttl import TTL_MS_MAX, TTL_MS_MIN, parse_ttl_ms
from streams.serde.codec import PREFIX_BYTES
from streams.serde.frame_columns import Array, Columns, Dictionary, Items, Raw, Texts, texts_of
from streams.serde.json_text import dump_json
from streams.serde.mapping import timestamp
from streams.serde.puts import ADD_MAX, METRIC_BYTES_MAX, TIME_MS_MAX, to_avro
from streams.serde.schemas import AvroSchema

_EXACT_MAX = 2**53
_FIX = "give columns of one length: `key`, the value's fields or `value`, and maybe `ttl`"


@dataclass(frozen=True, slots=True)
class RejectedRow:
    """A row of a table that is no put of its keyspace, and why."""

    index: int
    reason: str


def columns_for(
    keyspace: Keyspace, table: Mapping[str, Any], schema: AvroSchema | None = None, now_ms: int | None = None
) -> tuple[Columns, list[RejectedRow]]:
    """The good puts of `table` as columns for `encode_frames`, in order, and the rows left out.

    `table`: `key` (keyspace:rest), `ttl` (seconds or words; absent or None: none), and the value's fields, or `value`
    alone for free-form ones. `schema`: of keyspaces with one of their own. `now_ms`: the time of readings without one.
    BadInput for a table of another shape.
    """
    if "key" not in table:
        raise BadInput("there is no column `key`", field="table", fix=_FIX)
    keys = texts_of(table["key"], "key")
    check = _Check(len(keys))
    check.items(keys, _bad_keys(keys, keyspace.name))
    ttl_ms = None if table.get("ttl") is None else _ttls(table["ttl"], check)
    fields = {name: cells for name, cells in table.items() if name not in ("key", "ttl") and cells is not None}
    for name, cells in fields.items():
        size = _rows(cells)
        if size != len(keys):
            raise BadInput(f"{size} cells for {len(keys)} keys", field=name[:80], fix=_FIX)
    write = _WRITERS.get(keyspace.schema)
    if write is not None:
        value: Mapping[str, Any] | Raw = write(fields, check, now_ms)
    else:
        value = _own_bodies(keyspace, fields, check, schema)
    return check.kept(keys, value, ttl_ms)


class _Check:
    """Which rows are bad, and the first reason of each."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._reasons: dict[int, str] = {}

    def rows(self, bad: Array, reason: str) -> None:
        """Every row of the mask `bad` has this reason, unless it has one."""
        for row in np.flatnonzero(bad).tolist():
            self._reasons.setdefault(row, reason)

    def row(self, index: int, reason: str) -> None:
        """The same of one row."""
        self._reasons.setdefault(index, reason)

    def items(self, texts: Texts, reasons: list[tuple[Array, str]]) -> None:
        """Reasons of distinct items, for all rows that have them."""
        for bad, reason in reasons:
            if bool(bad.any()):
                self.rows(bad if texts.codes is None else bad[texts.codes], reason)

    def kept(
        self, keys: Texts, value: Mapping[str, Any] | Raw, ttl_ms: Array | None
    ) -> tuple[Columns, list[RejectedRow]]:
        """The columns without the bad rows, and those."""
        rejected = [RejectedRow(row, reason) for row, reason in sorted(self._reasons.items())]
        if not rejected:
            return Columns(keys, value, ttl_ms), []
        good = np.ones(self.count, bool)
        good[[each.index for each in rejected]] = False
        rows = np.flatnonzero(good)
        if isinstance(value, Raw):
            value = Raw(_taken(value.cells, rows))
        else:
            value = {name: _taken(cells, rows) for name, cells in value.items()}
        return Columns(_taken(keys, rows), value, None if ttl_ms is None else ttl_ms[rows]), rejected


def _taken(cells: Any, rows: Array) -> Any:
    if isinstance(cells, Texts):
        return Texts(cells.blob, cells.starts, cells.lengths, cells.row_items(rows))
    return cells[rows]


def _rows(cells: Any) -> int:
    if isinstance(cells, Items):
        return len(cells.ends)
    if isinstance(cells, str | bytes) or (not hasattr(cells, "__len__") and not isinstance(cells, Dictionary)):
        raise BadInput(f"{type(cells).__name__} is no column", field="table", fix=_FIX)
    return len(cells.indices) if isinstance(cells, Dictionary) else len(cells)


def _not_utf8(texts: Texts) -> Array:
    bad = np.zeros(len(texts.starts), bool)
    if not len(texts.blob) or int(texts.blob.max()) < 0x80:
        return bad
    for i in range(len(bad)):
        try:
            texts.item(i).decode()
        except UnicodeDecodeError:
            bad[i] = True
    return bad


def _bad_keys(keys: Texts, keyspace: str) -> list[tuple[Array, str]]:
    prefix = np.frombuffer(f"{keyspace}:".encode(), np.uint8)
    foreign = keys.lengths <= len(prefix)
    inside = np.flatnonzero(~foreign)
    for at, byte in enumerate(prefix.tolist()):
        foreign[inside] |= keys.blob[keys.starts[inside] + at] != byte
    return [
        (keys.lengths == 0, "key: the key is empty"),
        (keys.lengths > KEY_BYTES_MAX, f"key: the key has over {KEY_BYTES_MAX} bytes"),
        (_not_utf8(keys), "key: the key is not UTF-8"),
        (foreign, f"key: the key is not {keyspace}:rest"),
    ]


def _ttls(cells: Any, check: _Check) -> Array:
    given = np.asarray(cells, None if hasattr(cells, "dtype") else object)
    if given.ndim != 1 or len(given) != check.count:
        raise BadInput("one TTL per key", field="ttl", fix=_FIX)
    if given.dtype.kind in "iuf":
        seconds = given.astype("f8")
        absent = np.isnan(seconds)
        ms = np.where(absent, 0, seconds * 1_000)
        bad = ~absent & ~((ms >= TTL_MS_MIN) & (ms < TTL_MS_MAX + 1))
        check.rows(bad, "ttl: the TTL is not from 1 second to 100 years")
        return np.where(bad, 0, ms).astype("i8")
    found = np.zeros(check.count, "i8")
    for row, cell in enumerate(given.tolist()):
        try:
            found[row] = 0 if cell is None or cell != cell else parse_ttl_ms(cell)
        except (BadInput, AttributeError) as error:
            check.row(row, str(error) if isinstance(error, BadInput) else "ttl: no TTL")
    return found


def _numbers(cells: Any, field: str, check: _Check, *, whole: bool) -> Array:
    """Integers up to 2**53 or finite floats; other rows are bad and 0."""
    given = np.asarray(cells)
    fix = f"{field}: not {'a whole number' if whole else 'a finite number'} of at most 2**53"
    if given.ndim != 1 or len(given) != check.count:
        raise BadInput("the column is not one number per key", field=field, fix=_FIX)
    if given.dtype.kind in "iu" or (given.dtype.kind == "f" and not whole):
        bad = ~np.isfinite(given)
        if given.dtype.kind in "iu":
            bad |= (given > _EXACT_MAX) | ((given < -_EXACT_MAX) if given.dtype.kind == "i" else False)
        check.rows(bad, fix)
        return np.where(bad, 0, given).astype("i8" if whole else "f8")
    made = np.zeros(check.count, "i8" if whole else "f8")
    cells = given.tolist() if given.dtype.kind == "f" or not isinstance(cells, list | tuple) else cells
    for row, cell in enumerate(cells):
        fits = type(cell) is int and abs(cell) <= _EXACT_MAX
        if fits or (not whole and type(cell) is float and math.isfinite(cell)):
            made[row] = cell
        else:
            check.row(row, fix)
    return made


def _only(fields: Mapping[str, Any], wanted: tuple[str, ...], optional: tuple[str, ...] = ()) -> None:
    for name in fields:
        if name not in wanted and name not in optional:
            raise BadInput("there is no such field here", field=name[:80], fix=f"the fields are {', '.join(wanted)}")
    for name in wanted:
        if name not in fields:
            raise BadInput("the column is missing", field=name, fix=_FIX)


def _counter(fields: Mapping[str, Any], check: _Check, _now_ms: int | None) -> dict[str, Any]:
    _only(fields, ("add",))
    assert ADD_MAX == _EXACT_MAX
    return {"add": _numbers(fields["add"], "add", check, whole=True)}


def _number(fields: Mapping[str, Any], check: _Check, _now_ms: int | None) -> dict[str, Any]:
    _only(fields, ("value",))
    return {"value": _numbers(fields["value"], "value", check, whole=False)}


def _reading(fields: Mapping[str, Any], check: _Check, now_ms: int | None) -> dict[str, Any]:
    _only(fields, ("metric", "value"), ("time",))
    metric = texts_of(fields["metric"], "metric")
    lengths = metric.lengths
    check.items(
        metric,
        [
            ((lengths == 0) | (lengths > METRIC_BYTES_MAX), f"metric: not 1 to {METRIC_BYTES_MAX} bytes"),
            (_not_utf8(metric), "metric: not UTF-8"),
        ],
    )
    value = _numbers(fields["value"], "value", check, whole=False)
    now = time.time_ns() // 1_000_000 if now_ms is None else now_ms
    return {"metric": metric, "value": value, "time": _times(fields.get("time"), check, now)}


def _times(cells: Any, check: _Check, now_ms: int) -> Array:
    if cells is None:
        return np.full(check.count, now_ms, "i8")
    given = np.asarray(cells, None if hasattr(cells, "dtype") else object)
    if given.dtype.kind == "M":
        found = given.astype("M8[ms]").astype("i8")
        found = np.where(np.isnat(given), now_ms, found)
    elif given.dtype.kind in "iu":
        found = given.astype("i8")
    else:
        found = np.full(check.count, -1, "i8")
        for row, cell in enumerate(given.tolist()):
            try:
                found[row] = now_ms if cell is None else timestamp(cell, "time", 1_000)
            except BadInput as error:
                check.row(row, str(error))
    check.rows((found < 0) | (found > TIME_MS_MAX), "time: not from 1970 to 9999")
    return found


def _json(fields: Mapping[str, Any], check: _Check, _now_ms: int | None) -> dict[str, Any]:
    cells = []
    for row, body in enumerate(_bodies(fields)):
        try:
            cells.append(dump_json(body))
        except (TypeError, BadInput) as error:
            check.row(row, f"value: not JSON: {error}")
            cells.append(b"null")
    return {"json": texts_of(cells, "value")}


def _own_bodies(keyspace: Keyspace, fields: Mapping[str, Any], check: _Check, schema: AvroSchema | None) -> Raw:
    """Values of the keyspace's own schema, row by row: any schema will do, at the speed of single puts."""
    cells = []
    for row, body in enumerate(_bodies(fields)):
        try:
            cells.append(to_avro(keyspace, body, schema)[PREFIX_BYTES:])
        except BadInput as error:
            if schema is None:
                raise
            check.row(row, str(error))
            cells.append(b"")
    return Raw(texts_of(cells, "value"))


def _bodies(fields: Mapping[str, Any]) -> list[Any]:
    """Each row's value: `value` itself, or an object of the fields."""
    if not fields:
        raise BadInput("there is no column of values", field="table", fix=_FIX)
    plain = {name: _plain(cells, name) for name, cells in fields.items()}
    if plain.keys() == {"value"}:
        return plain["value"]
    return [dict(zip(plain, row, strict=True)) for row in zip(*plain.values(), strict=True)]


def _plain(cells: Any, field: str) -> list[Any]:
    if isinstance(cells, Items | Dictionary):
        texts = texts_of(cells, field)
        uniques = [texts.item(i).decode("utf-8", "replace") for i in range(len(texts.starts))]
        return [uniques[i] for i in texts.row_items(np.arange(len(texts))).tolist()]
    return cells.tolist() if hasattr(cells, "tolist") else list(cells)


_Writer = Callable[[Mapping[str, Any], _Check, int | None], dict[str, Any]]
_WRITERS: dict[str, _Writer] = {
    "streams.CounterAdd": _counter,
    "streams.Number": _number,
    "streams.Reading": _reading,
    "streams.Json": _json,
}
