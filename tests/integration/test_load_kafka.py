"""Bulk puts on a real log: straight and through the gateway, killed in the middle, and gone on with."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from streams.client import AsyncClient, connect
from streams.kafka.admin import Admin
from streams.kafka.raw_fetch import RawConsumer
from streams.kafka.records import records_of
from streams.region.kafka_server import KafkaServer
from streams.serde import decode_frame, is_frame, load_builtin
from streams.serde.codec import decode_body
from tests.integration.test_gateway_kafka import gateway
from tests.support.gateway import free_port
from tests.support.polling import eventually
from tests.support.worker_process import WorkerProcess, fresh_topics

pytestmark = pytest.mark.kafka
ROOT = Path(__file__).resolve().parents[2]
ROWS = 400_000
TOPIC = "events.score"


async def ends(bootstrap: str) -> dict[tuple[str, int], int]:
    async with Admin(bootstrap) as admin:
        return {(tp[0], tp[1]): end for tp, end in (await admin.end_offsets([(TOPIC, 0), (TOPIC, 1)])).items()}


async def loaded(bootstrap: str, since: dict[tuple[str, int], int]) -> tuple[Counter[str], list[bytes]]:
    """What the log says of frames: the sum of each key, and the `load` headers in order."""
    until = await ends(bootstrap)
    sums: Counter[str] = Counter()
    headers = []
    consumer = RawConsumer(bootstrap)
    await consumer.start()
    try:
        consumer.assign(since)
        at = dict(since)
        while any(at[tp] < until[tp] for tp in at):
            for run in await consumer.get_runs(5.0):
                at[run.topic, run.partition] = run.next
                for record in records_of(run):
                    if is_frame(record.value):
                        assert record.value is not None
                        headers.append(b"%d/" % run.partition + (dict(record.headers).get("load") or b""))
                        frame = decode_frame(record.value)
                        for key, value in zip(frame.keys(), frame.values(), strict=True):
                            sums[key.decode()] += decode_body(load_builtin()["streams.CounterAdd"], value)["add"]
    finally:
        await consumer.stop()
    return sums, headers


def load(file: Path, edge: AsyncClient, cache: Path, *more: str) -> subprocess.Popen[str]:
    arguments = ("load", "score", str(file), "--url", edge.url, *more)
    return subprocess.Popen(
        [sys.executable, "-m", "streams.cli.main", *arguments],
        env={**os.environ, "STREAMS_CACHE": str(cache), "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


async def test_bulk_puts_reach_the_tables_exactly(kafka: KafkaServer, tmp_path: Path) -> None:
    bootstrap = kafka.bootstrap_servers
    await fresh_topics(bootstrap)
    worker = WorkerProcess(tmp_path, bootstrap)
    worker._command.remove("--only-builtin")
    worker.start()
    try:
        async with gateway(tmp_path / "gateway", bootstrap, free_port()) as edge:
            await through_both_ways(edge, bootstrap)
            await killed_and_resumed(edge, bootstrap, tmp_path, "L", "--bootstrap-servers", bootstrap)
            await killed_and_resumed(edge, bootstrap, tmp_path, "G")
    finally:
        worker.kill()


async def through_both_ways(edge: AsyncClient, bootstrap: str) -> None:
    keys = [f"m{i % 100}" for i in range(10_000)]
    table = {"key": keys, "add": np.ones(10_000, np.int64)}
    table["add"][7] = 2**60
    receipt = await edge.put_many("score", table, ttl="2h")
    assert (receipt.accepted, receipt.rejected_count, receipt.rejected[0].line) == (9_999, 1, 8)
    async with connect(edge.url, bootstrap_servers=bootstrap) as direct:
        receipt = await direct.put_many("score", table, ttl="1h")
        assert (receipt.accepted, receipt.rejected[0].line) == (9_999, 8)
        assert "add" in receipt.rejected[0].reason and receipt.seconds > 0
        row = await direct.get("score:m1")
        assert row is not None and row.value == 200 and row.expires_at is not None, "a token of what went past it"
        seven = await direct.get("score:m7")
        assert seven is not None and seven.value == 198
    await edge.delete("score:m1")
    await edge.put_many("score", {"key": ["m1"] * 100, "add": [1] * 100})
    row = await edge.get("score:m1")
    assert row is not None and row.value == 100


async def killed_and_resumed(edge: AsyncClient, bootstrap: str, tmp_path: Path, prefix: str, *straight: str) -> None:
    file, cache = tmp_path / "adds.csv", tmp_path / "cache"
    lines = [f"{prefix}{i % 1000},{i % 7}" for i in range(ROWS)]
    lines[5] = f"{prefix}5,x"
    file.write_text("key,add\n" + "\n".join(lines) + "\n")
    truth = Counter({f"score:{prefix}{i}": 0 for i in range(1000)})
    for i in range(ROWS):
        truth[f"score:{prefix}{i % 1000}"] += i % 7 if i != 5 else 0
    start = await ends(bootstrap)
    for frames in (2, 7):
        process = load(file, edge, cache, *straight)

        async def some(wanted: int = frames) -> bool:
            return sum((await ends(bootstrap)).values()) - sum(start.values()) >= wanted

        await eventually(some, 60)
        process.send_signal(signal.SIGKILL)
        await asyncio.to_thread(process.communicate)
    before, _ = await loaded(bootstrap, start)
    rejects = tmp_path / "rejects.ndjson"
    process = load(file, edge, cache, *straight, "--rejects", str(rejects))
    out, errors = await asyncio.to_thread(process.communicate)
    assert process.returncode == 1 and "adds.csv:7: add" in errors, errors
    assert '"line":7' in rejects.read_text() and rejects.read_text().count("\n") == 1
    sums, headers = await loaded(bootstrap, start)
    assert sums == truth and len(set(headers)) == len(headers)
    assert 0 < sum(before.values()) <= sum(truth.values())
    assert ("were there from before" in out) == bool(before), out
    print(out)

    async def settled() -> bool:
        found = {row.key: row.value async for row in edge.scan("score", prefix=f"score:{prefix}")}
        return found == dict(truth)

    await eventually(settled, 60)
