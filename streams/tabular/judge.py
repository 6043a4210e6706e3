"""Rows of one keyspace as columns for frames: what is right beyond doubt in bulk, every other row by `to_avro`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from streams.model.errors import BadInput
from streams.model.keys import KEY_BYTES_MAX, is_name, validate_key
from streams.model.keyspace import Keyspace
from streams.model.ttl import TTL_MS_MAX, TTL_MS_MIN
from streams.serde import PREFIX_BYTES, AvroSchema, decode_body, to_avro
from streams.serde.frame_columns import Array, Columns, Raw
from streams.serde.puts import ADD_MAX, AHEAD_MS_MAX, METRIC_BYTES_MAX, TIME_MS_MAX
from streams.tabular.rows import Rows
from streams.tabular.texts import by_row, decoded, flat, is_coded, items_of, words_of

REASON_CHARACTERS = 300
VALUE_BYTES_MAX = 16 << 20
_FLAT = {"long", "double", "string", "boolean"}
_NO_KEY = BadInput("the key is missing or no string", field="key", fix='send {"key", "value", "ttl"?}')


@dataclass(frozen=True, slots=True)
class Rejection:
    """A row that is no put: its place in the input, from 1, and why."""

    line: int
    reason: str


@dataclass(frozen=True, slots=True)
class Judged:
    """The puts of one keyspace, in order. `numbers`: each one's place in the input; `keys`: Arrow text, maybe coded."""

    columns: Columns
    numbers: Array
    keys: Any

    def __len__(self) -> int:
        """How many puts."""
        return len(self.numbers)


def with_keyspace(keys: Any, keyspace: str) -> Any:
    """Keys with the keyspace put before those that do not have it."""
    if is_coded(keys):
        words = with_keyspace(keys.dictionary, keyspace)
        return pa.DictionaryArray.from_arrays(keys.indices, words, safe=False)
    prefix = f"{keyspace}:"
    keys = flat(keys)
    have = pc.starts_with(keys, prefix)
    if pc.all(have, skip_nulls=False).as_py():
        return keys
    return pc.if_else(
        have, keys, pc.binary_join_element_wise(pa.scalar(prefix, keys.type), keys, pa.scalar("", keys.type))
    )


def by_keyspace(rows: Rows) -> Iterator[tuple[str, Rows]]:
    """The rows split by what their keys name, in order of first appearance; '' for keys that name nothing."""
    first = rows.keys[0].as_py()
    name = _named(first)
    if name and _all_of(rows.keys, f"{name}:"):
        yield name, rows
        return
    groups: dict[str, list[int]] = {}
    for index, key in enumerate(rows.keys.to_pylist()):
        groups.setdefault(_named(key), []).append(index)
    for name, found in groups.items():
        yield name, rows.taken(np.array(found))


def _all_of(keys: Any, prefix: str) -> bool:
    have = pc.starts_with(words_of(keys), prefix)
    if pc.all(have, skip_nulls=False).as_py():
        return True
    return is_coded(keys) and bool(by_row(keys, have.to_numpy(zero_copy_only=False)).all())


def _named(key: str | None) -> str:
    name, colon, _ = (key or "").partition(":")
    return name if colon and is_name(name) else ""


def key_rejections(rows: Rows) -> list[Rejection]:
    """Rows whose keys name no keyspace, each refused for what is wrong with its key."""
    found = []
    for number, key in zip(rows.numbers.tolist(), rows.keys.to_pylist(), strict=True):
        found.append(Rejection(number, str(_key_error(key) or _NO_KEY)[:REASON_CHARACTERS]))
    return found


def rejected(rows: Rows, error: Exception) -> list[Rejection]:
    """Every row refused for one reason."""
    return [Rejection(number, str(error)[:REASON_CHARACTERS]) for number in rows.numbers.tolist()]


def judge(
    rows: Rows, keyspace: Keyspace, schema: AvroSchema, ttl_ms: int | None = None, now_ms: int | None = None
) -> tuple[Judged, list[Rejection]]:
    """The puts among `rows`, all of `keyspace`, and why the others are none.

    `ttl_ms`: for rows that give none, before the keyspace's own. `now_ms`: the time of readings that give none.
    """
    now_ms = time.time_ns() // 1_000_000 if now_ms is None else now_ms
    wrong = _wrong_keys(rows.keys, keyspace)
    ttls, wrong_ttls = rows.ttls_ms()
    for row, error in wrong_ttls.items():
        wrong.setdefault(row, error)
    default_ms = keyspace.ttl_ms if ttl_ms is None else ttl_ms
    given: int | Array | None = default_ms
    if ttls is not None:
        given = np.where(ttls == 0, default_ms or 0, ttls)
        assert bool(((given == 0) | ((given >= TTL_MS_MIN) & (given <= TTL_MS_MAX))).all())
    value = _Values(rows, keyspace, schema, now_ms, wrong).columns()
    keys = rows.keys
    rejections = []
    if wrong:
        kept = np.ones(len(rows.numbers), bool)
        kept[list(wrong)] = False
        index = np.flatnonzero(kept)
        rejections = [Rejection(int(rows.numbers[row]), str(wrong[row])[:REASON_CHARACTERS]) for row in sorted(wrong)]
        value = {name: cells.take(pa.array(index)) if isinstance(cells, pa.Array) else cells[index]
                 for name, cells in value.items()}  # fmt: skip
        given = given[index] if isinstance(given, np.ndarray) else given
        keys, numbers = keys.take(pa.array(index)), rows.numbers[index]
    else:
        numbers = rows.numbers
    framed: Mapping[str, Any] | Raw
    if "" in value:
        framed = Raw(value[""].tolist())
    else:
        framed = {name: items_of(cells) if isinstance(cells, pa.Array) else cells for name, cells in value.items()}
    return Judged(Columns(items_of(keys), framed, given), numbers, keys), rejections


