"""A slow, obvious model of SPEC's fold rules over streams.model.row; the C SDK must agree with it byte for byte."""

from __future__ import annotations

import math
import struct
from dataclasses import replace

from streams.model.row import Cell, MergeType, Row, counter_payload, counter_sums, number_of, number_payload
from streams.wasm.batch import OP_DELETE, OP_PURGE, Event

I64_MAX = 2**63 - 1


def read_long(body: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = body[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            return (value >> 1) ^ -(value & 1), at


def write_long(value: int) -> bytes:
    value = (value << 1) ^ (value >> 63)
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


class Rejected(Exception):
    """The event leaves no trace."""


def fold(rows: dict[bytes, Row], event: Event, kind: MergeType) -> None:
    """Folds one event into `rows`; Rejected with the reason."""
    row = rows.get(event.key)
    if event.op == OP_PURGE:
        if row is not None:
            purge(rows, row, event)
        return
    if event.op not in (0, OP_DELETE):
        raise Rejected("unknown operation")
    if row is None:
        row = Row(kind, 0, 0, 0, ())
    h = max(event.hlc, event.append_ms << 16, row.last_hlc + 1, row.deleted_hlc + 1, event.generation + 1)
    if event.op == OP_DELETE:
        rows[event.key] = Row(kind, 0, h, h, ())
    else:
        rows[event.key] = put(row, event, h)


def mark(cell: Cell, kind: MergeType) -> int:
    return cell.last_hlc if kind is MergeType.LWW else cell.start_hlc


def put(row: Row, event: Event, h: int) -> Row:
    deleted = max(row.deleted_hlc, event.generation)
    cells = [c for c in row.cells if mark(c, row.merge_type) > deleted]
    alive = bool(cells) and cells[-1].expires_ms > event.append_ms
    old = cells.pop() if alive else None
    payload = new_payload(row.merge_type, old, event)
    if old is None:
        cell = Cell(h, h, event.expires_ms, payload)
    else:
        cell = Cell(old.start_hlc, h, max(old.expires_ms, event.expires_ms), payload)
    if row.merge_type is MergeType.LWW:
        cells = []
    return Row(row.merge_type, 0, deleted, h, tuple([*cells, cell][-16:]))


def new_payload(kind: MergeType, old: Cell | None, event: Event) -> bytes:
    if kind is MergeType.LWW:
        return event.value
    body = event.value[5:]
    if kind is MergeType.COUNTER:
        add, _ = read_long(body, 0)
        positive, negative = counter_sums(old.payload) if old else (0, 0)
        positive, negative = positive + max(add, 0), negative + max(-add, 0)
        if max(positive, negative) > I64_MAX:
            raise Rejected("counter overflow")
        return counter_payload(positive, negative)
    (value,) = struct.unpack("<d", body)
    if not math.isfinite(value):
        raise Rejected("non-finite number")
    best = number_of(old.payload) if old else value
    keep = best >= value if kind is MergeType.MAX else best <= value
    return number_payload(best if keep else value)


def purge(rows: dict[bytes, Row], row: Row, event: Event) -> None:
    generation, at = read_long(event.value, 5)
    before_ms, at = read_long(event.value, at)
    last_hlc, at = read_long(event.value, at)
    remove = event.value[at] == 1
    cells = tuple(c for c in row.cells if mark(c, row.merge_type) > generation and c.expires_ms > before_ms)
    if remove and not cells and row.last_hlc == last_hlc:
        del rows[event.key]
    else:
        rows[event.key] = replace(row, seq=0, deleted_hlc=max(row.deleted_hlc, generation), cells=cells)
