"""Starting a whole system: what runs, in which order, in the foreground or detached.

`python -m streams.region.up --data DIR [--regions a,b]` is what `streams up --detach` leaves running.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from filelock import FileLock
from filelock import Timeout as LockTimeout

import streams
from streams.model.errors import Conflict, StreamsError, Unavailable
from streams.model.topology import Region, Topology
from streams.region import aot, jars, kafka_server, mirror_maker
from streams.region.deployed import DeployedWorkers, udf_process
from streams.region.java import JvmOptions
from streams.region.kafka_server import KafkaOptions
from streams.region.mirror_maker import MirrorOptions
from streams.region.mirrored import MirroredEvents
from streams.region.paths import cache_dir, data_dir
from streams.region.plan import CLUSTER_ID, brokers_of, parse_regions, plan
from streams.region.processes import PortLocks, die_with_parent, free_ports, kill_group
from streams.region.spares import Spares
from streams.region.status import kill_leftovers, read_state, says_ready
from streams.region.supervisor import ManagedProcess, ProcessSpec, RestartPolicy, Supervisor

LOCK_NAME = "supervisor.lock"
MIRROR = "mirror"
WORKER_GRACE_S = 1.5  # a worker that lives so long has started; that its tables are served, the gateways' /readyz says
Say = Callable[[str], None]
RegionCommand = Callable[[Path, Region], Sequence[str]]
UdfCommand = Callable[[Path, Region, str], Sequence[str]]


def cli_command(process: str) -> RegionCommand:
    """The command line of `streams worker` or `streams gateway` for one region, in this interpreter."""

    def command(data: Path, region: Region) -> list[str]:
        return [sys.executable, "-m", "streams.cli.main", process, "--region", region.name, "--data", str(data)]

    return command


def udf_command(data: Path, region: Region, udf: str) -> list[str]:
    """The command line of a deployed UDF's worker."""
    return [*cli_command("worker")(data, region), "--udf", udf]


@dataclass(frozen=True, slots=True)
class UpOptions:
    """What to start. `regions` None means those the directory holds, or the default two; `brokers` of each likewise,
    or one.

    `prepare` runs once the brokers answer, before anything else starts (to make topics). `worker` and `gateway` give
    each region's command, `udf_worker` that of a deployed UDF; None leaves them out. `settings` override any of
    Kafka's own. `when_ready` runs once all is ready, on the supervisor's loop; its error stops everything. Without
    `serve`, everything stops after it.
    """

    data: Path
    regions: tuple[str, ...] | None = None
    prepare: Callable[[Topology], Awaitable[None]] | None = None
    worker: RegionCommand | None = field(default_factory=lambda: cli_command("worker"))
    gateway: RegionCommand | None = field(default_factory=lambda: cli_command("gateway"))
    kafka_jvm: JvmOptions = field(default_factory=JvmOptions)
    udf_worker: UdfCommand | None = udf_command
    settings: dict[str, str] = field(default_factory=dict)
    ready_timeout_s: float = 180.0
    when_ready: Callable[[Topology], Awaitable[None]] | None = None
    serve: bool = True
    brokers: int | None = None


def process_env() -> dict[str, str]:
    """The environment with which children find this very package, installed or not."""
    root = str(Path(streams.__file__).resolve().parents[1])
    others = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and path != root]
    return {"PYTHONPATH": os.pathsep.join([root, *others]), "PYTHONUNBUFFERED": "1", **bytecode_env()}


def bytecode_env() -> dict[str, str]:
    """Where bytecode may not be kept beside the sources (`PYTHONDONTWRITEBYTECODE`), it is kept in the user's cache.

    Every process of every start would compile the whole package again otherwise: 0.3 to 0.5 s of processor each.
    """
    if not sys.dont_write_bytecode or sys.pycache_prefix:
        return {}
    return {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(cache_dir() / "bytecode")}


