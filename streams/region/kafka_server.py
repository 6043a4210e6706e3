"""A real Apache Kafka broker (KRaft, broker and controller in one JVM) on loopback ports, alone or one of several."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import signal
import socket
import struct
import subprocess
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from streams.model.errors import StreamsError
from streams.region import jars
from streams.region.java import JvmOptions, java_command, last_errors
from streams.region.processes import free_ports, kill_group, spawn, stop, wait_until

MAX_MESSAGE_BYTES = 20 * 1024 * 1024  # bodies of 16 MiB with their envelope
_HOST = "127.0.0.1"
_FAIL_OVER = {
    "broker.session.timeout.ms": "3000",
    "broker.heartbeat.interval.ms": "500",
    "controller.quorum.fetch.timeout.ms": "1500",
    "controller.quorum.election.timeout.ms": "500",
    "controller.quorum.election.backoff.max.ms": "500",
    "replica.fetch.wait.max.ms": "100",
}


@dataclass(frozen=True, slots=True)
class KafkaOptions:
    """One broker. `directory` holds its data and configuration; ports are on 127.0.0.1.

    `mirror_port` (0: none) opens a second client listener that advertises `mirror_advertised_port`: a proxy's, so that
    only what goes through the proxy's address can be cut. `settings` override any of Kafka's.
    `voters`: the controller ports of all brokers of the cluster, in the order of their ids (from 1), this one's among
    them; empty: it is alone. `cluster_id`: what all of them are formatted with; empty: a new one.
    """

    name: str
    directory: Path
    log_file: Path
    port: int
    controller_port: int
    mirror_port: int = 0
    mirror_advertised_port: int = 0
    jvm: JvmOptions = field(default_factory=JvmOptions)
    settings: dict[str, str] = field(default_factory=dict)
    node_id: int = 1
    voters: tuple[int, ...] = ()
    cluster_id: str = ""

    @property
    def bootstrap_servers(self) -> str:
        """Where clients connect: `host:port`."""
        return f"{_HOST}:{self.port}"

    @property
    def mirror_bootstrap_servers(self) -> str:
        """Where mirrors of other regions connect: the advertised mirror address, else the clients'."""
        return f"{_HOST}:{self.mirror_advertised_port or self.port}"


def server_properties(options: KafkaOptions) -> dict[str, str]:
    """Kafka's settings for a region's broker: small, quick to start and to fail over, nothing created unasked.

    With several brokers: replication 3 and `min.insync.replicas` 2 (as far as there are so many), and a broker that
    has died loses its partitions after three seconds of silence instead of nine.
    """
    voters = options.voters or (options.controller_port,)
    replicas, in_sync = replicas_of(len(voters)), in_sync_of(len(voters))
    listeners = {"CLIENT": (options.port, options.port), "CONTROLLER": (options.controller_port, 0)}
    if options.mirror_port:
        listeners["MIRROR"] = (options.mirror_port, options.mirror_advertised_port or options.mirror_port)
    return {
        "process.roles": "broker,controller",
        "node.id": str(options.node_id),
        "controller.quorum.voters": ",".join(f"{each}@{_HOST}:{port}" for each, port in enumerate(voters, 1)),
        "listeners": ",".join(f"{name}://{_HOST}:{port}" for name, (port, _) in listeners.items()),
        "advertised.listeners": ",".join(f"{name}://{_HOST}:{port}" for name, (_, port) in listeners.items() if port),
        "listener.security.protocol.map": ",".join(f"{name}:PLAINTEXT" for name in listeners),
        "controller.listener.names": "CONTROLLER",
        "inter.broker.listener.name": "CLIENT",
        "log.dirs": str(options.directory / "log"),
        "num.network.threads": "2",
        "num.io.threads": "4",
        "background.threads": "2",
        "num.recovery.threads.per.data.dir": "2",
        "socket.listen.backlog.size": "512",
        "message.max.bytes": str(MAX_MESSAGE_BYTES),
        "replica.fetch.max.bytes": str(MAX_MESSAGE_BYTES),
        "auto.create.topics.enable": "false",
        "default.replication.factor": str(replicas),
        "min.insync.replicas": str(in_sync),
        "offsets.topic.replication.factor": str(replicas),
        "offsets.topic.num.partitions": "4",
        "transaction.state.log.replication.factor": str(replicas),
        "transaction.state.log.min.isr": str(in_sync),
        "transaction.state.log.num.partitions": "4",
        "transaction.abort.timed.out.transaction.cleanup.interval.ms": "1000",
        "group.initial.rebalance.delay.ms": "0",
        "group.min.session.timeout.ms": "1000",
        "log.cleaner.dedupe.buffer.size": str(32 * 1024 * 1024),
        "log.cleaner.backoff.ms": "5000",
        "share.coordinator.state.topic.replication.factor": str(replicas),
        "share.coordinator.state.topic.min.isr": str(in_sync),
        **(_FAIL_OVER if len(voters) > 1 else {}),
        **options.settings,
    }


