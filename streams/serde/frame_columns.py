"""Columns of frames: what callers give, as numpy arrays, and the smaller of the encodings that a column may have."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streams.model.errors import BadInput

Array = NDArray[Any]
LONG, DOUBLE, BOOLEAN, BYTES, RAW = "LONG", "DOUBLE", "BOOLEAN", "BYTES", "RAW"
DICTIONARY_RATIO_MAX = 64
"""A dictionary that saves more than this factor is not used: decoders bound what a frame expands to."""

CONSTANT_BYTES_MAX = 16
_SAMPLE = 256
_COUNTED_MAX = 4096
"""A dictionary of up to so many items more than there are rows is counted item by item."""

_KIND_BYTES = {LONG: b"\0", DOUBLE: b"\2", BOOLEAN: b"\4", BYTES: b"\6", RAW: b"\x08"}
_ENCODING_BYTES = {"PLAIN": b"\0", "DICTIONARY": b"\2", "OFFSET": b"\4"}
_SMALL = [bytes([number]) for number in range(128)]
_GROUPS_MAX = 48
_FIX = "give a sequence of text or bytes, Items of a buffer, or a Dictionary"


@dataclass(frozen=True, slots=True)
class Items:
    """Variable-width items in one buffer: item i is data[ends[i-1]:ends[i]], the first from `start` on.

    An Arrow string array is `Items(values_buffer, offsets[1:], int(offsets[0]))`.
    """

    data: bytes | Array
    ends: Array
    start: int = 0

    @property
    def blob(self) -> Array:
        """The buffer as bytes."""
        return np.frombuffer(self.data, np.uint8) if isinstance(self.data, bytes) else self.data.view(np.uint8)


@dataclass(frozen=True, slots=True)
class Dictionary:
    """A column by its distinct values and an index into them per row."""

    uniques: Sequence[str | bytes] | Array | Items
    indices: Array


@dataclass(frozen=True, slots=True)
class Raw:
    """A column whose cells are Avro binary already (any Avro type, or several fields at once)."""

    cells: Sequence[bytes] | Array | Items | Dictionary | Texts


@dataclass(frozen=True, slots=True)
class Columns:
    """Puts in columns. `value`: the record's fields by name (numbers, texts, `Raw`), or `Raw` bodies alone.

    `ttl_ms`: one for all, one per put (0: none given), or None. Puts of one key keep their order.
    """

    keys: Sequence[str | bytes] | Array | Items | Dictionary | Texts
    value: Mapping[str, Any] | Raw
    ttl_ms: int | Array | None = None


@dataclass(frozen=True, slots=True)
class Texts:
    """A variable-width column as arrays: `codes` (None: row i is item i) into slices of `blob`."""

    blob: Array
    starts: Array
    lengths: Array
    codes: Array | None

    def __len__(self) -> int:
        return len(self.starts) if self.codes is None else len(self.codes)

    def row_items(self, rows: Array) -> Array:
        """The item of each row."""
        return rows if self.codes is None else self.codes[rows]

    def item(self, index: int) -> bytes:
        """One item, copied out."""
        at = int(self.starts[index])
        return self.blob[at : at + int(self.lengths[index])].tobytes()


def texts_of(given: Any, field: str) -> Texts:
    """A variable-width column in any of its forms. BadInput names `field`."""
    if isinstance(given, Texts):
        return given
    if isinstance(given, Dictionary):
        items = texts_of(given.uniques, field)
        codes = np.asarray(given.indices)
        if codes.dtype.kind not in "iu":
            raise BadInput("the indices are not integers", field=field, fix=_FIX)
        if len(codes) and not 0 <= int(codes.min()) <= int(codes.max()) < len(items):
            raise BadInput("an index lies outside the dictionary", field=field, fix=_FIX)
        codes = codes.astype(np.int64, copy=False)
        return Texts(items.blob, items.starts, items.lengths, items.row_items(codes))
    if isinstance(given, Items):
        ends = np.asarray(given.ends).astype(np.int64, copy=False)
        starts = np.concatenate((np.array([given.start], np.int64), ends[:-1])) if len(ends) else ends
        blob = given.blob
        if len(ends) and (given.start < 0 or int(ends[-1]) > len(blob) or bool((ends < starts).any())):
            raise BadInput("the ends do not fit the buffer", field=field, fix=_FIX)
        return Texts(blob, starts, ends - starts, None)
    if isinstance(given, str | bytes):
        raise BadInput("one text is no column", field=field, fix=_FIX)
    cells = given.tolist() if hasattr(given, "tolist") else list(given)
    seen: dict[Any, int] = {}
    try:
        codes = np.fromiter((seen.setdefault(cell, len(seen)) for cell in cells), np.int64, len(cells))
        uniques = [cell if type(cell) is bytes else cell.encode() for cell in seen]
    except (AttributeError, TypeError, UnicodeError):
        raise BadInput("a cell is neither text (of valid Unicode) nor bytes", field=field, fix=_FIX) from None
    lengths = np.fromiter(map(len, uniques), np.int64, len(uniques))
    starts = np.cumsum(lengths) - lengths
    return Texts(np.frombuffer(b"".join(uniques), np.uint8), starts, lengths, codes)


def gather(blob: Array, starts: Array, lengths: Array) -> Array:
    """The concatenated slices of `blob`; one copy per distinct length rather than per byte, when those are few."""
    total = int(lengths.sum())
    if not total:
        return np.empty(0, np.uint8)
    size = int(lengths[0])
    if size * len(lengths) == total and bool((lengths == size).all()):
        return _windows(blob, size)[starts].view(np.uint8)
    sizes = np.flatnonzero(np.bincount(lengths)) if int(lengths.max()) < 4096 else np.empty(0, np.int64)
    before = np.cumsum(lengths) - lengths
    if not 0 < len(sizes) <= _GROUPS_MAX or total < 4096:
        return blob[np.repeat(starts - before, lengths) + np.arange(total)]
    out = np.empty(total, np.uint8)
    for size in map(int, sizes):
        if size:
            chosen = lengths == size
            _windows(out, size)[before[chosen]] = _windows(blob, size)[starts[chosen]]
    return out


def _windows(blob: Array, size: int) -> Array:
    """Every slice of `size` bytes, overlapping, as one array of opaque values."""
    whole = np.ascontiguousarray(blob)
    return np.ndarray((len(whole) - size + 1,), f"V{size}", whole, 0, (1,))


def compact(items: Array, scratch: Array) -> tuple[Array, Array]:
    """The distinct values of `items` and each one's index among them. `scratch`: int32, one per possible value."""
    count = np.arange(len(items), dtype=np.int32)
    scratch[items] = count
    last = scratch[items]
    first = last == count
    rank = np.cumsum(first, dtype=np.int32) - 1
    return items[first], rank[last]


