"""How a file's columns become a put's: renamed, and the key taken from one column or put together by a template."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from streams.model.errors import BadInput

_PLACE = re.compile(r"\{([^{}]+)\}")


@dataclass(frozen=True, slots=True)
class Shape:
    """`key`: a column's name, or a template such as `device:{id}`, whose columns are then no part of the value; None
    for the column `key`. `renames`: new name by old."""

    key: str | None = None
    renames: Mapping[str, str] = field(default_factory=dict)

    @property
    def plain(self) -> bool:
        """Whether columns stay as they are."""
        return self.key is None and not self.renames

    @property
    def used(self) -> list[str]:
        """The columns (by their new names) that the key is made of."""
        if self.key is None:
            return ["key"]
        return _PLACE.findall(self.key) or [self.key]

    def check(self, names: Sequence[str]) -> None:
        """BadInput when a column that is named is not there, or the names clash."""
        for old in self.renames:
            if old not in names:
                raise BadInput(f"there is no column {old[:80]!r}", field="--columns", fix=f"it has: {_listed(names)}")
        new = [self.renames.get(name, name) for name in names]
        for name in self.used:
            if name not in new:
                raise BadInput(f"there is no column {name[:80]!r}", field="--key", fix=f"it has: {_listed(new)}")
        if len(set(new)) != len(new):
            raise BadInput("two columns have one name", field="--columns", fix="rename one of them")

    def columns(self, columns: Mapping[str, Any]) -> dict[str, Any]:
        """Arrow columns by their new names, with the column `key`."""
        new = {self.renames.get(name, name): column for name, column in columns.items()}
        parts = {name: _text(new.pop(name)) for name in self.used}
        if self.key is None or self.key in parts:
            key = parts[self.used[0]]
        else:
            pieces: list[Any] = []
            for index, piece in enumerate(_PLACE.split(self.key)):
                pieces.append(parts[piece] if index % 2 else pa.scalar(piece, pa.large_string()))
            key = pc.binary_join_element_wise(*pieces, pa.scalar("", pa.large_string()))
        return {"key": key, **new}

    def put(self, record: dict[str, Any]) -> dict[str, Any]:
        """A JSON object's fields as a put: `key`, `value`, `ttl`. BadInput when a part of the key is missing."""
        new = {self.renames.get(name, name): cell for name, cell in record.items()}
        parts = {}
        for name in self.used:
            cell = new.pop(name, None)
            if not isinstance(cell, str | int) or isinstance(cell, bool):
                raise BadInput("the field is missing, or neither text nor an integer", field=name[:80], fix="give it")
            parts[name] = str(cell)
        template = self.key or "key"
        key = parts[template] if template in parts else _PLACE.sub(lambda found: parts[found[1]], template)
        put: dict[str, Any] = {"key": key, "ttl": new.pop("ttl", None)}
        put["value"] = new["value"] if new.keys() == {"value"} else new
        return put


AS_IS = Shape()
"""Columns as they are."""


def _text(column: Any) -> Any:
    return column if column.type == pa.large_string() else pc.cast(column, pa.large_string())


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)[:200]
