"""Traps and what keeps them contained: policy, pause and resume, rate, table size, caps. Real WASM, fakes for Kafka."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import wasmtime

from streams.model.fold_table import FoldTable
from streams.model.keyspace import BUILTIN
from streams.model.row import MergeType, counter_sums, decode_row
from streams.processing.catalog import DeployedModule
from streams.processing.commit import CommitOptions
from streams.processing.containment import Containment
from streams.processing.partition_task import PartitionTask, TaskIdentity, TaskOptions
from streams.processing.ports import Decoded, RunPort, TaskPorts
from streams.processing.run_part import part_of
from streams.processing.udf_ports import UdfFold
from streams.processing.udf_runs import Inherited, UdfRuns
from streams.wasm.batch import Event, build
from streams.wasm.build import compile_source
from streams.wasm.engine import HOST, Limits, ModuleCache, TrapKind, UdfTrap, module_hash
from streams.wasm.fold_host import Allowance, Cancelled, FoldHost, FoldOptions
from streams.wasm.guest import Guest
from streams.wasm.meter import UdfMeter
from streams.wasm.quarantine import OnTrap, TrapPolicy
from tests.support.polling import eventually, eventually_sync
from tests.support.processing_fakes import (
    FakeBroker,
    FakeChangelog,
    FakeInput,
    FakeRun,
    FakeSchemas,
    FakeStore,
    FakeWriter,
)

SOURCES = Path(__file__).parent / "hostile_udfs"
NEVER = 2**63 - 1
LIMITS = Limits(memory_bytes=16 << 20, deadline_s=0.2, fuel=3_000_000, fuel_deadline_s=0.6, output_bytes=2 << 20)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> ModuleCache:
    return ModuleCache(tmp_path_factory.mktemp("wasm"))


@pytest.fixture(scope="module")
def hostile() -> bytes:
    return compile_source(SOURCES / "hostile.c", MergeType.COUNTER)


@pytest.fixture(scope="module")
def mended(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The hostile module without its trap."""
    source = tmp_path_factory.mktemp("mended") / "hostile.c"
    text = (SOURCES / "hostile.c").read_text()
    assert "__builtin_trap();" in text
    source.write_text(text.replace('if (has(e, "trap")) __builtin_trap();', ""))
    return compile_source(source, MergeType.COUNTER)


def event(key: str, offset: int, part: int = -1) -> Event:
    return Event(1_000 + offset, (1_000 + offset) << 16, NEVER, 0, 0, key.encode(), b"\0\0\0\0\1\2", offset, part)


def sums(rows: list[tuple[bytes, bytes | None]]) -> dict[str, int]:
    return {k.decode(): counter_sums(decode_row(r).cells[0].payload[:16])[0] for k, r in rows if r is not None}


def nothing(keys: list[bytes]) -> list[None]:
    return [None] * len(keys)


# ---- the fold host


def test_limits_of_stack_and_row(hostile: bytes, cache: ModuleCache) -> None:
    reasons = {}
    for stack, word in ((64 << 10, "deep"), (512 << 10, "deep"), (64 << 10, "giant")):
        limits = replace(LIMITS, stack_bytes=stack, output_bytes=8 << 20, row_bytes=1 << 20)
        host = FoldHost(hostile, cache, FoldOptions(limits=limits, merge=2))
        rejects = host.fold(build([event("k:a", 0), event(f"k:{word}", 1)]).raw, nothing)
        assert sums(host.take()) == {"k:a": 1}
        rejects += [late.reject for late in host.late_rejects]
        reasons[stack, word] = rejects[0].reason
        host.close()
    assert "row of" in reasons[64 << 10, "giant"] and "limit of 1048576" in reasons[64 << 10, "giant"]
    assert all(reasons[stack, "deep"].startswith("trap: ") for stack in (64 << 10, 512 << 10))


