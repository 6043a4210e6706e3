"""The fold ABI over one instance: prepare, load, fold, take. Outputs are checked in columns before they are sliced."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from streams.model.keys import KEY_BYTES_MAX
from streams.wasm.abi import CHANGED_EXPORT, OUTPUTS_EXPORT
from streams.wasm.batch import Batch
from streams.wasm.columns import Array, starts_of
from streams.wasm.engine import CompiledModule, EngineHost, Limits, TrapKind, UdfTrap
from streams.wasm.guest import open_guest
from streams.wasm.meter import UdfMeter
from streams.wasm.packed_rows import PackedRows, RowChunk, slices

REASON_MAX = 300
OUTPUT_VALUE_BYTES_MAX = 1_000_000
"""The longest value of an output record; a broker takes records of a little over a megabyte."""
_ROWS_PER_EVENT = 4
"""How many rows one event may need."""
Output = tuple[int, bytes, bytes]
"""A record for an output topic: index of the topic in the manifest's `outputs`, key, value."""
_ROW_HEADER = 32
_CELL_HEADER = 28


def _malformed(what: str) -> UdfTrap:
    return UdfTrap(f"malformed output: {what}", TrapKind.MALFORMED)


def _ends(data: bytes, at: int, n: int, what: str) -> Array:
    ends = np.frombuffer(data, "<u4", n, at)
    if n and bool((ends[1:] < ends[:-1]).any()):
        raise _malformed(f"{what} are out of order")
    return ends


def _count(data: bytes, per_item: int, most: int, what: str) -> int:
    n = int.from_bytes(data[:4], "little")
    if len(data) < 4 or n > most or 4 + n * per_item > len(data):
        raise _malformed(f"{n} {what} in {len(data)} bytes")
    return n


def _check_keys(data: bytes, ends: Array, at: int) -> None:
    if not len(ends):
        return
    starts = starts_of(ends)
    lengths = ends - starts
    if int(lengths.min()) < 1 or int(lengths.max()) > KEY_BYTES_MAX:
        raise _malformed("a key is empty or too long")
    if bool((np.frombuffer(data, np.uint8)[starts + at] == 0).any()):
        raise _malformed("a key starts with a zero byte")


def _words(data: Array, at: Array, width: int) -> Array:
    value = np.zeros(len(at), np.int64)
    for i in range(width):
        value |= data[at + i].astype(np.int64) << (8 * i)
    return value


def check_rows(data: bytes, starts: Array, ends: Array, merge: int | None) -> None:
    """UdfTrap unless each slice is exactly one row of version 1 (of type `merge`, if given). Vectorised over rows."""
    if not len(starts):
        return
    raw = np.frombuffer(data, np.uint8)
    if int((ends - starts).min()) < _ROW_HEADER:
        raise _malformed("a row is shorter than its header")
    if bool((raw[starts] != 1).any()) or (merge is not None and bool((raw[starts + 1] != merge).any())):
        raise _malformed("a row has a wrong version or merge type")
    left = _words(raw, starts + 2, 2)
    at, stop = starts + _ROW_HEADER, ends
    while True:
        done = left == 0
        if bool((at[done] != stop[done]).any()):
            raise _malformed("a row has bytes after its cells")
        at, stop, left = at[~done], stop[~done], left[~done]
        if not len(at):
            return
        if bool((at + _CELL_HEADER > stop).any()):
            raise _malformed("a row is cut off")
        at = at + _CELL_HEADER + _words(raw, at + 24, 4)
        if bool((at > stop).any()):
            raise _malformed("a cell is cut off")
        left = left - 1


