"""FoldHost: one fold UDF over one partition. A trap costs the culprit event alone.

State outside the module, newest first: `_pending` (rows taken out of a lost instance, not yet given to the caller),
`_taken` (given, not yet committed), then what `load_rows` reads (committed). The instance's memory is a cache above
these; `_retained` are the batches whose changes are in it alone. On a trap the instance is dropped, the retained
batches and then the trapping one are folded again on fresh instances, each piece followed by a take, and a piece that
traps is halved until single events remain. Outputs go with the rows: what an instance made since its last take is lost
with it, and made again by folding again. So an event is condemned only if it traps alone, on a fresh instance, with
its key's row: which events those are does not depend on where batches were cut.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum

import numpy as np

from streams.model.errors import StreamsError
from streams.wasm.abi import check_fold_module
from streams.wasm.batch import Array, Batch, Buffer, Event
from streams.wasm.engine import CompiledModule, Limits, ModuleCache, TrapKind, UdfTrap, module_hash
from streams.wasm.fold_instance import FoldInstance, Output

LoadRows = Callable[[list[bytes]], Sequence[bytes | None]]
"""Committed rows of keys, in order; None where there is none."""


class RejectKind(Enum):
    """Whether the UDF refused the event (`udf`) or was stopped by it (`trap`)."""

    UDF = "udf"
    TRAP = "trap"


@dataclass(frozen=True, slots=True)
class Reject:
    """An event that left no trace: its index in the batch given to `fold`, and why. `offset` is -1 if unknown."""

    index: int
    reason: str
    kind: RejectKind
    offset: int = -1


@dataclass(frozen=True, slots=True)
class LateReject:
    """An event of an earlier batch that turned out, in a later fold or take, to stop the module."""

    event: Event
    reject: Reject


@dataclass(frozen=True, slots=True)
class FoldOptions:
    """How a FoldHost runs its module.

    `cache_bytes`: the instance is dropped after a commit when its memory is larger. `retain_bytes`: batches kept to
    fold again after a trap; beyond it the rows are taken out early. `merge`: the merge type rows must have. `outputs`:
    how many output topics the manifest names; a record for another is a malformed output.
    """

    limits: Limits = field(default_factory=Limits)
    cache_bytes: int = 128 << 20
    retain_bytes: int = 64 << 20
    merge: int | None = None
    outputs: int = 0


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
        self._compiled = cache.load(wasm)
        check_fold_module(self._compiled)
        self.sha256 = module_hash(wasm)
        self._instance: FoldInstance | None = None
        self._load_rows: LoadRows | None = None
        self._retained: list[Batch] = []
        self._retained_bytes = 0
        self._pending: dict[bytes, bytes | None] = {}
        self._taken: dict[bytes, bytes | None] = {}
        self._pending_outputs: list[Output] = []
        self._taken_outputs: list[Output] = []
        self._late: list[LateReject] = []
        self._metered = False
        self._taken_bytes = 0
        self.uncommitted_bytes = 0
        self.traps = 0

    @property
    def memory_bytes(self) -> int:
        """Linear memory of the instance, 0 without one."""
        return self._instance.memory_bytes if self._instance else 0

    @property
    def late_rejects(self) -> list[LateReject]:
        """Rejects of earlier batches found since the last look; reading empties the list. Look before each commit."""
        late, self._late = self._late, []
        return late

    def fold(self, given: Buffer | Batch, load_rows: LoadRows) -> list[Reject]:
        """Folds a batch v1 (parsed, or its bytes); its rejected events, by index. Errors of `load_rows` pass through
        and change nothing that `discard` does not mend. BadInput when bytes are no batch v1."""
        batch = given if isinstance(given, Batch) else Batch.parse(given)
        self._load_rows = load_rows
        if not batch.n:
            return []
        try:
            refused = self._run(batch)
        except UdfTrap as trap:
            rejects = self._recover(batch, trap)
        else:
            self._retained.append(batch)
            self._retained_bytes += len(batch.raw)
            rejects = [Reject(i, reason, RejectKind.UDF) for i, reason in refused]
        self.uncommitted_bytes += len(batch.raw)
        self._relieve()
        if rejects and batch.has_offsets:
            offsets = batch.column("offset")
            rejects = [Reject(r.index, r.reason, r.kind, int(offsets[r.index])) for r in rejects]
        return rejects

    def take(self) -> list[tuple[bytes, bytes | None]]:
        """The rows changed since the last take, to be committed: (key, row), None for a removed row. Rows carry
        sequence number 0. StreamsError if the rows of the last take were neither committed nor discarded."""
        if self._taken or self._taken_outputs:
            raise StreamsError("the rows of the last take are neither committed nor discarded")
        self._checkpoint()
        self._taken, self._pending = self._pending, {}
        self._taken_outputs, self._pending_outputs = self._pending_outputs, []
        self._taken_bytes = self.uncommitted_bytes
        return list(self._taken.items())

    def take_outputs(self) -> list[Output]:
        """The records for output topics that belong to the last take, in the order made: (index of the topic in the
        manifest's `outputs`, key, value). To be written in the same commit; the same until `committed` or `discard`."""
        return list(self._taken_outputs)

    def committed(self) -> None:
        """The rows of the last take are committed: `load_rows` finds them from now on."""
        self._taken, self._taken_outputs = {}, []
        self.uncommitted_bytes -= self._taken_bytes
        self._taken_bytes = 0
        if self.memory_bytes > self._options.cache_bytes and not self._retained:
            self._drop()

    def discard(self) -> None:
        """Forgets everything that is not committed, and the cache."""
        self._drop()
        self._retained, self._retained_bytes = [], 0
        self._pending, self._taken, self._late = {}, {}, []
        self._pending_outputs, self._taken_outputs = [], []
        self.uncommitted_bytes = self._taken_bytes = 0

    close = discard

    # ---- one piece on the current instance

    def _start(self) -> FoldInstance:
        limits = self._options.limits
        compiled: CompiledModule = self._cache.load(self._wasm, metered=True) if self._metered else self._compiled
        return FoldInstance(compiled, limits, self._cache.host, self._options.merge, self._options.outputs)

    def _drop(self) -> None:
        if self._instance is not None:
            self._instance.close()
            self._instance = None

    def _run(self, batch: Batch) -> list[tuple[int, str]]:
        if self._instance is None:
            self._instance = self._start()
        missing = self._instance.prepare(batch)
        if missing:
            self._instance.load(missing, self._rows(missing))
        return self._instance.fold()

    def _rows(self, keys: list[bytes]) -> Sequence[bytes | None]:
        assert self._load_rows is not None
        if not self._pending and not self._taken:
            return self._load_rows(keys)
        known = {k: layer[k] for layer in (self._taken, self._pending) for k in keys if k in layer}
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
            self._recover(None, trap)
        else:
            self._keep(rows, outputs)
        self._retained, self._retained_bytes = [], 0

    def _keep(self, rows: list[tuple[bytes, bytes | None]], outputs: list[Output]) -> None:
        self._pending.update(rows)
        self._pending_outputs += outputs

    def _relieve(self) -> None:
        """Keeps memory and retained batches bounded between commits."""
        full = self.memory_bytes > self._options.limits.memory_bytes // 2
        if full or self._retained_bytes > self._options.retain_bytes:
            self._checkpoint()
        if full:
            self._drop()

    # ---- recovery

    def _recover(self, batch: Batch | None, trap: UdfTrap) -> list[Reject]:
        self.traps += 1
        self._drop()
        self._metered = trap.kind is TrapKind.DEADLINE
        retained, self._retained, self._retained_bytes = self._retained, [], 0
        try:
            for earlier in retained:
                for reject in self._isolate(earlier):
                    if reject.kind is RejectKind.TRAP:
                        event = earlier.event(reject.index)
                        late = Reject(reject.index, reject.reason, reject.kind, event.offset)
                        self._late.append(LateReject(event, late))
            return self._isolate(batch) if batch is not None else []
        finally:
            self._drop()
            self._metered = False

    def _isolate(self, batch: Batch) -> list[Reject]:
        """Folds all of a batch but its culprits, in order, into `_pending`."""
        rejects: list[Reject] = []
        work: list[Array] = [np.arange(batch.n)]
        while work:
            chosen = work.pop()
            try:
                refused = self._attempt(batch if len(chosen) == batch.n else batch.select(chosen))
            except UdfTrap as trap:
                if len(chosen) == 1:
                    rejects.append(Reject(int(chosen[0]), f"trap: {trap.detail}", RejectKind.TRAP))
                else:
                    half = len(chosen) // 2
                    work += [chosen[half:], chosen[:half]]
            else:
                rejects += [Reject(int(chosen[i]), reason, RejectKind.UDF) for i, reason in refused]
        return rejects

    def _attempt(self, piece: Batch) -> list[tuple[int, str]]:
        """One piece on a fresh instance, taken out at once. A deadline is judged again under fuel."""
        self._drop()
        try:
            refused = self._run(piece)
            assert self._instance is not None
            rows, outputs = self._instance.take(), self._instance.take_outputs()
        except UdfTrap as trap:
            self._drop()
            if trap.kind is not TrapKind.DEADLINE or self._metered:
                raise
            self._metered = True
            return self._attempt(piece)
        self._keep(rows, outputs)
        self._drop()
        return refused