def unsigned(values: Array, largest: int) -> Array:
    """`values` in the narrowest unsigned type that holds `largest`."""
    return values.astype(_narrowest(largest), copy=False)


def _narrowest(largest: int) -> str:
    return "<u1" if largest < 1 << 8 else "<u2" if largest < 1 << 16 else "<u4" if largest < 1 << 32 else "<u8"


@dataclass(frozen=True, slots=True)
class Column:
    """A FrameColumn: its parts as arrays, which are copied once, into the frame."""

    kind: str
    encoding: str
    base: int = 0
    items: int = 0
    codes: Array | bytes = b""
    lengths: Array | bytes = b""
    data: Array | bytes = b""

    def write(self, out: list[Any]) -> None:
        """Append its Avro bytes, piece by piece."""
        head = long_bytes(self.base) + long_bytes(self.items)
        out.append(_KIND_BYTES[self.kind] + _ENCODING_BYTES[self.encoding] + head)
        for part in (self.codes, self.lengths, self.data):
            size = part.nbytes if isinstance(part, np.ndarray) else len(part)
            out.append(long_bytes(size))
            if size:
                out.append(part)


def long_bytes(number: int) -> bytes:
    """A long as Avro."""
    left = (number << 1) ^ (number >> 63)
    if left < 0x80:
        return _SMALL[left]
    made = bytearray()
    while left >= 0x80:
        made.append(left & 0x7F | 0x80)
        left >>= 7
    made.append(left)
    return bytes(made)


@dataclass(frozen=True, slots=True)
class Used:
    """What some rows have of a text column: their distinct `items` and each row's index among them (None: row i has
    item i), and how many bytes the rows' texts take when each is written out.
    """

    items: Array
    codes: Array | None
    texts_bytes: int


