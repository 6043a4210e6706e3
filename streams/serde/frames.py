"""Frames: one Kafka record that holds many puts of one partition in columns (schemas/Frame.avsc)."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streams.model.errors import BadInput
from streams.model.ttl import TTL_MS_MAX, TTL_MS_MIN
from streams.serde.codec import PREFIX_BYTES
from streams.serde.frame_columns import (
    BOOLEAN,
    BYTES,
    DOUBLE,
    LONG,
    NUMERIC,
    RAW,
    Array,
    Columns,
    Raw,
    Texts,
    Used,
    encode_longs,
    encode_plain,
    encode_texts,
    long_bytes,
    texts_of,
    unsigned,
    used_by,
)
from streams.serde.schemas import FRAME, AvroSchema, load_builtin

FRAME_PUTS_MAX = 1 << 17
FRAME_COLUMNS_MAX = 64
FRAME_EXPANSION_MAX = 128
"""A frame's keys and bodies may take at most so many times its own bytes when written out."""

EXPANDED_BYTES = 8 << 20
"""Frames are cut so that what they expand to stays about this small."""

Partition = Callable[[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]], NDArray[np.int32]]
"""The partition of each slice (start, length) of a buffer, which goes on for 4 bytes after the last slice."""

_KINDS = {"long": LONG, "int": LONG, "double": DOUBLE, "boolean": BOOLEAN, "string": BYTES, "bytes": BYTES}
_DTYPES = {LONG: "iu", DOUBLE: "fiu", BOOLEAN: "b"}
_TYPES = {LONG: "<i8", DOUBLE: "<f8", BOOLEAN: "u1"}
_PREFIX = struct.Struct(">BI")
_PARTITIONS_LOOKED_FOR = 16
"""With no more, looking for each one's rows is several times as fast as sorting the rows."""

_TTL_NONE, _TTL_ALL, _TTL_EACH, _END = b"\0", b"\2", b"\4", b"\0"
"""The branches of `ttl_ms`, and the end of `values`, as Avro writes them."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One record to be produced, with a null key: its partition, which rows of the columns it holds, its value."""

    partition: int
    rows: Array
    value: bytes


def is_frame(value: bytes | None) -> bool:
    """Whether a record's value is a frame, by its schema id."""
    return value is not None and value[:PREFIX_BYTES] == _PREFIX.pack(0, load_builtin()[FRAME].id)


def encode_frames(
    columns: Columns, schema: AvroSchema, partition: Partition, max_puts: int = 10_000, max_bytes: int = 900_000
) -> list[Frame]:
    """The puts as frames of at most `max_puts` puts and about `max_bytes` bytes (a frame always takes one put).

    `partition`: as `streams.kafka.partitioner.slice_partitions(n)` makes it; called once, with every distinct key.
    BadInput names the column that does not fit `schema`. Checks of keys and values: `columns_for`.
    """
    if not 1 <= max_puts <= FRAME_PUTS_MAX:
        raise BadInput(f"{max_puts} puts a frame", field="max_puts", fix=f"give 1 to {FRAME_PUTS_MAX}")
    table = _Table(columns, schema)
    if not table.count:
        return []
    keys = table.keys
    blob = np.concatenate((keys.blob, np.zeros(4, np.uint8)))
    ids = partition(blob, keys.starts, keys.lengths)
    frames = []
    for number, rows in _by_partition(ids, keys.codes):
        for first in range(0, len(rows), max_puts):
            chunk = rows[first : first + max_puts]
            frames += [Frame(number, held, value) for held, value in table.cut(chunk, max_bytes)]
    return frames


def _by_partition(ids: Array, codes: Array | None) -> Iterator[tuple[int, Array]]:
    """Each partition that rows go to, with these rows in order. `ids`: of each key; `codes`: each row's key."""
    rows = len(ids) if codes is None else len(codes)
    numbers = np.flatnonzero(np.bincount(ids)).tolist()
    if len(numbers) == 1:
        yield numbers[0], np.arange(rows)
        return
    narrow = unsigned(ids, numbers[-1])
    by_row = narrow if codes is None else narrow.take(codes)
    if len(numbers) <= _PARTITIONS_LOOKED_FOR:
        found = ((number, np.flatnonzero(by_row == number)) for number in numbers)
        yield from ((number, rows) for number, rows in found if len(rows))
        return
    order, at = np.argsort(by_row, kind="stable"), 0
    for number, count in enumerate(np.bincount(by_row).tolist()):
        if count:
            yield number, order[at : at + count]
            at += count


