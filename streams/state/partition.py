"""One replica's rows of one table partition, on disk.

Rows are kept under their own keys. What belongs to the partition itself (marker, changelog offset, flags) is kept under
keys that start with a zero byte, which no key of a table does. Rows, marker and offset go into one WriteBatch, so that
after any crash the three agree.
"""

from __future__ import annotations

import itertools
import logging
import shutil
import time
import zlib
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import rocksdict

from streams.model.clock import wall_ms
from streams.model.errors import BadInput
from streams.model.marker import MARKER_KEY, Marker
from streams.model.row import seq_of
from streams.model.unit_rows import Row, RowPairs, UnitRows
from streams.state.cursor import TableCursor
from streams.state.errors import StoreCorrupt, translate
from streams.state.options import StoreOptions, rocksdb_options

Rows = Collection[tuple[bytes, bytes | None]]
_FIRST = b"\x01"
_OFFSET = b"\x00offset"
_RESTORING = b"\x00restoring"
_APPLIED = b"\x00applied"
_META = b"\x00meta/"


_FILES_MANY = 8
"""So many files at level 0 are being compacted, and more of them would be waited for."""

log = logging.getLogger(__name__)


def upper_bound(prefix: bytes) -> bytes | None:
    """The least key after all that start with `prefix`; None when there is none."""
    trimmed = prefix.rstrip(b"\xff")
    return trimmed[:-1] + bytes([trimmed[-1] + 1]) if trimmed else None


