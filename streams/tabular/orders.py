"""A record batch of orders as columns of few different values: what a table of orders is like, told apart once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from streams.serde.frame_columns import Texts, texts_of
from streams.tabular.tables import encoded
from streams.tabular.texts import plain_items

_NEEDED = ("id", "symbol", "side", "quantity")
_OTHERS = ("type", "price", "account")
_FEW = 4
"""A column is worth telling apart when each of its values is there about so often."""


@dataclass(frozen=True, slots=True)
class OrderColumns:
    """`ids`, one an order; of every other column its different values, and which of them each order has."""

    ids: Texts
    values: dict[str, list[Any]]
    codes: dict[str, NDArray[np.int64]]


def order_stream(columns: Mapping[str, Sequence[str]]) -> bytes:
    """Orders in columns of text, as the Arrow stream that `orders:batch` takes."""
    return encoded(pa.RecordBatch.from_pydict({name: list(column) for name, column in columns.items()}))


def order_columns(batch: Any) -> OrderColumns | None:
    """The batch's columns; None when it is not of that kind (other columns, nulls, floats, few repetitions)."""
    names = batch.schema.names
    if not set(_NEEDED) <= set(names) <= {*_NEEDED, *_OTHERS} or len(set(names)) != len(names):
        return None
    ids = batch.column("id")
    if not pa.types.is_string(ids.type) or ids.null_count:
        return None
    values: dict[str, list[Any]] = {}
    codes: dict[str, NDArray[np.int64]] = {}
    for name in names:
        column = batch.column(name)
        if name == "id":
            continue
        if (
            pa.types.is_floating(column.type)
            or pa.types.is_nested(column.type)
            or (column.null_count and name in _NEEDED)
        ):
            return None
        told = column if pa.types.is_dictionary(column.type) else pc.dictionary_encode(column, null_encoding="encode")
        if len(told.dictionary) * _FEW > batch.num_rows or told.indices.null_count:
            return None
        values[name] = told.dictionary.to_pylist()
        codes[name] = told.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    return OrderColumns(texts_of(plain_items(ids), "id"), values, codes)