class _Table:
    """Checked columns, ready to be cut into frames."""

    def __init__(self, columns: Columns, schema: AvroSchema) -> None:
        self.keys = texts_of(columns.keys, "keys")
        self.count = len(self.keys)
        self._head = _PREFIX.pack(0, load_builtin()[FRAME].id) + long_bytes(schema.id)
        self._values = list(_value_columns(columns.value, schema))
        if len(self._values) > FRAME_COLUMNS_MAX:
            raise BadInput(f"over {FRAME_COLUMNS_MAX} value columns", field="value", fix="give Raw bodies")
        self._ttl = _ttl_column(columns.ttl_ms)
        named = [("ttl_ms", self._ttl), *((name, cells) for name, _, cells in self._values)]
        for name, cells in named:
            if isinstance(cells, np.ndarray | Texts) and len(cells) != self.count:
                raise BadInput(f"{len(cells)} cells for {self.count} keys", field=name, fix="give one per key")
        texts = [cells for _, _, cells in self._values if isinstance(cells, Texts)]
        self._texts = [self.keys, *texts]
        self._scratch = np.empty(max((len(each.starts) for each in self._texts), default=0), np.int32)

    def cut(self, rows: Array, max_bytes: int) -> Iterator[tuple[Array, bytes]]:
        """Frames of `rows`, halved until they fit."""
        used = [used_by(each, rows, self._scratch) for each in self._texts]
        expanded = sum(each.texts_bytes for each in used)
        value = self._encode(rows, used) if expanded <= EXPANDED_BYTES or len(rows) == 1 else None
        if value is not None and (len(value) <= max_bytes or len(rows) == 1):
            yield rows, value
            return
        half = len(rows) // 2
        yield from self.cut(rows[:half], max_bytes)
        yield from self.cut(rows[half:], max_bytes)

    def _encode(self, rows: Array, used: list[Used], *, plain: bool = False) -> bytes:
        ttl = self._ttl
        out: list[Any] = [self._head, long_bytes(len(rows))]
        encode_texts(BYTES, self.keys, used[0], plain=plain, constant=False).write(out)
        if isinstance(ttl, np.ndarray):
            out.append(_TTL_EACH)
            encode_longs(ttl.take(rows)).write(out)
        else:
            out.append(_TTL_NONE if ttl is None else _TTL_ALL + long_bytes(ttl))
        left = iter(used[1:])
        if self._values:
            out.append(long_bytes(len(self._values)))
        for _, kind, cells in self._values:
            if isinstance(cells, Texts):
                made = encode_texts(kind, cells, next(left), plain=plain)
            else:
                taken = cells.take(rows)
                made = encode_plain(kind, taken) if plain else NUMERIC[kind](taken)
            made.write(out)
        out.append(_END)
        value = b"".join(out)
        texts = sum(each.texts_bytes for each in used)
        expanded_bytes_max = texts + len(rows) * (PREFIX_BYTES + 10 * len(self._values))
        if not plain and expanded_bytes_max > FRAME_EXPANSION_MAX * len(value):
            return self._encode(rows, used, plain=True)
        return value


def _value_columns(value: Mapping[str, Any] | Raw, schema: AvroSchema) -> Iterator[tuple[str, str, Array | Texts]]:
    """(name, kind, cells) in the schema's order."""
    if isinstance(value, Raw):
        yield "value", RAW, texts_of(value.cells, "value")
        return
    if schema.tree.kind != "record":
        raise BadInput(f"{schema.name} has no fields", field="value", fix="give Raw bodies")
    fields = {member.name: member.node for member in schema.tree.fields}
    for name in value:
        if name not in fields:
            raise BadInput(f"{schema.name} has no such field", field=name[:80], fix=f"it has: {', '.join(fields)}")
    for name, node in fields.items():
        cells = value.get(name)
        if cells is None:
            raise BadInput("the column is missing", field=name, fix=f"give all fields of {schema.name}")
        kind = RAW if isinstance(cells, Raw) else _KINDS.get(node.kind)
        if kind is None:
            raise BadInput(f"cells of type {node.label} must be encoded", field=name, fix="give the column as Raw")
        if isinstance(cells, Raw):
            yield name, RAW, texts_of(cells.cells, name)
        elif kind == BYTES:
            yield name, BYTES, texts_of(cells, name)
        else:
            yield name, kind, _numbers(kind, np.asarray(cells), name, node.kind)


def _numbers(kind: str, cells: Array, field: str, type_name: str) -> Array:
    if cells.ndim != 1 or cells.dtype.kind not in _DTYPES[kind]:
        raise BadInput(f"an array of {cells.dtype} holds no {type_name}s", field=field, fix=f"give {type_name}s")
    if kind == LONG and len(cells):
        limit = 1 << (31 if type_name == "int" else 63)
        if int(cells.max()) >= limit or int(cells.min()) < -limit:
            raise BadInput(f"a number does not fit Avro's {type_name}", field=field, fix="give smaller numbers")
    return cells.astype(_TYPES[kind], copy=False)


def _ttl_column(ttl_ms: int | Array | None) -> int | Array | None:
    if ttl_ms is None:
        return None
    given = np.asarray(ttl_ms)
    if given.dtype.kind not in "iu":
        raise BadInput("the TTLs are not whole milliseconds", field="ttl_ms", fix="give integers")
    outside = given[(given < TTL_MS_MIN) | (given > TTL_MS_MAX)]
    if outside.size and (given.ndim == 0 or bool((outside != 0).any())):
        raise BadInput("a TTL is out of range", field="ttl_ms", fix=f"give {TTL_MS_MIN} to {TTL_MS_MAX}")
    return int(given) if given.ndim == 0 else given.astype("<i8", copy=False)
