"""`MachineHost`: runs a module of kind "machine" over stretches of a sequenced log.

A machine keeps nothing between batches: the rows that a batch needs are read for it and those that it changed are taken
out, so its state may outgrow memory, and results do not depend on where batches are cut. ABI: wasm_udfs/ABI.md.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from streams.model.errors import BadInput
from streams.wasm.engine import Limits, ModuleCache, TrapKind, UdfTrap
from streams.wasm.guest import Guest

MACHINE_EXPORT = "streams_machine_v1"
_MAGIC = 0x314D5453
_U32 = struct.Struct("<I")
_KEEP_BYTES = 64 << 20
Column = npt.NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class LogCommand:
    """A record of a sequenced log, as a machine gets it. `append_ms`: the broker's append time, epoch milliseconds."""

    offset: int
    append_ms: int
    value: bytes


@dataclass(frozen=True, slots=True)
class Applied:
    """What a batch did: a result for each command, and the rows that changed (None: removed)."""

    results: list[bytes]
    rows: list[tuple[bytes, bytes | None]]


ReadRows = Callable[[list[bytes]], Sequence[bytes | None]]


@dataclass(slots=True)
class MachineHost:
    """One machine. Not thread-safe. A trap drops the instance; the same batch may be tried again, on a new one."""

    wasm: bytes
    cache: ModuleCache
    limits: Limits = field(default_factory=lambda: Limits(deadline_s=5.0))
    _guest: Guest | None = None

    def __post_init__(self) -> None:
        compiled = self.cache.load(self.wasm)
        names = {export.name for export in compiled.module.exports}
        if MACHINE_EXPORT not in names or any(compiled.module.imports):
            raise BadInput(f"the module exports no {MACHINE_EXPORT}, or has imports", field="module", fix="see ABI.md")

    @property
    def sha256(self) -> str:
        """The module's identity."""
        return self.cache.load(self.wasm).sha256

    def apply(self, commands: Sequence[LogCommand], read_rows: ReadRows) -> Applied:
        """Apply commands in the log's order. UdfTrap: nothing was applied."""
        if not commands:
            return Applied([], [])
        guest = self._guest or Guest(self.cache.load(self.wasm), self.limits, self.cache.host)
        self._guest = None
        try:
            found = run_batch(guest, commands, read_rows)
        except BaseException:
            guest.close()
            raise
        if guest.memory_bytes > _KEEP_BYTES:
            guest.close()
        else:
            self._guest = guest
        return found

    def close(self) -> None:
        """Free the instance; idempotent."""
        guest, self._guest = self._guest, None
        if guest is not None:
            guest.close()


def run_batch(guest: Guest, commands: Sequence[LogCommand], read_rows: ReadRows) -> Applied:
    """Apply a batch on an instance. UdfTrap: the instance must not be used again."""
    ptr, size = guest.put(encode_batch(commands))
    asked, _ = guest.describe(guest.call("streams_prepare", ptr, size))
    if _count(asked):
        ptr, size = guest.put(_found(asked, read_rows))
        if guest.call("streams_load", ptr, size):
            raise UdfTrap("the machine refused the rows that it asked for", TrapKind.MALFORMED)
    answer, _ = guest.describe(guest.call("streams_apply"))
    results = _blobs(answer, len(commands))
    changed: list[tuple[bytes, bytes | None]] = []
    status = 1
    while status:
        taken, status = guest.describe(guest.call("streams_take"))
        changed += taken_rows(taken)
    return Applied(results, changed)


def encode_batch(commands: Sequence[LogCommand]) -> bytes:
    """Commands as `streams_prepare` takes them."""
    n = len(commands)
    ends = np.cumsum([len(each.value) for each in commands], dtype=np.uint32)
    stamps = np.array([each.append_ms for each in commands], np.int64)
    offsets = np.array([each.offset for each in commands], np.int64)
    head = struct.pack("<II", _MAGIC, n) + stamps.tobytes() + offsets.tobytes() + ends.tobytes()
    return head + b"".join(each.value for each in commands)


