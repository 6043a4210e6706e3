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
_VARINT_BYTES, _CELL_BYTES = 10, 8
_FIXED_BYTES = 85
"""Of an event in a batch v1, beside its key and its value."""

_STEP = 4_096
"""So many events are expanded at a time: the numbers that say where each byte goes take 24 times the bytes."""
Sections = Mapping[int, tuple[int, Array]]


def check_compact(n: int, sections: Sections) -> None:
    """BadInput unless the sections are a whole, consistent compact batch of n events."""
    missing = {*_BY_RUN, 6, 7, RUNS, SCHEMA} - sections.keys()
    if missing or not n:
        raise BadInput(f"sections {sorted(missing)} are missing", field="batch")
    starts = _words(sections, RUNS)
    if not len(starts) or starts[0] or bool((starts[1:] <= starts[:-1]).any()) or int(starts[-1]) >= n:
        raise BadInput("runs do not ascend", field="batch")
    if any(len(sections[ident][1]) != len(starts) for ident in _BY_RUN):
        raise BadInput("a section has not one item a run", field="batch")
    keys = _items(sections, 6, 7)
    if KEY_ID in sections:
        _check_ids(n, sections, KEY_ID, keys)
    elif keys != n:
        raise BadInput(f"there are {keys} keys of {n} events", field="batch")
    for c, kind in enumerate(_kinds(sections)):
        needed = {_ITEM + c, _WORD_END + c, _WORDS + c} if kind == _WORD else {_TYPED + c}
        if kind not in (_LONG, _DOUBLE, _WORD) or needed - sections.keys():
            raise BadInput(f"field {c} is not whole", field="batch")
        if kind == _WORD:
            _check_ids(n, sections, _ITEM + c, _items(sections, _WORD_END + c, _WORDS + c))
        elif sections[_TYPED + c][0] != _CELL_BYTES:
            raise BadInput(f"cells of field {c} are not {_CELL_BYTES} bytes wide", field="batch")


def _items(sections: Sections, ends_id: int, blob_id: int) -> int:
    """How many items there are in a blob, whose ends lie in it and ascend."""
    ends, blob = _words(sections, ends_id), sections[blob_id][1]
    if len(ends) and (bool((ends[1:] < ends[:-1]).any()) or int(ends[-1]) > len(blob)):
        raise BadInput(f"ends of section {ends_id} are out of order", field="batch")
    return len(ends)


def _check_ids(n: int, sections: Sections, ident: int, items: int) -> None:
    ids = _words(sections, ident)
    if sections[ident][0] != ids.itemsize or len(ids) != n or int(ids.max()) >= items:
        raise BadInput(f"section {ident} names what is not there", field="batch")


def schema_id(sections: Sections) -> int:
    """The schema of all its puts."""
    return int(_words(sections, SCHEMA)[0])


def value_bytes_most(sections: Sections) -> int:
    """No value is longer."""
    most = 5
    for c, kind in enumerate(_kinds(sections)):
        most += _longest(sections, _WORD_END + c) if kind == _WORD else _VARINT_BYTES
    return most


def _longest(sections: Sections, ends_id: int) -> int:
    ends = _words(sections, ends_id)
    return int((ends - starts_of(ends)).max())


def full_bytes_most(n: int, sections: Sections) -> int:
    """About how large it is at most as a batch v1: as if all its items were as long as the longest."""
    return n * (_FIXED_BYTES + _longest(sections, 6) + value_bytes_most(sections))


