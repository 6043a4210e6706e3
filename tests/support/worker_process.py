"""Worker processes for tests: real subprocesses, and what to check them with."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from streams.kafka.admin import Admin
from streams.kafka.changelog_reader import ChangelogReader
from streams.kafka.producer import EventProducer, ProducerOptions
from streams.model.keyspace import BUILTIN
from streams.model.marker import Marker
from streams.model.row import Row, counter_sums, decode_row
from streams.processing.topics import ensure_keyspace_topics, keyspace_topics
from streams.region.processes import die_with_parent
from streams.serde import encode, load_builtin
from streams.state.partition import TablePartition

REPOSITORY = Path(__file__).parents[2]


class WorkerProcess:
    """`python -m streams.processing` in its own session, logging to a file."""

    def __init__(
        self,
        directory: Path,
        bootstrap_servers: str,
        name: str = "a",
        arguments: Sequence[str] = (),
        *,
        definitions: bool = False,
    ) -> None:
        self.data = directory / f"worker-{name}"
        self.log_file = directory / f"worker-{name}.log"
        self._command = [
            *(sys.executable, "-m", "streams.processing", "--region", "us-east"),
            *("--bootstrap-servers", bootstrap_servers, "--data", str(self.data)),
            *("--session-s", "2", *([] if definitions else ["--only-builtin"]), *arguments),
        ]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> WorkerProcess:
        """Start; does not wait."""
        self.data.mkdir(parents=True, exist_ok=True)
        with self.log_file.open("ab") as output:
            self.process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                preexec_fn=die_with_parent(),
                stdout=output,
                stderr=output,
                cwd=REPOSITORY,
                start_new_session=True,
            )
        return self

    def send(self, sent: signal.Signals) -> None:
        """Send a signal to exactly this process."""
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, sent)

    def kill(self) -> None:
        """SIGKILL, and wait."""
        self.send(signal.SIGKILL)
        assert self.process is not None
        self.process.wait(10)

    def stop(self, timeout_s: float = 20.0) -> int:
        """SIGTERM, and the exit status; killed (and an error) when it does not end in time."""
        assert self.process is not None
        self.send(signal.SIGCONT)
        self.send(signal.SIGTERM)
        try:
            return self.process.wait(timeout_s)
        finally:
            if self.process.poll() is None:
                self.kill()

    @property
    def log(self) -> str:
        """All it has logged."""
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""


def add_value(amount: int) -> bytes:
    """A counter's put as wire-format bytes."""
    return encode(load_builtin()["streams.CounterAdd"], {"add": amount})


def value_of(row: Row) -> int:
    """A counter row's value over all its cells."""
    return sum(positive - negative for positive, negative in (counter_sums(cell.payload) for cell in row.cells))


async def fresh_topics(bootstrap_servers: str) -> None:
    """Empty topics for the built-in keyspaces. No worker may run."""
    async with Admin(bootstrap_servers) as admin:
        names = [spec.name for keyspace in BUILTIN for spec in keyspace_topics(keyspace)]
        await admin.delete_topics(names)
        await ensure_keyspace_topics(admin, BUILTIN)


def local_counters(data: Path, table: str = "score", partitions: int = 2) -> dict[str, int]:
    """The counters in the RocksDB partitions of a worker that has stopped."""
    totals: dict[str, int] = {}
    for partition in range(partitions):
        store = TablePartition(data / "worker" / "us-east" / "builtin" / table / str(partition))
        try:
            for key, row in store.iterate():
                totals[key.decode()] = totals.get(key.decode(), 0) + value_of(decode_row(row))
        finally:
            store.close()
    return totals


async def produce_adds(bootstrap_servers: str, topic: str, adds: Iterable[tuple[str, int]]) -> None:
    """Append counter events, durably."""
    producer = EventProducer(bootstrap_servers, ProducerOptions(timeout_s=60.0))
    await producer.start()
    try:
        await producer.put_batch(topic, [(key.encode(), add_value(amount), []) for key, amount in adds])
    finally:
        await producer.stop()


class TableState:
    """What a read_committed reader of a changelog has, by partition, from the beginning to its end when read."""

    def __init__(self) -> None:
        self.rows: dict[int, dict[bytes, bytes]] = {}
        self.markers: dict[int, list[Marker]] = {}

    def counters(self) -> dict[str, int]:
        """The value of each counter, over all partitions."""
        totals: dict[str, int] = {}
        for rows in self.rows.values():
            for key, row in rows.items():
                totals[key.decode()] = totals.get(key.decode(), 0) + value_of(decode_row(row))
        return totals

    def next_of(self, partition: int, source: str) -> int:
        """The last marker's position of an input."""
        found = self.markers.get(partition)
        return found[-1].inputs[source].next if found else -1


async def read_table(bootstrap_servers: str, table: str, partitions: int = 2) -> TableState:
    """Read a whole changelog by units: rows count from their marker on; older sequence numbers never."""
    state = TableState()
    tps = [(f"table.{table}", partition) for partition in range(partitions)]
    async with Admin(bootstrap_servers) as admin:
        ends = await admin.end_offsets(tps)
        starts = await admin.start_offsets(tps)
    if ends == starts:
        return state
    reader = ChangelogReader(bootstrap_servers)
    await reader.start(dict(starts))
    try:
        while any(reader.position(tp) < ends[tp] for tp in ends):  # type: ignore[index]
            for unit in await reader.units(1.0):
                if unit.marker is None:
                    continue
                rows = state.rows.setdefault(unit.partition, {})
                state.markers.setdefault(unit.partition, []).append(unit.marker)
                for key, row, _ in unit.rows:
                    if row is None:
                        rows.pop(key, None)
                    else:
                        rows[key] = row
    finally:
        await reader.stop()
    return state


async def all_committed(bootstrap_servers: str, keyspace: str, partitions: int = 2) -> TableState | None:
    """The table's state, if its markers have reached the events' ends; else None."""
    tps = [(f"events.{keyspace}", partition) for partition in range(partitions)]
    async with Admin(bootstrap_servers) as admin:
        ends = await admin.end_offsets(tps)
    state = await read_table(bootstrap_servers, keyspace, partitions)
    for (topic, partition), end in ends.items():
        if end > 0 and state.next_of(partition, f"{topic}/{partition}") < end:
            return None
    return state