def _column(data: bytes, at: int, n: int) -> Column:
    if at + 4 * n > len(data):
        raise UdfTrap("the machine's answer is cut off", TrapKind.MALFORMED)
    return np.frombuffer(data, "<u4", n, at)


def _count(data: bytes) -> int:
    if len(data) < 4:
        raise UdfTrap("the machine's answer is cut off", TrapKind.MALFORMED)
    return int(_U32.unpack_from(data)[0])


def _bounds(data: bytes, at: int, ends: Column) -> npt.NDArray[np.int64]:
    """Where the items begin that end at `ends` behind `at`, and where the last one ends."""
    if at + int(ends[-1]) > len(data) or bool((ends[1:] < ends[:-1]).any()):
        raise UdfTrap("the machine's answer has lengths that do not fit", TrapKind.MALFORMED)
    bounds = np.empty(len(ends) + 1, np.int64)
    bounds[0], bounds[1:] = at, ends
    bounds[1:] += at
    return bounds


def _cut(data: bytes, at: int, ends: Column) -> list[bytes]:
    if not len(ends):
        return []
    return [data[start:end] for start, end in itertools.pairwise(_bounds(data, at, ends).tolist())]


def _found(asked: bytes, read_rows: ReadRows) -> bytes:
    """The rows that `streams_prepare` asked for, as `streams_load` takes them: of each as much as was asked for."""
    n = _count(asked)
    ends, firsts = _column(asked, 4, n), _column(asked, 4 + 4 * n, n)
    keys = _cut(asked, 4 + 8 * n, ends)
    rows = read_rows(keys)
    if rows.count(None) == n:  # ids of new orders: nearly always
        return asked[: 4 + 4 * n] + bytes(5 * n) + asked[4 + 8 * n : 4 + 8 * n + int(ends[-1])]
    heads = [None if row is None else row[:first] for row, first in zip(rows, firsts.tolist(), strict=True)]
    return encode_rows(keys, heads)


def _blobs(data: bytes, expected: int) -> list[bytes]:
    n = _count(data)
    if n != expected:
        raise UdfTrap(f"the machine answered {n} results to {expected} commands", TrapKind.MALFORMED)
    return _cut(data, 4 + 4 * n, _column(data, 4, n))


def encode_rows(keys: Sequence[bytes], rows: Sequence[bytes | None]) -> bytes:
    """Rows as `streams_load` and `streams_restore` take them."""
    key_ends = np.cumsum(list(map(len, keys)), dtype=np.uint32)
    row_ends = np.cumsum([0 if row is None else len(row) for row in rows], dtype=np.uint32)
    present = bytes([row is not None for row in rows])
    head = _U32.pack(len(keys)) + key_ends.tobytes() + row_ends.tobytes() + present
    return head + b"".join(keys) + b"".join(row for row in rows if row is not None)


def taken_rows(data: bytes) -> list[tuple[bytes, bytes | None]]:
    """The rows of an answer of `streams_take`; UdfTrap."""
    n = _count(data)
    key_ends, row_ends = _column(data, 4, n), _column(data, 4 + 4 * n, n)
    present = data[4 + 8 * n : 4 + 9 * n]
    keys_at = 4 + 9 * n
    if not n:
        return []
    key_bounds = _bounds(data, keys_at, key_ends)
    row_bounds = _bounds(data, int(key_bounds[-1]), row_ends)
    starts = key_bounds[:-1]
    if len(present) != n or bool((key_bounds[1:] == starts).any()) or not np.frombuffer(data, np.uint8)[starts].all():
        raise UdfTrap("the machine changed a row without a key, or with the platform's own", TrapKind.MALFORMED)
    keys, rows = key_bounds.tolist(), row_bounds.tolist()  # cut in one pass: these are very many
    if b"\0" not in present:
        return [(data[a:b], data[c:d]) for a, b, c, d in zip(keys, keys[1:], rows, rows[1:], strict=False)]
    cut = zip(keys, keys[1:], rows, rows[1:], present, strict=False)
    return [(data[a:b], data[c:d] if there else None) for a, b, c, d, there in cut]