def test_a_module_uses_no_more_stack_than_its_limit(cache: ModuleCache) -> None:
    count = "(i32.store (i32.const 0) (i32.add (i32.const 1) (i32.load (i32.const 0))))"
    recurse = f"(func $r (param i32) (result i32) {count} (i32.add (i32.const 1) (call $r (local.get 0))))"
    exports = '(memory (export "memory") 1) (export "streams_alloc" (func $r))'
    wasm = bytes(wasmtime.wat2wasm(f"(module {recurse} {exports})"))
    depths = []
    for stack, used in ((64 << 10, 64 << 10), (100_000, 64 << 10), (1 << 20, 1 << 20)):
        guest = Guest(cache.load(wasm, stack_bytes=stack), LIMITS, HOST)
        with pytest.raises(UdfTrap, match=f"call stack exhausted .limit {used} bytes") as trap:
            guest.call("streams_alloc", 1)
        depths.append(int.from_bytes(guest.read(0, 4), "little"))
        guest.close()
        assert 10 < len(trap.value.frames) <= 32 and trap.value.frames[1].startswith("r+0x")
    assert 0 < depths[0] == depths[1] < depths[2] / 10, depths


@pytest.mark.parametrize("metered", [False, True])
def test_a_trap_in_the_start_function_is_a_trap_like_others(cache: ModuleCache, metered: bool) -> None:
    for body, kinds in (("unreachable", (TrapKind.TRAP,)), ("(loop br 0)", (TrapKind.DEADLINE, TrapKind.FUEL))):
        start = f'(module (memory (export "memory") 1) (func $s {body}) (start $s))'
        compiled = cache.load(bytes(wasmtime.wat2wasm(start)), metered)
        meter = UdfMeter()
        with pytest.raises(UdfTrap) as trap:
            Guest(compiled, LIMITS, HOST, meter)
        assert trap.value.kind in kinds and trap.value.frames[0].startswith("s") and meter.reading().calls == 1


def test_hold_stops_before_the_culprit_and_skip_after_the_allowed_ones(hostile: bytes, cache: ModuleCache) -> None:
    keys = [f"k:{i % 5}" for i in range(40)]
    for at in (3, 11, 12, 30):
        keys[at] = "k:trap"
    raw = build([event(key, at) for at, key in enumerate(keys)]).raw
    host = FoldHost(hostile, cache, FoldOptions(limits=LIMITS, merge=2))
    rejects = host.fold(raw, nothing, Allowance(2, hold=True))
    assert [r.index for r in rejects] == [3, 11]
    assert host.stopped is not None and host.stopped.index == 12 and host.stopped.held is not None
    assert host.stopped.held.event.key == b"k:trap" and host.stopped.held.reject.offset == 12
    assert sums(host.take()) == Counter(key for key in keys[:12] if key != "k:trap")
    host.close()

    rejects = host.fold(raw, nothing, Allowance(2))
    assert [r.index for r in rejects] == [3, 11]
    assert host.stopped is not None and (host.stopped.index, host.stopped.held) == (12, None)
    assert sums(host.take()) == Counter(key for key in keys[:12] if key != "k:trap")
    host.close()

    rejects = host.fold(raw, nothing, Allowance(1, hold=True, free_offset=3))
    assert [r.index for r in rejects] == [3, 11] and host.stopped is not None and host.stopped.index == 12
    host.close()
    assert [r.index for r in host.fold(raw, nothing)] == [3, 11, 12, 30] and host.stopped is None


def test_a_frame_is_taken_whole_or_not_at_all(hostile: bytes, cache: ModuleCache) -> None:
    """Offsets 0 (a record), 1 (a frame of 6 with two culprits), 2 (a record): no stop lies within the frame."""
    events = [event("k:a", 0), *(event("k:trap" if part in (2, 4) else "k:b", 1, part) for part in range(6))]
    events.append(event("k:c", 2))
    raw = build(events).raw
    host = FoldHost(hostile, cache, FoldOptions(limits=LIMITS, merge=2))
    for allowed in (0, 1):
        rejects = host.fold(raw, nothing, Allowance(allowed, hold=True))
        assert rejects == [] and host.stopped is not None and host.stopped.index == 1 and host.stopped.held is not None
        assert sums(host.take()) == {"k:a": 1}, "what was folded of the frame is undone"
        host.close()
    rejects = host.fold(raw, nothing, Allowance(1))
    assert [r.index for r in rejects] == [3, 5] and host.stopped is not None and host.stopped.index == 7
    assert sums(host.take()) == {"k:a": 1, "k:b": 4}
    host.close()
    rejects = host.fold(raw, nothing, Allowance(0, hold=True, free_offset=1))
    assert [r.index for r in rejects] == [3, 5] and host.stopped is None
    assert sums(host.take()) == {"k:a": 1, "k:b": 4, "k:c": 1}


