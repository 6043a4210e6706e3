"""What the models share: values as numbers, decimals as integers, and fields that are checked while they are read."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

import orjson

from streams.verify.history import Operation, refuse, shorten

NUMBER_MAX = 1 << 62
_DECIMAL = re.compile(r"\d{1,18}(\.\d{1,18})?")


class Texts:
    """Each distinct value gets a number; 0 is "absent". 1 and 1.0 are the same value, as in JSON."""

    def __init__(self) -> None:
        self._numbers: dict[bytes, int] = {}
        self.shown = ["absent"]

    def number(self, value: Any) -> int:
        """The value's number."""
        canonical = orjson.dumps(_plain(value), option=orjson.OPT_SORT_KEYS)
        found = self._numbers.get(canonical)
        if found is None:
            found = self._numbers[canonical] = len(self.shown)
            self.shown.append(shorten(canonical.decode()))
        return found


def _plain(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer() and abs(value) < 1 << 53:
        return int(value)
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return value


class Fields:
    """The object in an operation's `value`, of invocation or completion. Each getter refuses what is malformed."""

    def __init__(self, operation: Operation, *, result: bool) -> None:
        self.line = operation.result_line if result else operation.line
        found = operation.result if result else operation.value
        if found is not None and not isinstance(found, dict):
            refuse(self.line, "value", "must be an object, or null")
        self._found: dict[str, Any] = found or {}

    def refuse(self, name: str, detail: str) -> None:
        """Raise BadInput for a field."""
        refuse(self.line, f"value.{name}", detail)

    def __contains__(self, name: str) -> bool:
        """Whether it is there and not null."""
        return self._found.get(name) is not None

    def raw(self, name: str) -> Any:
        """As it is; None when it is missing."""
        return self._found.get(name)

    def required(self, name: str) -> Any:
        """As it is, possibly null; it must be there."""
        if name not in self._found:
            self.refuse(name, "is missing")
        return self._found[name]

    def text(self, name: str) -> str:
        """A text that is not empty; numbers are taken as their digits."""
        return text_of(self._found.get(name), self.line, f"value.{name}")

    def flag(self, name: str, default: bool) -> bool:
        """True or false."""
        found = self._found.get(name)
        if found is not None and not isinstance(found, bool):
            self.refuse(name, "must be true or false")
        return default if found is None else bool(found)

    def whole(self, name: str) -> int | None:
        """A whole number from 0, or None."""
        found = self._found.get(name)
        return None if found is None else whole_of(found, self.line, f"value.{name}")

    def decimal(self, name: str, *, positive: bool) -> Decimal | None:
        """A decimal in a text, or None."""
        found = self._found.get(name)
        return None if found is None else decimal_of(found, self.line, f"value.{name}", positive=positive)

    def array(self, name: str) -> list[Any]:
        """An array; empty when it is missing."""
        found = self._found.get(name)
        if found is not None and not isinstance(found, list):
            self.refuse(name, "must be an array")
        return found or []


def text_of(found: Any, line: int, field: str) -> str:
    """A text that is not empty."""
    if isinstance(found, bool) or not isinstance(found, str | int) or found == "":
        refuse(line, field, "must be a text")
    return str(found)


def whole_of(found: Any, line: int, field: str) -> int:
    """A whole number from 0."""
    if isinstance(found, bool) or not isinstance(found, int) or not 0 <= found < NUMBER_MAX:
        refuse(line, field, "must be a whole number, 0 or more")
    return int(found)


def decimal_of(found: Any, line: int, field: str, *, positive: bool) -> Decimal:
    """A decimal: a text such as "10.25", or a whole number."""
    text = str(found) if isinstance(found, int) and not isinstance(found, bool) else found
    if not isinstance(text, str) or not _DECIMAL.fullmatch(text):
        refuse(line, field, 'must be a decimal in a text, such as "10.25"')
    value = Decimal(text)
    if positive and value <= 0:
        refuse(line, field, "must be above 0")
    return value
