"""Order statistics of measured samples."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence


def percentile(samples: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile (0 < percent ≤ 100) of the samples, in their unit; ValueError when there are none."""
    if not samples:
        raise ValueError("no samples")
    if not 0 < percent <= 100:
        raise ValueError(f"{percent} is not a percentage")
    ordered = sorted(samples)
    return ordered[math.ceil(percent / 100 * len(ordered)) - 1]


def median(samples: Sequence[float]) -> float:
    """The median of the samples, in their unit; ValueError when there are none."""
    if not samples:
        raise ValueError("no samples")
    return statistics.median(samples)
