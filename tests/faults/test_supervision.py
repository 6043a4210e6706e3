"""The supervisor under fire: children and supervisor killed, two instances, crash loops. Small scripts stand in for
the JVMs here (the supervisor does not know what it runs); `test_supervision_system.py` does it with Kafka."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from streams.model.errors import StreamsError
from streams.region.processes import ProcessId, die_with_parent
from streams.region.status import down, kill_leftovers, read_state
from streams.region.supervisor import ProcessSpec, RestartPolicy, Supervisor
from streams.region.up import process_env
from tests.support.polling import eventually, eventually_sync

SLEEPER = "import time; time.sleep(600)"
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
)
PARENT = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(600)'])"


def spec(directory: Path, name: str, code: str, **options: object) -> ProcessSpec:
    command = [sys.executable, "-S", "-c", code]
    log_file = directory / "logs" / f"{name}.log"
    return ProcessSpec(name, lambda: command, log_file, **options)  # type: ignore[arg-type]


async def test_a_killed_child_is_started_again(tmp_path: Path) -> None:
    supervisor = Supervisor(tmp_path, [spec(tmp_path, "a", SLEEPER), spec(tmp_path, "b", SLEEPER, phase=1)])
    await supervisor.start()
    try:
        first = supervisor.processes[0]
        assert first.identity is not None
        pid = first.identity.pid
        os.kill(pid, signal.SIGKILL)
        await eventually(lambda: first.state == "running" and first.identity and first.identity.pid != pid)
        state = read_state(tmp_path)
        assert state is not None and state["processes"][0]["restarts"] == 1 and state["processes"][1]["restarts"] == 0
        assert state["processes"][0]["pid"] == first.identity.pid
    finally:
        await supervisor.stop()
    assert not psutil.pid_exists(first.identity.pid if first.identity else pid)
    state = read_state(tmp_path)
    assert state is not None and state["state"] == "stopped"


async def test_restarts_wait_longer_each_time(tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    code = f"open({str(marks)!r}, 'a').write(str(__import__('time').time()) + chr(10)); __import__('sys').exit(3)"
    policy = RestartPolicy(first_attempts=5, backoff_s=0.1)
    supervisor = Supervisor(tmp_path, [spec(tmp_path, "a", code, policy=policy, is_ready=lambda: False)])
    with pytest.raises(StreamsError, match="a exited with status 3"):
        await supervisor.start()
    await supervisor.stop()
    times = [float(line) for line in marks.read_text().split()]
    waits = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert len(times) == 5 and waits[-1] > 2.5 * waits[0], waits


async def test_a_failed_start_shows_the_childs_own_error(tmp_path: Path) -> None:
    code = "raise SystemExit('2026 ERROR disk is on fire')"
    supervisor = Supervisor(tmp_path, [spec(tmp_path, "a", code, is_ready=lambda: False)])
    with pytest.raises(StreamsError, match="disk is on fire"):
        await supervisor.start()
    await supervisor.stop()


async def test_a_useless_process_is_started_again(tmp_path: Path) -> None:
    code = "import time; print('task will not recover', flush=True); time.sleep(600)"
    supervisor = Supervisor(tmp_path, [spec(tmp_path, "mirror", code, fatal_lines=("will not recover",))])
    await supervisor.start()
    try:
        await eventually(lambda: supervisor.processes[0].restarts >= 1)
    finally:
        await supervisor.stop()


async def test_what_ignores_sigterm_is_killed_with_its_children(tmp_path: Path) -> None:
    log_file = tmp_path / "logs" / "a.log"
    specs = [
        spec(tmp_path, "a", STUBBORN, stop_timeout_s=0.3, is_ready=lambda: log_file.exists() and log_file.read_text()),
        spec(tmp_path, "b", PARENT),
    ]
    supervisor = Supervisor(tmp_path, specs)
    await supervisor.start()
    parent = psutil.Process(supervisor.processes[1].identity.pid)  # type: ignore[union-attr]
    pids = [parent.pid, supervisor.processes[0].identity.pid]  # type: ignore[union-attr]
    pids += [child.pid for child in await eventually(parent.children)]
    await supervisor.stop()
    await eventually(lambda: not any(alive(pid) for pid in pids))


HOST = """
import asyncio, sys
from pathlib import Path
from streams.region.supervisor import ProcessSpec, Supervisor
place = Path(sys.argv[1])
def spec(name, code):
    return ProcessSpec(name, lambda: [sys.executable, "-S", "-c", code], place / f"{name}.log")
async def main():
    await Supervisor(place, [spec("a", sys.argv[2]), spec("b", sys.argv[3])]).start()
    await asyncio.sleep(600)
asyncio.run(main())
"""


def start_host(directory: Path) -> tuple[subprocess.Popen[bytes], list[int]]:
    """A supervisor in a process of its own, and the pids of its children and grandchild."""
    host = subprocess.Popen(
        [sys.executable, "-c", HOST, str(directory), PARENT, STUBBORN],
        env={**os.environ, **process_env()},
        preexec_fn=die_with_parent(),
    )

    def is_ready() -> bool:
        state = read_state(directory)
        return state is not None and state["state"] == "ready"

    eventually_sync(is_ready, 20)
    eventually_sync(lambda: len(family(host.pid)) == 4)  # the two, one's child, and the reaper
    return host, family(host.pid)


def family(pid: int) -> list[int]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    return []


def alive(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    return False


def test_a_killed_supervisor_leaves_no_orphans(tmp_path: Path) -> None:
    host, pids = start_host(tmp_path)
    host.kill()
    host.wait()
    eventually_sync(lambda: not any(alive(pid) for pid in pids), 10)  # grandchildren and the reaper, too


def test_down_ends_what_a_killed_supervisor_left(tmp_path: Path) -> None:
    host, pids = start_host(tmp_path)
    state = read_state(tmp_path)
    assert state is not None
    for process in psutil.Process(host.pid).children():
        if "reaper" in " ".join(process.cmdline()):
            process.kill()  # so that the grandchild, which no parent-death signal reaches, survives at first
    left = [ProcessId(p["pid"], p["started_s"]) for p in state["processes"]]
    host.kill()
    host.wait()
    down(tmp_path)
    assert not any(identity.alive() for identity in left)
    eventually_sync(lambda: not any(alive(pid) for pid in pids))
    assert kill_leftovers(tmp_path) == 0


def test_a_reused_pid_is_left_alone() -> None:
    own = ProcessId.of(os.getpid())
    assert own.alive() and not ProcessId(own.pid, own.started_s - 1000).alive()


async def test_a_dead_reaper_is_replaced(tmp_path: Path) -> None:
    supervisor = Supervisor(tmp_path, [spec(tmp_path, "a", SLEEPER)])
    await supervisor.start()
    try:
        (reaper,) = [p for p in psutil.Process().children() if "reaper.py" in " ".join(p.cmdline())]
        reaper.kill()
        await eventually(lambda: reaper.status() == psutil.STATUS_ZOMBIE)
        first = supervisor.processes[0]
        assert first.identity is not None
        os.kill(first.identity.pid, signal.SIGKILL)
        await eventually(lambda: first.restarts == 1 and first.state == "running")
        reapers = [p for p in psutil.Process().children() if p.status() != psutil.STATUS_ZOMBIE]
        assert any("reaper.py" in " ".join(p.cmdline()) for p in reapers)
    finally:
        await supervisor.stop()
