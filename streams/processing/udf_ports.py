"""The partition task's view of WASM: decoding a run, and the UDF of one partition."""

from __future__ import annotations

import queue
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from streams.model.errors import BadInput, Conflict
from streams.model.fold_table import FoldTable
from streams.model.memory import MemoryShare, machine_share
from streams.processing.black_box import UdfInfo, encode_box
from streams.processing.catalog import DeployedModule, KeyspaceRules, RulesCache
from streams.processing.containment import Containment
from streams.processing.ports import Decoded, LoadRows, Rejected, Rows, RunPort, StoppedAt
from streams.processing.shared_input import SharedRun
from streams.serde import TABLE_PURGE, AvroSchema, load_builtin, project, wire_schema_id
from streams.wasm.batch import OP_PURGE, OP_PUT, Batch, Event, build
from streams.wasm.buffers import Buffers
from streams.wasm.builtin import builtin_for_merge, builtin_manifest, builtin_module
from streams.wasm.columns import Array, starts_of
from streams.wasm.decoder import Decoded as DecodedRun
from streams.wasm.decoder import DecoderConfig, RecordDecoder, RecordReject
from streams.wasm.engine import ModuleCache
from streams.wasm.fold_host import FoldHost, FoldOptions, Reject, RejectKind, Stopped
from streams.wasm.limits import Limits
from streams.wasm.manifest import Manifest
from streams.wasm.meter import UdfMeter

VALUE_BYTES_MAX = 17 << 20
"""Larger values are refused: their row, or their dead letter, would not fit a record."""

DECODER_BUDGET_BYTES = 64 << 20
IDLE_BUFFERS_BYTES = 48 << 20
FOLD_SHARE = MemoryShare(machine_share(8, 512 << 20, 16 << 30), 128 << 20, machine_share(64, 128 << 20, 384 << 20))
"""What a fold may keep of its rows between commits, and half of it when it is idle: a 64th of the machine's memory,
while all of the process keep no more than an eighth; else 128 MiB."""


class DecoderPool:
    """As many decoder instances as threads decode at once; shared by all partitions of a process."""

    def __init__(self, cache: ModuleCache) -> None:
        self._cache = cache
        self._buffers = Buffers(IDLE_BUFFERS_BYTES)
        self._idle: queue.LifoQueue[RecordDecoder] = queue.LifoQueue()

    def take(self) -> RecordDecoder:
        """An idle instance, or a new one."""
        try:
            return self._idle.get_nowait()
        except queue.Empty:
            return RecordDecoder(self._cache, DECODER_BUDGET_BYTES, self._buffers)

    def give_back(self, decoder: RecordDecoder) -> None:
        """The instance is idle again."""
        self._idle.put(decoder)

    def close(self) -> None:
        """Free the idle instances."""
        while not self._idle.empty():
            self._idle.get_nowait().close()


@dataclass(frozen=True, slots=True)
class ParsedRun:
    """A decoded run, and what all tables that fold it look at: its events as a Batch (None: there are none), and
    whether there are purges among them.
    """

    run: DecodedRun
    batch: Batch | None
    has_purges: bool


class RunDecoder:
    """Decodes the runs of one table's input (the task's DecoderPort).

    Records that cannot be decoded are reported to the keyspace's own table alone: one dead letter each. `compact`: what
    folds the table takes compact batches.
    """

    def __init__(self, pool: DecoderPool, rules: RulesCache, table: FoldTable, *, compact: bool = False) -> None:
        self._pool, self._rules, self._table, self._compact = pool, rules, table, compact

    def decode(self, run: RunPort, from_offset: int) -> Decoded:
        """The events of `run` from `from_offset` on. DecodeError when the log itself is broken."""
        rules = self._rules.rules(self._table)
        config = replace(rules.config, compact=True) if self._compact else rules.config
        if isinstance(run, SharedRun):
            parsed = run.once((from_offset, config), lambda: self._decode(run, from_offset, config))
        else:
            parsed = self._decode(run, from_offset, config)
        found, batch = parsed.run, parsed.batch
        if found.truncated:
            raise BadInput(f"{run.topic}/{run.partition}: a record batch at {found.next_position} is cut off")
        rejected = [_rejected(reject) for reject in found.rejects] if self._table.is_own else []
        last_ms = max((reject.append_ms for reject in found.rejects), default=0)
        if batch is not None:
            last_ms = max(last_ms, batch.last_append_ms)
            if parsed.has_purges:
                batch = purges_of(batch, self._table)
            batch, refused = fit(batch, rules) if batch.n else (batch, [])
            rejected += refused
        return Decoded(batch, batch.n if batch is not None else 0, rejected, found.unknown_schema_ids, last_ms)

    def _decode(self, run: RunPort, from_offset: int, config: DecoderConfig) -> ParsedRun:
        decoder = self._pool.take()
        try:
            found = decoder.decode(run.batches, from_offset, run.next, config)
        finally:
            self._pool.give_back(decoder)
        batch = Batch.parse(found.batch) if found.n else None
        return ParsedRun(found, batch, batch is not None and batch.has_purges)