def replicas_of(brokers: int) -> int:
    """How many replicas a partition has in a region of so many brokers: 3 at most."""
    return min(3, brokers)


def in_sync_of(brokers: int) -> int:
    """How many of them must have a record before it is acknowledged: 2 of 3, so that any one may be lost."""
    return 2 if brokers >= 3 else 1


def kafka_command(options: KafkaOptions, class_path: Sequence[Path] | None = None) -> list[str]:
    """Write the configuration, format the storage if it is new, and return the broker's command line.

    Data that is there is kept, even when ports changed. StreamsError with Kafka's own words when formatting fails.
    """
    path = list(class_path or jars.class_path("kafka"))
    options.directory.mkdir(parents=True, exist_ok=True)
    config = options.directory / "server.properties"
    config.write_text("".join(f"{key}={value}\n" for key, value in server_properties(options).items()))
    if not (options.directory / "log" / "meta.properties").exists():
        _format(options, config, path)
    return java_command("kafka.Kafka", [str(config)], path, options.directory, options.jvm, "kafka")


def new_cluster_id() -> str:
    """A random id for a cluster."""
    return base64.urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode().replace("-", "A")


def _format(options: KafkaOptions, config: Path, class_path: Sequence[Path]) -> None:
    arguments = [
        "format",
        "--cluster-id",
        options.cluster_id or new_cluster_id(),
        "--config",
        str(config),
        "--ignore-formatted",
    ]
    jvm = JvmOptions(heap_mb=128)
    command = java_command("kafka.tools.StorageTool", arguments, class_path, options.directory, jvm)
    start = options.log_file.stat().st_size if options.log_file.exists() else 0
    process = spawn(command, options.log_file)
    try:
        status = process.wait(120)
    except subprocess.TimeoutExpired:
        status = stop(process, term_timeout_s=1)
    if status != 0:
        raise start_failure(options.name, options.log_file, start)


def start_failure(name: str, log_file: Path, since_byte: int = 0) -> StreamsError:
    """The error to show when a JVM did not start: its last error lines and where the whole log is."""
    lines = last_errors(log_file, since_byte=since_byte) or ["it wrote no log"]
    return StreamsError(f"{name} did not start: " + " | ".join(lines), fix=f"see {log_file}")


def is_ready(port: int, directory: Path | None = None, *, node_id: int = 1, timeout_s: float = 1.0) -> bool:
    """Whether the broker on 127.0.0.1:`port` answers a metadata request and counts itself among the live brokers.

    With a `directory` it must also be the cluster whose data are there, not another that has taken the port.
    """
    body = struct.pack(">hhih", 3, 2, 1, -1) + struct.pack(">i", 0)  # Metadata v2, no client id, no topics
    try:
        with socket.create_connection((_HOST, port), timeout_s) as connection:
            connection.sendall(struct.pack(">i", len(body)) + body)
            with connection.makefile("rb") as answer:
                (size,) = struct.unpack(">i", answer.read(4))
                brokers, cluster_id = _brokers_and_cluster(answer.read(min(size, 65_536)))
    except (OSError, struct.error):
        return False
    return node_id in brokers and (directory is None or cluster_id == _cluster_id(directory))


