"""Keeps named child processes running: ordered start, readiness, restart with backoff, ordered stop, no orphans.

It knows nothing of Kafka: `up.py` says what to run. Children run in sessions of their own, die with the supervisor
(parent-death signal and a reaper process), and their states are kept in `supervisor.json`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from streams.model.errors import StreamsError, Timeout
from streams.region.java import last_errors
from streams.region.processes import ProcessId, kill_group, start_child

STATE_FILE = "supervisor.json"
STATE_RETRY_S = 1.0
POLL_S = 0.05  # between questions whether a process is ready; each costs the start half a millisecond
POLL_OLDER_S = 0.1  # the same, after the process's first second
REAPER = Path(__file__).with_name("reaper.py")


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """When to start a process again. `first_attempts` bounds tries before it was ever ready; later there is no bound.

    Waits double from `backoff_s` to `max_backoff_s` (with jitter) and start over once it was up for `stable_s`.
    """

    first_attempts: int = 2
    backoff_s: float = 0.25
    max_backoff_s: float = 15.0
    stable_s: float = 20.0


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """One process to keep running.

    `command` is called (in a thread) before every start, so it may write configuration or choose ports; `is_ready` is
    polled in a thread and must return soon. `phase`: lower ones are ready first and stop last. `early`: it waits by
    itself for what it needs, so it is started with the first phase and loads its code meanwhile. A line of the log
    holding one of `fatal_lines` means that the process is useless though alive, and is restarted. `warm` may give a
    process that runs already, in a session of its own, and has become this one; else `command` is started.
    """

    name: str
    command: Callable[[], Sequence[str]]
    log_file: Path
    is_ready: Callable[[], bool] = lambda: True
    regions: tuple[str, ...] = ()
    phase: int = 0
    early: bool = False
    env: Mapping[str, str] = field(default_factory=dict)
    ready_timeout_s: float = 90.0
    stop_timeout_s: float = 10.0
    fatal_lines: tuple[str, ...] = ()
    warm: Callable[[], Awaitable[asyncio.subprocess.Process | None]] | None = None
    policy: RestartPolicy = RestartPolicy()


class ManagedProcess:
    """A spec and what became of it. `state` is waiting, starting, running, backoff, stopping, stopped or failed."""

    def __init__(self, spec: ProcessSpec, changed: Callable[[ManagedProcess], None]) -> None:
        self.spec = spec
        self.state = "waiting"
        self.identity: ProcessId | None = None
        self.restarts = 0
        self.failure: StreamsError | None = None
        self.ready = asyncio.Event()
        self.settled = asyncio.Event()
        self._changed = changed
        self._process: asyncio.subprocess.Process | None = None
        self._task: asyncio.Task[None] | None = None
        self._log_start = 0

    @property
    def started(self) -> bool:
        """Whether it is being kept running."""
        return self._task is not None

    def start(self) -> None:
        """Begin to keep it running."""
        self._task = asyncio.create_task(self._keep_running(), name=self.spec.name)

    async def stop(self) -> None:
        """SIGTERM to its group, SIGKILL after the spec's deadline; returns when it is gone."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        process = self._process
        if process is not None and process.returncode is None:
            self._set("stopping")
            kill_group(process.pid, signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), self.spec.stop_timeout_s)
        await self.kill()
        self._set("stopped")

    async def kill(self) -> None:
        """SIGKILL to its group, whatever is left of it; returns when it is gone."""
        process, self._process = self._process, None
        if process is not None:
            kill_group(process.pid, signal.SIGKILL)
            await process.wait()
            self.identity = None

    async def _keep_running(self) -> None:
        policy, failures = self.spec.policy, 0
        while True:
            started_s = time.monotonic()
            await self._run_once()
            was_ready = self.ready.is_set()
            if not was_ready and failures + 1 >= policy.first_attempts:
                self._set("failed")
                self.settled.set()
                return
            failures = 1 if time.monotonic() - started_s > policy.stable_s else failures + 1
            self._set("backoff")
            wait_s = min(policy.max_backoff_s, policy.backoff_s * 2 ** min(failures - 1, 20))
            await asyncio.sleep(wait_s * random.uniform(0.75, 1.0))
            self.restarts += 1

    async def _run_once(self) -> None:
        """One life: start, watch until it exits or proves useless; its failure is kept for `up` to show."""
        spec = self.spec
        self._set("starting")
        self._log_start = spec.log_file.stat().st_size if spec.log_file.exists() else 0
        try:
            warm = None if spec.warm is None else await spec.warm()
            command = await asyncio.to_thread(spec.command)
            self._process = process = warm or await start_child(command, spec.log_file, spec.env)
        except (StreamsError, OSError) as error:
            self.failure = error if isinstance(error, StreamsError) else StreamsError(f"{spec.name}: {error}")
            return
        with contextlib.suppress(Exception):  # it may be gone already: then it has no identity worth keeping
            self.identity = ProcessId.of(process.pid)
        self._set("starting")
        watchers = [asyncio.create_task(self._watch_ready()), asyncio.create_task(self._watch_log())]
        exited = asyncio.create_task(process.wait())
        try:
            pending: set[asyncio.Task[Any]] = {exited, *watchers}
            while pending:
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                if exited in done or any(task.result() is not None for task in done):
                    break
        finally:
            for task in (exited, *watchers):
                task.cancel()
        if process.returncode is None:
            self.failure = next(task.result() for task in watchers if task.done() and task.result() is not None)
        else:
            self.failure = self._describe(f"exited with status {process.returncode}")
        await self.kill()

    async def _watch_ready(self) -> StreamsError | None:
        started_s = time.monotonic()
        deadline = started_s + self.spec.ready_timeout_s
        while not await asyncio.to_thread(self.spec.is_ready):
            if time.monotonic() > deadline:
                return self._describe(f"was not ready within {self.spec.ready_timeout_s:.0f} s")
            await asyncio.sleep(POLL_S if time.monotonic() - started_s < 1.0 else POLL_OLDER_S)
        self._set("running")
        self.ready.set()
        self.settled.set()
        return None

    async def _watch_log(self) -> StreamsError | None:
        """Look for the spec's fatal lines in what this life has logged."""
        position = self._log_start
        while self.spec.fatal_lines:
            await asyncio.sleep(0.5)
            with contextlib.suppress(FileNotFoundError), self.spec.log_file.open("rb") as file:
                file.seek(position)
                fresh = file.read().decode(errors="replace")
                position = file.tell()
                if any(line in fresh for line in self.spec.fatal_lines):
                    return self._describe("failed though it is alive")
        return None

    def _describe(self, what: str) -> StreamsError:
        lines = last_errors(self.spec.log_file, since_byte=self._log_start) or ["it wrote no log"]
        return StreamsError(f"{self.spec.name} {what}: " + " | ".join(lines), fix=f"see {self.spec.log_file}")

    def _set(self, state: str) -> None:
        self.state = state
        self._changed(self)