def test_a_long_search_stops_by_itself_and_can_be_cancelled(hostile: bytes, cache: ModuleCache) -> None:
    keys = ["k:loop"] * 64
    raw = build([event(key, at) for at, key in enumerate(keys)]).raw
    host = FoldHost(hostile, cache, FoldOptions(limits=LIMITS, merge=2))
    rejects = host.fold(raw, nothing, Allowance(seconds=0.0))
    assert len(rejects) == 1 and host.stopped is not None and host.stopped.index == 1
    host.close()
    with ThreadPoolExecutor(1) as thread:
        began_s = time.monotonic()
        job = thread.submit(host.fold, raw, nothing)
        eventually_sync(lambda: host.isolating, 20)
        host.cancel()
        with pytest.raises(Cancelled):
            job.result(20)
    print(f"cancelled after {time.monotonic() - began_s:.2f} s")


def test_the_meter_counts_calls_time_fuel_memory_and_traps(hostile: bytes, cache: ModuleCache) -> None:
    meter = UdfMeter()
    host = FoldHost(hostile, cache, FoldOptions(limits=LIMITS, merge=2, meter=meter))
    host.fold(build([event("k:a", 0)]).raw, nothing)
    host.take()
    quiet = meter.reading()
    assert quiet.calls >= 4 and quiet.instances == 1 and quiet.fuel == 0 and not quiet.traps
    assert 0 < quiet.memory_high_bytes <= LIMITS.memory_bytes
    host.committed()
    host.fold(build([event("k:trap", 1), event("k:loop", 2), event("k:b", 3)]).raw, nothing)
    loud = meter.reading()
    assert loud.traps == {"fuel": 1, "trap": 1}
    assert loud.fuel >= LIMITS.fuel, "the loop was judged by instructions"
    assert loud.cpu_s > quiet.cpu_s and loud.instances > quiet.instances
    assert (quiet + loud).calls == quiet.calls + loud.calls


# ---- the task, with the real host


class BatchDecoder:
    """Makes batches of a FakeBroker's events, as the record decoder does of records."""

    def __init__(self, broker: FakeBroker) -> None:
        self._broker = broker
        self.asked: list[tuple[int, int]] = []

    def decode(self, run: RunPort, from_offset: int) -> Decoded:
        self.asked.append((from_offset, run.next))
        events = [event(self._broker.events[at][0], at) for at in range(from_offset, run.next)]
        return Decoded(build(events), len(events), [], frozenset(), 1_000 + run.next)


class Place:
    """One partition on a FakeBroker, folded by a real module."""

    def __init__(self, cache: ModuleCache, keys: list[str]) -> None:
        self.broker, self.local, self.cache = FakeBroker(), FakeStore(), cache
        self.broker.events = [(key, 1) for key in keys]
        self.input = FakeInput(self.broker)
        self.decoder = BatchDecoder(self.broker)
        self.threads = ThreadPoolExecutor(2)

    def task(self, wasm: bytes, containment: Containment) -> PartitionTask:
        identity = TaskIdentity("t", 0, "events.k", "dead-letter.k", module_hash(wasm), "me", "us")
        host = FoldHost(wasm, self.cache, FoldOptions(limits=LIMITS, merge=2))
        ports = TaskPorts(
            FakeWriter(self.broker, lambda _: None),
            FakeChangelog(self.broker, self.local),
            self.input,
            self.decoder,
            UdfFold(host, containment, None),
            FakeSchemas(self.decoder, False),  # type: ignore[arg-type]
            blocking=self.threads,
            containment=containment,
        )
        commit = CommitOptions(spacing_s=0.0, behind_linger_s=0.0, heartbeat_s=0.02)
        return PartitionTask(identity, ports, TaskOptions(commit=commit, seek_again_s=0.01))

    async def serve(self, task: PartitionTask) -> asyncio.Task[None]:
        at = await task.take_over()
        running = asyncio.create_task(task.run())
        task.offer(FakeRun(at, len(self.broker.events), len(self.broker.events)), lambda: None)
        return running

    async def close(self, task: PartitionTask, running: asyncio.Task[None]) -> None:
        task.request_close()
        await running
        await task.release()

    def totals(self) -> dict[str, int]:
        return sums(list(self.local.rows.items()))

    def letters(self) -> list[tuple[int, str]]:
        """(offset, outcome) of the dead letters."""
        found = [dict(each.headers) for each in self.broker.outputs]
        return [(int(each["dead_letter_offset"]), each.get("dead_letter_outcome", b"").decode()) for each in found]


