"""`DeployedState`: what a replica holds of a deployed machine's log: rows, module, results of commands, position."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from streams.model.errors import BadInput, Conflict, Unavailable
from streams.sequencer.log_store import LogStore
from streams.sequencer.machine_log import Code, Installed, Kind, LoggedRecord, MachineResult, parse_record
from streams.state.options import StoreOptions
from streams.wasm.engine import ModuleCache, TrapKind, UdfTrap
from streams.wasm.machine_host import LogCommand
from streams.wasm.machine_run import CommandRunner, check_machine

KEEP_MS = 86_400_000
"""A command's result is told again for a day of the log's time."""
SPENT_MS = 30 * KEEP_MS
"""For thirty days its id is known to be spent."""
SWEEP_ROWS = 200
_ENGINE = "deployed machine 1"
"""What made the rows: this module's rules. The machines' own code is in the log."""
_META, _MODULE, _NOTE, _INDEX, _ROW = b"\x01m", b"\x01w", b"\x01i", b"\x01t", b"r"


@dataclass(frozen=True, slots=True)
class MachineStands:
    """Where a machine stands. `chain`: a hash of everything that it ever answered and changed, equal at equal `next`.
    `commands`: executed, those that trapped too. `rows`, `bytes`: of its rows, keys included."""

    next: int = 0
    time_ms: int = 0
    commands: int = 0
    traps: int = 0
    rows: int = 0
    bytes: int = 0
    chain: str = ""


@dataclass(frozen=True, slots=True)
class MachineStep:
    """What a batch did: a result for each record; whether another module took over."""

    results: list[MachineResult]
    swapped: bool


class DeployedState(LogStore):
    """Rows, position and module of one machine. From any thread, one at a time: each call waits for the last.

    Rows, results, module and offset go into one write batch, so a restart goes on where it was. When old results are
    dropped does not matter: whether one still counts is judged by the log's time.
    """

    def __init__(self, path: Path, topic: str, cache: ModuleCache, options: StoreOptions | None = None) -> None:
        super().__init__(path, topic, _ENGINE, options)
        self._cache, self._lock, self._closed = cache, threading.Lock(), False
        self._load()

    def _load(self) -> None:
        meta, module = self.store.get(_META), self.store.get(_MODULE)
        self.machine_state = MachineStands() if meta is None else MachineStands(**json.loads(meta))
        self.installed = None if module is None else Installed.decode(module)
        self._sweep_at_ms = 0

    def reset(self) -> None:
        """Forget everything: the log is read again from its start."""
        with self._lock:
            self.wipe()
            self._load()

    def apply(self, commands: Sequence[LogCommand], following: int) -> MachineStep:
        """Apply records; `following` is the log's position after them. One write batch: all or nothing.

        Conflict when they do not go on where the state stands; Unavailable: nothing was applied, it may be tried again.
        """
        with self._lock:
            if self._closed:
                raise Unavailable("the machine was removed")
            self.check_follows(commands)
            batch = _Batch(self, self.machine_state, self.installed)
            results = [batch.take(each) for each in commands]
            changed = dict(batch.changed)
            if commands:
                changed[_META] = json.dumps(asdict(batch.stands)).encode()
                changed |= self._sweep(batch)
            self.store.apply(list(changed.items()), None, following)
            swapped = batch.installed is not self.installed
            self.machine_state, self.installed = batch.stands, batch.installed
            return MachineStep(results, swapped)

    def query(self, body: bytes) -> tuple[bytes, int, str]:
        """What a command would be answered now, the position of the log that this is true of, and the version that says
        so. Nothing is changed: Conflict when it would be. UdfTrap; Unavailable before the first module."""
        with self._lock:
            if self._closed or self.installed is None:
                raise Unavailable("the machine is not installed here yet", fix="try again in a moment")
            stands, module = self.machine_state, self.installed
            runner = CommandRunner(module.module, self._cache, module.limits)
            done = runner.run(LogCommand(stands.next, stands.time_ms, body), self._rows)
        if done.rows:
            raise Conflict("a query changes nothing, and this would", field="q", fix="send it as a command")
        return done.results[0], stands.next, module.version

    def _rows(self, keys: list[bytes]) -> list[bytes | None]:
        return self.store.multi_get([_ROW + key for key in keys])

    def _sweep(self, batch: _Batch) -> dict[bytes, bytes | None]:
        """Up to `SWEEP_ROWS` results that count no more, and their entries in the index."""
        now_ms, dead = batch.stands.time_ms, dict[bytes, bytes | None]()
        if now_ms < self._sweep_at_ms:
            return dead
        self._sweep_at_ms = now_ms + 60_000
        entries = self.store.scan(_INDEX, limit=SWEEP_ROWS)
        for entry, _ in entries:
            if int.from_bytes(entry[2:10], "big") > now_ms:
                break
            dead[entry] = None
            if entry[10:] not in batch.changed and not _Note.decode(self.store.get(entry[10:])).counts(now_ms):
                dead[entry[10:]] = None
        else:
            self._sweep_at_ms = 0 if len(entries) == SWEEP_ROWS else self._sweep_at_ms
        return dead

    def close(self) -> None:
        """Release the directory, once what runs has ended; idempotent."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self.store.close()


