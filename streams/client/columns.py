"""Bulk input of any shape as NDJSON lines: dicts of columns, data frames, Arrow tables, iterables of puts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import orjson

from streams.model.errors import BadInput

_FIX = "pass a dict of columns of one length with a `key` column, a data frame, or puts as dicts"


def lines_of(keyspace: str | None, table: Any, default_ttl: float | str | None = None) -> Iterator[bytes]:
    """NDJSON lines of `{"key", "value", "ttl"?}`.

    Columns: `key` (with the keyspace, or `keyspace` is put before it), `value` or the value's fields, and `ttl`.
    BadInput when the shape is none of these. pandas, polars and Arrow are recognised by their methods, not imported.
    """
    for row in _rows(table):
        key, ttl = row.get("key"), row.get("ttl", default_ttl)
        if keyspace is not None and isinstance(key, str) and not key.startswith(f"{keyspace}:"):
            key = f"{keyspace}:{key}"
        fields = {k: v for k, v in row.items() if k not in ("key", "ttl")}
        value = fields["value"] if fields.keys() == {"value"} else fields
        put = {"key": key, "value": value} if ttl is None else {"key": key, "value": value, "ttl": ttl}
        yield dump(put, repr(key)) + b"\n"


def dump(value: Any, what: str = "the value") -> bytes:
    """`value` as one JSON text. BadInput for what is no JSON value; NaN and infinities are none."""
    try:
        text = orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
    except TypeError as error:
        raise BadInput(f"{what}: {error}", field="value", fix="put JSON values") from None
    if b"null" in text:
        _refuse_not_finite(value, what)
    return text


def _refuse_not_finite(value: Any, what: str) -> None:
    if isinstance(value, dict):
        for each in value.values():
            _refuse_not_finite(each, what)
    elif isinstance(value, list | tuple):
        for each in value:
            _refuse_not_finite(each, what)
    elif value is not None and not isinstance(value, str | bytes | int):
        numbers = value.ravel().tolist() if hasattr(value, "ravel") else [value]
        for number in numbers:
            if isinstance(number, float) and not math.isfinite(number):
                raise BadInput(f"{what}: {number} is no JSON number", field="value", fix="leave it out, or put null")


def _rows(table: Any) -> Iterator[Mapping[str, Any]]:
    if hasattr(table, "to_pylist"):  # pyarrow.Table
        yield from table.to_pylist()
    elif hasattr(table, "iter_rows"):  # polars.DataFrame
        yield from table.iter_rows(named=True)
    elif hasattr(table, "to_dict") and hasattr(table, "columns"):  # pandas.DataFrame
        yield from table.to_dict(orient="records")
    elif isinstance(table, Mapping):
        yield from _zipped(table)
    elif isinstance(table, Iterable) and not isinstance(table, str | bytes):
        for row in table:
            if not isinstance(row, Mapping):
                raise BadInput(f"{type(row).__name__} is no put", field="table", fix=_FIX)
            yield row
    else:
        raise BadInput(f"{type(table).__name__} is no table", field="table", fix=_FIX)


def _zipped(columns: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    if "key" not in columns:
        raise BadInput("there is no column `key`", field="table", fix=_FIX)
    plain = {name: column.tolist() if hasattr(column, "tolist") else list(column) for name, column in columns.items()}
    if len({len(column) for column in plain.values()}) > 1:
        raise BadInput("the columns differ in length", field="table", fix=_FIX)
    names = list(plain)
    for row in zip(*plain.values(), strict=True):
        yield dict(zip(names, row, strict=True))
