"""Columns of slices: items one after the other in a blob, and where each ends."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def gather(blob: Array, starts: Array, ends: Array) -> Array:
    """The concatenated slices blob[starts[i]:ends[i]], without a Python loop."""
    lengths = ends - starts
    total = int(lengths.sum())
    if not total:
        return np.empty(0, np.uint8)
    before = np.cumsum(lengths) - lengths
    return blob[np.repeat(starts - before, lengths) + np.arange(total)]


def starts_of(ends: Array) -> Array:
    """Where each slice starts, given where each ends."""
    starts = np.zeros(len(ends), np.int64)
    starts[1:] = ends[:-1]
    return starts