@dataclass(frozen=True, slots=True)
class _Note:
    """What is remembered of a command's id."""

    result: MachineResult | None
    fingerprint: bytes = b""

    def counts(self, now_ms: int) -> bool:
        """Whether the id is still known."""
        return self.result is not None and now_ms - self.result.time_ms <= SPENT_MS

    def encode(self) -> bytes:
        """The row that keeps it: a line of JSON, then the result's body."""
        assert self.result is not None
        found = self.result
        head = [int(found.code), found.offset, found.time_ms, found.version, self.fingerprint.hex()]
        return json.dumps(head).encode() + b"\n" + found.body

    @classmethod
    def decode(cls, row: bytes | None) -> _Note:
        """What a row keeps; a note of nothing without one."""
        if row is None:
            return cls(None)
        head, _, body = row.partition(b"\n")
        code, offset, time_ms, version, fingerprint = json.loads(head)
        return cls(MachineResult(Code(code), True, offset, time_ms, version, body), bytes.fromhex(fingerprint))


class _Batch:
    """Records being applied: what they changed so far, over what is stored."""

    def __init__(self, state: DeployedState, stands: MachineStands, installed: Installed | None) -> None:
        self._state, self.stands, self.installed = state, stands, installed
        self.changed: dict[bytes, bytes | None] = {}
        self._runner = self._runner_of(installed)

    def _runner_of(self, installed: Installed | None) -> CommandRunner | None:
        if installed is None:
            return None
        return CommandRunner(installed.module, self._state._cache, installed.limits)

    def take(self, command: LogCommand) -> MachineResult:
        """Apply one record."""
        now_ms = max(self.stands.time_ms, command.append_ms)
        self.stands = replace(self.stands, time_ms=now_ms, next=command.offset + 1)
        record = parse_record(command.value)
        if record.kind is Kind.COMMAND:
            result, rows = self._command(record, LogCommand(command.offset, now_ms, record.body))
        else:
            code = Code.MALFORMED if record.kind is None else Code.PASSED
            if record.kind is Kind.MODULE:
                code = self._install(command.value)
            result, rows = self._result(code, command.offset), []
        self._chain(result, rows)
        return result

    def _result(self, code: Code, offset: int, body: bytes = b"") -> MachineResult:
        version = "" if self.installed is None else self.installed.version
        return MachineResult(code, False, offset, self.stands.time_ms, version, body)

    def _command(
        self, record: LoggedRecord, command: LogCommand
    ) -> tuple[MachineResult, list[tuple[bytes, bytes | None]]]:
        key = _NOTE + record.identity
        note = _Note.decode(self._get(key))
        if note.result is not None and note.counts(command.append_ms):
            if note.fingerprint != record.fingerprint:
                return self._result(Code.MISMATCH, command.offset), []
            if command.append_ms - note.result.time_ms > KEEP_MS:
                return self._result(Code.SPENT, command.offset), []
            return note.result, []
        if self._runner is None:
            return self._result(Code.NO_MACHINE, command.offset), []
        rows: list[tuple[bytes, bytes | None]] = []
        try:
            done = self._runner.run(command, lambda keys: [self._get(_ROW + each) for each in keys])
            self._write(done.rows)
            rows, result = done.rows, self._result(Code.DONE, command.offset, done.results[0])
        except UdfTrap as trap:
            body = f"{trap.kind.value}: {trap.detail}".encode()
            result = self._result(Code.TRAPPED, command.offset, body)
        traps = self.stands.traps + (result.code is Code.TRAPPED)
        self.stands = replace(self.stands, commands=self.stands.commands + 1, traps=traps)
        self.changed[key] = _Note(result, record.fingerprint).encode()
        self.changed[_INDEX + (command.append_ms + SPENT_MS + 1).to_bytes(8, "big") + key] = b""
        return result, rows

    def _write(self, rows: Sequence[tuple[bytes, bytes | None]]) -> None:
        """Take a command's rows; UdfTrap when there would be more of them than its limits allow."""
        assert self.installed is not None
        limits, count, size = self.installed.limits, self.stands.rows, self.stands.bytes
        for key, row in dict(rows).items():
            old = self._get(_ROW + key)
            count += (row is not None) - (old is not None)
            size += _size(key, row) - _size(key, old)
        for what, found, most, had in (
            ("rows", count, limits.table_rows, self.stands.rows),
            ("bytes of rows", size, limits.table_bytes, self.stands.bytes),
        ):
            if most is not None and found > max(most, had):
                raise UdfTrap(f"the machine would have over {most} {what}", TrapKind.OUTPUT)
        for key, row in rows:
            self.changed[_ROW + key] = row
        self.stands = replace(self.stands, rows=count, bytes=size)

    def _get(self, key: bytes) -> bytes | None:
        return self.changed[key] if key in self.changed else self._state.store.get(key)

    def _install(self, value: bytes) -> Code:
        """Let a module take over, from the next record on."""
        try:
            found = Installed.decode(value)
            old = self.installed
            if old is not None and (found.serial <= old.serial or old.unfit(found.name, found.layout)):
                return Code.KEPT
            check_machine(found.module, self._state._cache, found.limits)
        except BadInput:
            return Code.KEPT
        self.installed, self._runner = found, self._runner_of(found)
        self.changed[_MODULE] = value
        return Code.SWAPPED

    def _chain(self, result: MachineResult, rows: Sequence[tuple[bytes, bytes | None]]) -> None:
        sha256 = hashlib.sha256(self.stands.chain.encode())
        head = (self.stands.next, int(result.code), result.again, result.offset, result.time_ms, result.version)
        module = "" if self.installed is None else self.installed.sha256
        for part in (repr((*head, module)).encode(), result.body, *(part for row in rows for part in row)):
            sha256.update(b"-" if part is None else len(part).to_bytes(4, "little") + part)
        self.stands = replace(self.stands, chain=sha256.hexdigest()[:32])


def _size(key: bytes, row: bytes | None) -> int:
    return 0 if row is None else len(key) + len(row)