def specs(options: UpOptions, topology: Topology, mirrored: MirroredEvents | None = None) -> list[ProcessSpec]:
    """The processes of a system: brokers (phase 0), then mirror, workers and gateways together (phase 1)."""
    found = [spec for region in topology.regions for spec in _kafka_specs(options, region)]
    if len(topology.regions) > 1:
        found.append(_mirror_spec(options, topology, mirrored or MirroredEvents(options.data, topology.names)))
    for region in topology.regions:
        if options.worker is not None:
            found.append(_python_spec(options, region, "worker", options.worker))
        if options.gateway is not None:
            found.append(_python_spec(options, region, "gateway", options.gateway))
    return found


def _kafka_specs(options: UpOptions, region: Region) -> list[ProcessSpec]:
    """A region's broker, `kafka-REGION`; several are `kafka-REGION-1` and so on, by their ids."""
    brokers = brokers_of(region)
    voters = tuple(each.controller_port for each in brokers)
    found = []
    for node_id, broker in enumerate(brokers, 1):
        alone = len(brokers) == 1
        name = f"kafka-{region.name}" if alone else f"kafka-{region.name}-{node_id}"
        place = options.data / "kafka" / region.name
        found.append(
            _kafka_spec(
                KafkaOptions(
                    name,
                    place if alone else place / str(node_id),
                    options.data / "logs" / f"{name}.log",
                    broker.port,
                    broker.controller_port,
                    mirror_port=broker.mirror_port,
                    mirror_advertised_port=broker.mirror_advertised_port,
                    jvm=options.kafka_jvm,
                    settings=options.settings,
                    node_id=node_id,
                    voters=voters,
                    cluster_id=region.extra.get(CLUSTER_ID, ""),
                ),
                region,
            )
        )
    return found


def _kafka_spec(kafka: KafkaOptions, region: Region) -> ProcessSpec:
    return ProcessSpec(
        name=kafka.name,
        command=lambda: kafka_server.kafka_command(kafka),
        log_file=kafka.log_file,
        is_ready=lambda: kafka_server.is_ready(kafka.port, kafka.directory, node_id=kafka.node_id),
        regions=(region.name,),
        ready_timeout_s=120.0,
        stop_timeout_s=20.0,
    )


def _mirror_spec(options: UpOptions, topology: Topology, mirrored: MirroredEvents) -> ProcessSpec:
    log_file = options.data / "logs" / "mirror.log"
    port = 0

    def command() -> list[str]:
        nonlocal port
        port = free_ports(1)[0]
        topics = mirror_maker.mirrored_topics(mirrored.names())
        mirror = MirrorOptions(options.data / "mirror", log_file, port, topology.regions, topics)
        return mirror_maker.mirror_command(mirror)

    return ProcessSpec(
        name=MIRROR,
        command=command,
        log_file=log_file,
        is_ready=lambda: mirror_maker.is_ready(port),
        regions=topology.names,
        phase=1,
        ready_timeout_s=120.0,
        stop_timeout_s=2.0,  # exactly once, so killing it loses nothing; its own goodbye takes several seconds
        fatal_lines=mirror_maker.FATAL_LINES,
    )


def _python_spec(options: UpOptions, region: Region, process: str, command: RegionCommand) -> ProcessSpec:
    name = f"{process}-{region.name}"
    started_s = 0.0

    def start() -> Sequence[str]:
        nonlocal started_s
        started_s = time.monotonic()
        return command(options.data, region)

    def is_ready() -> bool:
        if process == "gateway":
            return says_ready(region.gateway_port)[0]
        return time.monotonic() - started_s > WORKER_GRACE_S

    return ProcessSpec(
        name=name,
        command=start,
        log_file=options.data / "logs" / f"{name}.log",
        is_ready=is_ready,
        regions=(region.name,),
        phase=1,
        early=options.prepare is None,
        env=process_env(),
        ready_timeout_s=options.ready_timeout_s,
    )


