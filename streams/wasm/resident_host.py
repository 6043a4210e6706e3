"""`ResidentHost`: runs a machine that keeps its state in linear memory, made from rows at the start.

Rows stay the durable form: each batch's changes are taken out as of any machine, and whenever an instance is lost (a
trap, a restart) another one is made from them. So a batch needs no rows but those that the machine asks for. ABI:
wasm_udfs/ABI.md, "Resident machines".
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from streams.model.errors import BadInput
from streams.wasm.engine import Limits, ModuleCache, TrapKind, UdfTrap
from streams.wasm.guest import Guest
from streams.wasm.machine_host import MACHINE_EXPORT, Applied, LogCommand, ReadRows, encode_rows, run_batch

RESIDENT_EXPORT = "streams_resident_v1"
_RESTORE_ROWS = 16_384

StoredRows = Callable[[], Iterable[tuple[bytes, bytes]]]
"""The rows that a new instance is made from, in the order that the machine wants them."""


@dataclass(slots=True)
class ResidentHost:
    """One resident machine. Not thread-safe. A trap drops the instance; the next call makes one from `stored` again."""

    wasm: bytes
    cache: ModuleCache
    stored: StoredRows
    limits: Limits = field(
        default_factory=lambda: Limits(memory_bytes=3 << 30, deadline_s=60.0, output_bytes=256 << 20)
    )
    _guest: Guest | None = None

    def __post_init__(self) -> None:
        compiled = self.cache.load(self.wasm)
        names = {export.name for export in compiled.module.exports}
        if not {MACHINE_EXPORT, RESIDENT_EXPORT} <= names or any(compiled.module.imports):
            raise BadInput(
                f"the module exports no {MACHINE_EXPORT} and {RESIDENT_EXPORT}, or has imports",
                field="module",
                fix="see ABI.md",
            )

    @property
    def sha256(self) -> str:
        """The module's identity."""
        return self.cache.load(self.wasm).sha256

    @property
    def memory_bytes(self) -> int:
        """Linear memory of the instance; 0 when there is none."""
        return self._guest.memory_bytes if self._guest is not None else 0

    def restore(self) -> None:
        """Make the instance from the stored rows now, if there is none; UdfTrap when they are refused."""
        if self._guest is None:
            self._guest = self._made()

    def _made(self) -> Guest:
        guest = Guest(self.cache.load(self.wasm), self.limits, self.cache.host)
        try:
            rows = iter(self.stored())
            while chunk := list(itertools.islice(rows, _RESTORE_ROWS)):
                keys, values = zip(*chunk, strict=True)
                ptr, size = guest.put(encode_rows(keys, values))
                _accepted(guest.call("streams_restore", ptr, size))
            _accepted(guest.call("streams_restored"))
        except BaseException:
            guest.close()
            raise
        return guest

    def apply(self, commands: Sequence[LogCommand], read_rows: ReadRows) -> Applied:
        """Apply commands in the log's order. UdfTrap: nothing was applied, and the instance is gone."""
        if not commands:
            return Applied([], [])
        self.restore()
        guest, self._guest = self._guest, None
        assert guest is not None
        try:
            found = run_batch(guest, commands, read_rows)
        except BaseException:
            guest.close()
            raise
        self._guest = guest
        return found

    def query(self, question: bytes) -> bytes:
        """The machine's answer to a question, which changes nothing. UdfTrap, after which the instance is gone."""
        self.restore()
        guest, self._guest = self._guest, None
        assert guest is not None
        try:
            ptr, size = guest.put(question)
            found, _ = guest.describe(guest.call("streams_query", ptr, size))
        except BaseException:
            guest.close()
            raise
        self._guest = guest
        return found

    def forget(self) -> None:
        """Drop the instance: the stored rows are other ones now. Idempotent."""
        self.close()

    def close(self) -> None:
        """Free the instance; idempotent."""
        guest, self._guest = self._guest, None
        if guest is not None:
            guest.close()


def _accepted(code: int) -> None:
    if code:
        raise UdfTrap("the machine refused the rows that it is made from", TrapKind.MALFORMED)
