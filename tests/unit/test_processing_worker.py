"""A worker's end, with a group that behaves as Faust's does in the worst moment."""

from __future__ import annotations

from pathlib import Path

import pytest
from aiokafka import TopicPartition

from streams.model.keyspace import BUILTIN
from streams.processing.catalog import BuiltinCatalog
from streams.processing.options import WorkerOptions
from streams.processing.partition_runner import PartitionRunner
from streams.processing.worker import Worker


async def test_what_is_assigned_while_it_stops_is_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Begun, it would find its threads and connections gone, and try for ever: the process would not end."""
    worker = Worker(WorkerOptions("us-east", "127.0.0.1:1", tmp_path), BuiltinCatalog(BUILTIN))
    late: list[float] = []
    begun: list[str] = []

    async def stop(timeout_s: float) -> None:
        worker._assign(frozenset({TopicPartition("events.score", 0)}))  # a rebalance was under way
        late.append(timeout_s)

    monkeypatch.setattr(worker._group, "stop", stop)
    monkeypatch.setattr(PartitionRunner, "start", lambda runner: begun.append(runner.name))
    await worker._shut_down([])
    assert late and not begun