def used_by(texts: Texts, rows: Array, scratch: Array) -> Used:
    """What `rows` have; `scratch`: as of `compact`."""
    if texts.codes is None:
        return Used(rows, None, int(texts.lengths.take(rows).sum()))
    if len(texts.starts) == 1:
        return Used(np.zeros(1, np.int64), np.zeros(len(rows), np.uint8), int(texts.lengths[0]) * len(rows))
    items = texts.codes.take(rows)
    if len(texts.starts) > _COUNTED_MAX + len(rows):
        chosen, codes = compact(items, scratch)
        return Used(chosen, unsigned(codes, len(chosen) - 1), int(texts.lengths.take(items).sum()))
    # Few items: one look at each row, and the rest is work an item.
    counts = np.bincount(items, minlength=len(texts.starts))
    chosen = np.flatnonzero(counts)
    rank = np.empty(len(counts), _narrowest(len(chosen) - 1))
    rank[chosen] = np.arange(len(chosen))
    return Used(chosen, rank.take(items), int(counts.dot(texts.lengths)))


def encode_texts(kind: str, texts: Texts, used: Used, *, plain: bool = False, constant: bool = True) -> Column:
    """BYTES or RAW cells of the rows that `used` tells of: plain or by dictionary, whichever is smaller. `plain`:
    always plain; `constant`: a column of one short item may do without codes.
    """
    items, codes = used.items, used.codes
    lengths = texts.lengths.take(items)
    largest = int(lengths.max())
    if codes is not None:
        width = np.dtype(_narrowest(largest)).itemsize
        plain_bytes = used.texts_bytes + len(codes) * width
        small_bytes = int(lengths.sum()) + codes.nbytes + len(items) * width
        if not plain and small_bytes < plain_bytes <= DICTIONARY_RATIO_MAX * small_bytes:
            if constant and len(items) == 1 and largest <= CONSTANT_BYTES_MAX:
                codes = codes[:0]
            data = gather(texts.blob, texts.starts.take(items), lengths)
            sizes = unsigned(lengths, largest)
            return Column(kind, "DICTIONARY", items=len(items), codes=codes, lengths=sizes, data=data)
        items = items.take(codes)
        lengths = texts.lengths.take(items)
    data = gather(texts.blob, texts.starts.take(items), lengths)
    return Column(kind, "PLAIN", items=len(items), lengths=unsigned(lengths, largest), data=data)


def encode_longs(values: Array) -> Column:
    """LONG cells as offsets from the least."""
    low, high = int(values.min()), int(values.max())
    if low == high:
        return Column(LONG, "OFFSET", base=low)
    offsets = values.astype("<i8", copy=False).view("<u8") - np.array(low, "<i8").view("<u8")
    return Column(LONG, "OFFSET", base=low, codes=unsigned(offsets, high - low))


def encode_doubles(values: Array) -> Column:
    """DOUBLE cells, bit for bit: by dictionary when a sample repeats itself and that is smaller."""
    bits = values.astype("<f8", copy=False).view("<u8")
    step = max(1, len(bits) // _SAMPLE)
    sample = np.sort(bits[::step][:_SAMPLE])
    if 1 + np.count_nonzero(sample[1:] != sample[:-1]) <= len(sample) // 2:
        uniques, codes = np.unique(bits, return_inverse=True)
        codes = unsigned(codes, len(uniques) - 1)
        if uniques.nbytes + codes.nbytes < bits.nbytes:
            return Column(DOUBLE, "DICTIONARY", items=len(uniques), codes=codes, data=uniques)
    return Column(DOUBLE, "PLAIN", items=len(bits), data=np.ascontiguousarray(bits))


def encode_plain(kind: str, values: Array) -> Column:
    """Numeric cells as they are (in their little-endian type)."""
    return Column(kind, "PLAIN", items=len(values), data=np.ascontiguousarray(values))


def encode_booleans(values: Array) -> Column:
    """BOOLEAN cells."""
    return encode_plain(BOOLEAN, values.astype("u1", copy=False))


NUMERIC: dict[str, Callable[[Array], Column]] = {
    LONG: encode_longs,
    DOUBLE: encode_doubles,
    BOOLEAN: encode_booleans,
}
