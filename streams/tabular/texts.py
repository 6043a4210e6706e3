"""Arrow text as a column of a frame, in whichever form is smaller."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from streams.model.errors import BadInput
from streams.serde.frame_columns import Dictionary, Items

SAMPLE_ROWS = 4096
"""How many texts are looked at to choose a column's form."""


def text_array(keys: Sequence[str | None]) -> Any:
    """Arrow text. BadInput for what is not Unicode."""
    try:
        return pa.array(keys, pa.large_string())
    except (pa.ArrowException, UnicodeError, TypeError) as error:
        raise BadInput(f"not text: {str(error)[:100]}", field="key", fix="encode the key as UTF-8") from None


def items_of(texts: Any) -> Items | Dictionary:
    """Arrow text without nulls as a column of a frame: by dictionary when most of it is repetition, by a sample."""
    texts = flat(texts)
    if (one := _one_text(texts)) is not None:
        return Dictionary(_items(one), np.zeros(len(texts), np.uint8))
    if _repeats(texts):
        encoded = texts.dictionary_encode()
        return Dictionary(_items(encoded.dictionary), encoded.indices.to_numpy(zero_copy_only=False))
    return _items(texts)


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