def _wrong_keys(keys: Any, keyspace: Keyspace) -> dict[int, BadInput]:
    lengths = pc.fill_null(pc.binary_length(words_of(keys)), 0).to_numpy(zero_copy_only=False)
    odd = (lengths > KEY_BYTES_MAX) | (lengths <= len(keyspace.name) + 1)
    wrong: dict[int, BadInput] = {}
    if not odd.any():
        return wrong
    for row in np.flatnonzero(by_row(keys, odd)).tolist():
        error = _key_error(keys[row].as_py())
        if error is not None:
            wrong[row] = error
    return wrong


def _key_error(key: str | None) -> BadInput | None:
    try:
        if key is None:
            return _NO_KEY
        validate_key(key)
    except BadInput as error:
        return error
    return None


class _Values:
    """The value's columns of one slice: by field, or under '' as whole Avro bodies."""

    def __init__(
        self, rows: Rows, keyspace: Keyspace, schema: AvroSchema, now_ms: int, wrong: dict[int, BadInput]
    ) -> None:
        self._rows, self._keyspace, self._schema, self._now_ms, self._wrong = rows, keyspace, schema, now_ms, wrong
        self._count = len(rows.numbers)

    def columns(self) -> dict[str, Any]:
        """By field; errors go to `wrong`."""
        if self._schema.name == "streams.Json" == self._keyspace.schema:
            return {"json": self._json()}
        fields = self._schema.tree.fields
        plain = self._schema.tree.kind == "record" and all(f.node.kind in _FLAT and not f.node.logical for f in fields)
        if not plain and self._keyspace.schema != "streams.Reading":
            return {"": self._bodies()}
        names = [member.name for member in fields]
        right = self._rows.only(names)
        cells: dict[str, Any] = {}
        for member in fields:
            cells[member.name], good = self._typed(member.name, member.node.kind)
            right &= good
        self._patch(cells, np.flatnonzero(~right))
        return cells

    def _typed(self, name: str, kind: str) -> tuple[Any, Array]:
        if self._keyspace.schema == "streams.Reading" and name == "time":
            found, right = self._rows.times_ms(name, self._now_ms)
            return found, right & (found >= 0) & (found <= min(TIME_MS_MAX, self._now_ms + AHEAD_MS_MAX))
        if kind == "long":
            found, right = self._rows.longs(name)
            if self._keyspace.schema == "streams.CounterAdd":
                right = right & (np.abs(found) <= ADD_MAX) & (found != np.iinfo(np.int64).min)
            return found, right
        if kind == "double":
            return self._rows.doubles(name)
        if kind == "boolean":
            return self._rows.booleans(name)
        found, right = self._rows.texts(name)
        if self._keyspace.schema == "streams.Reading":
            lengths = pc.binary_length(words_of(found)).to_numpy(zero_copy_only=False)
            fit = (lengths > 0) & (lengths <= METRIC_BYTES_MAX)
            right = right if fit.all() else right & by_row(found, fit)
        return found, right

    def _exact(self, rows: Array) -> Iterator[tuple[int, bytes]]:
        """Each row's value in wire format, if it has one."""
        for row, body in zip(rows.tolist(), self._rows.bodies(rows), strict=True):
            if row in self._wrong:
                continue
            try:
                if isinstance(body, BadInput):
                    raise body
                value = to_avro(self._keyspace, body, self._schema, self._now_ms)
                if len(value) > VALUE_BYTES_MAX:
                    raise BadInput(f"the value has {len(value)} bytes", field="value", fix="put less in one key")
            except BadInput as error:
                self._wrong[row] = error
                continue
            yield row, value

    def _patch(self, cells: dict[str, Any], odd: Array) -> None:
        """Put what `to_avro` makes of the odd rows in their places."""
        if not len(odd):
            return
        found = [(row, decode_body(self._schema, value)) for row, value in self._exact(odd)]
        if not found:
            return
        at = np.array([row for row, _ in found])
        for name, column in cells.items():
            exact = [record[name] for _, record in found]
            if isinstance(column, pa.Array):
                column = decoded(column)
                mask = np.zeros(self._count, bool)
                mask[at] = True
                cells[name] = pc.replace_with_mask(column, pa.array(mask), pa.array(exact, column.type))
            else:
                column = column if column.flags.writeable else column.copy()
                column[at] = exact
                cells[name] = column

    def _bodies(self) -> Array:
        bodies = np.empty(self._count, object)
        bodies[:] = b""
        for row, value in self._exact(np.arange(self._count)):
            bodies[row] = value[PREFIX_BYTES:]
        return bodies

    def _json(self) -> Any:
        bodies = self._rows.bodies(np.arange(self._count))
        try:
            return pa.array(list(map(orjson.dumps, bodies)), pa.large_binary()).cast(pa.large_string())
        except TypeError:
            pass
        texts: list[bytes] = []
        for row, body in enumerate(bodies):
            try:
                if isinstance(body, BadInput):
                    raise body
                texts.append(orjson.dumps(body))
            except (TypeError, BadInput) as error:
                self._wrong.setdefault(row, error if isinstance(error, BadInput) else _no_json(error))
                texts.append(b"null")
        return pa.array(texts, pa.large_binary()).cast(pa.large_string())


def _no_json(error: Exception) -> BadInput:
    return BadInput(f"not JSON: {error}", field="value", fix="send a JSON value")


def bounded(rejections: Sequence[Rejection], limit: int) -> list[Rejection]:
    """The first ones."""
    return sorted(rejections, key=lambda each: each.line)[:limit]
