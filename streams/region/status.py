"""Looking at and ending a system that another process supervises: state, `down`, logs."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from streams.model.errors import NotFound, Timeout, Unavailable
from streams.model.topology import Topology
from streams.region.processes import ProcessId, kill_group, session_members, wait_until

STATE_FILE = "supervisor.json"


def read_state(data: Path) -> dict[str, Any] | None:
    """What the supervisor of `data` wrote last (supervisor.json); None when nothing was ever started there."""
    try:
        state = json.loads((data / STATE_FILE).read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return state if isinstance(state, dict) else None


def supervisor_of(data: Path) -> ProcessId | None:
    """The living supervisor of `data`, else None."""
    state = read_state(data)
    if not state or not state.get("pid"):
        return None
    identity = ProcessId(int(state["pid"]), float(state["started_s"]))
    return identity if identity.alive() else None


def status(data: Path) -> dict[str, Any]:
    """The running system in the contract's shape, plus `state`, `data` and `supervisor`.

    A process that serves several regions (the mirror) is listed under each. Unavailable when no supervisor lives.
    """
    state, supervisor = read_state(data), supervisor_of(data)
    if state is None or supervisor is None:
        raise Unavailable(f"nothing runs in {data}", field="--data", fix="start it with `streams up`")
    try:
        topology = Topology.load(data)
    except NotFound:
        raise Unavailable(f"the system in {data} is only starting", fix="try again in a moment") from None
    regions = {
        region.name: {
            "gateway": region.gateway_url,
            "bootstrap_servers": region.bootstrap_servers,
            "processes": [
                {key: process[key] for key in ("name", "pid", "state", "restarts")}
                for process in state["processes"]
                if region.name in process["regions"]
            ],
        }
        for region in topology.regions
    }
    return {"regions": regions, "state": state["state"], "data": str(data), "supervisor": {"pid": supervisor.pid}}


def with_mirror_ages(found: dict[str, Any], timeout_s: float = 1.0) -> dict[str, Any]:
    """`found` by `status`, and what each region's gateway says of its copies of other regions' tables: their age in
    milliseconds (`mirrored_age_ms`, by region), None where there is no copy yet. None where a gateway does not say."""
    with ThreadPoolExecutor(max_workers=max(1, len(found["regions"]))) as pool:
        ports = [urlsplit(each["gateway"]).port or 0 for each in found["regions"].values()]
        ages = list(pool.map(lambda port: _mirror_ages(port, timeout_s), ports))
    for region, age_ms in zip(found["regions"].values(), ages, strict=True):
        region["mirrored_age_ms"] = age_ms
    return found


def _mirror_ages(port: int, timeout_s: float) -> dict[str, int | None] | None:
    _, said = says_ready(port, timeout_s)
    return {name: each["age_ms"] for name, each in said["mirrored"].items()} if "mirrored" in said else None


def says_ready(port: int, timeout_s: float = 2.0) -> tuple[bool, dict[str, Any]]:
    """Whether the gateway on this port of 127.0.0.1 says that it is ready, and all it says; nothing if it is silent.

    Not by `urllib`, whose opener costs twice the question.
    """
    with contextlib.closing(HTTPConnection("127.0.0.1", port, timeout=timeout_s)) as connection:
        try:
            connection.request("GET", "/readyz")
            answer = connection.getresponse()
            body = answer.read()
        except (OSError, HTTPException):
            return False, {}
    try:
        said = json.loads(body)
    except ValueError:  # the status alone says whether it is ready
        said = None
    return answer.status == 200, said if isinstance(said, dict) else {}


def down(data: Path, *, timeout_s: float = 75.0) -> bool:
    """Stop the system in `data`, also what a killed supervisor left; False when nothing ran. Timeout if it resists."""
    supervisor = supervisor_of(data)
    if supervisor is None:
        return kill_leftovers(data) > 0
    with contextlib.suppress(ProcessLookupError):
        os.kill(supervisor.pid, signal.SIGTERM)
    if not wait_until(lambda: not supervisor.alive(), timeout_s):
        with contextlib.suppress(ProcessLookupError):
            os.kill(supervisor.pid, signal.SIGKILL)
        kill_leftovers(data)
        raise Timeout(f"the supervisor did not stop within {timeout_s:.0f} s and was killed with its processes")
    kill_leftovers(data)
    return True


def kill_leftovers(data: Path, *, timeout_s: float = 10.0) -> int:
    """SIGKILL every process that supervisor.json names and that still runs, with its children; returns how many."""
    state = read_state(data) or {}
    left: list[ProcessId] = []
    for process in state.get("processes", []):
        if process.get("pid"):
            leader = ProcessId(int(process["pid"]), float(process["started_s"]))
            left += [leader] if leader.alive() else session_members(leader)
    for identity in left:
        if not kill_group(identity.pid, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(identity.pid, signal.SIGKILL)
    wait_until(lambda: not any(identity.alive() for identity in left), timeout_s)
    return len(left)


def log_files(data: Path, process: str | None = None) -> list[Path]:
    """The log of `process`, or every log of `data`; NotFound names those there are."""
    files = sorted((data / "logs").glob("*.log"))
    if not files:
        raise NotFound(f"no logs in {data}", field="--data", fix="start the system with `streams up`")
    if process is None:
        return files
    chosen = [file for file in files if file.stem == process]
    if not chosen:
        raise NotFound(
            f"no process {process!r}", field="PROCESS", fix=f"choose one of {', '.join(file.stem for file in files)}"
        )
    return chosen


def tail(file: Path, lines: int) -> list[str]:
    """The last `lines` lines of a log."""
    with file.open(errors="replace") as text:
        return [line.rstrip("\n") for line in deque(text, maxlen=max(0, lines))]


def follow(files: list[Path], stop: Callable[[], bool] = lambda: False) -> Iterator[tuple[str, str]]:
    """New (process, line) pairs of these logs as they come, until `stop()`."""
    with contextlib.ExitStack() as stack:
        opened = [(file.stem, stack.enter_context(file.open(errors="replace"))) for file in files]
        for _, text in opened:
            text.seek(0, os.SEEK_END)
        while not stop():
            fresh = [(name, line.rstrip("\n")) for name, text in opened for line in iter(text.readline, "")]
            yield from fresh
            if not fresh:
                time.sleep(0.2)
