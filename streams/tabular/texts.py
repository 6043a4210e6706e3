"""Arrow text row by row or coded (its words, and which of them each row has), and as a column of a frame."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from streams.model.errors import BadInput
from streams.serde.frame_columns import Array, Dictionary, Items

SAMPLE_ROWS = 4096
"""How many texts are looked at to choose a column's form."""


def text_array(keys: Sequence[str | None]) -> Any:
    """Arrow text. BadInput for what is not Unicode."""
    try:
        return pa.array(keys, pa.large_string())
    except (pa.ArrowException, UnicodeError, TypeError) as error:
        raise BadInput(f"not text: {str(error)[:100]}", field="key", fix="encode the key as UTF-8") from None


def coded(codes: Array, words: Any) -> Any:
    """Coded text: a column for `put_many`, as pandas and polars have in their categorical ones. Codes are trusted."""
    return pa.DictionaryArray.from_arrays(pa.array(codes), words, safe=False)


def items_of(texts: Any) -> Items | Dictionary:
    """Arrow text without nulls, coded or not, as a column of a frame: by dictionary when most of it is repetition."""
    texts = texts if is_coded(texts) else flat(texts)
    if (found := coded_text(texts)) is not None:
        return Dictionary(_items(found.dictionary), codes_of(found))
    return _items(texts)


def coded_text(texts: Any) -> Any:
    """Text without nulls as an Arrow dictionary, if most of it is repetition, by a sample; else None.

    Coded text is a DictionaryArray of large_string, without nulls. Words may be in it that no row has, or twice.
    """
    if is_coded(texts):
        return texts
    if (one := _one_text(texts)) is not None:
        return coded(np.zeros(len(texts), np.int8), one)
    return texts.dictionary_encode() if _repeats(texts) else None


def is_coded(texts: Any) -> bool:
    """Whether text is coded, rather than row by row."""
    return bool(pa.types.is_dictionary(texts.type))


def words_of(texts: Any) -> Any:
    """The words of coded text, or each row's: what is to be judged, and `by_row` tells of every row."""
    return texts.dictionary if is_coded(texts) else texts


def codes_of(texts: Any) -> Array:
    """Each row's word in coded text."""
    return texts.indices.to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]


def by_row(texts: Any, found: Array) -> Array:
    """What was found of `words_of(texts)`, row by row."""
    return found.take(codes_of(texts)) if is_coded(texts) else found


def decoded(texts: Any) -> Any:
    """Text row by row."""
    return texts.dictionary.take(texts.indices) if is_coded(texts) else texts


def plain_items(texts: Any) -> Items:
    """Arrow text without nulls as a column of a frame, each row an item."""
    return _items(flat(texts))


def _one_text(texts: Any) -> Any:
    """The first text alone, if all are equal to it: a metric, a unit. Far cheaper to see than to hash each."""
    if len(texts) <= 16 or texts[0] != texts[len(texts) - 1]:
        return None
    items = _items(texts)
    size = int(items.ends[0]) - items.start
    if not size or not np.array_equal(items.ends, items.start + size * np.arange(1, len(texts) + 1)):
        return None
    blob = items.blob[items.start : int(items.ends[-1])]
    return texts[:1] if np.array_equal(blob[size:], blob[:-size]) else None


def is_text(kind: Any) -> bool:
    """Whether an Arrow type is text."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def flat(texts: Any) -> Any:
    """Text of any Arrow kind as large_string."""
    if isinstance(texts, pa.ChunkedArray):
        texts = texts.combine_chunks()
    return texts if texts.type == pa.large_string() else pc.cast(texts, pa.large_string())


def _repeats(texts: Any) -> bool:
    """Whether fewer than half of the texts are likely to be distinct: of n drawn from D, about n² / 2D repeat one."""
    sample = texts[:SAMPLE_ROWS]
    if len(sample) <= 16:
        return False
    repeated = len(sample) - pc.count_distinct(sample).as_py()
    return bool(repeated * 2 > len(sample) or repeated * len(texts) > len(sample) ** 2)


def _items(texts: Any) -> Items:
    _, ends, data = texts.buffers()
    bounds = np.frombuffer(ends, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    blob = np.frombuffer(data, np.uint8) if data is not None else np.empty(0, np.uint8)
    return Items(blob, bounds[1:], int(bounds[0]))
