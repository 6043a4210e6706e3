"""Batches: many events in columns, v1 or compact, as they enter a module (layouts: wasm_udfs/ABI.md)."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from streams.model.errors import BadInput
from streams.wasm import compact
from streams.wasm.columns import Array, gather, starts_of

MAGIC, MAGIC_COMPACT = 0x31425453, 0x32425453
OP_PUT, OP_DELETE, OP_PURGE = 0, 1, 2
_HEADER = struct.Struct("<IIII")
_SECTION = struct.Struct("<IIII")
_FIXED: dict[int, tuple[str, str]] = {
    1: ("append_ms", "<i8"),
    2: ("hlc", "<u8"),
    3: ("expires_ms", "<i8"),
    4: ("generation", "<u8"),
    5: ("op", "u1"),
    6: ("key_end", "<u4"),
    8: ("value_end", "<u4"),
    10: ("offset", "<i8"),
    11: ("part", "<i4"),
}
_OPS, _KEYS, _VALUES, _OFFSETS, _PARTS, _TYPED = 5, 7, 9, 10, 11, 64
_REQUIRED = frozenset(range(1, 10))
Buffer = bytes | npt.NDArray[np.uint8]
"""Bytes that nobody changes; large ones in numpy's memory."""


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a batch. `value` is the full wire format; `offset` is -1 when the batch does not know it; `part` is
    the put's position in its frame, -1 when its record is no frame.
    """

    append_ms: int
    hlc: int
    expires_ms: int
    generation: int
    op: int
    key: bytes
    value: bytes
    offset: int = -1
    part: int = -1


def _bytes(raw: Buffer) -> bytes:
    return raw if isinstance(raw, bytes) else raw.tobytes()


class Batch:
    """A parsed batch: columns as numpy views over `raw` (immutable; of a batch v1 nothing is copied).

    `is_compact`: it is in the form that holds nothing twice: puts of frames of one schema alone, none of them refused.
    Its columns are the same; what is not kept by event is made when it is asked for, by `full` in the end.
    """

    __slots__ = ("_sections", "is_compact", "n", "raw")

    def __init__(
        self, raw: Buffer, n: int, sections: dict[int, tuple[int, Array]], *, is_compact: bool = False
    ) -> None:
        self.raw = raw
        self.n = n
        self.is_compact = is_compact
        self._sections = sections

    @classmethod
    def parse(cls, raw: Buffer) -> Batch:
        """The batch in `raw`. BadInput when it is not a whole, consistent batch; unknown sections are kept."""
        if len(raw) < _HEADER.size:
            raise BadInput("a batch is at least 16 bytes", field="batch")
        magic, n, total, n_sections = _HEADER.unpack_from(_bytes(raw[: _HEADER.size]))
        if magic not in (MAGIC, MAGIC_COMPACT) or total != len(raw) or n_sections > (len(raw) - 16) // 16:
            raise BadInput("not a batch v1 of this length", field="batch")
        is_compact = magic == MAGIC_COMPACT
        sections: dict[int, tuple[int, Array]] = {}
        table = _bytes(raw[_HEADER.size : _HEADER.size + _SECTION.size * n_sections])
        for ident, at, size, width in _SECTION.iter_unpack(table):
            if at > total or size > total - at or (width and size != width * n):
                raise BadInput(f"section {ident} lies outside the batch", field="batch")
            kind = _FIXED[ident][1] if ident in _FIXED else "u1"
            if ident in _FIXED and np.dtype(kind).itemsize != width and not is_compact:
                raise BadInput(f"section {ident} has width {width}", field="batch")
            sections[ident] = (width, np.frombuffer(raw, kind, size // np.dtype(kind).itemsize, at))
        batch = cls(raw, n, sections, is_compact=is_compact)
        batch._check()
        return batch

    def _check(self) -> None:
        if self.is_compact:
            compact.check_compact(self.n, self._sections)
            return
        if missing := _REQUIRED - self._sections.keys():
            raise BadInput(f"sections {sorted(missing)} are missing", field="batch")
        for ends, blob in ((self.column("key_end"), _KEYS), (self.column("value_end"), _VALUES)):
            size = len(self._sections[blob][1])
            if self.n and (bool((ends[1:] < ends[:-1]).any()) or int(ends[-1]) > size):
                raise BadInput("key or value ends are out of order", field="batch")

    def column(self, name: str) -> Array:
        """A column by name: append_ms, hlc, expires_ms, generation, op, key_end, value_end, offset, part."""
        for ident, (column, _) in _FIXED.items():
            if column == name:
                return self._compact_column(ident) if self.is_compact else self._sections[ident][1]
        raise KeyError(name)

    def _compact_column(self, ident: int) -> Array:
        if ident == _OPS:
            return np.zeros(self.n, np.uint8)
        if ident == _PARTS:
            return compact.parts(self.n, self._sections)
        if ident in (6, 8):
            return self.full().column(_FIXED[ident][0])
        return compact.by_event(self.n, self._sections, ident)

    def full(self) -> Batch:
        """The same as a batch v1: itself, or of a compact one another, many times as large, which is not kept."""
        return assemble(self.n, compact.expanded(self.n, self._sections)) if self.is_compact else self

    @property
    def full_bytes_most(self) -> int:
        """About how large `full` is at most."""
        return compact.full_bytes_most(self.n, self._sections) if self.is_compact else len(self.raw)

    @property
    def last_append_ms(self) -> int:
        """The last event's append time, of a batch that has events."""
        return int(self._sections[1][1][-1])

    @property
    def has_purges(self) -> bool:
        """Whether there are purges among its events."""
        return not self.is_compact and bool((self.column("op") == OP_PURGE).any())

    @property
    def only_schema_id(self) -> int | None:
        """The schema of all values, where the batch's form says that it is one; None: look at each."""
        return compact.schema_id(self._sections) if self.is_compact else None

    @property
    def value_bytes_most(self) -> int:
        """No value is longer than this; not what the longest has."""
        if self.is_compact:
            return compact.value_bytes_most(self._sections)
        return int(self.column("value_end")[-1]) if self.n else 0

    @property
    def values(self) -> Array:
        """The blob of all values."""
        return self.full()._sections[_VALUES][1]

    def typed_column(self, field: int, kind: str) -> Array | None:
        """The LONG or DOUBLE cells of value field `field` as numpy's 8-byte `kind`, if the batch carries them."""
        found = self._sections.get(_TYPED + field)
        return None if found is None else found[1].view(kind)

    @property
    def has_offsets(self) -> bool:
        """Whether the batch carries each event's Kafka offset (section 10)."""
        return _OFFSETS in self._sections

    @property
    def has_parts(self) -> bool:
        """Whether some of the events may be puts of frames (section 11)."""
        return self.is_compact or _PARTS in self._sections

    def event(self, index: int) -> Event:
        """One event, copied out; for reports and tests, not for the data path."""
        if self.is_compact:
            found = compact.event(self._sections, index)
            return Event(*found[:4], OP_PUT, *found[4:])
        keys, values = self._sections[_KEYS][1], self._sections[_VALUES][1]
        key_end, value_end = self.column("key_end"), self.column("value_end")
        key_at, value_at = (int(ends[index - 1]) if index else 0 for ends in (key_end, value_end))
        return Event(
            append_ms=int(self.column("append_ms")[index]),
            hlc=int(self.column("hlc")[index]),
            expires_ms=int(self.column("expires_ms")[index]),
            generation=int(self.column("generation")[index]),
            op=int(self.column("op")[index]),
            key=keys[key_at : int(key_end[index])].tobytes(),
            value=values[value_at : int(value_end[index])].tobytes(),
            offset=int(self.column("offset")[index]) if self.has_offsets else -1,
            part=int(self.column("part")[index]) if self.has_parts else -1,
        )

    def events(self) -> list[Event]:
        """All events, copied out."""
        batch = self.full()
        return [batch.event(i) for i in range(self.n)]

    def select(self, indices: Sequence[int] | Array) -> Batch:
        """A new batch with the events at `indices`, in that order. Sections of width 0 that are unknown are dropped."""
        if self.is_compact:
            return self.full().select(indices)
        chosen = np.asarray(indices, dtype=np.int64)
        columns: dict[int, tuple[int, bytes]] = {}
        for ident, (width, data) in self._sections.items():
            if width and ident not in (6, 8):
                rows = data if ident in _FIXED else data.reshape(self.n, width)
                columns[ident] = (width, rows[chosen].tobytes())
        for ends_id, blob_id, name in ((6, _KEYS, "key_end"), (8, _VALUES, "value_end")):
            ends = self.column(name).astype(np.int64)
            starts = starts_of(ends)[chosen]
            ends = ends[chosen]
            columns[blob_id] = (0, gather(self._sections[blob_id][1], starts, ends).tobytes())
            columns[ends_id] = (4, np.cumsum(ends - starts).astype("<u4").tobytes())
        return assemble(len(chosen), columns)


