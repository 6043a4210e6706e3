"""What is left of rows on disk, read beside the processes that own them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import rocksdict

from tests.support.polling import eventually_sync


def used_bytes(place: Path) -> int:
    """What a directory takes on disk; files that vanish meanwhile count nothing."""
    total = 0
    for file in place.rglob("*"):
        try:
            total += file.stat().st_blocks * 512
        except FileNotFoundError:
            continue
    return total


def raw_keys(places: Iterable[Path], containing: bytes = b"") -> list[bytes]:
    """The keys of the rows in the partitions under `places`, dead rows too, read without their owners' help."""
    return [key for place in places for current in place.glob("*/CURRENT") for key in _keys(current.parent, containing)]


def _keys(path: Path, containing: bytes) -> list[bytes]:
    found: list[bytes] = []

    def read() -> bool:
        # The owner may remove a file between the reading of its list and of itself: then the list is a new one.
        found.clear()
        try:
            options = rocksdict.Options(raw_mode=True)
            store = rocksdict.Rdict(str(path), options, access_type=rocksdict.AccessType.read_only())
        except Exception as error:  # the binding raises nothing more precise
            raise AssertionError(str(error)) from error
        try:
            found.extend(key for key, _ in store.items() if not key.startswith(b"\x00") and containing in key)
        finally:
            store.close()
        return True

    eventually_sync(read, 20)
    return found