def purges_of(batch: Batch, table: FoldTable) -> Batch:
    """The batch without the purges of other tables' rows: a key may be in several of them. Almost always itself."""
    purges = np.flatnonzero(batch.column("op") == OP_PURGE)
    if not len(purges):
        return batch
    foreign = purges[~_are_purges_of(batch, purges, table)]
    return batch.select(np.delete(np.arange(batch.n), foreign)) if len(foreign) else batch


def _are_purges_of(batch: Batch, purges: Array, table: FoldTable) -> Array:
    """Which of the purges, whose bodies are known to be valid, are of rows of `table`."""
    ends, values = batch.column("value_end").astype(np.int64), batch.values
    starts = starts_of(ends)[purges]
    ends = ends[purges]
    ids = values[starts[:, None] + np.arange(1, 5)]
    named = (ids == np.frombuffer(load_builtin()[TABLE_PURGE].id.to_bytes(4, "big"), np.uint8)).all(axis=1)
    # The name is the body's last field, after a boolean. No byte of a name is so small: none is a longer one's end.
    name = table.name.encode()
    end = np.frombuffer(_zigzag(len(name)) + name, np.uint8)
    at = np.maximum(ends - len(end), 1)
    last = values[np.minimum(at[:, None] + np.arange(len(end)), len(values) - 1)]
    is_own = (last == end).all(axis=1) & (values[at - 1] <= 1)
    return np.where(named, is_own, table.is_own)


def _zigzag(number: int) -> bytes:
    """An Avro long of at least 0."""
    left, out = number << 1, bytearray()
    while left >= 128:
        out.append(left & 127 | 128)
        left >>= 7
    return bytes([*out, left])


def _rejected(reject: RecordReject) -> Rejected:
    return Rejected(reject.offset, reject.text, reject.key, _bounded(reject.value), (), reject.part)


def _bounded(value: bytes | None) -> bytes | None:
    return value if value is None or len(value) <= VALUE_BYTES_MAX else value[:1024]


def fit(batch: Batch, rules: KeyspaceRules) -> tuple[Batch, list[Rejected]]:
    """The batch as the UDF can take it, and what it cannot: too large values, and values of other schema versions
    that do not resolve to the UDF's. Almost always the batch itself.
    """
    too_large = batch.value_bytes_most > VALUE_BYTES_MAX and _longest(batch) > VALUE_BYTES_MAX
    if not too_large and (rules.input_schema is None or not _has_others(batch, rules)):
        return batch, []
    kept: list[Event] = []
    refused: list[Rejected] = []
    for event in batch.events():
        try:
            kept.append(_fitted(event, rules.input_schema, rules))
        except BadInput as error:
            refused.append(Rejected(event.offset, error.detail, event.key, _bounded(event.value), (), event.part))
    return build(kept), refused


def _longest(batch: Batch) -> int:
    ends = batch.column("value_end").astype(np.int64)
    return int((ends - starts_of(ends)).max())


def _has_others(batch: Batch, rules: KeyspaceRules) -> bool:
    if not rules.others:
        return False
    if batch.only_schema_id is not None:
        return batch.only_schema_id in rules.others
    starts = starts_of(batch.column("value_end"))
    blob = batch.values
    ids = np.zeros(batch.n, np.int64)
    for at in range(1, 5):
        ids = ids << 8 | blob[starts + at]
    return bool(np.isin(ids, list(rules.others)).any())


def _fitted(event: Event, reader: AvroSchema | None, rules: KeyspaceRules) -> Event:
    if len(event.value) > VALUE_BYTES_MAX:
        raise BadInput(f"value of {len(event.value)} bytes is over the limit of {VALUE_BYTES_MAX}")
    writer = rules.others.get(wire_schema_id(event.value)) if event.op == OP_PUT else None
    if reader is None or writer is None:
        return event
    value = project(event.value, writer, reader)
    return replace(event, value=value)


def builtin_fold(table: FoldTable, modules: ModuleCache, meter: UdfMeter | None = None) -> FoldHost:
    """The fold of one partition of a table, under its manifest's limits. Conflict when the manifest and the table do
    not agree: rows would merge wrongly, or records go to the wrong topic.
    """
    name, manifest = builtin_of(table)
    check_manifest(table, manifest)
    return FoldHost(builtin_module(name), modules, _fold_options(table, manifest.limits, meter))


def _fold_options(table: FoldTable, limits: Limits, meter: UdfMeter | None) -> FoldOptions:
    """What every fold of a worker runs under. The outputs are the table's: `check_manifest` compares them."""
    return FoldOptions(
        limits,
        share=FOLD_SHARE,
        merge=int(table.merge),
        outputs=len(table.outputs),
        meter=meter or UdfMeter(),
    )


def builtin_of(table: FoldTable) -> tuple[str, Manifest]:
    """The built-in module of a table, by name, and its manifest."""
    name = table.udf or builtin_for_merge(table.merge.label)
    return name, builtin_manifest(name)


def check_tables(tables: Iterable[FoldTable]) -> None:
    """As `check_manifest`, for every table that names its UDF."""
    for table in tables:
        if table.udf:
            check_manifest(table, builtin_manifest(table.udf))