def event(sections: Sections, index: int) -> tuple[int, int, int, int, bytes, bytes, int, int]:
    """One event: append_ms, hlc, expires_ms, generation, key, value, offset, part."""
    starts = _words(sections, RUNS)
    run = int(np.searchsorted(starts, index, "right")) - 1
    append_ms, hlc, expires_ms, generation, offset = (int(sections[ident][1][run]) for ident in _BY_RUN)
    key = _item(sections, 6, 7, int(_words(sections, KEY_ID)[index]) if KEY_ID in sections else index)
    value = [schema_id(sections).to_bytes(5, "big")]
    for c, kind in enumerate(_kinds(sections)):
        if kind == _WORD:
            value.append(_item(sections, _WORD_END + c, _WORDS + c, int(_words(sections, _ITEM + c)[index])))
        else:
            cell = sections[_TYPED + c][1][_CELL_BYTES * index : _CELL_BYTES * (index + 1)]
            value.append(cell.tobytes() if kind == _DOUBLE else _varints(cell.view("<i8"))[1].tobytes())
    return append_ms, hlc, expires_ms, generation, key, b"".join(value), offset, index - int(starts[run])


def _item(sections: Sections, ends_id: int, blob_id: int, at: int) -> bytes:
    ends = _words(sections, ends_id)
    return sections[blob_id][1][int(ends[at - 1]) if at else 0 : int(ends[at])].tobytes()


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
    steps = [slice(first, first + _STEP) for first in range(0, n, _STEP)]
    columns[7] = (0, b"".join(gather(sections[7][1], starts[some], ends[some]).tobytes() for some in steps))
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
    kinds = _kinds(sections)
    blobs: list[bytes] = []
    lengths: list[Array] = []
    for first in range(0, n, _STEP):
        some = slice(first, min(n, first + _STEP))
        cells = [_cells(sections, c, kind, some) for c, kind in enumerate(kinds)]
        blob, sizes = _joined(schema_id(sections), cells)
        blobs.append(blob)
        lengths.append(sizes)
    ends = np.cumsum(np.concatenate(lengths))
    return (0, b"".join(blobs)), (4, ends.astype("<u4").tobytes())


def _joined(schema: int, cells: list[tuple[Array, Array]]) -> tuple[bytes, Array]:
    """The prefix and the cells of each event, one after the other; how long each came to be."""
    lengths: Array = sum((sizes for sizes, _ in cells), start=np.full(len(cells[0][0]), 5, np.int64))
    at = np.cumsum(lengths) - lengths
    out = np.empty(int(lengths.sum()), np.uint8)
    out[at[:, None] + np.arange(5)] = np.frombuffer(schema.to_bytes(5, "big"), np.uint8)
    at = at + 5
    for sizes, blob in cells:
        before = np.cumsum(sizes) - sizes
        out[np.repeat(at - before, sizes) + np.arange(len(blob))] = blob
        at = at + sizes
    return out.tobytes(), lengths


def _cells(sections: Sections, c: int, kind: int, some: slice) -> tuple[Array, Array]:
    """A field of some puts as Avro has it: the sizes, and the bytes one after the other."""
    if kind == _WORD:
        ends, ids = _words(sections, _WORD_END + c).astype(np.int64), _words(sections, _ITEM + c)[some]
        starts, ends = starts_of(ends)[ids], ends[ids]
        return ends - starts, gather(sections[_WORDS + c][1], starts, ends)
    data = sections[_TYPED + c][1][_CELL_BYTES * some.start : _CELL_BYTES * some.stop]
    if kind == _DOUBLE:
        return np.full(len(data) // _CELL_BYTES, _CELL_BYTES, np.int64), data
    return _varints(data.view("<i8"))


def _varints(longs: Array) -> tuple[Array, Array]:
    zigzag = (longs << 1 ^ longs >> 63).view(np.uint64)
    left = zigzag[:, None] >> (7 * np.arange(_VARINT_BYTES, dtype=np.uint64))
    sizes = np.maximum((left > 0).sum(axis=1), 1)
    place = np.arange(_VARINT_BYTES)
    written = (left & np.uint64(127)).astype(np.uint8) | np.where(place < sizes[:, None] - 1, 128, 0).astype(np.uint8)
    return sizes, written[place < sizes[:, None]]
