"""`CommandRunner`: a deployed machine's commands, each by itself, so that every replica judges each alike.

Each runs on an instance of its own and under fuel, never a clock: what a command does, also whether and why it traps,
depends on the module, the command and the rows that it asks for; not on how a log was cut into batches, on what an
instance had executed before, or on how busy a host is.
"""

from __future__ import annotations

from dataclasses import dataclass

from streams.model.errors import BadInput, Unavailable
from streams.wasm.abi import check_machine_module
from streams.wasm.engine import Limits, ModuleCache, TrapKind, UdfTrap
from streams.wasm.guest import Guest
from streams.wasm.machine_host import MACHINE_EXPORT, Applied, LogCommand, ReadRows, run_batch

RESULT_BYTES_MAX = 64 << 10
"""A result is kept for a day, to be told again."""
KEY_BYTES_MAX = 1_024


@dataclass(slots=True)
class CommandRunner:
    """One module under its limits. Thread-safe as far as its cache is: every command has an instance of its own."""

    wasm: bytes
    cache: ModuleCache
    limits: Limits

    def run(self, command: LogCommand, read_rows: ReadRows) -> Applied:
        """Execute a command. UdfTrap: it changed nothing, and will do so everywhere. Unavailable: not judged."""
        compiled = self.cache.load(self.wasm, metered=True, stack_bytes=self.limits.stack_bytes)
        try:
            guest = Guest(compiled, self.limits, self.cache.host)
            try:
                found = run_batch(guest, [command], read_rows)
            finally:
                guest.close()
        except UdfTrap as trap:
            if trap.kind is TrapKind.DEADLINE:  # by a clock: another replica might have been faster
                raise Unavailable(f"the command was not executed in time: {trap.detail}", fix="lower fuel") from None
            raise
        self._check(found)
        return found

    def _check(self, found: Applied) -> None:
        if len(found.results[0]) > RESULT_BYTES_MAX:
            raise UdfTrap(f"its result has over {RESULT_BYTES_MAX} bytes", TrapKind.OUTPUT)
        for key, row in found.rows:
            if len(key) > KEY_BYTES_MAX:
                raise UdfTrap(f"a row's key has over {KEY_BYTES_MAX} bytes", TrapKind.OUTPUT)
            if row is not None and len(row) > self.limits.row_bytes:
                raise UdfTrap(f"a row has over {self.limits.row_bytes} bytes", TrapKind.OUTPUT)


def check_machine(wasm: bytes, cache: ModuleCache, limits: Limits) -> str:
    """The module's hash, if it is a machine that starts and takes a batch within its limits. BadInput: why not."""
    compiled = cache.load(wasm, metered=True, stack_bytes=limits.stack_bytes)
    check_machine_module(compiled)
    try:
        guest = Guest(compiled, limits, cache.host)
        try:
            answered = guest.call(MACHINE_EXPORT)
            run_batch(guest, [], lambda keys: [None] * len(keys))
        finally:
            guest.close()
    except UdfTrap as trap:
        raise BadInput(f"the module does not start: {trap.detail}", field="module") from None
    if answered != 1:
        raise BadInput(f"the module answers machine ABI {answered}, not 1", field="module")
    return compiled.sha256