def deployed_fold(
    table: FoldTable, module: DeployedModule, modules: ModuleCache, meter: UdfMeter | None = None
) -> FoldHost:
    """The fold of one partition of a deployed UDF's table. BadInput when the module is none of the ABI."""
    return FoldHost(module.wasm, modules, _fold_options(table, module.limits, meter))


def check_manifest(table: FoldTable, manifest: Manifest) -> None:
    """Conflict when a UDF's manifest names other outputs than the table, or does not make rows of its merge type."""
    if manifest.outputs != table.outputs:
        raise Conflict(
            f"udf.toml of {manifest.name} puts out to {', '.join(manifest.outputs) or 'no topic'}, "
            f"table {table.name} to {', '.join(table.outputs) or 'no topic'}",
            field="outputs",
            fix="name the same topics in the same order in udf.toml and in model/fold_table.py",
        )
    if table.merge not in manifest.merges:
        raise Conflict(
            f"{manifest.name} does not make {table.merge.label} rows, which table {table.name} has",
            field="merge",
            fix="give the merge type of udf.toml",
        )


class UdfFold:
    """A FoldHost as the task's FoldPort. `containment` says how many culprits may be put aside, and is told of them;
    `info` goes into their black boxes."""

    def __init__(self, host: FoldHost, containment: Containment | None = None, info: UdfInfo | None = None) -> None:
        self._host = host
        self._containment, self._info = containment, info
        self._resumes = containment.resumes - containment.untried if containment else 0
        self._free = -1
        self._stopped: StoppedAt | None = None

    @property
    def stopped(self) -> StoppedAt | None:
        """Where the last fold did not go on; None: all of it was folded."""
        return self._stopped

    @property
    def searching(self) -> bool:
        """Whether it is looking for what stops the module."""
        return self._host.isolating

    @property
    def changed_rows(self) -> int | None:
        """How many rows the next take may give; None: the module does not say."""
        return self._host.changed_rows

    def cancel(self) -> None:
        """Make such a search end soon."""
        self._host.cancel()

    def fold(self, decoded: Decoded, load_rows: LoadRows) -> Sequence[Rejected]:
        """Fold a batch; the events that the UDF refused or that stopped it."""
        batch = decoded.batch
        assert isinstance(batch, Batch)
        self._stopped = None
        contained = self._containment
        if contained is not None and contained.resumes != self._resumes:
            self._resumes = contained.resumes
            self._free = int(batch.column("offset")[0])  # where it had stopped: does not count
        allowance = None if contained is None else contained.allowance(self._free)
        rejects = self._host.fold(batch, load_rows, allowance)
        stopped = self._host.stopped
        if not rejects and stopped is None:
            return ()
        if stopped is not None:
            self._stopped = self._stopped_at(batch, stopped)
        if contained is not None:
            contained.trapped(sum(r.kind is RejectKind.TRAP and r.offset != self._free for r in rejects))
        return [self._refused(batch.event(reject.index), reject) for reject in rejects]

    def _stopped_at(self, batch: Batch, stopped: Stopped) -> StoppedAt:
        offset = int(batch.column("offset")[stopped.index])
        append_ms = int(batch.column("append_ms")[stopped.index - 1]) if stopped.index else 0
        if stopped.held is None:
            return StoppedAt(offset, stopped.index, append_ms)
        event, reject = stopped.held.event, stopped.held.reject
        if self._containment is not None:
            policy = self._containment.policy
            self._containment.pause(f"{reject.reason} at offset {event.offset}, key {_shown(event.key)} ({policy})")
        return StoppedAt(offset, stopped.index, append_ms, self._refused(event, reject, held=True))

    def take(self) -> tuple[Rows, Sequence[Rejected]]:
        """The changed rows, and events of earlier batches that only now turned out to stop the module."""
        rows, late = self._host.take(), self._host.late_rejects
        counted = sum(each.event.offset != self._free for each in late)
        if counted and self._containment is not None:
            self._containment.trapped(counted)
            self._containment.judge_late()
        return rows, [self._refused(each.event, each.reject) for each in late]

    def take_outputs(self) -> Sequence[tuple[int, bytes, bytes]]:
        """What the UDF puts out with the rows of the last take."""
        return self._host.take_outputs()

    def committed(self) -> None:
        """The rows of the last take are in the store."""
        self._host.committed()

    def close(self) -> None:
        """Forget everything and free the instance."""
        self._host.close()

    def _refused(self, event: Event, reject: Reject, *, held: bool = False) -> Rejected:
        return refused(event, reject, self._info, held=held)


def _shown(key: bytes) -> str:
    return key.decode("utf-8", "replace")[:80]


def refused(event: Event, reject: Reject, info: UdfInfo | None = None, *, held: bool = False) -> Rejected:
    """The event for the dead letters, with a black box if it stopped the UDF of `info`."""
    box = b""
    if reject.report is not None and info is not None:
        box = encode_box(info, event, reject.report, held=held)
    return Rejected(event.offset, reject.reason, event.key, _bounded(event.value), (), event.part, box, held)
