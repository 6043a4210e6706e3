"""The `restore` bench: a changelog of 1,000,000 rows into an empty RocksDB, by the way a worker does it."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from streams.bench.report import Result, at_least
from streams.bench.statistics import median
from streams.kafka.admin import Admin
from streams.kafka.batches import Record
from streams.kafka.changelog_writer import TransactionalWriter
from streams.kafka.link import Link
from streams.kafka.run import TP
from streams.model.clock import NEVER_MS, wall_ms
from streams.model.errors import StreamsError
from streams.model.keyspace import BUILTIN, Keyspace
from streams.model.marker import MARKER_KEY, InputPosition, Marker
from streams.model.row import Cell, MergeType, Row, counter_payload, encode_row
from streams.processing.restore import ChangelogRestorer, RestoreOptions
from streams.processing.topics import keyspace_topics
from streams.region.kafka_server import KafkaServer

GOAL_ROWS_PER_S = 300_000
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class RestoreBench:
    """Rows in the changelog (two partitions of it), rows a commit, and how often they are restored."""

    rows: int = 1_000_000
    commit_rows: int = 50_000
    rounds: int = 3
    partitions: int = 2


def bench_restore(options: RestoreBench, say: Say) -> list[Result]:
    """Write the changelog, restore it into empty directories, check that every row is there; the median counts."""
    with tempfile.TemporaryDirectory(prefix="streams-bench-") as name:
        directory = Path(name)
        with KafkaServer.on_free_ports("bench", directory / "kafka") as kafka:
            speeds = asyncio.run(_restores(kafka.bootstrap_servers, directory, options, say))
    what = f"restore of {options.rows:,} rows, changelog -> RocksDB, partitions at once"
    return [at_least(what, median(speeds), "rows/s", GOAL_ROWS_PER_S)]


def player_row(number: int, seq: int) -> tuple[bytes, bytes]:
    """Key and counter row of a player."""
    cell = Cell(number + 1, number + 1, NEVER_MS, counter_payload(number, 0))
    row = Row(MergeType.COUNTER, seq, 0, number + 1, (cell,))
    return f"score:m{number:07d}".encode(), encode_row(row)


async def _restores(bootstrap_servers: str, directory: Path, options: RestoreBench, say: Say) -> list[float]:
    keyspace = next(each for each in BUILTIN if each.name == "score")
    speeds = []
    async with Admin(bootstrap_servers) as admin:
        await admin.ensure_topics(keyspace_topics(keyspace))
        await _write(bootstrap_servers, keyspace, options, say)
        for number in range(options.rounds):
            place = directory / f"restore-{number}"
            speeds.append(await _restore(bootstrap_servers, admin, keyspace, place, options))
            say(f"restored {speeds[-1]:,.0f} rows/s")
    return speeds


async def _write(bootstrap_servers: str, keyspace: Keyspace, options: RestoreBench, say: Say) -> None:
    say(f"writing {options.rows:,} rows")
    link = Link(bootstrap_servers, "bench")
    await link.start()
    try:
        for partition in range(options.partitions):
            writer = TransactionalWriter(link, f"{keyspace.name}/{partition}")
            await writer.start()
            numbers = range(partition, options.rows, options.partitions)
            for seq, first in enumerate(range(0, len(numbers), options.commit_rows), 1):
                chunk = numbers[first : first + options.commit_rows]
                inputs = {f"{keyspace.events_topic}/{partition}": InputPosition(first + len(chunk), "-")}
                marker = Marker("commit", seq, wall_ms(), inputs)
                rows = [player_row(number, seq) for number in chunk]
                records: list[Record] = [(key, value, []) for key, value in rows]
                records.append((MARKER_KEY, marker.encode(), []))
                await writer.commit(keyspace.table_topic, partition, records)
    finally:
        await link.stop()


async def _restore(
    bootstrap_servers: str, admin: Admin, keyspace: Keyspace, place: Path, options: RestoreBench
) -> float:
    """Rows a second; StreamsError when a row is missing."""
    with ThreadPoolExecutor(options.partitions) as blocking:
        restorers = [
            ChangelogRestorer(
                bootstrap_servers,
                admin,
                TP(keyspace.table_topic, partition),
                place / str(partition),
                RestoreOptions(),
                blocking,
            )
            for partition in range(options.partitions)
        ]
        start = time.perf_counter()
        stores = await asyncio.gather(*(restorer.restore() for restorer in restorers))
        seconds = time.perf_counter() - start
        found = sum(sum(1 for _ in store.iterate()) for store in stores)
        for store in stores:
            store.close()
    if found != options.rows:
        raise StreamsError(f"{found:,} rows were restored of {options.rows:,}")
    return options.rows / seconds
