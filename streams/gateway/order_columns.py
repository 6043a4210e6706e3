"""Orders in columns: each different symbol, price or quantity is judged once, and whole records are put together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from streams.gateway.order_bodies import batch_operation, is_name
from streams.model.errors import BadInput
from streams.sequencer.order_commands import NAME_BYTES_MAX, TYPES, Fixed, Operation
from streams.sequencer.packed import Packed
from streams.serde.frame_columns import Dictionary, Texts, gather, texts_of
from streams.tabular.orders import OrderColumns

_HEAD = np.dtype(
    [
        ("op", "u1"), ("side", "u1"), ("kind", "u1"), ("id", "u1"), ("symbol", "u1"), ("account", "u1"),
        ("price_digits", "u1"), ("quantity_digits", "u1"), ("price", "<i8"), ("quantity", "<i8"),
    ]
)  # fmt: skip
_IN_NAMES = np.array([is_name(chr(each)) for each in range(256)])
_SUFFIX = b":replace"
"""No name ends so: it would be a route."""
_SAMPLE = {"id": "x", "symbol": "X", "side": "buy", "type": "limit", "price": "1", "quantity": "1"}


def encode_columns(table: OrderColumns) -> Packed | None:
    """Each order's bytes within a command; None when some order is wrong: then they are to be judged one by one."""
    count = len(table.ids)
    if "price" not in table.values or not count or not are_names(table.ids):
        return None
    judged: dict[str, list[Operation]] = {}
    try:
        for name, values in table.values.items():
            judged[name] = [batch_operation(_sample(name, value)) for value in values]
    except BadInput:
        return None
    heads = np.zeros(count, _HEAD)
    heads["id"] = table.ids.lengths

    def filled(field: str, name: str, of: Callable[[Operation], int]) -> None:
        heads[field] = np.array([of(each) for each in judged[name]], np.int64)[table.codes[name]]

    filled("side", "side", lambda each: each.side)
    filled("symbol", "symbol", lambda each: len(each.symbol))
    for name in ("price", "quantity"):
        filled(name, name, lambda each, name=name: _fixed(each, name).whole)  # type: ignore[misc]
        filled(f"{name}_digits", name, lambda each, name=name: _fixed(each, name).digits)  # type: ignore[misc]
    if "type" in judged:
        filled("kind", "type", lambda each: each.kind)
        if np.any(heads["kind"] == TYPES.index("market")):
            return None
    tails = {"symbol": [each.symbol for each in judged["symbol"]]}
    if "account" in judged:
        filled("account", "account", lambda each: len(each.account))
        tails["account"] = [each.account for each in judged["account"]]
    parts = [Texts(heads.view(np.uint8), np.arange(count) * _HEAD.itemsize, np.full(count, _HEAD.itemsize), None)]
    parts.append(table.ids)
    parts += [texts_of(Dictionary(texts, table.codes[name]), name) for name, texts in tails.items()]
    return _interleaved(count, parts)


def _interleaved(count: int, columns: Sequence[Texts]) -> Packed:
    """Of each row the texts of all columns, one after the other."""
    starts, lengths = (np.empty((count, len(columns)), np.int64) for _ in range(2))
    base = 0
    for at, column in enumerate(columns):
        items = column.row_items(np.arange(count))
        starts[:, at], lengths[:, at] = column.starts[items] + base, column.lengths[items]
        base += len(column.blob)
    blob = np.concatenate([column.blob for column in columns])
    return Packed(gather(blob, starts.ravel(), lengths.ravel()).tobytes(), np.cumsum(lengths.sum(axis=1)))


def are_names(texts: Texts) -> bool:
    """Whether each may be an order's id, as `is_name` judges."""
    lengths, starts = texts.lengths, texts.starts
    if int(lengths.min()) < 1 or int(lengths.max()) > NAME_BYTES_MAX:
        return False
    first, last = int(starts.min()), int((starts + lengths).max())
    if not bool(_IN_NAMES[texts.blob[first:last]].all()):
        return False
    long = np.flatnonzero(lengths >= len(_SUFFIX))
    likely = long[texts.blob[(starts + lengths)[long] - len(_SUFFIX)] == _SUFFIX[0]]
    return not any(texts.item(int(each)).endswith(_SUFFIX) for each in likely)


def _sample(name: str, value: Any) -> dict[str, Any]:
    """An order that is good but for this value."""
    sample: dict[str, Any] = dict(_SAMPLE) | {name: value}
    return sample | ({"price": None} if name == "type" and value == "market" else {})


def _fixed(operation: Operation, name: str) -> Fixed:
    return operation.price if name == "price" else operation.quantity
