"""One MirrorMaker 2 JVM that mirrors every region's tables and definitions into every other region, exactly once."""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from pathlib import Path

from streams.model.errors import StreamsError
from streams.model.topology import Region, Topology
from streams.region import jars
from streams.region.java import JvmOptions, java_command
from streams.region.kafka_server import MAX_MESSAGE_BYTES, replicas_of, start_failure
from streams.region.processes import free_ports, kill_group, spawn, stop, wait_until

MIRRORED_TOPICS = r"table\..*|definitions|udfs|gateways|udf-states"


def mirrored_topics(keyspaces: Iterable[str] = ()) -> str:
    """The regular expression of what is mirrored; of these keyspaces the raw events too (`mirror: events`)."""
    return "|".join([MIRRORED_TOPICS, *(re.escape(f"events.{name}") for name in sorted(keyspaces))])


#: MirrorMaker logs one of these and goes on running without mirroring, so its supervisor must restart it.
FATAL_LINES = ("will not recover until manually restarted", "Failed to configure MirrorSourceConnector")


@dataclass(frozen=True, slots=True)
class MirrorOptions:
    """What to mirror and where. `rest_port` is a free port on 127.0.0.1; `settings` override any of MirrorMaker's."""

    directory: Path
    log_file: Path
    rest_port: int
    regions: tuple[Region, ...]
    topics: str = MIRRORED_TOPICS
    jvm: JvmOptions = field(default_factory=lambda: JvmOptions(heap_mb=256))
    settings: dict[str, str] = field(default_factory=dict)


def mirror_properties(options: MirrorOptions) -> dict[str, str]:
    """MirrorMaker's settings for all directed pairs.

    Only prefixed settings count: `<target>.` reaches the worker and its producers, `<source>-><target>.` the connector
    and its consumers; a bare `consumer.*` or `offset.flush.interval.ms` is silently ignored.
    Naming any `offset-syncs.*` setting while offset syncs are off makes MirrorMaker refuse the connector.
    """
    properties = {
        "clusters": ",".join(region.name for region in options.regions),
        "dedicated.mode.enable.internal.rest": "true",
        "listeners": f"http://127.0.0.1:{options.rest_port}",
        "plugin.discovery": "service_load",
    }
    for region in options.regions:
        properties |= {f"{region.name}.{name}": value for name, value in _worker(region).items()}
    for source, target in permutations(options.regions, 2):
        pair = f"{source.name}->{target.name}"
        properties |= {f"{pair}.{name}": value for name, value in _connector(source, target, options.topics).items()}
    return {**properties, **options.settings}


def _worker(target: Region) -> dict[str, str]:
    """The Connect worker that writes into `target`; short sessions, so a killed MirrorMaker resumes in seconds."""
    replicas = str(replicas_of(target.brokers))
    return {
        "bootstrap.servers": target.bootstrap_servers,
        "exactly.once.source.support": "enabled",
        "plugin.discovery": "service_load",
        "config.storage.replication.factor": replicas,
        "offset.storage.replication.factor": replicas,
        "offset.storage.partitions": "2",
        "status.storage.replication.factor": replicas,
        "status.storage.partitions": "1",
        "session.timeout.ms": "3000",
        "heartbeat.interval.ms": "1000",
        "rebalance.timeout.ms": "10000",
        "scheduled.rebalance.max.delay.ms": "0",
        "offset.flush.interval.ms": "1000",
        "producer.linger.ms": "0",
        "producer.batch.size": "131072",
        "producer.max.request.size": str(MAX_MESSAGE_BYTES),
        "producer.retry.backoff.ms": "10",
        "producer.transaction.timeout.ms": "10000",
        "transaction.timeout.ms": "10000",  # of the configuration's, which a killed leader may leave open
    }


