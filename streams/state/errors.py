"""What can be wrong with a partition's directory, said so that a caller can decide: wait, or wipe and restore."""

from __future__ import annotations

from pathlib import Path

from streams.model.errors import StreamsError, Unavailable


class StoreLocked(Unavailable):
    """Another process (or another handle in this one) has the partition's directory open."""

    title = "store locked"


class StoreCorrupt(StreamsError):
    """The directory cannot be read as a partition. Its content is a copy of a changelog: wipe it and restore."""

    title = "store corrupt"


class StoreClosed(StreamsError):
    """The partition was used after it was closed: a mistake of the program, not of the data."""

    title = "store closed"


def translate(error: Exception, path: Path) -> Exception:
    """The error to raise for one that RocksDB's binding raised (it only knows `Exception`), or `error` itself."""
    text = str(error)
    if type(error).__name__ == "DbClosedError":
        return StoreClosed(f"the partition in {path} is closed")
    if "/LOCK" in text or "lock hold" in text:
        return StoreLocked(
            f"the partition in {path} is open elsewhere", fix="stop the other process that uses this data directory"
        )
    marks = ("Corruption", "does not exist", "missing", "mismatch", "No such file")
    if any(mark in text for mark in marks):
        return StoreCorrupt(
            f"the partition in {path} cannot be read: {text[:300]}", fix="wipe it; it is restored from its changelog"
        )
    return error