def committed(task: PartitionTask, position: int) -> bool:
    return task.committed_position == position


async def test_pause_loses_nothing_and_resume_goes_on_where_it_stopped(
    hostile: bytes, mended: bytes, cache: ModuleCache
) -> None:
    keys = [f"k:{i % 3}" for i in range(30)]
    keys[5] = keys[17] = keys[18] = "k:trap"
    good = Counter(key for key in keys if key != "k:trap")
    place = Place(cache, keys)
    contained = Containment(LIMITS, TrapPolicy(OnTrap.PAUSE, 2, 3600.0))
    task = place.task(hostile, contained)
    running = await place.serve(task)
    await eventually(lambda: task.paused != "" and committed(task, 17), 20)
    assert "offset 17" in task.paused and "k:trap" in task.paused and "on_trap = pause" in task.paused
    assert place.totals() == Counter(key for key in keys[:17] if key != "k:trap")
    before = len(place.broker.units)
    await eventually(lambda: len(place.broker.units) > before + 3, 20)  # heartbeats go on, so reads know they are fresh
    assert committed(task, 17) and task.position == 17 and task.resting

    contained.resume()  # the one it stopped at goes first and does not count, the next one does, and one is allowed
    await eventually(lambda: committed(task, 30), 20)
    assert place.totals() == good and not task.paused
    assert [offset for offset, _ in place.letters()] == [5, 17, 17, 18], "17 once held, once put aside"
    assert task.stats.dead_letters == 3
    await place.close(task, running)

    # A new version that does not trap gets the event that was held: nothing is lost.
    strict = Place(cache, keys)
    task = strict.task(hostile, Containment(LIMITS, TrapPolicy(OnTrap.PAUSE, 1, 3600.0)))
    running = await strict.serve(task)
    await eventually(lambda: task.paused != "" and committed(task, 5), 20)
    await strict.close(task, running)
    task = strict.task(mended, Containment(LIMITS, TrapPolicy(OnTrap.PAUSE, 1, 3600.0)))
    running = await strict.serve(task)
    await eventually(lambda: committed(task, 30), 20)
    assert strict.totals() == Counter(keys)
    assert [offset for offset, _ in strict.letters()] == [5], "reported, not lost"
    await strict.close(task, running)


async def test_a_trap_that_shows_late_counts_once_it_is_found(hostile: bytes, cache: ModuleCache) -> None:
    """A row that is too large is found when rows are taken: its event was passed, so it is put aside."""
    keys = ["k:a", "k:giant", "k:b"]
    place = Place(cache, keys)
    contained = Containment(LIMITS, TrapPolicy(OnTrap.PAUSE, 1, 3600.0))
    task = place.task(hostile, contained)
    running = await place.serve(task)
    await eventually(lambda: task.paused != "" and committed(task, 3), 20)
    assert place.totals() == {"k:a": 1, "k:b": 1} and place.letters() == [(1, "")]
    place.broker.events += [("k:giant", 1), ("k:b", 1), ("k:giant", 1)]
    task.offer(FakeRun(3, 5, 5), lambda: None)
    contained.resume()  # its first event traps late, which does not count either
    await eventually(lambda: committed(task, 5), 20)
    assert not task.paused and place.totals() == {"k:a": 1, "k:b": 2}
    task.offer(FakeRun(5, 6, 6), lambda: None)
    await eventually(lambda: task.paused != "" and committed(task, 6), 20)
    await place.close(task, running)


