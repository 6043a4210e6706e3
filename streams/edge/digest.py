"""A table's digest: equal in every region that has applied the same markers, whatever the order of arrival."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b

from streams.model.merge import Merged

_MASK = (1 << 128) - 1


@dataclass(frozen=True, slots=True)
class Digest:
    """`hex`: 128 bits over the rows alive at `as_of_ms`. `applied`: `origin/partition` → its marker's (seq, time)."""

    hex: str
    rows: int
    as_of_ms: int
    applied: dict[str, tuple[int, int]]


class DigestSum:
    """Adds up 128-bit hashes of rows: any order gives the same sum, and a row can be taken out again."""

    def __init__(self) -> None:
        self._sum = 0
        self.rows = 0

    def add(self, key: bytes, merged: Merged) -> None:
        """Count a live row in."""
        self._sum = (self._sum + hash_row(key, merged)) & _MASK
        self.rows += 1

    def hex(self) -> str:
        """The digest so far: 32 hexadecimal digits."""
        return f"{self._sum:032x}"


def hash_row(key: bytes, merged: Merged) -> int:
    """128 bits of a live row: its key, value (for lww the payload's bytes) and expiry."""
    value = merged.value
    if isinstance(value, bytes):
        body = b"b" + value
    elif isinstance(value, int):
        body = b"i%d" % value
    else:
        body = b"f" + float(value).hex().encode()
    head = b"%d:%d:" % (len(key), merged.expires_ms)
    return int.from_bytes(blake2b(head + key + body, digest_size=16).digest(), "little")