class TablePartition:
    """A RocksDB that holds one replica's rows. Not for use from several threads at once, except `close`.

    Raises StoreLocked when another handle has the directory, StoreCorrupt when it cannot be read: the caller may then
    `TablePartition.wipe(path)` and restore from the changelog.
    """

    def __init__(self, path: Path, options: StoreOptions | None = None) -> None:
        self.path = path
        self._options = options or StoreOptions()
        path.mkdir(parents=True, exist_ok=True)
        fresh = not (path / "CURRENT").exists()
        if fresh and any(path.glob("*.sst")):
            raise StoreCorrupt(f"the partition in {path} has lost its CURRENT file", fix="wipe it and restore")
        try:
            self._db = rocksdict.Rdict(str(path), rocksdb_options(self._options))
            self._load()
        except Exception as error:  # the binding raises nothing more precise
            raise translate(error, path) from error
        self._no_wal = rocksdict.WriteOptions()
        self._no_wal.disable_wal = True
        self._sync = rocksdict.WriteOptions()
        self._sync.sync = True
        self._unwritten, self._written_s = False, 0.0
        spread = zlib.crc32(str(path).encode()) / 2**32  # a process's partitions do not all flush in one moment
        self._flushed_s = time.monotonic() - spread * self._options.removals_flush_s
        self._unflushed_removals = False

    def _load(self) -> None:
        offset, marker, restoring = self._db.get([_OFFSET, MARKER_KEY, _RESTORING])
        self._offset = None if offset is None else int.from_bytes(offset, "little")
        try:
            self._marker = None if marker is None else Marker.decode(marker)
        except ValueError as error:
            raise StoreCorrupt(f"the marker in {self.path} cannot be read: {error}", fix="wipe and restore") from None
        self._restoring = restoring is not None

    @staticmethod
    def wipe(path: Path) -> None:
        """Remove the partition's directory. It must not be open."""
        shutil.rmtree(path, ignore_errors=True)

    def marker(self) -> Marker | None:
        """The marker of the last applied unit; None before the first."""
        return self._marker

    def changelog_offset(self) -> int | None:
        """Where to go on reading the changelog: the position after the last applied unit; None when empty."""
        return self._offset

    @property
    def restoring(self) -> bool:
        """Whether a restore was begun and not ended: the rows are a prefix of the changelog, not to be served."""
        return self._restoring

    def get(self, key: bytes) -> bytes | None:
        """The row of `key`, encoded, or None."""
        try:
            found: bytes | None = self._db.get(key)
        except Exception as error:  # the binding raises nothing more precise
            raise translate(error, self.path) from error
        return found

    def multi_get(self, keys: list[bytes]) -> list[bytes | None]:
        """The rows of `keys`, in their order; one call into RocksDB."""
        if not keys:
            return []
        try:
            found: list[bytes | None] = self._db.get(keys)
        except Exception as error:  # the binding raises nothing more precise
            raise translate(error, self.path) from error
        return found

    def scan(self, prefix: bytes = b"", after: bytes | None = None, limit: int = 1000) -> list[tuple[bytes, bytes]]:
        """Up to `limit` (key, row) in key order: keys that start with `prefix` and are greater than `after`."""
        return list(itertools.islice(self.iterate(prefix, after), limit))

    def iterate(self, prefix: bytes = b"", after: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
        """All (key, row) in key order, as of this call whatever is applied later.

        Drop the iterator before closing the partition: it keeps the directory locked, and old files on disk.
        """
        return _iterate(self._db, prefix, after)

    def cursor(self) -> TableCursor:
        """A cursor over the rows as they are now, for reading in another thread. Make it where units are applied."""
        return TableCursor(self._db, self.path)

    def apply(self, rows: Rows, marker: Marker | None, changelog_offset: int, *, guard_seq: bool = False) -> int:
        """Write a unit: rows (None removes), its marker and the changelog position after it, all or nothing.

        `guard_seq`: leave out rows that are older (by sequence number) than what is stored. Returns how many rows
        were written. Rows are durable against the end of the process at once, against the machine's when the OS writes
        back; during a restore only from `end_restore` on, without `wal` from when a memtable is full, `flush_s` (with
        removals `removals_flush_s`) has passed and there is another unit, or `close`.
        A marker without rows may wait (`marker_write_s`).
        """
        if not rows and marker is not None and not self._restoring and not self._marker_is_due():
            self._marker, self._offset, self._unwritten = marker, changelog_offset, True
            self._flush_if_due()
            return 0
        if guard_seq:
            fallback = marker.seq if marker else 0
            rows = self.newer([(key, row, fallback if row is None else seq_of(row)) for key, row in rows])
        batch = rocksdict.WriteBatch(raw_mode=True)
        put, delete, removed = batch.put, batch.delete, False  # these are very many
        for key, row in rows:
            if key < _FIRST:
                raise BadInput(f"{key[:40]!r} cannot be a row's key", field="key", fix="use keyspace:rest")
            if row is None:
                delete(key)
                removed = True
            else:
                put(key, row)
        if marker is not None:
            batch[MARKER_KEY] = marker.encode()
        elif self._unwritten and self._marker is not None:
            batch[MARKER_KEY] = self._marker.encode()
        batch[_OFFSET] = changelog_offset.to_bytes(8, "little")
        if not self._restoring:
            batch[_APPLIED] = wall_ms().to_bytes(8, "little")
        written_bytes = int(batch.size_in_bytes())
        self._write(batch, self._no_wal if self._restoring or not self._options.wal else None)
        if marker is not None:
            self._marker = marker
        self._offset, self._unwritten, self._written_s = changelog_offset, False, time.monotonic()
        self._unflushed_removals |= removed
        self._flush_if_due(written_bytes)
        return len(rows)

    def _flush_if_due(self, written_bytes: int = 0) -> None:
        """Without a log, what was written reaches the disk in bounded time. A batch larger than a memtable goes at
        once: RocksDB itself would keep it in memory until the next write, which may be long in coming."""
        options = self._options
        if options.wal or self._restoring:
            return
        now_s = time.monotonic()
        after_s = options.removals_flush_s if self._unflushed_removals else options.flush_s
        if written_bytes < options.write_buffer_bytes and now_s - self._flushed_s < after_s:
            return
        try:
            busy = self._number("num-immutable-mem-table") or self._number("num-files-at-level0") >= _FILES_MANY
            if not busy:  # else the flush would wait, and with it a gateway: the next unit tries again
                self._db.flush(False)
                self._flushed_s, self._unflushed_removals = now_s, False
        except Exception as error:  # the unit is applied, whatever became of the flush; writing tells if the disk fails
            log.warning("%s could not be flushed: %s", self.path, error)

    def _number(self, what: str) -> int:
        return int(self._db.property_int_value(f"rocksdb.{what}") or 0)

    def applied_ms(self) -> int | None:
        """When a unit was last applied, of those that reached the disk, by the wall clock; not while restoring."""
        found = self._db.get(_APPLIED)
        return None if found is None else int.from_bytes(found, "little")

    def _marker_is_due(self) -> bool:
        return time.monotonic() - self._written_s >= self._options.marker_write_s

    def newer(self, rows: Sequence[Row], seq: int | None = None) -> RowPairs:
        """Of these rows: per key the newest, unless what is stored is newer still. `seq`: that of all, if known.

        A row of a later commit than the applied marker's is newer than anything stored, so in a log that never
        steps back nothing is read, and rows of one commit are not even looked at.
        """
        applied = self._marker.seq if self._marker else 0
        if isinstance(rows, UnitRows):
            pairs = rows.pairs()
            if seq is not None and seq > applied:
                return pairs
            seqs = list(rows.seqs())
        else:
            pairs = RowPairs([key for key, _, _ in rows], [row for _, row, _ in rows])
            seqs = [number for _, _, number in rows]
        if seqs and seqs[0] > applied and seqs == sorted(seqs):
            if seqs[0] == seqs[-1]:
                return pairs
            latest = dict(pairs)
            return RowPairs(list(latest), list(latest.values()))
        best: dict[bytes, tuple[bytes | None, int]] = {}
        doubtful = []
        for (key, row), number in zip(pairs, seqs, strict=True):
            known = best.get(key)
            if known is None or number >= known[1]:
                best[key] = (row, number)
                if number <= applied:
                    doubtful.append(key)
        if doubtful:
            for key, stored in zip(doubtful, self.multi_get(doubtful), strict=True):
                if stored is not None and key in best and seq_of(stored) > best[key][1]:
                    del best[key]
        return RowPairs(list(best), [row for row, _ in best.values()])

    def begin_restore(self) -> None:
        """From here on `apply` trades durability for speed, until `end_restore`.

        The flag is on disk before the first row. After a kill the partition reopens with `restoring` set and holds a
        prefix of what was applied (memtables are flushed in order, each batch whole), with the offset that belongs
        to it: the restore goes on from there.
        """
        batch = rocksdict.WriteBatch(raw_mode=True)
        batch[_RESTORING] = b"1"
        self._write(batch, self._sync)
        self._restoring = True

    def end_restore(self) -> None:
        """Make what was restored durable, then take the flag away."""
        try:
            self._db.flush(True)
        except Exception as error:  # the binding raises nothing more precise
            raise translate(error, self.path) from error
        batch = rocksdict.WriteBatch(raw_mode=True)
        batch.delete(_RESTORING)
        self._write(batch, self._sync)
        self._restoring = False

    def meta(self, name: str) -> str | None:
        """A note about the partition (as: its topic's id), or None."""
        found = self.get(_META + name.encode())
        return None if found is None else found.decode()

    def set_meta(self, name: str, value: str) -> None:
        """Keep a note about the partition."""
        batch = rocksdict.WriteBatch(raw_mode=True)
        batch[_META + name.encode()] = value.encode()
        # As rows are: what comes later must not outlive a kill that what came before does not.
        self._write(batch, None if self._options.wal else self._no_wal)

    def count_estimate(self) -> int:
        """About how many rows there are; overwritten rows that are not compacted yet count twice."""
        return int(self._db.property_int_value("rocksdb.estimate-num-keys") or 0)

    def size_bytes(self) -> int:
        """Bytes of its table files, not yet deleted ones included; without write-ahead log and rows in memory."""
        try:
            return int(self._db.property_int_value("rocksdb.total-sst-files-size") or 0)
        except Exception as error:  # the binding raises nothing more precise
            raise translate(error, self.path) from error

    def close(self) -> None:
        """Release the directory. Safe to call twice, and from another thread."""
        try:
            if self._unwritten and self._marker is not None and self._offset is not None:
                self._written_s = 0.0
                self.apply([], self._marker, self._offset)
            self._db.close()
        except rocksdict.DbClosedError:
            return
        except Exception as error:  # the binding raises nothing more precise
            raise translate(error, self.path) from error

    def _write(self, batch: rocksdict.WriteBatch, how: rocksdict.WriteOptions | None) -> None:
        try:
            if how is None:
                self._db.write(batch)
            else:
                self._db.write(batch, how)
        except Exception as error:  # the binding raises nothing more precise
            raise translate(error, self.path) from error


def _iterate(source: rocksdict.Rdict, prefix: bytes, after: bytes | None) -> Iterator[tuple[bytes, bytes]]:
    first = max(prefix, after + b"\x00" if after is not None else b"", _FIRST)
    bounds = rocksdict.ReadOptions()
    end = upper_bound(prefix)
    if end is not None:
        if first >= end:
            return iter(())
        bounds.set_iterate_upper_bound(end)
    return _holding(source.items(from_key=first, read_opt=bounds), bounds)


def _holding(rows: Iterator[tuple[bytes, bytes]], bounds: rocksdict.ReadOptions) -> Iterator[tuple[bytes, bytes]]:
    yield from rows
    del bounds  # the iterator borrows its bound from here: freed earlier, it reads freed memory and ends anywhere
