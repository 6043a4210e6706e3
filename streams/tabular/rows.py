"""A slice of rows from any source, as typed cells with a mask of those that are right beyond doubt."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime
from datetime import time as time_of_day
from decimal import Decimal
from typing import Any, Protocol

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from streams.model.errors import BadInput
from streams.model.ttl import parse_ttl_ms
from streams.serde import parse_json
from streams.serde.frame_columns import Array
from streams.tabular.ipc import checked_columns
from streams.tabular.texts import decoded, flat, is_coded, is_text

Cells = tuple[Any, Array]
"""Cells of a column, and which of them are right. Wrong ones hold anything."""

EXACT_MAX = 1 << 53

_INTEGER = r"^-?(0|[1-9][0-9]{0,17})$"
_NUMBER = r"^-?(0|[1-9][0-9]{0,14})(\.[0-9]+)?([eE][+-]?[0-9]{1,2})?$"
_TEXT = r"^[^\s\"\[{\-0-9]"
_WORD = r"^(true|false|null)\s*$"


class Rows(Protocol):
    """Rows in columns. `numbers`: each row's place in the input, from 1; `keys`: Arrow text, coded or null for none."""

    numbers: Array
    keys: Any

    def longs(self, name: str) -> Cells:
        """A column as int64."""
        ...

    def doubles(self, name: str) -> Cells:
        """A column as float64: finite, and exact where it was an integer."""
        ...

    def booleans(self, name: str) -> Cells:
        """A column as booleans."""
        ...

    def texts(self, name: str) -> Cells:
        """A column as Arrow text, maybe coded."""
        ...

    def times_ms(self, name: str, default_ms: int) -> Cells:
        """A column of times as epoch milliseconds; `default_ms` where there is none."""
        ...

    def only(self, names: Sequence[str]) -> Array:
        """Which rows have no other fields than `names`."""
        ...

    def bodies(self, rows: Array) -> list[object]:
        """The values of `rows` as JSON; a BadInput in place of one that is none."""
        ...

    def ttls_ms(self) -> tuple[Array | None, dict[int, BadInput]]:
        """Each row's TTL, 0 for none; None when no row has one. The errors by row."""
        ...

    def taken(self, rows: Array) -> Rows:
        """Some of the rows."""
        ...