def run(options: UpOptions, say: Say) -> None:
    """Start everything, say `ready`, and keep it running until SIGINT or SIGTERM; then stop everything.

    Blocks. Conflict when another supervisor has the directory; StreamsError with the reason when something does not
    start: then everything that did is stopped again. A second signal while stopping kills at once.
    """
    options.data.mkdir(parents=True, exist_ok=True)
    lock = FileLock(options.data / LOCK_NAME)
    try:
        lock.acquire(timeout=0)
    except LockTimeout:
        state = read_state(options.data) or {}
        who = f"process {state['pid']}" if state.get("pid") else "another process"
        raise Conflict(
            f"{who} already runs the system in {options.data}",
            field="--data",
            fix="use it, stop it with `streams down`, or choose another --data",
        ) from None
    try:
        asyncio.run(_run(options, say))
    finally:
        lock.release()


async def _run(options: UpOptions, say: Say) -> None:
    started = time.monotonic()
    stop_asked = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop_asked.set)
    kill_leftovers(options.data)  # a killed supervisor's brokers would share this directory with the new ones
    await asyncio.to_thread(jars.class_path, "kafka")
    await _prepare_fast_starts(say, stop_asked)
    ports = PortLocks()  # claims last as long as this function's frame: until everything has stopped
    topology = plan(options.data, options.regions, ports.claim, options.brokers)
    mirrored = MirroredEvents(options.data, topology.names)
    supervisor = Supervisor(options.data, specs(options, topology, mirrored), facts={"data": str(options.data)})
    supervisor.on_change = _narrator(say, supervisor)

    async def prepare() -> None:
        if options.prepare is not None:
            say("preparing topics and definitions")
            await options.prepare(topology)

    starting = asyncio.create_task(supervisor.start({0: prepare}))
    stopping = asyncio.create_task(stop_asked.wait())
    following: asyncio.Future[Any] | None = None
    try:
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done() and not stop_asked.is_set():
            starting.result()
            for region in topology.regions:
                say(f"{region.name}  gateway {region.gateway_url}  kafka {region.bootstrap_servers}")
            say(f"ready ({time.monotonic() - started:.1f} s)")
            followers = [_follow_udfs(options, topology, supervisor)]
            if len(topology.regions) > 1:
                followers.append(mirrored.run(supervisor, MIRROR, say))
            following = asyncio.gather(*followers)
            await _serve(options, topology, stopping)
    finally:
        if following is not None:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
        starting.cancel()
        say("stopping")
        await _stop(supervisor, loop)
        with contextlib.suppress(asyncio.CancelledError, StreamsError):
            await starting
        say("stopped")


async def _follow_udfs(options: UpOptions, topology: Topology, supervisor: Supervisor) -> None:
    """Keep a worker in each region for each deployed UDF."""
    command = options.udf_worker
    if command is None or options.worker is None:
        return

    log_file = options.data / "logs" / "worker-spare.log"
    warm = Spares((sys.executable, "-m", "streams.processing.spare"), len(topology.regions), log_file, process_env())

    def spec(region: Region, udf: str) -> ProcessSpec:
        name = udf_process(region.name, udf)
        log_file = options.data / "logs" / f"{name}.log"
        asked = {
            "region": region.name,
            "bootstrap_servers": region.bootstrap_servers,
            "data": str(options.data),
            "udf": udf,
            "log": str(log_file),
        }
        worker = _python_spec(options, region, "worker", lambda data, where: command(data, where, udf))
        policy = RestartPolicy(first_attempts=sys.maxsize)
        return replace(worker, name=name, log_file=log_file, policy=policy, warm=lambda: warm.take(asked))

    filling = asyncio.create_task(warm.run())
    try:
        await DeployedWorkers(options.data, topology.regions, supervisor, spec).run()
    finally:
        filling.cancel()
        await asyncio.gather(filling, return_exceptions=True)
        await warm.close()


async def _serve(options: UpOptions, topology: Topology, stopping: asyncio.Task[bool]) -> None:
    """Run `when_ready`, then wait to be told to stop, if it is to serve."""
    if options.when_ready is not None:
        showing = asyncio.ensure_future(options.when_ready(topology))
        await asyncio.wait({showing, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not showing.done():
            showing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await showing
    if options.serve:
        await stopping


async def _prepare_fast_starts(say: Say, stop_asked: asyncio.Event) -> None:
    """Make the JVMs' ahead-of-time caches if there are none yet; a failure only means slower starts."""
    if aot.is_prepared():
        return
    say("preparing fast starts of Kafka (once, half a minute)")
    trainer = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "streams.region.aot"),
        stdin=subprocess.DEVNULL,
        env={**os.environ, **process_env()},
        start_new_session=True,
        preexec_fn=die_with_parent(),
    )
    waits = {asyncio.create_task(trainer.wait()), asyncio.create_task(stop_asked.wait())}
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    if trainer.returncode is None:
        kill_group(trainer.pid, signal.SIGKILL)  # its JVMs die with it
        await trainer.wait()
    for task in waits:
        task.cancel()