async def test_skip_goes_on_at_a_bounded_rate(hostile: bytes, cache: ModuleCache) -> None:
    keys = [("k:trap" if i % 4 == 0 else f"k:{i % 3}") for i in range(40)]
    place = Place(cache, keys)
    clock_s = [0.0]
    contained = Containment(LIMITS, TrapPolicy(OnTrap.SKIP, 4, 10.0), now_s=lambda: clock_s[0])
    task = place.task(hostile, contained)
    running = await place.serve(task)
    for window in range(1, 3):
        await eventually(lambda at=window: len(place.letters()) == 4 * at, 20)
        await eventually(lambda at=window: committed(task, 4 * 4 * at - 3), 20)
        assert contained.throttled and task.resting and not task.paused
        before = len(place.decoder.asked)
        units = len(place.broker.units)
        await eventually(lambda at=units: len(place.broker.units) > at + 3, 20)
        assert len(place.decoder.asked) == before, "it waits: no tight loop"
        clock_s[0] += 10.0
        task._wake.set()
    await eventually(lambda: committed(task, 40), 20)
    assert place.totals() == Counter(key for key in keys if key != "k:trap")
    assert len(place.letters()) == 10
    await place.close(task, running)


async def test_a_rate_folds_a_run_in_pieces(hostile: bytes, cache: ModuleCache) -> None:
    keys = [f"k:{i % 3}" for i in range(50)]
    place = Place(cache, keys)
    limits = replace(LIMITS, events_per_s=100.0)
    task = place.task(hostile, Containment(limits, TrapPolicy()))
    began_s = time.monotonic()
    running = await place.serve(task)
    await eventually(lambda: committed(task, 50), 20)
    took_s = time.monotonic() - began_s
    assert place.decoder.asked == [(0, 25), (25, 50)] and took_s >= 0.25, took_s
    assert place.totals() == Counter(keys)
    await place.close(task, running)


def test_a_part_of_a_run_has_the_batches_that_it_needs() -> None:
    def batch(base: int, last: int) -> bytes:
        return base.to_bytes(8, "big") + bytes(15) + (last - base).to_bytes(4, "big") + bytes(40)

    run = FakeRun(10, 40, 99, batches=(batch(10, 19), batch(20, 29), batch(30, 39)))
    assert part_of(run, 10, 100) is run
    part = part_of(run, 15, 10)
    assert (part.base, part.next, len(part.batches), part.high_watermark) == (15, 25, 2, 99)
    assert part_of(run, 35, 100).batches == (batch(30, 39),) and part_of(run, 35, 100).next == 40


# ---- a pause that outlives its process


@pytest.mark.parametrize("resumed", [False, True])
async def test_a_pause_is_inherited_until_it_was_resumed(hostile: bytes, cache: ModuleCache, resumed: bool) -> None:
    keys = ["k:a", "k:trap", "k:b", "k:trap"]
    policy = TrapPolicy(OnTrap.PAUSE, 1, 3600.0)
    module = DeployedModule("1.0", module_hash(hostile), hostile, LIMITS, "u", policy)
    runs = UdfRuns()
    runs.inherited = Inherited(module, "it had trapped", resumed)
    table = FoldTable("t", BUILTIN[0], MergeType.COUNTER)
    run = runs.of(table, module)
    assert runs.of(table, module) is run and runs.find("1.0", module.sha256) is run
    place = Place(cache, keys)
    place.broker.log_start = 1
    task = place.task(hostile, run.containment)
    running = await place.serve(task)
    if resumed:
        await eventually(lambda: task.paused != "" and committed(task, 3), 20)
        assert place.totals() == {"k:b": 1} and "offset 3" in task.paused, "past what it had stopped at"
    else:
        await eventually(lambda: len(place.broker.units) > 3, 20)
        assert task.paused == "it had trapped" and task.position == 1
    await place.close(task, running)
    other = replace(module, version="1.1")
    assert not runs.of(table, other).containment.paused and runs.find("1.0", module.sha256) is None
