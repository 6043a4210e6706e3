"""A strict walk over Avro's binary form: nothing missing, nothing left over, nothing that could exhaust memory.

fastavro trusts its input; this looks first, with the same rules as the WASM decoder.
"""

from __future__ import annotations

from streams.model.errors import BadInput
from streams.serde.tree import Node

DEPTH_MAX = 200
_WIDTHS = {"double": 8, "float": 4}
EMPTY_ITEMS_MAX = 100_000
"""How many array items that take no bytes (of `null`, say) one value may have."""


def check_body(node: Node, data: bytes, start: int = 0) -> None:
    """Return when `data[start:]` is exactly one value of `node`; BadInput (field `value`) otherwise."""
    end = _Walk(data).value(node, start, 0)
    if end != len(data):
        raise _bad(f"{len(data) - end} bytes are left after the value")


class _Walk:
    def __init__(self, data: bytes) -> None:
        self._data, self._end = data, len(data)
        self._empty_items = 0

    def value(self, node: Node, at: int, depth: int) -> int:
        """The position after the value at `at`."""
        if depth > DEPTH_MAX:
            raise _bad(f"nested deeper than {DEPTH_MAX} levels")
        kind = node.kind
        if kind == "record":
            for member in node.fields:
                at = self.value(member.node, at, depth + 1)
            return at
        if kind in ("string", "bytes"):
            return self._sized(at, text=kind == "string")
        if kind in ("long", "int"):
            return self._number(at, 64 if kind == "long" else 32)[1]
        if kind in ("double", "float", "fixed"):
            return self._skip(at, _WIDTHS.get(kind, node.size))
        if kind == "boolean":
            if self._skip(at, 1) and self._data[at] > 1:
                raise _bad("a boolean is neither 0 nor 1")
            return at + 1
        if kind == "enum":
            index, at = self._number(at, 32)
            if not 0 <= index < len(node.symbols):
                raise _bad(f"the enum {node.name} has no symbol {index}")
            return at
        if kind == "union":
            index, at = self._number(at, 32)
            if not 0 <= index < len(node.branches):
                raise _bad(f"a union has no branch {index}")
            return self.value(node.branches[index], at, depth + 1)
        return at if kind == "null" else self._blocks(node, at, depth)

    def _blocks(self, node: Node, at: int, depth: int) -> int:
        assert node.items is not None
        while True:
            count, at = self._number(at, 64)
            if count == 0:
                return at
            size, start = None, at
            if count < 0:
                size, at = self._number(at, 64)
                count, start = -count, at
            if node.kind == "array" and node.items.kind in _WIDTHS:
                at = self._skip(at, count * _WIDTHS[node.items.kind])  # any bytes will do: no need to look at each
                count = 0
            for _ in range(count):
                before = at
                if node.kind == "map":
                    at = self._sized(at, text=True)
                at = self.value(node.items, at, depth + 1)
                if at == before:
                    self._empty_items += 1
                    if self._empty_items > EMPTY_ITEMS_MAX:
                        raise _bad(f"more than {EMPTY_ITEMS_MAX} items that take no bytes")
            if size is not None and at - start != size:
                raise _bad("a block is not as long as it says")

    def _sized(self, at: int, *, text: bool) -> int:
        size, at = self._number(at, 64)
        if size < 0:
            raise _bad("a length is negative")
        end = self._skip(at, size)
        if text:
            try:
                self._data[at:end].decode()
            except UnicodeDecodeError:
                raise _bad("a string is not UTF-8") from None
        return end

    def _skip(self, at: int, size: int) -> int:
        if at + size > self._end:
            raise _bad("the value is cut short")
        return at + size

    def _number(self, at: int, bits: int) -> tuple[int, int]:
        data, end, raw, shift = self._data, self._end, 0, 0
        while True:
            if at >= end:
                raise _bad("the value is cut short")
            byte = data[at]
            at += 1
            raw |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
            shift += 7
            if shift > 63:
                raise _bad("a number is longer than 10 bytes")
        if raw >> bits:
            raise _bad(f"a number does not fit {bits} bits")
        return (raw >> 1) ^ -(raw & 1), at


def _bad(detail: str) -> BadInput:
    return BadInput(detail, field="value", fix="encode the value with the schema whose id it carries")
