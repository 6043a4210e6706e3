"""FoldHost: one fold UDF over one partition. A trap costs the culprit event alone.

State outside the module, newest first: `_pending` (rows taken out of a lost instance, not yet given to the caller),
`_taken` (given, not yet committed), then what `load_rows` reads (committed). The instance's memory is a cache above
these; `_retained` are the batches whose changes are in it alone. On a trap the instance is dropped, the retained
batches and then the trapping one are folded again on fresh instances, each piece followed by a take, and a piece that
traps is halved until single events remain. Outputs go with the rows: what an instance made since its last take is lost
with it, and made again by folding again. So an event is condemned only if it traps alone, on a fresh instance, with
its key's row: which events those are does not depend on where batches were cut.

Looking for culprits may take long, and there may be many: an `Allowance` says how far one `fold` may go with it. Then
it stops where a record begins (`stopped`), and the caller offers the rest again.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

import numpy as np

from streams.model.errors import StreamsError
from streams.model.memory import MemoryShare
from streams.wasm.abi import check_fold_module, takes_compact
from streams.wasm.batch import Batch, Buffer, Event
from streams.wasm.columns import Array
from streams.wasm.engine import Limits, ModuleCache, TrapKind, UdfTrap, module_hash
from streams.wasm.fold_instance import FoldInstance, Output
from streams.wasm.meter import UdfMeter
from streams.wasm.packed_rows import PackedRows, PendingRows

LoadRows = Callable[[list[bytes]], Sequence[bytes | None]]
"""Committed rows of keys, in order; None where there is none."""
REPORT_ROWS_BYTES_MAX = 512 << 10
"""How many bytes of rows a report carries."""


class Cancelled(StreamsError):
    """`cancel` was called while culprits were looked for; only `discard` may follow."""

    status = 503


class RejectKind(Enum):
    """Whether the UDF refused the event (`udf`) or was stopped by it (`trap`)."""

    UDF = "udf"
    TRAP = "trap"


@dataclass(frozen=True, slots=True)
class TrapReport:
    """How one event alone stopped the module. `call`: the export it was in; `frames`: the backtrace, innermost first;
    `rows`: what the module was given of the state, `rows_whole`: whether that is all of it; `metered`: under fuel."""

    kind: TrapKind
    detail: str
    call: str
    frames: tuple[str, ...]
    rows: tuple[tuple[bytes, bytes | None], ...]
    rows_whole: bool
    metered: bool
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Reject:
    """An event that left no trace: its index in the batch given to `fold`, and why. `offset` is -1 if unknown."""

    index: int
    reason: str
    kind: RejectKind
    offset: int = -1
    report: TrapReport | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Allowance:
    """How far one `fold` may go with culprits, once it has gone past at least one record.

    `traps`: how many it may reject. After them it stops; with `hold`, before the record of the next one, which is then
    not folded at all. Those of the record at `free_offset` do not count. `seconds`: the search ends after so long.
    """

    traps: int = 1 << 62
    hold: bool = False
    free_offset: int = -1
    seconds: float = math.inf


@dataclass(frozen=True, slots=True)
class Stopped:
    """Where a `fold` did not go on: the index of the first event that is not folded, and what it is held for."""

    index: int
    held: LateReject | None = None


RETAINED_EXPANSION = 4
"""Compact batches that are kept come to at most so many times `retain_bytes` when a trap makes each a batch v1."""


@dataclass(frozen=True, slots=True)
class LateReject:
    """An event of an earlier batch that turned out, in a later fold or take, to stop the module."""

    event: Event
    reject: Reject


@dataclass(frozen=True, slots=True)
class FoldOptions:
    """How a FoldHost runs its module.

    `cache_bytes`: the instance is dropped after a commit when its memory is larger and nothing was folded meanwhile.
    `held_bytes`: it is dropped after any fold when its memory is larger, and its rows are taken out before: under load
    no commit finds it idle. `retain_bytes`: batches kept to fold again after a trap; beyond it the rows are taken out
    early; compact ones count a quarter of what they are expanded, if that is more. `share`: gives both bounds instead,
    by what all hosts hold. `merge`: the merge type rows must have. `outputs`: how many output topics the manifest
    names; a record for another is a malformed output. `meter`: what to count on.
    """

    limits: Limits = field(default_factory=Limits)
    cache_bytes: int = 128 << 20
    held_bytes: int = 256 << 20
    share: MemoryShare | None = None
    retain_bytes: int = 64 << 20
    merge: int | None = None
    outputs: int = 0
    meter: UdfMeter = field(default_factory=UdfMeter)


class FoldHost:
    """Folds batches for one partition of a table. Not thread-safe; calls release the GIL while the module runs.

    The order is: fold…, take, (take_outputs, drain late_rejects, commit), committed. Folding may go on between take and
    committed. On a failed commit: discard, and start again from what is committed.
    """

    def __init__(self, wasm: bytes, cache: ModuleCache, options: FoldOptions | None = None) -> None:
        """BadInput when the module is not a fold module of ABI v1."""
        self._options = options or FoldOptions()
        self._cache = cache
        self._wasm = wasm
        self._compiled = cache.load(wasm, stack_bytes=self._options.limits.stack_bytes)
        check_fold_module(self._compiled)
        self.takes_compact = takes_compact(self._compiled)
        self.sha256 = module_hash(wasm)
        self._instance: FoldInstance | None = None
        self._load_rows: LoadRows | None = None
        self._retained: list[Batch] = []
        self._retained_bytes = 0
        self._pending = PendingRows()
        self._taken = PackedRows(())
        self._pending_outputs: list[Output] = []
        self._taken_outputs: list[Output] = []
        self._late: list[LateReject] = []
        self._metered = False
        self._taken_bytes = 0
        self.uncommitted_bytes = 0
        self.traps = 0
        self.stopped: Stopped | None = None
        self.changed_rows: int | None = 0
        self._says_changed = True
        self.isolating = False
        self._asked: tuple[list[bytes], Sequence[bytes | None]] = ([], ())
        self._last_call, self._last_memory, self._last_metered = "", 0, False
        self._cancelled = threading.Event()

    @property
    def memory_bytes(self) -> int:
        """Linear memory of the instance, 0 without one."""
        return self._instance.memory_bytes if self._instance else 0

    @property
    def late_rejects(self) -> list[LateReject]:
        """Rejects of earlier batches found since the last look; reading empties the list. Look before each commit."""
        late, self._late = self._late, []
        return late

    def cancel(self) -> None:
        """Make a `fold` or `take` that looks for culprits end soon with Cancelled. From any thread; for good."""
        self._cancelled.set()

    def fold(self, given: Buffer | Batch, load_rows: LoadRows, allowance: Allowance | None = None) -> list[Reject]:
        """Folds a batch (parsed, or its bytes); its rejected events, by index. Errors of `load_rows` pass through
        and change nothing that `discard` does not mend. BadInput when bytes are no batch. `stopped` says afterwards
        whether all of it was folded, `changed_rows` how many rows the next take may give (None: unknown)."""
        batch = given if isinstance(given, Batch) else Batch.parse(given)
        batch = batch if self.takes_compact else batch.full()
        self._load_rows = load_rows
        self.stopped = None
        if not batch.n:
            return []
        try:
            refused = self._run(batch)
        except UdfTrap as trap:
            rejects = self._recover(batch, trap, allowance or Allowance())
        else:
            self._retained.append(batch)
            self._retained_bytes += max(len(batch.raw), batch.full_bytes_most // RETAINED_EXPANSION)
            rejects = [Reject(i, reason, RejectKind.UDF) for i, reason in refused]
        self.uncommitted_bytes += len(batch.raw)
        self._relieve()
        self.changed_rows = self._count_changed()
        if rejects and batch.has_offsets:
            offsets = batch.column("offset")
            rejects = [replace(r, offset=int(offsets[r.index])) for r in rejects]
        return rejects

    def take(self) -> PackedRows:
        """The rows changed since the last take, to be committed: (key, row) of each key once, None: a removed row. They
        carry sequence number 0. StreamsError if the rows of the last take were neither committed nor discarded."""
        if self._taken or self._taken_outputs:
            raise StreamsError("the rows of the last take are neither committed nor discarded")
        self._checkpoint()
        overlaps = self._pending.overlaps
        self._taken, self._pending = self._pending.merged(), PendingRows()
        self._taken_outputs, self._pending_outputs = self._pending_outputs, []
        self._taken_bytes = self.uncommitted_bytes
        said, self.changed_rows, taken = self.changed_rows, 0, len(self._taken)
        if said is not None and not taken <= said <= (1 + overlaps) * taken:  # a row may be pending, and changed again
            self._says_changed = False
        return self._taken

    def take_outputs(self) -> list[Output]:
        """The records for output topics that belong to the last take, in the order made: (index of the topic in the
        manifest's `outputs`, key, value). To be written in the same commit; the same until `committed` or `discard`."""
        return list(self._taken_outputs)

    def committed(self) -> None:
        """The rows of the last take are committed: `load_rows` finds them from now on."""
        self._taken, self._taken_outputs = PackedRows(()), []
        self.uncommitted_bytes -= self._taken_bytes
        self._taken_bytes = 0
        options, memory = self._options, self.memory_bytes
        idle_bytes = options.cache_bytes if options.share is None else options.share.allowed(self, memory) // 2
        if memory > idle_bytes and not self._retained:
            self._drop()

    def discard(self) -> None:
        """Forgets everything that is not committed, and the cache."""
        self._drop()
        self._retained, self._retained_bytes = [], 0
        self._pending, self._taken, self._late = PendingRows(), PackedRows(()), []
        self._pending_outputs, self._taken_outputs = [], []
        self.uncommitted_bytes = self._taken_bytes = self.changed_rows = 0

    close = discard

    def _count_changed(self) -> int | None:
        """How many rows the next take may give; None: the module does not say."""
        if self._instance is None:
            return len(self._pending)
        if not self._says_changed:
            return None
        try:
            found = self._instance.changed
        except UdfTrap as trap:
            self._says_changed, found = False, None  # it is not asked again
            self._recover(None, trap, Allowance())
        return None if found is None else found + len(self._pending)

    # ---- one piece on the current instance

    def _start(self) -> FoldInstance:
        options, limits, compiled = self._options, self._options.limits, self._compiled
        if self._metered:
            compiled = self._cache.load(self._wasm, metered=True, stack_bytes=limits.stack_bytes)
        return FoldInstance(compiled, limits, self._cache.host, options.merge, options.outputs, options.meter)

    def _drop(self) -> None:
        if self._instance is not None:
            self._instance.close()
            self._instance = None

    def _run(self, batch: Batch) -> list[tuple[int, str]]:
        if self._instance is None:
            self._instance = self._start()
        missing = self._instance.prepare(batch)
        rows = self._rows(missing) if missing else ()
        if batch.n == 1:
            self._asked = (missing, rows)
        if missing:
            self._instance.load(missing, rows)
        refused = self._instance.fold()
        self._options.meter.holds(self._instance.memory_bytes)
        return refused

    def _rows(self, keys: list[bytes]) -> Sequence[bytes | None]:
        assert self._load_rows is not None
        if not self._pending and not self._taken:
            return self._load_rows(keys)
        known: dict[bytes, bytes | None] = {}
        self._taken.find(keys, known)
        self._pending.find(keys, known)
        unknown = [k for k in keys if k not in known]
        if unknown:
            known.update(zip(unknown, self._load_rows(unknown), strict=True))
        return [known[k] for k in keys]

    def _checkpoint(self) -> None:
        """Takes the instance's changes out into `_pending`; afterwards nothing is retained."""
        if not self._retained:
            return
        try:
            assert self._instance is not None
            rows, outputs = self._instance.take(), self._instance.take_outputs()
        except UdfTrap as trap:
            self._recover(None, trap, Allowance())
        else:
            self._keep(rows, outputs)
        self._retained, self._retained_bytes = [], 0

    def _keep(self, rows: PackedRows, outputs: list[Output]) -> None:
        self._pending.add(rows, apart=self.isolating)
        self._pending_outputs += outputs

    def _relieve(self) -> None:
        """Keeps memory and retained batches bounded between commits."""
        options = self._options
        memory = self.memory_bytes
        held_bytes = options.held_bytes if options.share is None else options.share.allowed(self, memory)
        full = memory > min(options.limits.memory_bytes // 2, held_bytes)
        if full or self._retained_bytes > options.retain_bytes:
            self._checkpoint()
        if full:
            self._drop()

    # ---- recovery

    def _recover(self, batch: Batch | None, trap: UdfTrap, allowance: Allowance) -> list[Reject]:
        self.traps += 1
        self._drop()
        self._metered = trap.kind is TrapKind.DEADLINE
        self.isolating = True
        retained, self._retained, self._retained_bytes = self._retained[::-1], [], 0
        try:
            while retained:
                earlier = retained.pop()
                for reject in self._isolate(earlier, Allowance()):
                    if reject.kind is RejectKind.TRAP:
                        self._late.append(_named(earlier, reject))
            return self._isolate(batch, allowance) if batch is not None else []
        finally:
            self._drop()
            self._metered = self.isolating = False

    def _isolate(self, batch: Batch, allowance: Allowance) -> list[Reject]:
        """Folds all of a batch but its culprits, in order, into `_pending`; as far as it is allowed to."""
        batch = batch.full()  # a compact one is expanded for this alone
        rejects: list[Reject] = []
        work: list[Array] = [np.arange(batch.n)]
        cuts = Records(batch)
        until_s, left = time.monotonic() + allowance.seconds, allowance.traps
        before = (self._pending.copy(), list(self._pending_outputs)) if allowance.hold and batch.has_parts else None
        while work:
            if self._cancelled.is_set():
                raise Cancelled("the search for what stops the module was cancelled")
            chosen = work.pop()
            first = int(chosen[0])
            if first and (time.monotonic() > until_s or (left <= 0 and not allowance.hold)):
                if cuts.begins(first):
                    self.stopped = Stopped(first)
                    break
                if (ends := cuts.end_of(first)) <= int(chosen[-1]):  # to the end of this record, and no further
                    work.append(chosen[ends - first :])
                    chosen = chosen[: ends - first]
            try:
                refused = self._judge(batch if len(chosen) == batch.n else batch.select(chosen))
            except UdfTrap as trap:
                if len(chosen) > 1:
                    half = len(chosen) // 2
                    work += [chosen[half:], chosen[:half]]
                    continue
                reject = Reject(first, f"trap: {trap.detail}", RejectKind.TRAP, -1, self._report(trap))
                free = cuts.offset(first) == allowance.free_offset >= 0
                if not free and left <= 0 and allowance.hold:
                    return self._hold(batch, cuts.start_of(first), reject, rejects, before)
                left -= not free
                rejects.append(reject)
            else:
                rejects += [Reject(int(chosen[i]), reason, RejectKind.UDF) for i, reason in refused]
        for each in rejects:
            if each.report is not None:
                self._options.meter.trapped(each.report.kind.value)
        return rejects

    def _hold(
        self,
        batch: Batch,
        start: int,
        held: Reject,
        rejects: list[Reject],
        before: tuple[PendingRows, list[Output]] | None,
    ) -> list[Reject]:
        """Stop before the record that begins at `start`: what was folded of it is undone by folding again without."""
        kept = [each for each in rejects if each.index < start]
        if before is not None and start < held.index:
            self._pending, self._pending_outputs = before
            culprits = {each.index for each in kept if each.kind is RejectKind.TRAP}
            good = np.array([at for at in range(start) if at not in culprits], np.int64)
            if len(good):
                again = self._isolate(batch.select(good), Allowance())
                kept += [replace(each, index=int(good[each.index])) for each in again if each.kind is RejectKind.TRAP]
                kept.sort(key=lambda each: each.index)
        for each in (*kept, held):
            if each.report is not None:
                self._options.meter.trapped(each.report.kind.value)
        self.stopped = Stopped(start, _named(batch, held))
        return kept

    def _report(self, trap: UdfTrap) -> TrapReport:
        keys, rows = self._asked
        found: list[tuple[bytes, bytes | None]] = []
        size = 0
        for key, row in zip(keys, rows, strict=False):
            size += len(key) + len(row or b"")
            if size > REPORT_ROWS_BYTES_MAX:
                break
            found.append((key, row))
        whole = len(found) == len(keys)
        last = self._last_metered, self._last_memory
        return TrapReport(trap.kind, trap.detail, self._last_call, trap.frames, tuple(found), whole, *last)

    def _judge(self, piece: Batch) -> list[tuple[int, str]]:
        """`_attempt`; but instructions alone condemn nobody: a single event is then given its time first, so that what
        else was in its batch, for which they are counted, does not decide."""
        metered = self._metered
        try:
            return self._attempt(piece)
        except UdfTrap as trap:
            if piece.n > 1 or not metered or trap.kind not in (TrapKind.FUEL, TrapKind.DEADLINE):
                raise
        self._metered = False
        try:
            return self._attempt(piece)
        finally:
            self._metered = True

    def _attempt(self, piece: Batch) -> list[tuple[int, str]]:
        """One piece on a fresh instance, taken out at once. A deadline is judged again under fuel."""
        self._drop()
        self._asked = ([], ())
        try:
            refused = self._run(piece)
            assert self._instance is not None
            rows, outputs = self._instance.take(), self._instance.take_outputs()
        except UdfTrap as trap:
            self._last_call = self._instance.last_call if self._instance else "instantiation"
            self._last_memory, self._last_metered = self.memory_bytes, self._metered
            self._drop()
            if trap.kind is not TrapKind.DEADLINE or self._metered:
                raise
            self._metered = True
            return self._attempt(piece)
        self._keep(rows, outputs)
        self._drop()
        return refused


def _named(batch: Batch, reject: Reject) -> LateReject:
    event = batch.event(reject.index)
    return LateReject(event, replace(reject, offset=event.offset))


class Records:
    """Where the records of a batch begin and end: the puts of a frame share their offset."""

    def __init__(self, batch: Batch) -> None:
        self._offsets = batch.column("offset") if batch.has_offsets else np.arange(batch.n)
        self._known = batch.has_offsets
        self._parts = batch.column("part") if batch.has_parts else None

    def offset(self, index: int) -> int:
        """The event's offset in the log, -1 when the batch does not know it."""
        return int(self._offsets[index]) if self._known else -1

    def begins(self, index: int) -> bool:
        """Whether a record begins with this event."""
        return self.start_of(index) == index

    def start_of(self, index: int) -> int:
        """The first event of the record that this one is of."""
        if self._parts is None or int(self._parts[index]) < 0:
            return index
        return int(np.searchsorted(self._offsets, self._offsets[index], "left"))

    def end_of(self, index: int) -> int:
        """The event after the last one of that record."""
        if self._parts is None or int(self._parts[index]) < 0:
            return index + 1
        return int(np.searchsorted(self._offsets, self._offsets[index], "right"))