def assemble(n: int, columns: dict[int, tuple[int, bytes]]) -> Batch:
    """A batch of n events from sections {id: (width, bytes)}."""
    at = _HEADER.size + _SECTION.size * len(columns)
    table: list[bytes] = []
    parts: list[bytes] = []
    for ident, (width, data) in sorted(columns.items()):
        padding = -at % 8
        at += padding
        table.append(_SECTION.pack(ident, at, len(data), width))
        parts += (bytes(padding), data)
        at += len(data)
    raw = b"".join((_HEADER.pack(MAGIC, n, at, len(columns)), *table, *parts))
    return Batch.parse(raw)


def build(events: Sequence[Event]) -> Batch:
    """A batch of `events`, as a decoder would emit it (for tests, vectors and small inputs)."""
    columns: dict[int, tuple[int, bytes]] = {}
    parts = (_PARTS,) if any(e.part >= 0 for e in events) else ()
    for ident in (1, 2, 3, 4, 5, 10, *parts):
        name, kind = _FIXED[ident]
        data = np.array([getattr(e, name) for e in events], dtype=kind)
        columns[ident] = (data.itemsize, data.tobytes())
    for ends_id, blob_id, name in ((6, _KEYS, "key"), (8, _VALUES, "value")):
        blobs = [getattr(e, name) for e in events]
        columns[ends_id] = (4, np.cumsum([len(b) for b in blobs], dtype="<u4").astype("<u4").tobytes())
        columns[blob_id] = (0, b"".join(blobs))
    return assemble(len(events), columns)