async def _stop(supervisor: Supervisor, loop: asyncio.AbstractEventLoop) -> None:
    killing: list[asyncio.Task[None]] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.remove_signal_handler(number)
        loop.add_signal_handler(number, lambda: killing.append(loop.create_task(supervisor.kill())))
    await supervisor.stop()


def _narrator(say: Say, supervisor: Supervisor) -> Callable[[ManagedProcess], None]:
    """Say when a process becomes ready or needs another start."""
    told: dict[str, str] = {}

    def on_change(process: ManagedProcess) -> None:
        name, state = process.spec.name, process.state
        if told.get(name) == state or supervisor.state == "stopping":
            return
        told[name] = state
        if state == "running":
            say(f"{name} is up")
        elif state == "backoff" and process.failure is not None:
            say(f"{process.failure}; starting it again")

    return on_change


def detach(options: UpOptions, say: Say, *, module: str = "streams.region.up") -> None:
    """Start the system in a process of its own that keeps none of this one's descriptors; return when it is ready.

    `module` (a test's may have other processes) gets directory and regions on its command line. StreamsError with the
    reason when it does not become ready.
    """
    options.data.mkdir(parents=True, exist_ok=True)
    jars.class_path("kafka")  # here, where the user sees the progress bar
    command = [sys.executable, "-m", module, "--data", str(options.data)]
    if options.regions:
        command += ["--regions", ",".join(options.regions)]
    if options.brokers is not None:
        command += ["--brokers", str(options.brokers)]
    log_file = options.data / "logs" / "supervisor.log"
    log_file.parent.mkdir(parents=True, exist_ok=True)
    position = log_file.stat().st_size if log_file.exists() else 0
    with log_file.open("ab") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **process_env()},
            cwd=options.data,
            start_new_session=True,
            close_fds=True,
        )
    try:
        _follow(process, log_file, position, say)
    except KeyboardInterrupt:
        process.send_signal(signal.SIGTERM)
        process.wait()
        raise


def _follow(process: subprocess.Popen[bytes], log_file: Path, position: int, say: Say) -> None:
    """Repeat what the detached supervisor says until it is ready or gone."""
    last = ""
    with log_file.open("rb") as log:
        log.seek(position)
        while True:
            gone = process.poll() is not None
            for raw in iter(log.readline, b""):
                line = raw.decode(errors="replace").rstrip()
                if line.startswith("error: "):
                    raise Unavailable(line.removeprefix("error: "))
                last = line or last
                say(line)
                if line.startswith("ready ("):
                    return
            if gone:
                raise Unavailable(f"the supervisor ended: {last or 'it said nothing'}", fix=f"see {log_file}")
            time.sleep(0.05)


def _print(line: str) -> None:
    """A line of progress; lost when the disk that holds the log is full, for supervision must go on."""
    with contextlib.suppress(OSError):
        print(line, flush=True)


def main(arguments: Sequence[str] | None = None, *, overrides: Mapping[str, object] | None = None) -> int:
    """Run a system in the foreground, one line of progress a step on standard output; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m streams.region.up")
    parser.add_argument("--data")
    parser.add_argument("--regions")
    parser.add_argument("--brokers", type=int)
    parsed = parser.parse_args(arguments)
    try:
        regions = parse_regions(parsed.regions) if parsed.regions else None
        options = UpOptions(data_dir(parsed.data), regions, brokers=parsed.brokers, **(overrides or {}))  # type: ignore[arg-type]
        run(options, _print)
    except StreamsError as error:
        print(f"error: {error}", flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