def _connector(source: Region, target: Region, topics: str) -> dict[str, str]:
    """The connector that reads `source`, where the source wants mirrors to read, into `target`.

    An address for one direction alone goes through the clients' prefixes: `source.cluster.bootstrap.servers` of a pair
    is overridden by the cluster's own (tried).
    """
    address = source.mirror_bootstrap_servers or source.bootstrap_servers
    replicas = str(replicas_of(target.brokers))
    return {
        "enabled": "true",
        "source.consumer.bootstrap.servers": address,
        "source.admin.bootstrap.servers": address,
        "topics": topics,
        "tasks.max": "1",
        "replication.factor": replicas,
        "refresh.topics.interval.seconds": "1",
        "sync.topic.configs.enabled": "true",
        "sync.topic.configs.interval.seconds": "30",
        "sync.topic.acls.enabled": "false",
        "refresh.groups.enabled": "false",
        "sync.group.offsets.enabled": "false",
        "emit.heartbeats.enabled": "false",
        "emit.checkpoints.enabled": "false",
        "emit.offset-syncs.enabled": "false",
        "heartbeats.topic.replication.factor": replicas,
        "consumer.isolation.level": "read_committed",
        "consumer.fetch.max.wait.ms": "500",
        "consumer.max.poll.records": "20000",
        "consumer.max.partition.fetch.bytes": str(4 * 1024 * 1024),
        "consumer.fetch.max.bytes": str(16 * 1024 * 1024),
        "consumer.request.timeout.ms": "10000",
        "consumer.default.api.timeout.ms": "20000",
        "consumer.reconnect.backoff.max.ms": "500",
        "consumer.retry.backoff.max.ms": "500",
    }


def mirror_command(options: MirrorOptions, class_path: Sequence[Path] | None = None) -> list[str]:
    """Write the configuration and return MirrorMaker's command line."""
    options.directory.mkdir(parents=True, exist_ok=True)
    config = options.directory / "mirror.properties"
    lines = [f"{key}={value}".replace("\\", "\\\\") for key, value in mirror_properties(options).items()]
    config.write_text("\n".join(lines) + "\n")
    path = list(class_path or jars.class_path("kafka"))
    main_class = "org.apache.kafka.connect.mirror.MirrorMaker"
    return java_command(main_class, [str(config)], path, options.directory, options.jvm, "mirror")


def is_ready(rest_port: int) -> bool:
    """Whether MirrorMaker has started (its internal listener accepts); its tasks follow within a second or two."""
    try:
        with socket.create_connection(("127.0.0.1", rest_port), 0.5):
            return True
    except OSError:
        return False


class MirrorMaker:
    """MirrorMaker as a child of this process, for tests and tools; the supervisor starts its own."""

    def __init__(self, options: MirrorOptions) -> None:
        self.options = options
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    @classmethod
    def between(cls, topology: Topology, directory: Path) -> MirrorMaker:
        """A MirrorMaker for every directed pair of `topology`, its files in `directory`."""
        return cls(MirrorOptions(directory, directory / "mirror.log", free_ports(1)[0], topology.regions))

    @property
    def pid(self) -> int:
        """The JVM's process id; StreamsError before start."""
        if self._process is None:
            raise StreamsError("MirrorMaker was not started")
        return self._process.pid

    def start(self) -> None:
        """Start the JVM without waiting."""
        log_file = self.options.log_file
        self._log_start = log_file.stat().st_size if log_file.exists() else 0
        self._process = spawn(mirror_command(self.options), log_file)

    def wait_ready(self, timeout_s: float = 90.0) -> None:
        """Wait until it has started; StreamsError with its last errors when it exits or takes too long."""
        process = self._process

        def settled() -> bool:
            return process is None or process.poll() is not None or is_ready(self.options.rest_port)

        if not wait_until(settled, timeout_s) or process is None or process.poll() is not None:
            self.stop()
            raise start_failure("MirrorMaker", self.options.log_file, self._log_start)

    def stop(self, *, term_timeout_s: float = 10.0) -> None:
        """Stop it cleanly, by force after `term_timeout_s`; harmless when it is not running."""
        if self._process is not None:
            stop(self._process, term_timeout_s=term_timeout_s)

    def kill(self) -> None:
        """SIGKILL, as a crash would."""
        if self._process is not None:
            kill_group(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def __enter__(self) -> MirrorMaker:
        """Start and wait until it has started."""
        self.start()
        self.wait_ready()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        with contextlib.suppress(ProcessLookupError):
            self.stop()