class Supervisor:
    """Runs specs phase by phase and keeps `directory`/supervisor.json true. Use it from the main thread's loop."""

    def __init__(
        self, directory: Path, specs: Sequence[ProcessSpec], *, facts: Mapping[str, Any] | None = None
    ) -> None:
        self.state = "starting"
        self.processes = [ManagedProcess(spec, self._on_change) for spec in specs]
        self.on_change: Callable[[ManagedProcess], None] = lambda _: None
        self._directory = directory
        self._facts = dict(facts or {})
        self._reaper: subprocess.Popen[bytes] | None = None
        self._reaped: dict[str, int] = {}
        self._rewrite: asyncio.TimerHandle | None = None
        self._write_state()  # at start, a directory that cannot be written is an error

    def add(self, spec: ProcessSpec) -> ManagedProcess:
        """Keep one more process running, from now on; nothing waits for it."""
        process = ManagedProcess(spec, self._on_change)
        self.processes.append(process)
        process.start()
        return process

    async def remove(self, name: str) -> None:
        """Stop a process that was added, and forget it."""
        for process in [each for each in self.processes if each.spec.name == name]:
            await process.stop()
            self.processes.remove(process)
        self.write_state()

    async def restart(self, name: str) -> None:
        """SIGKILL to a process, which is then started again; nothing to do when it does not run."""
        for process in self.processes:
            if process.spec.name == name:
                await process.kill()

    async def start_phase(self, phase: int) -> None:
        """Start all of one phase at once and wait until each is ready; the first failure is raised."""
        group = [process for process in self.processes if process.spec.phase == phase]
        for process in group:
            if not process.started:
                process.start()
        waits = [asyncio.create_task(process.settled.wait()) for process in group]
        try:
            for wait in asyncio.as_completed(waits):
                await wait
                for process in group:
                    if process.state == "failed" and process.failure is not None:
                        raise process.failure
        finally:
            for task in waits:
                task.cancel()

    async def start(self, between: Mapping[int, Callable[[], Awaitable[None]]] | None = None) -> None:
        """Start every phase in order; `between[p]` runs when phase p is up. StreamsError says what failed."""
        for process in self.processes:
            if process.spec.early:
                process.start()
        for phase in sorted({process.spec.phase for process in self.processes}):
            await self.start_phase(phase)
            if between and phase in between:
                await between[phase]()
        self.set_state("ready")

    async def stop(self, *, timeout_s: float = 60.0) -> None:
        """Stop every process, later phases first; what is left after `timeout_s` gets SIGKILL."""
        self.set_state("stopping")
        try:
            async with asyncio.timeout(timeout_s):
                for phase in sorted({process.spec.phase for process in self.processes}, reverse=True):
                    await asyncio.gather(*(p.stop() for p in self.processes if p.spec.phase == phase))
        except TimeoutError:
            raise Timeout("not everything stopped in time; the rest was killed") from None
        finally:
            await asyncio.gather(*(process.kill() for process in self.processes))
            self._dismiss_reaper()
            self.set_state("stopped")
            if self._rewrite is not None:
                self._rewrite.cancel()

    async def kill(self) -> None:
        """SIGKILL everything at once."""
        await asyncio.gather(*(process.kill() for process in self.processes))

    def set_state(self, state: str) -> None:
        """Record the whole system's state: starting, ready, stopping or stopped."""
        self.state = state
        self.write_state()

    def write_state(self) -> None:
        """Write supervisor.json, atomically; while the disk refuses, again every `STATE_RETRY_S`.

        Supervision goes on without it: a broker that a full disk has stopped must be started again.
        """
        try:
            self._write_state()
        except OSError:
            if self._rewrite is None:
                self._rewrite = asyncio.get_running_loop().call_later(STATE_RETRY_S, self._write_again)

    def _write_again(self) -> None:
        self._rewrite = None
        self.write_state()

    def _write_state(self) -> None:
        own = ProcessId.of(os.getpid())
        body = {
            **self._facts,
            "state": self.state,
            "pid": own.pid,
            "started_s": own.started_s,
            "processes": [
                {
                    "name": process.spec.name,
                    "regions": list(process.spec.regions),
                    "pid": process.identity.pid if process.identity else None,
                    "started_s": process.identity.started_s if process.identity else None,
                    "state": process.state,
                    "restarts": process.restarts,
                }
                for process in self.processes
            ],
        }
        path = self._directory / STATE_FILE
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(body, indent=2) + "\n")
        temporary.replace(path)

    def _on_change(self, process: ManagedProcess) -> None:
        self._tell_reaper(process.spec.name, process.identity.pid if process.identity else None)
        self.write_state()
        with contextlib.suppress(OSError):  # its log may be on the disk that is full
            self.on_change(process)

    def _tell_reaper(self, name: str, pid: int | None) -> None:
        """Tell the reaper of a process group that came or went; a dead reaper is replaced."""
        before = self._reaped.get(name)
        if before == pid and (pid is None or (self._reaper is not None and self._reaper.poll() is None)):
            return
        lines = [f"-{before}"] if before not in (None, pid) else []
        self._reaped.pop(name, None)
        if pid is not None:
            self._reaped[name] = pid
        if self._reaper is None or self._reaper.poll() is not None:
            command = [sys.executable, "-I", "-S", str(REAPER)]
            self._reaper = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                start_new_session=True, bufsize=0,
            )  # fmt: skip
            lines = [f"+{each}" for each in self._reaped.values()]
        elif pid is not None:
            lines.append(f"+{pid}")
        assert self._reaper.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._reaper.stdin.write(("\n".join(lines) + "\n").encode())

    def _dismiss_reaper(self) -> None:
        """Close the reaper's input: every group is gone, so it ends."""
        if self._reaper is not None and self._reaper.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                lines = "".join(f"-{pid}\n" for pid in self._reaped.values())
                self._reaper.stdin.write(lines.encode())
            self._reaper.stdin.close()
            self._reaper.wait(5.0)
