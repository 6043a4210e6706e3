"""What callers pass to `put_many`, as bounded Arrow record batches."""

from __future__ import annotations

import datetime
import decimal
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from streams.model.errors import BadInput
from streams.tabular.judge import with_keyspace
from streams.tabular.rows import ArrowRows
from streams.tabular.texts import is_text

SLICE_ROWS = 65_536
SLICE_BYTES = 6 << 20
_FIX = "pass a dict of columns of one length with a `key` column, a data frame, or puts as dicts"
_FLAT = (str, bool, int, float, type(None), datetime.datetime, datetime.date, decimal.Decimal, np.generic)


def batches_of(keyspace: str, table: Any, ttl_ms: int | None = None, *, bare: bool = False) -> Iterator[Any] | None:
    """The table as record batches with whole keys; None when it is no table of flat columns, but puts one by one.

    `bare`: keys stay as they came, for `rows_of`. BadInput when its columns do not make a table.
    """
    found = _arrow(table)
    if found is None:
        return None
    return _slices(None if bare else keyspace, found, ttl_ms)


def rows_of(keyspace: str, batch: Any) -> ArrowRows:
    """The rows of a batch with bare keys, which become whole: of text that repeats, once for each word."""
    rows = ArrowRows(batch)
    if _is_words(batch.schema.field("key").type):
        rows.keys = with_keyspace(rows.keys, keyspace)
    return rows


def _is_words(kind: Any) -> bool:
    return is_text(kind.value_type if pa.types.is_dictionary(kind) else kind)


def stream_of(slices: Iterable[Mapping[str, Any]]) -> Any:
    """Columns, slice by slice, as one Arrow stream for `put_many`: for more than fits memory, or what is still to come.

    Slices are taken in a thread, and may wait; small ones up to 65,536 rows ahead of what is sent, which then go
    together. All have the columns and the types of the first, and at least one row. BadInput when one is no table of
    flat columns.
    """
    batches = (_one_batch(each) for each in slices)
    first = next(batches, None)
    if first is None:
        raise BadInput("there are no slices", field="table", fix=_FIX)
    return pa.RecordBatchReader.from_batches(first.schema, itertools.chain([first], batches))


def _one_batch(columns: Mapping[str, Any]) -> Any:
    table = _columns(columns)
    if table is None:
        raise BadInput("the slice is no table of flat columns", field="table", fix=_FIX)
    (batch,) = table.combine_chunks().to_batches()
    return batch


def join_batches(batches: Sequence[Any]) -> Any:
    """Record batches of one schema as one, in order."""
    (joined,) = pa.Table.from_batches(batches).combine_chunks().to_batches()
    return joined


def encoded(batch: Any) -> bytes:
    """A record batch as an Arrow IPC stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()  # type: ignore[no-any-return]


def _arrow(table: Any) -> Any:
    """An Arrow table or batches; None for what has no flat columns."""
    if isinstance(table, pa.Table | pa.RecordBatchReader):
        return table
    if isinstance(table, pa.RecordBatch):
        return pa.Table.from_batches([table])
    if isinstance(table, Mapping):
        return _columns(table)
    if isinstance(table, list | tuple) and table and all(isinstance(each, pa.RecordBatch) for each in table):
        return pa.Table.from_batches(table)
    try:
        if hasattr(table, "to_arrow"):  # polars.DataFrame
            return table.to_arrow()
        if hasattr(table, "to_dict") and hasattr(table, "columns"):  # pandas.DataFrame
            columns = {name: table[name] for name in table.columns}
            if any(each.dtype == object and not _flat(each) for each in columns.values()):
                return None
            return pa.Table.from_pandas(table, preserve_index=False)
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise BadInput(f"the frame is no table: {str(error)[:120]}", field="table", fix=_FIX) from None
    return None


def _flat(cells: Any) -> bool:
    return all(issubclass(kind, _FLAT) for kind in set(map(type, cells)))


def _columns(columns: Mapping[str, Any]) -> Any:
    if "key" not in columns:
        raise BadInput("there is no column `key`", field="table", fix=_FIX)
    if len({len(column) for column in columns.values()}) > 1:
        raise BadInput("the columns differ in length", field="table", fix=_FIX)
    made = {}
    for name, column in columns.items():
        try:
            if isinstance(column, np.ndarray) and column.ndim == 1 and column.dtype != object:
                made[name] = pa.array(column)
            elif isinstance(column, pa.Array | pa.ChunkedArray):
                made[name] = column
            elif _flat(column):
                made[name] = pa.array(column.tolist() if hasattr(column, "tolist") else list(column))
            else:
                return None
        except (pa.ArrowException, TypeError, OverflowError):
            return None
    return pa.table(made)


def _slices(keyspace: str | None, table: Any, ttl_ms: int | None) -> Iterator[Any]:
    if "key" not in table.schema.names:
        raise BadInput("there is no column `key`", field="table", fix=_FIX)
    at = table.schema.get_field_index("key")
    batches = table if isinstance(table, pa.RecordBatchReader) else table.to_batches(SLICE_ROWS)
    for batch in batches:
        rows = min(SLICE_ROWS, max(1, batch.num_rows * SLICE_BYTES // max(1, batch.nbytes)))
        for first in range(0, batch.num_rows, rows):
            part = batch.slice(first, rows)
            key = part.column(at)
            if pa.types.is_integer(key.type):
                key = key.cast(pa.large_string())
                part = part.set_column(at, "key", key)
            if keyspace is not None and _is_words(key.type):
                part = part.set_column(at, "key", with_keyspace(key, keyspace))
            if ttl_ms is not None and "ttl" not in part.schema.names:
                part = part.append_column("ttl", pa.repeat(ttl_ms / 1000, part.num_rows))
            yield part
