"""A whole system of ours for a bench, started and stopped by its command line, in a directory that is thrown away."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streams.bench.http_client import Connection
from streams.bench.machine import cpu_percent
from streams.bench.wan import far_apart
from streams.model.errors import StreamsError, Timeout
from streams.region.plan import DEFAULT_REGIONS

UP_TIMEOUT_S = 180.0
SETTLE_S = 60.0
_IDLE_PERCENT = 40.0
_IDLE_SECONDS = 3


@dataclass(frozen=True, slots=True)
class OwnSystem:
    """A running system: gateways' base URLs and process ids by region, and the supervisor's data directory."""

    data: Path
    gateways: dict[str, str]
    bootstrap_servers: dict[str, str]
    pids: dict[str, int]

    @property
    def first(self) -> str:
        """The first region's gateway."""
        return next(iter(self.gateways.values()))

    @property
    def second(self) -> str:
        """The second region's gateway; StreamsError with one region."""
        if len(self.gateways) < 2:
            raise StreamsError("this bench needs two regions")
        return list(self.gateways.values())[1]


def streams_command(*arguments: str, data: Path, timeout_s: float = 60.0) -> str:
    """Run `streams …` on the system in `data`; its standard output. StreamsError with its own words when it fails."""
    command = [sys.executable, "-m", "streams.cli.main", *arguments, "--data", str(data)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        raise Timeout(f"streams {arguments[0]} was not done after {timeout_s:.0f} s") from None
    if done.returncode:
        words = " | ".join((done.stderr or done.stdout).strip().splitlines()[-3:])
        raise StreamsError(f"streams {arguments[0]} failed with status {done.returncode}: {words}")
    return done.stdout


@contextmanager
def own_system(
    *regions: str, settle_s: float = SETTLE_S, brokers: int | None = None, rtt_ms: float = 0.0
) -> Iterator[OwnSystem]:
    """The two-region default, or these regions, empty, while the context lasts; StreamsError when that fails.

    It is left to calm down for at most `settle_s` first. `brokers`: of each region. `rtt_ms`: what regions ask of each
    other takes so long; then the regions are the default ones.
    """
    options = ["--regions", ",".join(regions)] if regions else []
    options += [] if brokers is None else ["--brokers", str(brokers)]
    data = Path(tempfile.mkdtemp(prefix="streams-bench-"))
    try:
        with far_apart(data, DEFAULT_REGIONS, rtt_ms / 2) if rtt_ms else nullcontext():
            try:
                streams_command("up", "--detach", *options, data=data, timeout_s=UP_TIMEOUT_S)
                settle(settle_s)
                yield parse_status(data, json.loads(streams_command("status", "--json", data=data)))
            finally:
                streams_command("down", data=data)
    finally:
        shutil.rmtree(data, ignore_errors=True)


def settle(timeout_s: float = SETTLE_S) -> None:
    """Wait until the machine has been mostly idle for some seconds: starting costs it more than serving. At most
    `timeout_s`, since on a busy machine that may never be."""
    deadline, idle = time.monotonic() + timeout_s, 0
    while idle < _IDLE_SECONDS and time.monotonic() < deadline:
        idle = idle + 1 if cpu_percent(1.0) < _IDLE_PERCENT else 0


def parse_status(data: Path, status: dict[str, Any]) -> OwnSystem:
    """What `streams status --json` says, as far as benches need it."""
    regions = status["regions"]
    return OwnSystem(
        data,
        {name: region["gateway"] for name, region in regions.items()},
        {name: region["bootstrap_servers"] for name, region in regions.items()},
        {process["name"]: process["pid"] for region in regions.values() for process in region["processes"]},
    )


def wait_visible(gateway: str, key: str, *, timeout_s: float = 60.0) -> None:
    """Wait until a gateway answers a key; Timeout otherwise."""
    deadline = time.monotonic() + timeout_s
    with Connection(gateway) as connection:
        while time.monotonic() < deadline:
            if connection.request("GET", f"/v1/kv/{key}").status == 200:
                return
            time.sleep(0.02)
    raise Timeout(f"{key} did not become visible at {gateway} in {timeout_s:.0f} s")


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of a set of processes: `pss` counts shared pages once, `rss` counts them in every process."""

    pss_bytes: int
    rss_bytes: int


def memory_of(pids: set[int]) -> Memory:
    """Memory of these processes now, from the kernel; those that have ended count nothing. Linux only."""
    pss_kb = rss_kb = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            continue
        fields = {line.split(":")[0]: line.split()[1] for line in lines[1:] if ":" in line}
        pss_kb += int(fields["Pss"])
        rss_kb += int(fields["Rss"])
    return Memory(pss_kb * 1024, rss_kb * 1024)


def cpu_s(pid: int) -> float:
    """Seconds of processor time that a process has used, in user and kernel mode; 0 when it has ended. Linux only."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def with_descendants(pids: set[int]) -> set[int]:
    """These processes and all that descend from them."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):  # noqa: PTH208 (names only, and processes come and go)
        if name.isdigit():
            try:
                stat = Path(f"/proc/{name}/stat").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue
            parent = int(stat.rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(name))
    found, todo = set(pids), list(pids)
    while todo:
        fresh = [child for child in children.get(todo.pop(), []) if child not in found]
        found.update(fresh)
        todo.extend(fresh)
    return found
