"""Frames written cell by cell with the encoding that a test chooses: slow, and independent of `encode_frames`."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any

from streams.serde import FRAME, encode, load_builtin

Choose = Callable[[Sequence[Any]], Any]
WIDTHS = {1: "<B", 2: "<H", 4: "<I", 8: "<Q"}


def packed(numbers: Sequence[int], width: int) -> bytes:
    return b"".join(struct.pack(WIDTHS[width], number) for number in numbers)


def widths_for(numbers: Sequence[int], allowed: Sequence[int]) -> list[int]:
    return [width for width in allowed if all(number < 1 << (8 * width) for number in numbers)]


def column(kind: str, cells: Sequence[Any], choose: Choose) -> dict[str, Any]:
    """A FrameColumn of ints (LONG), 8 bytes each (DOUBLE), one byte each (BOOLEAN), or bytes (BYTES, RAW)."""
    made: dict[str, Any] = {"kind": kind, "base": 0, "items": len(cells), "codes": b"", "lengths": b"", "data": b""}
    made["encoding"] = choose(["PLAIN", "DICTIONARY", "OFFSET"] if kind == "LONG" else ["PLAIN", "DICTIONARY"])
    if made["encoding"] == "OFFSET":
        base = choose([min(cells), min(cells), -(2**63), 5])
        offsets = [(cell - base) % 2**64 for cell in cells]
        constant = [0] if not any(offsets) else []
        width = choose([*constant, *widths_for(offsets, (1, 2, 4, 8))])
        return {**made, "base": base, "items": 0, "codes": packed(offsets, width) if width else b""}
    items = list(cells)
    if made["encoding"] == "DICTIONARY":
        items = sorted(set(cells), reverse=choose([False, True]))
        codes = [items.index(cell) for cell in cells]
        width = choose([*([0] if len(items) == 1 else []), *widths_for(codes, (1, 2, 4))])
        made.update(items=len(items), codes=packed(codes, width) if width else b"")
    if kind in ("BYTES", "RAW"):
        lengths = [len(item) for item in items]
        return {**made, "lengths": packed(lengths, choose(widths_for(lengths, (1, 2, 4)))), "data": b"".join(items)}
    as_bytes = [item.to_bytes(8, "little", signed=True) if kind == "LONG" else item for item in items]
    return {**made, "data": b"".join(as_bytes)}


def frame_of(
    schema_id: int, keys: list[bytes], ttls: list[int], values: list[tuple[str, list[Any]]], choose: Choose
) -> bytes:
    """A frame's value. `ttls`: 0 for none; `values`: (kind, cells) per column."""
    ttl: Any = ("streams.FrameColumn", column("LONG", ttls, choose))
    if len(set(ttls)) == 1:
        ttl = choose([ttl, ttls[0], *([None] if not ttls[0] else [])])
    frame = {
        "schema_id": schema_id,
        "count": len(keys),
        "keys": column("BYTES", keys, choose),
        "ttl_ms": ttl,
        "values": [column(kind, cells, choose) for kind, cells in values],
    }
    return encode(load_builtin()[FRAME], frame)
