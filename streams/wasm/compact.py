"""A compact batch as a batch v1: for modules that read no other, and to look for culprits (wasm_udfs/ABI.md)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from streams.model.errors import BadInput
from streams.wasm.columns import Array, gather, starts_of

KEY_ID, RUNS, SCHEMA = 12, 13, 14
_BY_RUN = (1, 2, 3, 4, 10)
_TYPED, _ITEM, _WORD_END, _WORDS = 64, 128, 192, 256
_LONG, _DOUBLE, _WORD = 0, 1, 3
_VARINT_BYTES = 10
Sections = Mapping[int, tuple[int, Array]]


def check_compact(n: int, sections: Sections) -> None:
    """BadInput unless the sections are a whole compact batch of n events; ids are looked at by the modules."""
    missing = {*_BY_RUN, 6, 7, RUNS, SCHEMA} - sections.keys()
    if missing or not n:
        raise BadInput(f"sections {sorted(missing)} are missing", field="batch")
    starts = _words(sections, RUNS)
    if not len(starts) or starts[0] or bool((starts[1:] <= starts[:-1]).any()) or int(starts[-1]) >= n:
        raise BadInput("runs do not ascend", field="batch")
    if any(len(sections[ident][1]) != len(starts) for ident in _BY_RUN):
        raise BadInput("a section has not one item a run", field="batch")
    for c, kind in enumerate(_kinds(sections)):
        needed = {_ITEM + c, _WORD_END + c, _WORDS + c} if kind == _WORD else {_TYPED + c}
        if kind not in (_LONG, _DOUBLE, _WORD) or needed - sections.keys():
            raise BadInput(f"field {c} is not whole", field="batch")


def schema_id(sections: Sections) -> int:
    """The schema of all its puts."""
    return int(_words(sections, SCHEMA)[0])


def value_bytes_most(sections: Sections) -> int:
    """No value is longer."""
    most = 5
    for c, kind in enumerate(_kinds(sections)):
        ends = _words(sections, _WORD_END + c) if kind == _WORD else None
        most += _VARINT_BYTES if ends is None else int((ends - starts_of(ends)).max())
    return most


def by_event(n: int, sections: Sections, ident: int) -> Array:
    """A column that has one item a run, with one an event."""
    found: Array = np.repeat(sections[ident][1], _run_lengths(n, sections))
    return found


def parts(n: int, sections: Sections) -> Array:
    """Each put's position in its frame."""
    starts = _words(sections, RUNS)
    found: Array = (np.arange(n) - np.repeat(starts, _run_lengths(n, sections))).astype("<i4")
    return found


def expanded(n: int, sections: Sections) -> dict[int, tuple[int, bytes]]:
    """The sections of the batch v1 that says the same: {id: (width, bytes)}."""
    columns = {ident: (8, by_event(n, sections, ident).tobytes()) for ident in _BY_RUN}
    columns[5] = (1, bytes(n))
    columns[11] = (4, parts(n, sections).tobytes())
    ends = _words(sections, 6).astype(np.int64)
    starts = starts_of(ends)
    if KEY_ID in sections:
        ids = _words(sections, KEY_ID)
        starts, ends = starts[ids], ends[ids]
    columns[7] = (0, gather(sections[7][1], starts, ends).tobytes())
    columns[6] = (4, np.cumsum(ends - starts).astype("<u4").tobytes())
    columns[9], columns[8] = _values(n, sections)
    for ident, (width, data) in sections.items():
        if ident in (KEY_ID, RUNS) or _TYPED <= ident < _WORD_END:
            columns[ident] = (width, data.tobytes())
    return columns


def _words(sections: Sections, ident: int) -> Array:
    """A section of unsigned 32-bit numbers; of SCHEMA the first two."""
    data = sections[ident][1]
    return data if data.dtype != np.uint8 else data[: len(data) // 4 * 4].view("<u4")


def _kinds(sections: Sections) -> list[int]:
    head = _words(sections, SCHEMA)
    found: list[int] = sections[SCHEMA][1][8:].tolist()
    if len(head) < 2 or len(found) != int(head[1]):
        raise BadInput("the schema section is not whole", field="batch")
    return found


def _run_lengths(n: int, sections: Sections) -> Array:
    return np.diff(_words(sections, RUNS).astype(np.int64), append=n)


def _values(n: int, sections: Sections) -> tuple[tuple[int, bytes], tuple[int, bytes]]:
    """All values in wire format, one after the other, and where each ends."""
    cells = [_cells(sections, c, kind) for c, kind in enumerate(_kinds(sections))]
    lengths = np.full(n, 5, np.int64)
    for each, _ in cells:
        lengths += each
    ends = np.cumsum(lengths)
    at = ends - lengths
    out = np.empty(int(ends[-1]), np.uint8)
    out[at[:, None] + np.arange(5)] = np.frombuffer(schema_id(sections).to_bytes(5, "big"), np.uint8)
    at = at + 5
    for sizes, blob in cells:
        before = np.cumsum(sizes) - sizes
        out[np.repeat(at - before, sizes) + np.arange(len(blob))] = blob
        at = at + sizes
    return (0, out.tobytes()), (4, ends.astype("<u4").tobytes())


def _cells(sections: Sections, c: int, kind: int) -> tuple[Array, Array]:
    """A field of all puts as Avro has it: the sizes, and the bytes one after the other."""
    if kind == _WORD:
        ends, ids = _words(sections, _WORD_END + c).astype(np.int64), _words(sections, _ITEM + c)
        starts, ends = starts_of(ends)[ids], ends[ids]
        return ends - starts, gather(sections[_WORDS + c][1], starts, ends)
    data = sections[_TYPED + c][1]
    if kind == _DOUBLE:
        return np.full(len(data) // 8, 8, np.int64), data
    longs = data.view("<i8")
    zigzag = (longs << 1 ^ longs >> 63).view(np.uint64)
    left = zigzag[:, None] >> (7 * np.arange(_VARINT_BYTES, dtype=np.uint64))
    sizes = np.maximum((left > 0).sum(axis=1), 1)
    place = np.arange(_VARINT_BYTES)
    written = (left & np.uint64(127)).astype(np.uint8) | np.where(place < sizes[:, None] - 1, 128, 0).astype(np.uint8)
    return sizes, written[place < sizes[:, None]]
