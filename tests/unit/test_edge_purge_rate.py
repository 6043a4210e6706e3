"""Purges at the scale of 10,000 devices at 1 Hz: in frames, through the real decoder and fold, at the worker's pace."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
import pytest_asyncio

from streams.edge.edge_store import EdgeTables
from streams.edge.purge_rules import decide, decide_alone
from streams.edge.purger import Keyed, PurgeOptions, Purger
from streams.model.clock import NEVER_MS, pack
from streams.model.errors import Unavailable
from streams.model.fold_table import fold_tables
from streams.model.keyspace import BUILTIN
from streams.model.row import Cell, MergeType, Row, encode_row
from streams.processing.catalog import BuiltinCatalog, RulesCache
from streams.processing.udf_ports import DecoderPool, RunDecoder, UdfFold
from streams.serde import purge_frames
from tests.property.decoder_oracle import Record
from tests.property.test_decoder_properties import batch_bytes
from tests.support.edge_units import NOW, SCORE, Clock, Writer, named_in, store
from tests.support.polling import eventually
from tests.support.processing_fakes import FakeRun
from tests.support.telemetry import DAY_MS, MODULES, REGIONS, TelemetryTables

START_MS = 1_700_000_000_000
DEVICES, SEGMENTS = 2_000, 6
PER_S = 1_000
"""What 10,000 devices at 1 Hz come to: a row of ten seconds for each."""


class Log:
    """The log and the worker behind it: purges arrive as the gateway's frames, and are folded at once."""

    def __init__(self, edge: TelemetryTables) -> None:
        self.edge, self.catalog, self.pool = edge, BuiltinCatalog(), DecoderPool(MODULES)
        self.tables = {each.name: each for each in fold_tables(BUILTIN) if each.keyspace.name == "device"}
        rules = RulesCache(self.catalog)
        self.decoders = {name: RunDecoder(self.pool, rules, table) for name, table in self.tables.items()}
        self.offset, self.purges, self.gateway_s, self.worker_s = 0, 0, 0.0, 0.0

    async def emit(self, keyspace: str, partition: int, purges: Sequence[Keyed]) -> int:
        began_s = time.process_time()
        given = [(key, each.generation, each.before_ms, each.last_hlc, each.remove) for key, each in purges]
        frames = purge_frames(given, purges[0][1].table)
        self.gateway_s += time.process_time() - began_s
        now_ms = self.edge.clock.ms
        headers: list[tuple[str, bytes | None]] = [("hlc", b"%d" % pack(now_ms))]
        records = [Record(at, now_ms, None, frame, headers) for at, frame in enumerate(frames, self.offset)]
        end = self.offset + len(frames)
        batches = (batch_bytes(records, None),)
        run = FakeRun(self.offset, end, end, topic=f"events.{keyspace}", partition=partition, batches=batches)
        self.offset, self.purges = end, self.purges + len(purges)
        began_s = time.process_time()
        here = REGIONS[0], partition
        store = self.edge.tables.table("telemetry").replicas[here]
        for name, decoder in self.decoders.items():
            decoded = decoder.decode(run, run.base)
            assert not decoded.rejected
            assert decoded.events == (len(purges) if name == "telemetry" else 0), "a purge of another table's row"
            if decoded.events:
                assert not UdfFold(self.edge._folds[here]).fold(decoded, store.multi_get)
        rows = self.edge._folds[here].take()
        self.worker_s += time.process_time() - began_s
        self.edge._publish(*here, rows)
        self.edge._folds[here].committed()
        return 0


@pytest_asyncio.fixture
async def edge(tmp_path: Path) -> AsyncIterator[TelemetryTables]:
    found = TelemetryTables(tmp_path, clock=Clock(START_MS))
    yield found
    await found.close()


def rows_left(tables: EdgeTables) -> int:
    replicas = tables.table("telemetry").replicas
    return sum(1 for (origin, _), part in replicas.items() if origin == REGIONS[0] for _ in part.iterate())


async def test_expired_windows_go_at_a_small_cost_each(edge: TelemetryTables) -> None:
    for segment in range(SEGMENTS):
        edge.put([(f"{each:05d}", "t", 1.0, START_MS + 10_000 * segment) for each in range(DEVICES)])
    before = rows_left(edge.tables)
    assert before >= DEVICES * SEGMENTS
    log = Log(edge)
    purger = Purger(edge.tables, log.emit, PurgeOptions())
    edge.clock.ms += DAY_MS + 10_000
    edge.beat()
    began_s = time.process_time()
    await purger.scan()
    while await purger.step(PurgeOptions().batch_max):
        pass
    spent_s = time.process_time() - began_s
    assert rows_left(edge.tables) == 0 and log.purges == purger.emitted == before and len(purger) == 0
    worker_us = log.worker_s * 1e6 / before
    gateway_us = (spent_s - log.worker_s) * 1e6 / before
    frames_us = log.gateway_s * 1e6 / before
    print(f"{before} purges: gateway {gateway_us:.1f} us each (frames {frames_us:.1f}), worker {worker_us:.1f} us")
    assert (gateway_us + worker_us) * PER_S < 1e6 / 4, (
        "the expiry of 10,000 devices would take over a quarter of a core"
    )


