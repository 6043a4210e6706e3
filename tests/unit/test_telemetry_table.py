"""The telemetry table among the others: its manifest, its purges, and a service that computes so much and no more."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import orjson
import pytest
import pytest_asyncio

from streams.edge.options import TableSpec
from streams.edge.purger import Purge, PurgeOptions, Purger
from streams.model.errors import Conflict, TooManyRequests
from streams.model.fold_table import DERIVED, fold_tables
from streams.model.keyspace import BUILTIN
from streams.model.row import MergeType
from streams.processing.topics import keyspace_topics
from streams.processing.udf_ports import builtin_fold, check_tables
from streams.use_cases.telemetry import TelemetryOptions, TelemetryService, service, window_query
from tests.support.edge_units import Clock
from tests.support.telemetry import MODULES, REGIONS, TABLE, TelemetryTables

START_MS = 1_700_000_000_000
PURGES = PurgeOptions(grace_ms=1_000, margin_ms=10, retry_ms=100)


@pytest_asyncio.fixture
async def edge(tmp_path: Path) -> AsyncIterator[TelemetryTables]:
    found = TelemetryTables(tmp_path, clock=Clock(START_MS))
    yield found
    await found.close()


def test_a_manifest_that_does_not_fit_its_table_is_an_error() -> None:
    tables = fold_tables(BUILTIN)
    check_tables(tables)
    assert {each.name for each in DERIVED} <= {each.name for each in tables}
    for wrong, field in (
        (replace(TABLE, outputs=()), "outputs"),
        (replace(TABLE, outputs=("late.device", "late.more")), "outputs"),
        (replace(TABLE, merge=MergeType.LWW), "merge"),
    ):
        with pytest.raises(Conflict) as refused:
            check_tables([*tables, wrong])
        assert refused.value.field == field
        with pytest.raises(Conflict):
            builtin_fold(wrong, MODULES)


def test_the_worker_folds_under_the_manifests_limits() -> None:
    fold = builtin_fold(TABLE, MODULES)
    assert fold._options.limits.memory_bytes == 1 << 30 and fold._options.outputs == 1


def test_its_topics_are_made_with_the_keyspace() -> None:
    device = next(each for each in BUILTIN if each.name == "device")
    made = {spec.name: spec for spec in keyspace_topics(device)}
    assert {"events.device", "dead-letter.device", "table.device", "table.telemetry", "late.device"} <= made.keys()
    assert made["late.device"].partitions == device.partitions
    assert made["table.telemetry"].config["cleanup.policy"] == "compact"
    assert TableSpec.folded(TABLE).apart and not TableSpec.of(device).apart


async def test_rows_of_equal_keys_are_purged_each_in_its_own_partition(edge: TelemetryTables) -> None:
    emitted: list[tuple[str, int, bytes, Purge]] = []

    async def emit(keyspace: str, partition: int, purges: Sequence[tuple[bytes, Purge]]) -> int:
        emitted.extend((keyspace, partition, key, purge) for key, purge in purges)
        return 0

    purger = Purger(edge.tables, emit, PURGES)
    edge.put([("a", "t", 1.0, START_MS)], partition=0, ttl_ms=1_000)
    edge.put([("b", "t", 1.0, START_MS)], partition=1, ttl_ms=50_000)
    edge.put([("c", "t", 1.0, START_MS)], REGIONS[1], partition=0, ttl_ms=90_000)
    edge.clock.ms += 1_005
    edge.beat()
    assert await purger.step(100) == 0, "the log has not passed the expiry by the margin yet"
    edge.clock.ms += 200
    edge.beat()
    await purger.step(100)
    assert {(partition, purge.table) for _, partition, _, purge in emitted} == {(0, "telemetry")}
    total = b"device:\x1ft\x1f%010x" % (2**39 + START_MS // 10_000)
    assert sorted(key for _, _, key, _ in emitted)[0] == total and len(emitted) == 3
    assert all(purge.remove and keyspace == "device" for keyspace, _, _, purge in emitted)
    emitted.clear()
    edge.clock.ms += 60_000
    edge.beat()
    await purger.step(100)
    assert total in {key for _, partition, key, _ in emitted if partition == 1}


async def test_queries_are_computed_so_many_at_a_time_and_off_the_loop(
    edge: TelemetryTables, monkeypatch: pytest.MonkeyPatch
) -> None:
    edge.put([("a", "t", 1.0, START_MS)])
    table, query = edge.tables.table("telemetry"), window_query(f"iot:region:{REGIONS[0]}", {}, REGIONS)
    queries = TelemetryService(TelemetryOptions(threads=1, waiting_max=2))
    gate, real, threads = threading.Event(), service.answer, set()

    def held(*arguments: object) -> bytes:
        threads.add(threading.current_thread())
        gate.wait(10)
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(service, "answer", held)
    jobs = [asyncio.create_task(queries.aggregate(table, query)) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(TooManyRequests):
        await queries.aggregate(table, query)
    gate.set()
    bodies = await asyncio.gather(*jobs)
    assert [len(orjson.loads(body)["windows"]) for body in bodies] == [1, 1]
    assert threading.current_thread() not in threads and len(threads) == 1
    assert await queries.aggregate(table, query) == bodies[0]
    await queries.close()
