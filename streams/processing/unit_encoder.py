"""What a unit's changelog records are: of many rows encoded by a module, of few made one by one (commit.py)."""

from __future__ import annotations

import queue

from streams.kafka.batches import HEADER_BYTES, EncodedBatch, EncodedRecords, encoded_record
from streams.model.marker import MARKER_KEY, Marker
from streams.processing.commit import unit_records
from streams.processing.ports import Rows, UnitRecords
from streams.wasm.engine import ModuleCache
from streams.wasm.packed_rows import PackedRows
from streams.wasm.row_encoder import RowEncoder

ENCODED_FROM_ROWS = 32
"""With fewer, the module's call costs more than making the records one by one."""


class UnitEncoder:
    """Encodes units for the changelogs of a process; as many instances of the module as threads encode at once."""

    def __init__(self, cache: ModuleCache, batch_bytes: int) -> None:
        """`batch_bytes`: how large a record batch may be."""
        self._cache = cache
        self._records_bytes = batch_bytes - HEADER_BYTES
        self._idle: queue.LifoQueue[RowEncoder] = queue.LifoQueue()

    def __call__(self, rows: Rows, marker: Marker) -> tuple[Rows, UnitRecords]:
        """The rows with `marker.seq` in them, and the unit's records: rows first, the marker last. From any thread."""
        if not isinstance(rows, PackedRows) or len(rows) < ENCODED_FROM_ROWS:
            return unit_records(rows, marker)
        encoder = self._take()
        try:
            stamped, batches = encoder.encode(rows, marker.seq, self._records_bytes)
        finally:
            self._idle.put(encoder)
        made = [EncodedBatch(batch.parts, batch.count) for batch in batches]
        last, value = batches[-1], marker.encode()
        end = encoded_record(last.count, MARKER_KEY, value)
        if last.size_bytes + len(end) <= self._records_bytes:
            made[-1] = EncodedBatch([*last.parts, end], last.count + 1)
        else:
            made.append(EncodedBatch([encoded_record(0, MARKER_KEY, value)], 1))
        return stamped, EncodedRecords(made)

    def _take(self) -> RowEncoder:
        try:
            return self._idle.get_nowait()
        except queue.Empty:
            return RowEncoder(self._cache)

    def close(self) -> None:
        """Free the idle instances."""
        while not self._idle.empty():
            self._idle.get_nowait().close()
