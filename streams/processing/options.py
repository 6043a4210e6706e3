"""What a worker process is started with. Imports no Faust, so that the command line can use it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from streams.model.memory import machine_share
from streams.processing.commit import CommitOptions
from streams.processing.partition_runner import RunnerOptions
from streams.processing.partition_task import TaskOptions
from streams.processing.topics import LogOptions
from streams.processing.watchdog import WatchdogOptions
from streams.state.options import StoreOptions
from streams.wasm.caps import DEFAULT_CAPS
from streams.wasm.engine import Limits

BUILTIN_GROUP = "builtin"
STORE = StoreOptions(
    block_cache_bytes=48 << 20,
    write_buffers_bytes=64 << 20,
    write_buffer_bytes=16 << 20,
    memtable_filter=0.02,  # new keys are looked up before they are made
    compressed_from=2,
    wal=False,  # the changelog has everything, and is read to its end before a partition is folded
)
"""A worker reads a row when it first touches its key, and after that has it in memory; nobody else reads here."""

UNIT_BYTES = machine_share(192, 64 << 20, 128 << 20)
"""Of rows that wait to be committed, in one partition of a table: with more, one row stands for more events."""

TASK = TaskOptions(CommitOptions(soft_row_bytes=UNIT_BYTES, hard_row_bytes=UNIT_BYTES * 3 // 2))


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """One worker. `data`: the system's data directory. `udf`: empty for the built-in ones (they share a worker), else
    a UDF's name, or NAME.gN: that generation of its rows.

    `session_s`: after how long without a heartbeat the group gives this worker's partitions to others.
    `close_s`: how long a revocation or the end may take to commit what is folded. `probe_s`: how often the inputs'
    ends are asked for. `logs`: how long topics that it creates keep what. `store`: limits of its partitions on disk.
    `metrics_port`: Prometheus on 127.0.0.1, 0 for none. `threads`: for folds and stores. `caps`: what a deployed UDF
    may use here at most.
    """

    region: str
    bootstrap_servers: str
    data: Path
    udf: str = ""
    metrics_port: int = 0
    session_s: float = 6.0
    close_s: float = 5.0
    probe_s: float = 0.25
    threads: int = 3
    only_builtin: bool = False
    logs: LogOptions = field(default_factory=LogOptions)
    store: StoreOptions = STORE
    task: TaskOptions = TASK
    runner: RunnerOptions = field(default_factory=RunnerOptions)
    watchdog: WatchdogOptions = field(default_factory=WatchdogOptions)
    caps: Limits = DEFAULT_CAPS

    @property
    def group(self) -> str:
        """The consumer group: one per deployed UDF, one for all built-in ones."""
        return f"udf.{self.udf}" if self.udf else BUILTIN_GROUP

    @property
    def directory(self) -> Path:
        """Where this worker keeps its partitions."""
        return self.data / "worker" / self.region / self.group