class FoldInstance:
    """One instance of a fold module. Any UdfTrap ends it: close it and start another from committed rows."""

    def __init__(
        self,
        compiled: CompiledModule,
        limits: Limits,
        host: EngineHost,
        merge: int | None = None,
        outputs: int = 0,
        meter: UdfMeter | None = None,
    ) -> None:
        self._guest = open_guest(compiled, limits, host, meter)
        self._limits = limits
        self._merge = merge
        self._outputs = outputs
        self._input = (0, 0)
        self._n = 0

    @property
    def memory_bytes(self) -> int:
        """Bytes of linear memory: the rows cached, and buffers."""
        return self._guest.memory_bytes

    @property
    def last_call(self) -> str:
        """The export that was called last."""
        return self._guest.last_call

    def prepare(self, batch: Batch) -> list[bytes]:
        """Copies the batch in; the keys whose rows are not cached (each once)."""
        self._input = self._guest.put(batch.raw)
        self._n = batch.n
        data, _ = self._guest.describe(self._guest.call("streams_prepare", *self._input))
        n = _count(data, 4, batch.n * _ROWS_PER_EVENT, "missing keys")
        ends = _ends(data, 4, n, "key ends")
        at = 4 + 4 * n
        if n and at + int(ends[-1]) > len(data):
            raise _malformed("missing keys are cut off")
        _check_keys(data, ends, at)
        return slices(data, ends, at)

    def load(self, keys: Sequence[bytes], rows: Sequence[bytes | None]) -> None:
        """Gives the module the stored rows of `keys`; None where there is none."""
        n = len(keys)
        parts = [
            n.to_bytes(4, "little"),
            np.cumsum(np.fromiter(map(len, keys), np.uint64, n)).astype("<u4").tobytes(),
            np.cumsum(np.fromiter((0 if r is None else len(r) for r in rows), np.uint64, n)).astype("<u4").tobytes(),
            bytes([r is not None for r in rows]),
            *keys,
            *(r for r in rows if r is not None),
        ]
        status = self._guest.call("streams_load", *self._guest.put(b"".join(parts)))
        if status:
            raise UdfTrap(f"the module refused a stored row (status {status - (1 << 32)})", TrapKind.MALFORMED)

    def fold(self) -> list[tuple[int, str]]:
        """Folds the prepared batch; the (index, reason) of each event the module rejected, in order."""
        data, _ = self._guest.describe(self._guest.call("streams_fold", *self._input))
        n = _count(data, 8, self._n, "rejects")
        indices = np.frombuffer(data, "<u4", n, 4)
        ends = _ends(data, 4 + 4 * n, n, "reason ends")
        at = 4 + 8 * n
        if not n:
            return []
        if at + int(ends[-1]) > len(data) or int(indices[-1]) >= self._n or bool((indices[1:] <= indices[:-1]).any()):
            raise _malformed("rejects are out of range")
        reasons = (r[:REASON_MAX].decode("utf-8", "replace") for r in slices(data, ends, at))
        return list(zip(indices.tolist(), reasons, strict=True))

    @property
    def changed(self) -> int | None:
        """How many rows the next take would give, by what the module says; None: it does not."""
        return self._guest.call(CHANGED_EXPORT) if self._guest.exports(CHANGED_EXPORT) else None

    def take(self) -> PackedRows:
        """The rows changed since the last take, in the module's order; None is a removed row."""
        chunks: list[RowChunk] = []
        total = 0
        while True:
            data, status = self._guest.describe(self._guest.call("streams_take"))
            if (chunk := self._rows(data)) is not None:
                chunks.append(chunk)
            total += len(data)
            if status == 0:
                return PackedRows(chunks)
            if total > self._limits.memory_bytes or len(data) <= 4:
                raise UdfTrap("changed rows without end", TrapKind.OUTPUT)

    def _rows(self, data: bytes) -> RowChunk | None:
        n = _count(data, 9, len(data), "rows")
        if not n:
            return None
        key_ends, row_ends = _ends(data, 4, n, "key ends"), _ends(data, 4 + 4 * n, n, "row ends")
        present = np.frombuffer(data, np.uint8, n, 4 + 8 * n) != 0
        keys_at = 4 + 9 * n
        rows_at = keys_at + int(key_ends[-1])
        if rows_at + int(row_ends[-1]) > len(data):
            raise _malformed("rows are cut off")
        _check_keys(data, key_ends, keys_at)
        starts, ends = starts_of(row_ends) + rows_at, row_ends.astype(np.int64) + rows_at
        if (longest := int((ends - starts).max())) > self._limits.row_bytes:
            raise UdfTrap(f"a row of {longest} bytes is over the limit of {self._limits.row_bytes}", TrapKind.OUTPUT)
        check_rows(data, starts[present], ends[present], self._merge)
        return RowChunk(data, keys_at, key_ends.astype(np.int64), rows_at, row_ends.astype(np.int64), present)

    def take_outputs(self) -> list[Output]:
        """The records for output topics made since the last call, in the order made; none from most modules."""
        found: list[Output] = []
        total = 0
        while self._guest.exports(OUTPUTS_EXPORT):
            data, status = self._guest.describe(self._guest.call(OUTPUTS_EXPORT))
            found += self._records(data)
            total += len(data)
            if status == 0:
                break
            if total > self._limits.memory_bytes or len(data) <= 4:
                raise UdfTrap("outputs without end", TrapKind.OUTPUT)
        return found

    def _records(self, data: bytes) -> list[Output]:
        n = _count(data, 12, len(data), "outputs")
        if not n:
            return []
        topics = np.frombuffer(data, "<u4", n, 4)
        if int(topics.max()) >= self._outputs:
            raise _malformed(f"output topic {int(topics.max())} of {self._outputs}")
        key_ends, value_ends = _ends(data, 4 + 4 * n, n, "key ends"), _ends(data, 4 + 8 * n, n, "value ends")
        keys_at = 4 + 12 * n
        values_at = keys_at + int(key_ends[-1])
        if values_at + int(value_ends[-1]) > len(data):
            raise _malformed("outputs are cut off")
        _check_keys(data, key_ends, keys_at)
        if int((value_ends - starts_of(value_ends)).max()) > OUTPUT_VALUE_BYTES_MAX:
            raise _malformed(f"the value of an output is over {OUTPUT_VALUE_BYTES_MAX} bytes")
        keys, values = slices(data, key_ends, keys_at), slices(data, value_ends, values_at)
        return list(zip(topics.tolist(), keys, values, strict=True))

    def close(self) -> None:
        """Frees the instance."""
        self._guest.close()