class ArrowRows:
    """Rows of an Arrow record batch with a column `key`. Validated: what comes from outside may be corrupt."""

    def __init__(self, batch: Any, first_number: int = 1) -> None:
        self._columns = checked_columns(batch)
        if "key" not in self._columns:
            raise BadInput("there is no column `key`", field="key", fix="name it key")
        try:
            self.keys = _key_text(self._columns.pop("key"))
        except pa.ArrowException as error:
            raise BadInput(f"not Arrow: {str(error)[:160]}", field="body", fix="send a valid Arrow stream") from None
        ttl = self._columns.pop("ttl", None)
        self._ttl = None if ttl is None else decoded(ttl)
        self.numbers = np.arange(first_number, first_number + len(batch))

    @property
    def names(self) -> list[str]:
        """The value's columns."""
        return list(self._columns)

    def taken(self, rows: Array) -> ArrowRows:
        """Some of the rows."""
        made = ArrowRows.__new__(ArrowRows)
        index = pa.array(rows)
        made._columns = {name: column.take(index) for name, column in self._columns.items()}
        made._ttl = None if self._ttl is None else self._ttl.take(index)
        made.keys, made.numbers = self.keys.take(index), self.numbers[rows]
        return made

    def longs(self, name: str) -> Cells:
        """A column as int64."""
        column = self._columns.get(name)
        if column is None or not pa.types.is_integer(column.type):
            return self._none(np.int64)
        right = _valid(column)
        if pa.types.is_uint64(column.type):
            right &= _array(pc.less_equal(column, pa.scalar(2**63 - 1, pa.uint64())), False)
        return _array(pc.cast(column, pa.int64(), safe=False), 0), right

    def doubles(self, name: str) -> Cells:
        """A column as float64."""
        column = self._columns.get(name)
        if column is None or not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
            return self._none(np.float64)
        found = _array(pc.cast(column, pa.float64(), safe=False), 0.0)
        right = _valid(column) & np.isfinite(found)
        if pa.types.is_integer(column.type):
            right &= np.abs(found) < EXACT_MAX
        return found, right

    def booleans(self, name: str) -> Cells:
        """A column as booleans."""
        column = self._columns.get(name)
        if column is None or not pa.types.is_boolean(column.type):
            return self._none(np.bool_)
        return _array(column, False), _valid(column)

    def texts(self, name: str) -> Cells:
        """A column as Arrow text."""
        column = self._columns.get(name)
        if column is not None and is_coded(column):
            return column, np.ones(len(column), bool)
        if column is None or not is_text(column.type):
            return pa.array([""] * len(self.numbers), pa.large_string()), np.zeros(len(self.numbers), bool)
        return pc.fill_null(flat(column), ""), _valid(column)

    def times_ms(self, name: str, default_ms: int) -> Cells:
        """A column of times as epoch milliseconds."""
        column = self._columns.get(name)
        if column is None:
            return np.full(len(self.numbers), default_ms), np.ones(len(self.numbers), bool)
        return _times_ms(decoded(column), default_ms)

    def only(self, names: Sequence[str]) -> Array:
        """Which rows have no other fields: a null in another column is none."""
        right = np.ones(len(self.numbers), bool)
        for name, column in self._columns.items():
            if name not in names:
                right &= ~_valid(column)
        return right

    def bodies(self, rows: Array) -> list[object]:
        """The values as JSON. A column `value` alone is the value itself; nulls beside others are left out."""
        index = pa.array(rows)
        columns = {name: decoded(column.take(index)).to_pylist() for name, column in self._columns.items()}
        if columns.keys() == {"value"}:
            return [_plain(cell) for cell in columns["value"]]
        made: list[object] = []
        for row in zip(*columns.values(), strict=True) if columns else [()] * len(rows):
            found = {name: _plain(cell) for name, cell in zip(columns, row, strict=True) if cell is not None}
            made.append(next((each for each in found.values() if isinstance(each, BadInput)), found))
        return made

    def ttls_ms(self) -> tuple[Array | None, dict[int, BadInput]]:
        """Seconds as numbers, or text with units."""
        if self._ttl is None or self._ttl.null_count == len(self._ttl):
            return None, {}
        return ttl_column(self._ttl)

    def _none(self, kind: Any) -> Cells:
        return np.zeros(len(self.numbers), kind), np.zeros(len(self.numbers), bool)


class CsvRows(ArrowRows):
    """Rows of CSV cells: each a JSON value, or text that is none; empty for nothing."""

    def __init__(self, columns: dict[str, Any], numbers: Array) -> None:
        self._cells = columns
        self.keys = columns["key"]
        self._value_names = [name for name in columns if name not in ("key", "ttl")]
        self._columns = {name: _nulled(columns[name]) for name in self._value_names}
        self._ttl = _nulled(columns["ttl"]) if "ttl" in columns else None
        self.numbers = numbers

    def taken(self, rows: Array) -> CsvRows:
        """Some of the rows."""
        index = pa.array(rows)
        return CsvRows({name: column.take(index) for name, column in self._cells.items()}, self.numbers[rows])

    def longs(self, name: str) -> Cells:
        """Cells that are integers in JSON."""
        return self._parsed(name, _INTEGER, pa.int64())

    def doubles(self, name: str) -> Cells:
        """Cells that are numbers in JSON."""
        return self._parsed(name, _NUMBER, pa.float64())

    def booleans(self, name: str) -> Cells:
        """Cells `true` and `false`."""
        cells = self._columns.get(name)
        if cells is None:
            return self._none(np.bool_)
        yes, no = (_array(pc.equal(cells, word), False) for word in ("true", "false"))
        return yes, yes | no

    def texts(self, name: str) -> Cells:
        """Cells that can be no JSON."""
        cells = self._columns.get(name)
        if cells is None:
            return super().texts(name)
        plain = _array(pc.match_substring_regex(cells, _TEXT), False)
        return pc.fill_null(cells, ""), plain & ~_array(pc.match_substring_regex(cells, _WORD), False)

    def times_ms(self, name: str, default_ms: int) -> Cells:
        """Cells of milliseconds or ISO 8601."""
        cells = self._columns.get(name)
        if cells is None or cells.null_count == len(cells):
            return np.full(len(self.numbers), default_ms), np.ones(len(self.numbers), bool)
        found, right = self.longs(name)
        if not right.any():
            return _times_ms(cells, default_ms)
        missing = ~_valid(cells)
        return np.where(missing, default_ms, found), right | missing

    def bodies(self, rows: Array) -> list[object]:
        """The values as JSON."""
        index = pa.array(rows)
        columns = {name: self._cells[name].take(index).to_pylist() for name in self._value_names}
        if columns.keys() == {"value"}:
            return [_judged_cell(text) for text in columns["value"]]
        made: list[object] = []
        for row in zip(*columns.values(), strict=True):
            found = {name: _judged_cell(text) for name, text in zip(columns, row, strict=True) if text != ""}
            made.append(next((each for each in found.values() if isinstance(each, BadInput)), found))
        return made

    def _parsed(self, name: str, pattern: str, kind: Any) -> Cells:
        cells = self._columns.get(name)
        if cells is None:
            return self._none(kind.to_pandas_dtype())
        right = _array(pc.match_substring_regex(cells, pattern), False) & _array(pc.not_equal(cells, "-0"), False)
        whole = cells if right.all() else pc.if_else(pa.array(right), cells, "0")
        return _array(pc.cast(whole, kind), 0), right


