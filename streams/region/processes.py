"""Starting child processes that cannot outlive their parent, and looking at processes by identity."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
from filelock import FileLock
from filelock import Timeout as LockTimeout

from streams.model.errors import Unavailable

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process by number and start time (seconds since the epoch), so that a reused number is not mistaken for it."""

    pid: int
    started_s: float

    @classmethod
    def of(cls, pid: int) -> ProcessId:
        """The identity of the running process `pid`; psutil.NoSuchProcess when there is none."""
        return cls(pid, psutil.Process(pid).create_time())

    def alive(self) -> bool:
        """Whether this very process still runs (a zombie does not)."""
        try:
            return self.same_process() and bool(psutil.Process(self.pid).status() != psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return False

    def same_process(self) -> bool:
        """Whether the number still means this process, be it a zombie."""
        try:
            return bool(abs(psutil.Process(self.pid).create_time() - self.started_s) < 1.0)
        except psutil.NoSuchProcess:
            return False


def die_with_parent() -> Callable[[], None] | None:
    """A `preexec_fn` after which the child is killed when the *thread* that started it ends (Linux; else None).

    Call it, and start the process, from a thread that lives as long as the child should: the main thread.
    """
    if _LIBC is None:
        return None
    libc, parent = _LIBC, os.getpid()

    def in_child() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(127)

    return in_child


async def start_child(
    command: Sequence[str], log_file: Path, env: Mapping[str, str], *, stdin: int = subprocess.DEVNULL
) -> asyncio.subprocess.Process:
    """`spawn` for an event loop: `env` is added to this process's; `stdin` is as `subprocess` means it."""
    log_file.parent.mkdir(parents=True, exist_ok=True)
    with log_file.open("ab") as output:
        return await asyncio.create_subprocess_exec(
            *command,
            stdin=stdin,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **env},
            start_new_session=True,
            preexec_fn=die_with_parent(),
        )


def spawn(
    command: Sequence[str], log_file: Path, *, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> subprocess.Popen[bytes]:
    """Start `command` in its own session, output appended to `log_file`, no input, dying with this thread."""
    log_file.parent.mkdir(parents=True, exist_ok=True)
    with log_file.open("ab") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=None if env is None else {**os.environ, **env},
            cwd=cwd,
            start_new_session=True,
            preexec_fn=die_with_parent(),
        )


def kill_group(pid: int, sent: signal.Signals) -> bool:
    """Send a signal to the process group led by `pid`; False when it is gone."""
    try:
        os.killpg(pid, sent)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def session_members(leader: ProcessId) -> list[ProcessId]:
    """What still runs in the session of a dead `leader`; empty when its number belongs to another process now.

    The kernel gives a number to no new process while a session of that number lives.
    """
    if psutil.pid_exists(leader.pid) and not leader.same_process():  # its own zombie is still itself
        return []
    members = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if os.getsid(process.pid) == leader.pid and process.create_time() >= leader.started_s - 1.0:
                members.append(ProcessId(process.pid, process.create_time()))
    return [member for member in members if member.alive()]


def stop(process: subprocess.Popen[bytes], *, term_timeout_s: float = 10.0) -> int:
    """End a spawned process and its group: SIGTERM, then SIGKILL after `term_timeout_s`; returns its exit status."""
    kill_group(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(term_timeout_s)
    kill_group(process.pid, signal.SIGKILL)
    return process.wait()


def port_is_free(port: int) -> bool:
    """Whether a server could listen on 127.0.0.1:`port` now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            probe.listen()
        except OSError:
            return False
    return True


class PortLocks:
    """Ports that this process claims before anything listens there, so that two systems starting at once differ.

    Claims of one user's processes on one machine exclude each other, whatever their TMPDIR says: a system that could
    not see another's claims once took its restarting broker's port. They end with this object's process.
    """

    def __init__(self) -> None:
        shared = Path("/tmp")
        place = shared if os.access(shared, os.W_OK) else Path(tempfile.gettempdir())
        self._directory = place / f"streams-ports-{os.getuid()}"
        self._locks: dict[int, FileLock] = {}

    def claim(self, port: int) -> bool:
        """Whether 127.0.0.1:`port` is free and now this process's to use."""
        if port in self._locks:
            return port_is_free(port)
        if not port_is_free(port):
            return False
        self._directory.mkdir(mode=0o700, exist_ok=True)
        lock = FileLock(self._directory / f"{port}.lock")
        try:
            lock.acquire(timeout=0)
        except LockTimeout:
            return False
        self._locks[port] = lock
        return True


def next_free_port(start: int, taken: Collection[int] = (), usable: Callable[[int], bool] = port_is_free) -> int:
    """The first `usable` port from `start` up that is not in `taken`; Unavailable when there is none."""
    for port in range(start, 32_768):
        if port not in taken and usable(port):
            return port
    raise Unavailable(f"no free port from {start} up on 127.0.0.1", fix="stop something that listens there")


def free_ports(count: int) -> list[int]:
    """`count` different ports on 127.0.0.1 that were free just now.

    They lie below the range of outgoing connections, which could otherwise take the port of a restarting server.
    """
    taken: list[int] = []
    while len(taken) < count:
        taken.append(next_free_port(random.randrange(12_000, 32_000), taken))
    return taken


def wait_until(check: Callable[[], bool], timeout_s: float, *, every_s: float = 0.05) -> bool:
    """Poll `check` until it is true (True) or `timeout_s` has passed (False)."""
    deadline = time.monotonic() + timeout_s
    while not check():
        if time.monotonic() > deadline:
            return False
        time.sleep(every_s)
    return True
