"""`Packed`: very many short byte strings as one, so that none of them need be an object."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import overload

import numpy as np
import numpy.typing as npt

Longs = npt.NDArray[np.int64]


class Packed(Sequence[bytes]):
    """Byte strings that lie one after the other in `blob`, from `start` on; `ends`: where each ends."""

    def __init__(self, blob: bytes, ends: Longs, start: int = 0) -> None:
        self._blob, self.ends, self.start = blob, ends, start

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, index: int) -> bytes: ...

    @overload
    def __getitem__(self, index: slice) -> Packed: ...

    def __getitem__(self, index: int | slice) -> bytes | Packed:
        if isinstance(index, slice):
            first, last, step = index.indices(len(self))
            if step != 1:
                raise ValueError("only slices of step 1")
            return Packed(self._blob, self.ends[first:last], self._begin(first))
        at = range(len(self))[index]
        return self._blob[self._begin(at) : int(self.ends[at])]

    def _begin(self, index: int) -> int:
        return int(self.ends[index - 1]) if index else self.start

    def joined(self) -> bytes:
        """All of them together."""
        return self._blob[self.start : int(self.ends[-1])] if len(self) else b""

    @staticmethod
    def chained(several: Sequence[Packed]) -> Packed:
        """All of these, one after the other."""
        blobs = [each.joined() for each in several]
        before = np.cumsum([0, *map(len, blobs)])
        ends = [each.ends - each.start + at for each, at in zip(several, before.tolist(), strict=False)]
        return Packed(b"".join(blobs), np.concatenate(ends))

    def tolist(self) -> list[bytes]:
        """Each of them."""
        return [self._blob[at:end] for at, end in pairwise([self.start, *self.ends.tolist()])]


def joined(parts: Sequence[bytes]) -> bytes:
    """All parts together."""
    return parts.joined() if isinstance(parts, Packed) else b"".join(parts)