class JsonRows:
    """Rows of parsed JSON: `values` beside `keys` and `ttls` (None for none)."""

    def __init__(self, keys: Any, values: list[Any], ttls: list[Any] | None, numbers: Array) -> None:
        self.keys, self.numbers = keys, numbers
        self._values, self._ttls = values, ttls
        self._objects = set(map(type, values)) <= {dict}

    def taken(self, rows: Array) -> JsonRows:
        """Some of the rows."""
        at = rows.tolist()
        ttls = None if self._ttls is None else [self._ttls[i] for i in at]
        return JsonRows(self.keys.take(pa.array(rows)), [self._values[i] for i in at], ttls, self.numbers[rows])

    def longs(self, name: str) -> Cells:
        """Integers."""
        return self._numbers(name, {int}, np.int64, 0)

    def doubles(self, name: str) -> Cells:
        """Numbers."""
        found, right = self._numbers(name, {int, float}, np.float64, 0.0)
        return found, right & (np.abs(found) < EXACT_MAX)

    def booleans(self, name: str) -> Cells:
        """Booleans."""
        return self._numbers(name, {bool}, np.bool_, False)

    def texts(self, name: str) -> Cells:
        """Strings."""
        cells = self._get(name)
        right = self._typed(cells, {str})
        return pa.array(
            cells if right.all() else [c if type(c) is str else "" for c in cells], pa.large_string()
        ), right

    def times_ms(self, name: str, default_ms: int) -> Cells:
        """Milliseconds or ISO 8601."""
        cells = self._get(name)
        if set(map(type, cells)) == {str}:
            return _times_ms(pa.array(cells, pa.large_string()), default_ms)
        found, right = self.longs(name)
        missing = np.fromiter((cell is None for cell in cells), bool, len(cells))
        return np.where(missing, default_ms, found), right | missing

    def only(self, names: Sequence[str]) -> Array:
        """Which rows have no other fields."""
        count = len(self._values)
        if self._objects and set(map(len, self._values)) == {len(names)}:
            return np.ones(count, bool)  # a wrong name is then a missing one
        known = set(names)
        return np.fromiter((type(v) is dict and v.keys() <= known for v in self._values), bool, count)

    def bodies(self, rows: Array) -> list[object]:
        """The values."""
        return [self._values[i] for i in rows.tolist()]

    def ttls_ms(self) -> tuple[Array | None, dict[int, BadInput]]:
        """As `parse_ttl_ms` reads them."""
        if self._ttls is None:
            return None, {}
        found, wrong = np.zeros(len(self._ttls), np.int64), {}
        for row, ttl in enumerate(self._ttls):
            if ttl is not None:
                try:
                    found[row] = parse_ttl_ms(ttl)
                except BadInput as error:
                    wrong[row] = error
        return found, wrong

    def _get(self, name: str) -> list[Any]:
        if self._objects:
            return [value.get(name) for value in self._values]
        return [value.get(name) if type(value) is dict else None for value in self._values]

    @staticmethod
    def _typed(cells: list[Any], kinds: set[type]) -> Array:
        if set(map(type, cells)) <= kinds:
            return np.ones(len(cells), bool)
        return np.fromiter((type(cell) in kinds for cell in cells), bool, len(cells))

    def _numbers(self, name: str, kinds: set[type], kind: Any, zero: object) -> Cells:
        cells = self._get(name)
        right = self._typed(cells, kinds)
        try:
            return np.array(cells if right.all() else [c if type(c) in kinds else zero for c in cells], kind), right
        except OverflowError:
            return np.zeros(len(cells), kind), np.zeros(len(cells), bool)


