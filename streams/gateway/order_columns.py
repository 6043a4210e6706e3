"""Orders in columns: each different symbol, price or quantity is judged once, and whole records are put together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from streams.gateway.order_bodies import batch_operation, is_name
from streams.model.errors import BadInput
from streams.sequencer.order_commands import TYPES, Fixed, Operation
from streams.tabular.orders import OrderColumns

_HEAD = np.dtype(
    [
        ("op", "u1"), ("side", "u1"), ("kind", "u1"), ("id", "u1"), ("symbol", "u1"), ("account", "u1"),
        ("price_digits", "u1"), ("quantity_digits", "u1"), ("price", "<i8"), ("quantity", "<i8"),
    ]
)  # fmt: skip
_SAMPLE = {"id": "x", "symbol": "X", "side": "buy", "type": "limit", "price": "1", "quantity": "1"}


def encode_columns(table: OrderColumns) -> list[bytes] | None:
    """Each order's bytes within a command; None when some order is wrong: then they are to be judged one by one."""
    count = len(table.ids)
    if "price" not in table.values or not all(map(is_name, table.ids)):
        return None
    judged: dict[str, list[Operation]] = {}
    try:
        for name, values in table.values.items():
            judged[name] = [batch_operation(_sample(name, value)) for value in values]
    except BadInput:
        return None
    heads = np.zeros(count, _HEAD)
    ids = [each.encode() for each in table.ids]
    heads["id"] = [len(each) for each in ids]

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
    symbols = [each.symbol for each in judged["symbol"]]
    tails = [symbols[code] for code in table.codes["symbol"].tolist()]
    if "account" in judged:
        filled("account", "account", lambda each: len(each.account))
        owners = [each.account for each in judged["account"]]
        tails = [tail + owners[code] for tail, code in zip(tails, table.codes["account"].tolist(), strict=True)]
    raw, size = heads.tobytes(), _HEAD.itemsize
    starts = range(0, count * size, size)
    return [raw[at : at + size] + name + tail for at, name, tail in zip(starts, ids, tails, strict=True)]


def _sample(name: str, value: Any) -> dict[str, Any]:
    """An order that is good but for this value."""
    sample: dict[str, Any] = dict(_SAMPLE) | {name: value}
    return sample | ({"price": None} if name == "type" and value == "market" else {})


def _fixed(operation: Operation, name: str) -> Fixed:
    return operation.price if name == "price" else operation.quantity
