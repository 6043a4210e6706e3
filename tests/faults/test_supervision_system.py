"""`streams up` with real Kafka: killed brokers, second instances, Kafka's own errors, detachment, recovery."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from streams.client import connect
from streams.model.errors import StreamsError
from streams.region import status as system
from streams.region.kafka_server import is_ready
from streams.region.processes import port_is_free
from tests.support.polling import eventually, eventually_sync
from tests.support.small_system import ROOT, SmallSystem

pytestmark = pytest.mark.kafka


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallSystem]:
    """One supervised system of one region for the module."""
    small = SmallSystem(tmp_path_factory.mktemp("up") / "data", "--regions", "us-east")
    try:
        small.wait_ready()
        yield small
    finally:
        small.stop()


def process(data: Path, name: str) -> dict[str, object]:
    """The row of `status` for one process."""
    region = system.status(data)["regions"]["us-east"]
    return next(row for row in region["processes"] if row["name"] == name)


def kafka_port(data: Path) -> int:
    return int(system.status(data)["regions"]["us-east"]["bootstrap_servers"].rpartition(":")[2])


def test_a_second_instance_is_refused_by_name(running: SmallSystem) -> None:
    second = SmallSystem(running.data)
    assert second.process.wait(30) == 1
    (line,) = second.lines
    assert f"process {running.process.pid} already runs the system in {running.data}" in line


@pytest.mark.parametrize("name", ["kafka-us-east", "gateway-us-east", "worker-us-east"])
def test_a_killed_process_comes_back(running: SmallSystem, name: str) -> None:
    before = process(running.data, name)
    url = system.status(running.data)["regions"]["us-east"]["gateway"]
    os.kill(int(str(before["pid"])), signal.SIGKILL)

    def is_back() -> bool:
        now = process(running.data, name)
        return now["state"] == "running" and now["pid"] not in (before["pid"], None)

    eventually_sync(is_back, 40)
    assert psutil.pid_exists(int(str(process(running.data, name)["pid"])))
    assert system.status(running.data)["regions"]["us-east"]["gateway"] == url
    assert is_ready(kafka_port(running.data))


def test_a_broken_configuration_shows_kafkas_own_words(tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "kafka" / "a" / "log").mkdir(parents=True)
    (data / "kafka" / "a" / "log" / "meta.properties").write_text("version=1\ncluster.id=x\nnode.id=77\n")
    small = SmallSystem(data, "--regions", "a")
    assert small.process.wait(60) == 1
    assert "node" in small.lines[-1] and "77" in small.lines[-1] and "kafka-a.log" in small.lines[-1], small.lines
    assert system.supervisor_of(data) is None


def test_detached_it_keeps_no_descriptor_survives_and_is_stopped(tmp_path: Path) -> None:
    data = tmp_path / "data"
    code = (
        "import sys; from pathlib import Path; from streams.region import up;"
        "up.detach(up.UpOptions(Path(sys.argv[1]), ('a',)), print, module='tests.support.small_system')"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, str(data)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=120)  # returns only at EOF
    family = []
    try:
        assert done.returncode == 0, done.stdout + done.stderr
        assert "ready" in done.stdout.splitlines()[-1]
        supervisor = system.supervisor_of(data)
        assert supervisor is not None
        family = [psutil.Process(supervisor.pid), *psutil.Process(supervisor.pid).children(recursive=True)]
        assert len(family) >= 4  # the supervisor, Kafka, two stand-ins
    finally:
        assert system.down(data)
    assert not any(member.is_running() and member.status() != psutil.STATUS_ZOMBIE for member in family)
    assert not system.down(data)


def test_killed_entirely_it_leaves_nothing_and_starts_again(tmp_path: Path) -> None:
    data = tmp_path / "data"
    first = SmallSystem(data, "--regions", "us-east")
    first.wait_ready()
    port, family = kafka_port(data), first.family()
    first.process.kill()
    first.process.wait()
    eventually_sync(lambda: not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in family), 10)
    assert port_is_free(port)
    second = SmallSystem(data)
    try:
        second.wait_ready()
        assert kafka_port(data) == port
    finally:
        assert second.stop() == 0


class OneRegion(SmallSystem):
    """`streams up` itself, with its real worker and gateway."""

    module = "streams.region.up"


def limit_files(small: SmallSystem, limit_bytes: int) -> None:
    """Let no process of the system write a file beyond this size: what a full disk does, on any disk."""
    for pid in [small.process.pid, *(member.pid for member in small.family())]:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (limit_bytes, resource.RLIM_INFINITY))


@pytest.mark.timeout(240)
async def test_a_full_disk_loses_nothing_and_heals_by_itself(tmp_path: Path) -> None:
    small = OneRegion(tmp_path / "data", "--regions", "us-east")
    try:
        await asyncio.to_thread(small.wait_ready)
        url = system.status(small.data)["regions"]["us-east"]["gateway"]
        broker = process(small.data, "kafka-us-east")["pid"]
        async with connect(url) as edge:
            await edge.put("kv:before", 1)
            assert (await edge.get("kv:before")).value == 1
            limit_files(small, 0)
            with pytest.raises(StreamsError):
                await edge.put("kv:refused", 1)
            assert (await edge.get("kv:before")).value == 1  # reads go on
            await eventually(lambda: gone(int(str(broker))), 30)
            limit_files(small, resource.RLIM_INFINITY)

            async def is_served() -> bool:
                limit_files(small, resource.RLIM_INFINITY)  # also what was started from a limited supervisor
                try:
                    await edge.put("kv:after", 2)
                    return bool((await edge.get("kv:after")).value == 2)
                except StreamsError:
                    return False

            await eventually(is_served, 90)
            assert (await edge.get("kv:before")).value == 1
        eventually_sync(lambda: process(small.data, "kafka-us-east")["state"] == "running", 20)
        assert process(small.data, "kafka-us-east")["pid"] != broker
    finally:
        assert small.stop() == 0


async def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
