"""`MapHost`: a map, filter or flat_map over batches. Stateless, so what comes out depends on the events alone.

A trap drops the instance, and the batch is tried again in halves, each on a fresh instance, until the culprit is alone:
which event that is does not depend on where batches were cut. ABI: wasm_udfs/ABI.md.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

import numpy as np

from streams.wasm.abi import check_map_module
from streams.wasm.batch import OP_DELETE, OP_PURGE, OP_PUT, Batch, Buffer
from streams.wasm.columns import Array
from streams.wasm.engine import Limits, ModuleCache, TrapKind, UdfTrap, module_hash
from streams.wasm.fold_host import Allowance, Cancelled, Records, Reject, RejectKind, TrapReport
from streams.wasm.fold_instance import OUTPUT_VALUE_BYTES_MAX, REASON_MAX
from streams.wasm.guest import AnyGuest, open_guest
from streams.wasm.meter import UdfMeter

EVENT_BYTES_MAX = 4 << 20
"""What one event may put out, at most, keys and values together."""
EVENT_PUTS_MAX = 10_000
"""How many puts one event may become, at most."""
PUT, DELETE, PASS = 0, 1, 2
_KEEP_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Emitted:
    """What a module made of an event: `event` is its index in the batch, `output` the index of a keyspace in the
    manifest's `output`, `op` PUT (`body` in that keyspace's schema), DELETE, or PASS (the event's value as it came).
    `rest`: the key without its keyspace; empty: the event's own.
    """

    event: int
    output: int
    op: int
    rest: bytes
    body: bytes


@dataclass(slots=True)
class MapHost:
    """One module of a stateless kind. Not thread-safe; BadInput at once when it is none of map v1.

    `outputs`: how many keyspaces the manifest names.
    """

    wasm: bytes
    cache: ModuleCache
    kind: str
    outputs: int
    limits: Limits = field(default_factory=Limits)
    traps: int = 0
    meter: UdfMeter = field(default_factory=UdfMeter)
    _guest: AnyGuest | None = None
    _metered: bool = False
    _last: tuple[str, bool, int] = ("", False, 0)
    _cancelled: threading.Event = field(default_factory=threading.Event)
    isolating: bool = False
    stopped: int | None = None
    """The index of the first event that the last `map` did not come to; None: it came to all."""

    def cancel(self) -> None:
        """Make a `map` that looks for culprits end soon with Cancelled. From any thread; for good."""
        self._cancelled.set()

    def __post_init__(self) -> None:
        check_map_module(self.cache.load(self.wasm))

    @property
    def sha256(self) -> str:
        """The module's identity."""
        return module_hash(self.wasm)

    @property
    def memory_bytes(self) -> int:
        """Linear memory of the instance, 0 without one."""
        return self._guest.memory_bytes if self._guest is not None else 0

    def map(self, given: Buffer | Batch, allowance: Allowance | None = None) -> tuple[list[Emitted], list[Reject]]:
        """What a batch becomes, in the order of its events, and the events that it refused or that stopped it.

        `allowance`: how far it may go with those that stop it; then it ends where a record begins (`stopped`), and the
        caller offers the rest again.
        """
        batch = (given if isinstance(given, Batch) else Batch.parse(given)).full()
        allowed, cuts = allowance or Allowance(), Records(batch)
        until_s, left, self.stopped = time.monotonic() + allowed.seconds, allowed.traps, None
        emitted: list[Emitted] = []
        rejects: list[Reject] = []
        work: list[Array] = [np.arange(batch.n)] if batch.n else []
        fresh = False
        while work:
            self.isolating = fresh
            if fresh and self._cancelled.is_set():
                raise Cancelled("the search for what stops the module was cancelled")
            chosen = work.pop()
            first = int(chosen[0])
            if fresh and first and (left <= 0 or time.monotonic() > until_s):
                if cuts.begins(first):
                    self.stopped = first
                    break
                if (ends := cuts.end_of(first)) <= int(chosen[-1]):  # to the end of this record, and no further
                    work.append(chosen[ends - first :])
                    chosen = chosen[: ends - first]
            try:
                found, refused = self._attempt(batch if len(chosen) == batch.n else batch.select(chosen), fresh)
            except UdfTrap as trap:
                self.traps += 1
                self.close()
                if len(chosen) > 1:
                    half = len(chosen) // 2
                    work += [chosen[half:], chosen[:half]]
                elif fresh:
                    self.meter.trapped(trap.kind.value)
                    left -= 1
                    rejects.append(self._culprit(int(chosen[0]), trap))
                else:
                    work.append(chosen)
                fresh = True
            else:
                at = chosen.tolist()
                emitted += [Emitted(at[e.event], e.output, e.op, e.rest, e.body) for e in found]
                rejects += [Reject(at[index], reason, RejectKind.UDF) for index, reason in refused]
        self.isolating = False
        if self.memory_bytes > _KEEP_BYTES:
            self.close()
        return emitted, sorted(rejects, key=lambda each: each.index)

    def _culprit(self, index: int, trap: UdfTrap) -> Reject:
        call, metered, memory_bytes = self._last
        report = TrapReport(trap.kind, trap.detail, call, trap.frames, (), True, metered, memory_bytes)
        return Reject(index, f"trap: {trap.detail}", RejectKind.TRAP, -1, report)

    def close(self) -> None:
        """Free the instance; idempotent."""
        guest, self._guest = self._guest, None
        if guest is not None:
            guest.close()

    def _attempt(self, piece: Batch, fresh: bool) -> tuple[list[Emitted], list[tuple[int, str]]]:
        """One piece, on a fresh instance after a trap. There a deadline is judged again under fuel."""
        if not fresh:
            return self._run(piece)
        self.close()
        try:
            return self._run(piece)
        except UdfTrap as trap:
            if trap.kind is not TrapKind.DEADLINE:
                raise
        self.close()
        self._metered = True
        try:
            return self._run(piece)
        finally:
            self._metered = False
            self.close()

    def _run(self, piece: Batch) -> tuple[list[Emitted], list[tuple[int, str]]]:
        try:
            return self._mapped(piece)
        except UdfTrap:
            call = "instantiation" if self._guest is None else self._guest.last_call
            self._last = (call, self._metered, self.memory_bytes)
            raise

    def _mapped(self, piece: Batch) -> tuple[list[Emitted], list[tuple[int, str]]]:
        if self._guest is None:
            stack_bytes = self.limits.stack_bytes
            compiled = self.cache.load(self.wasm, metered=self._metered, stack_bytes=stack_bytes)
            self._guest = open_guest(compiled, self.limits, self.cache.host, self.meter)
        ptr, size = self._guest.put(piece.raw)
        data, _ = self._guest.describe(self._guest.call("streams_map", ptr, size))
        return _checked(*_parse(data, piece.n), piece, self.kind, self.outputs)


def _malformed(what: str) -> UdfTrap:
    return UdfTrap(f"malformed output: {what}", TrapKind.MALFORMED)


def _parse(data: bytes, events: int) -> tuple[list[Emitted], list[tuple[int, str]]]:
    """The answer of `streams_map`, its lengths checked before anything is sliced."""
    if len(data) < 8:
        raise _malformed("an answer is cut off")
    r, n = int.from_bytes(data[:4], "little"), int.from_bytes(data[4:8], "little")
    if r > events or 8 + 8 * r + 20 * n > len(data):
        raise _malformed(f"{r} rejects and {n} puts in {len(data)} bytes")
    words = np.frombuffer(data, "<u4", 2 * r + 5 * n, 8).astype(np.int64)
    index, reason_end = words[:r], words[r : 2 * r]
    event, output, op, key_end, value_end = words[2 * r :].reshape(5, n)
    at = 8 + 8 * r + 20 * n
    total = sum(int(ends[-1]) if len(ends) else 0 for ends in (reason_end, key_end, value_end))
    ordered = all(bool((np.diff(ends, prepend=0) >= 0).all()) for ends in (reason_end, key_end, value_end, event))
    if not ordered or bool((np.diff(index) <= 0).any()) or at + total > len(data):
        raise _malformed("ends or events are out of order")
    if max((int(column.max()) for column in (index, event) if len(column)), default=-1) >= events:
        raise _malformed("an event that is not in the batch")
    reasons = _slices(data, at, reason_end)
    at += int(reason_end[-1]) if r else 0
    keys = _slices(data, at, key_end)
    at += int(key_end[-1]) if n else 0
    values = _slices(data, at, value_end)
    made = zip(event.tolist(), output.tolist(), op.tolist(), keys, values, strict=True)
    refused = zip(index.tolist(), (each[:REASON_MAX].decode("utf-8", "replace") for each in reasons), strict=True)
    return [Emitted(*each) for each in made], list(refused)


def _slices(data: bytes, at: int, ends: Array) -> list[bytes]:
    bounds = [at, *(ends + at).tolist()]
    return [data[bounds[i] : bounds[i + 1]] for i in range(len(ends))]


def _checked(
    emitted: list[Emitted], refused: list[tuple[int, str]], piece: Batch, kind: str, outputs: int
) -> tuple[list[Emitted], list[tuple[int, str]]]:
    """What the kind allows: a filter passes events on, a map makes one put of each, a flat_map what it likes."""
    ops = piece.column("op")
    gone = {index for index, _ in refused}
    counts, sizes = np.zeros(piece.n, np.int64), np.zeros(piece.n, np.int64)
    for each in emitted:
        if each.output >= outputs:
            raise _malformed(f"output {each.output} of {outputs}")
        if each.event in gone:
            raise _malformed("a rejected event left a trace")
        if ops[each.event] == OP_PURGE or each.op > PASS or (ops[each.event] == OP_DELETE) != (each.op == DELETE):
            raise _malformed("an operation that does not fit the event's")
        if kind == "filter" and (each.op == PUT or each.rest or each.body):
            raise _malformed("a filter made something new")
        if each.op != PUT and each.body:
            raise _malformed("a value where none belongs")
        if len(each.body) > OUTPUT_VALUE_BYTES_MAX:
            raise _malformed(f"the value of an output is over {OUTPUT_VALUE_BYTES_MAX} bytes")
        counts[each.event] += 1
        sizes[each.event] += len(each.rest) + len(each.body)
    if len(sizes) and (int(sizes.max()) > EVENT_BYTES_MAX or int(counts.max()) > EVENT_PUTS_MAX):
        raise UdfTrap(
            f"an event became over {EVENT_PUTS_MAX} puts, or over {EVENT_BYTES_MAX} bytes of them", TrapKind.OUTPUT
        )
    if kind == "map":
        alive = [i for i in np.flatnonzero(ops == OP_PUT).tolist() if i not in gone]
        if any(counts[i] != 1 for i in alive):
            raise _malformed("a map must make exactly one put of each, or refuse it")
    return emitted, refused