async def test_a_worker_that_stands_still_gets_one_batch_and_no_more(tmp_path: Path) -> None:
    clock, now_s = Clock(), [0.0]
    tables = store(tmp_path, clock=clock)
    us, eu, sent = Writer("us"), Writer("eu"), list[bytes]()

    async def emit(_keyspace: str, _partition: int, purges: Sequence[Keyed]) -> int:
        sent.extend(key for key, _ in purges)
        return us.next_input + len(sent)

    options = PurgeOptions(grace_ms=0, margin_ms=10, retry_ms=100, confirm_s=0.05, give_up_s=60)
    purger = Purger(tables, emit, options, now_s=lambda: now_s[0])
    for index in range(30):
        us.put(b"score:%d" % index, 1, expires_ms=NOW + 100)
    clock.ms += 1_000
    for writer in (us, eu):
        await tables.publish(named_in(writer.commit(time_ms=clock.ms), writer.origin, SCORE, "us"))
    assert await purger.step(10) == 10
    for _ in range(10):
        clock.ms += 200
        assert await purger.step(10) == 0, "what was sent is not folded yet"
    assert len(purger) == 30 and len(sent) == 10, "nothing is forgotten"
    us.next_input += 10
    await tables.publish(us.commit(time_ms=clock.ms))
    clock.ms += 200
    assert await purger.step(10) == 10, "the worker goes on, and so do purges"
    clock.ms += 200
    assert await purger.step(10) == 0
    now_s[0] += 61
    clock.ms += 200
    assert await purger.step(10) == 10, "given up"
    await tables.close()


async def test_a_refused_emit_loses_no_candidate(tmp_path: Path) -> None:
    clock = Clock()
    tables = store(tmp_path, clock=clock)
    us, eu = Writer("us"), Writer("eu")

    async def emit(_keyspace: str, _partition: int, _purges: Sequence[Keyed]) -> int:
        raise Unavailable("no broker")

    purger = Purger(tables, emit, PurgeOptions(grace_ms=0, margin_ms=10, retry_ms=100, batch_max=10))
    for index in range(30):
        us.put(b"score:%d" % index, 1, expires_ms=NOW + 100)
    clock.ms += 1_000
    for writer in (us, eu):
        await tables.publish(named_in(writer.commit(time_ms=clock.ms), writer.origin, SCORE, "us"))
    for work in (purger.step(100), purger.scan()):
        with pytest.raises(Unavailable):
            clock.ms += 200
            await work
        assert len(purger) == 30
    await tables.close()


async def test_a_table_beyond_memory_is_worked_off_by_scans(edge: TelemetryTables) -> None:
    """Far fewer candidates fit than rows expire: the scans purge as they go."""
    for segment in range(2):
        edge.put([(f"{each:05d}", "t", 1.0, START_MS + 10_000 * segment) for each in range(1_000)])
    log = Log(edge)
    options = PurgeOptions(candidates_max=300, batch_max=200, time_share=0.9, interval_s=0.001, rescan_s=0.01)
    purger = Purger(edge.tables, log.emit, options)
    running = asyncio.create_task(purger.run())
    edge.clock.ms += DAY_MS - 5_000_000  # within the horizon, not due: the memory fills up
    edge.beat()
    most = 0

    def done(step: int) -> bool:
        nonlocal most
        most = max(most, len(purger))
        return purger._scanned_all and (step < 3 or not rows_left(edge.tables))

    for step in range(4):
        edge.clock.ms += 2_500_000 * (step > 0)
        edge.beat()
        await eventually(lambda step=step: done(step), 60, every_s=0.001)
    running.cancel()
    assert 200 <= most <= 300, "the memory is used, and bounded"


@pytest.mark.parametrize("merge", [MergeType.LWW, MergeType.COUNTER, MergeType.OPAQUE])
def test_the_short_cut_decides_as_the_rule_does(merge: MergeType) -> None:
    options = PurgeOptions(grace_ms=1_000, margin_ms=10)
    times = (NOW - 500, NOW, NOW + 500)
    cells: list[tuple[Cell, ...]] = [()]
    for expires_ms in (0, NOW - 20, NOW, NOW + 100, NEVER_MS):
        for start_ms in (0, *times):
            cells.append((Cell(pack(start_ms), pack(start_ms), expires_ms, b"x" * 16),))
    cells.append((Cell(pack(NOW - 500), pack(NOW - 400), NOW - 300, b"x" * 16), cells[-1][0]))
    for deleted in (0, pack(NOW - 450)):
        for last_ms in times:
            for each in cells:
                row = Row(merge, 7, deleted, pack(last_ms), each)
                for passed_ms in (0, NOW - 5, NOW + 5, NOW + 600, NOW + 10**7):
                    found = decide_alone(merge, encode_row(row), passed_ms, options)
                    assert found == decide(merge, row, {}, passed_ms, options), (row, passed_ms)