def csv_cell(text: str) -> object:
    """A cell's JSON value; text that is no JSON stands for itself, unless it set out to be JSON."""
    try:
        return orjson.loads(text) if text[:1] not in "{[" else parse_json(text, field="value")
    except orjson.JSONDecodeError:
        if text[:1] == '"':
            raise BadInput("a JSON string that does not end", field="value") from None
        return text


def ttl_column(column: Any) -> tuple[Array, dict[int, BadInput]]:
    """An Arrow column of TTLs in milliseconds, 0 for null, and what is wrong by row."""
    encoded = column.dictionary_encode()
    table, reasons = [0], {}
    for index, given in enumerate(encoded.dictionary.to_pylist(), 1):
        try:
            table.append(parse_ttl_ms(given if isinstance(given, str | int | float) else str(given)))
        except BadInput as error:
            table.append(0)
            reasons[index] = error
    codes = _array(pc.add(pc.cast(encoded.indices, pa.int64()), 1), 0)
    wrong = {int(row): reasons[int(codes[row])] for row in np.flatnonzero(np.isin(codes, list(reasons)))}
    return np.array(table, np.int64)[codes], wrong


def _judged_cell(text: str) -> object:
    try:
        return csv_cell(text)
    except BadInput as error:
        return error


def _nulled(cells: Any) -> Any:
    return pc.if_else(pc.equal(cells, ""), pa.scalar(None, cells.type), cells)


def _key_text(column: Any) -> Any:
    if is_coded(column):
        return column
    if is_text(column.type) or pa.types.is_integer(column.type):
        return flat(column)
    if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
        return pc.cast(column, pa.large_string())
    return pa.nulls(len(column), pa.large_string())


def _valid(column: Any) -> Array:
    if not column.null_count:
        return np.ones(len(column), bool)
    return pc.is_valid(column).to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]


def _array(column: Any, null: object) -> Array:
    """An Arrow column as a numpy array, `null` in place of nulls."""
    if column.null_count:
        column = pc.fill_null(column, pa.scalar(null, column.type))
    return column.to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]


def _times_ms(column: Any, default_ms: int) -> Cells:
    right = _valid(column)
    if pa.types.is_null(column.type):
        return np.full(len(column), default_ms), ~right
    try:
        if is_text(column.type):
            column = _parsed_times(column)
        if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
            zone = getattr(column.type, "tz", None)
            column = pc.cast(pc.cast(column, pa.timestamp("ms", zone), safe=False), pa.int64())
        elif not pa.types.is_integer(column.type):
            return np.full(len(column), default_ms), ~right
    except pa.ArrowException:
        return np.full(len(column), default_ms), ~right
    found = _array(pc.cast(column, pa.int64(), safe=False), default_ms)
    return found, np.ones(len(column), bool)


def _parsed_times(texts: Any) -> Any:
    """ISO 8601 of one kind: all without an offset (then UTC), or all with one."""
    try:
        return pc.cast(texts, pa.timestamp("us"))
    except pa.ArrowInvalid:
        return pc.cast(texts, pa.timestamp("us", "UTC"))


def _plain(cell: Any) -> Any:
    """An Arrow cell as JSON has it; a BadInput for what JSON cannot say."""
    if isinstance(cell, float) and not np.isfinite(cell):
        return BadInput(f"{cell} is no JSON number", field="value", fix="leave it out, or put null")
    if isinstance(cell, datetime | date | time_of_day):
        return cell.isoformat()
    if isinstance(cell, Decimal):
        return str(cell)
    if isinstance(cell, bytes):
        return cell.decode("latin-1")
    if isinstance(cell, dict):
        return {name: _plain(each) for name, each in cell.items()}
    if isinstance(cell, list):
        return [_plain(each) for each in cell]
    return cell