def _brokers_and_cluster(answer: bytes) -> tuple[set[int], str]:
    """The ids of the brokers and of the cluster in a Metadata v2 response (correlation id, brokers, cluster id, …)."""

    def text(at: int) -> tuple[str, int]:
        (length,) = struct.unpack_from(">h", answer, at)
        end = at + 2 + max(0, length)
        return answer[at + 2 : end].decode(), end

    (brokers,) = struct.unpack_from(">i", answer, 4)
    at, nodes = 8, set()
    for _ in range(brokers):
        nodes.add(struct.unpack_from(">i", answer, at)[0])
        _, at = text(at + 4)  # node id, then host
        _, at = text(at + 4)  # port, then rack
    return nodes, text(at)[0]


def _cluster_id(directory: Path) -> str:
    lines = (directory / "log" / "meta.properties").read_text().splitlines()
    return next((line.partition("=")[2] for line in lines if line.startswith("cluster.id=")), "")


class KafkaServer:
    """A broker as a child of this process, for tests and tools; the supervisor starts its brokers by itself.

    Start it from the main thread: it dies with the thread that started it.
    """

    def __init__(self, options: KafkaOptions) -> None:
        self.options = options
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    @classmethod
    def on_free_ports(cls, name: str, directory: Path, *, mirror_advertised_port: int = 0) -> KafkaServer:
        """A broker in `directory` on free ports; with a `mirror_advertised_port`, also with a mirror listener."""
        port, controller_port, mirror_port = free_ports(3)
        options = KafkaOptions(name, directory, directory / f"kafka-{name}.log", port, controller_port)
        if mirror_advertised_port:
            options = dataclasses.replace(
                options, mirror_port=mirror_port, mirror_advertised_port=mirror_advertised_port
            )
        return cls(options)

    @property
    def name(self) -> str:
        """The region's name."""
        return self.options.name

    @property
    def bootstrap_servers(self) -> str:
        """Where clients connect: `host:port`."""
        return self.options.bootstrap_servers

    @property
    def pid(self) -> int:
        """The JVM's process id; StreamsError before start."""
        if self._process is None:
            raise StreamsError(f"Kafka {self.name} was not started")
        return self._process.pid

    def start(self) -> None:
        """Start the JVM without waiting; storage is formatted first if new."""
        log_file = self.options.log_file
        self._log_start = log_file.stat().st_size if log_file.exists() else 0
        self._process = spawn(kafka_command(self.options), log_file)

    def wait_ready(self, timeout_s: float = 60.0) -> None:
        """Wait until requests are answered; StreamsError with Kafka's last errors when it exits or takes too long."""
        process = self._process

        def settled() -> bool:
            return (
                process is None
                or process.poll() is not None
                or is_ready(self.options.port, self.options.directory, node_id=self.options.node_id)
            )

        if not wait_until(settled, timeout_s) or process is None or process.poll() is not None:
            self.stop()
            raise start_failure(f"Kafka {self.name}", self.options.log_file, self._log_start)

    def stop(self, *, term_timeout_s: float = 10.0) -> None:
        """Stop the broker cleanly, by force after `term_timeout_s`; harmless when it is not running."""
        if self._process is not None:
            stop(self._process, term_timeout_s=term_timeout_s)

    def kill(self) -> None:
        """SIGKILL, as a crash would."""
        if self._process is not None:
            kill_group(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def __enter__(self) -> KafkaServer:
        """Start and wait until ready."""
        self.start()
        self.wait_ready()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        with contextlib.suppress(ProcessLookupError):
            self.stop()
