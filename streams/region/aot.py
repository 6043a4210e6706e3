"""Ahead-of-time caches (JEP 483, 514) that halve what starting Kafka and MirrorMaker 2 costs the processor.

Made once per user, JRE and set of jars by a training run: a broker and a MirrorMaker start, work a little and stop.
`python -m streams.region.aot` makes them; without them everything works, only slower.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from pathlib import Path

from filelock import FileLock

from streams.model.errors import StreamsError
from streams.model.topology import Region
from streams.region import jars
from streams.region.java import JvmOptions, aot_file
from streams.region.kafka_server import KafkaServer
from streams.region.mirror_maker import MirrorMaker, MirrorOptions
from streams.region.processes import free_ports, wait_until

ROLES = ("kafka", "mirror")
DUMP_TIMEOUT_S = 120.0


def is_prepared() -> bool:
    """Whether the caches are there, or making them has failed before with these jars."""
    path = jars.class_path("kafka")
    return all(aot_file(role, path).exists() for role in ROLES) or _failed(path).exists()


def prepare() -> None:
    """Make the caches unless they are there; StreamsError when the training run fails (which is remembered)."""
    path = jars.class_path("kafka")
    directory = aot_file(ROLES[0], path).parent
    directory.mkdir(parents=True, exist_ok=True)
    with FileLock(directory / ".lock"):
        if is_prepared():
            return
        wanted = {aot_file(role, path) for role in ROLES}
        for old in set(directory.glob("*.aot*")) - wanted:
            old.unlink()
        try:
            with tempfile.TemporaryDirectory(prefix="streams-aot-") as place:
                _train(Path(place), path)
            if not all(file.exists() for file in wanted):
                raise StreamsError("the JVM wrote no ahead-of-time cache")
        except StreamsError as error:
            _failed(path).write_text(f"{error}\n")
            raise


def _failed(class_path: list[Path]) -> Path:
    return aot_file("kafka", class_path).with_suffix(".failed")


def _train(place: Path, class_path: list[Path]) -> None:
    """Run a broker, and a MirrorMaker between that broker and itself, each writing its cache when it exits."""
    outputs = {role: place / f"{role}.aot" for role in ROLES}
    kafka = KafkaServer.on_free_ports("training", place / "kafka")
    jvm = JvmOptions(extra=(f"-XX:AOTCacheOutput={outputs['kafka']}",))
    server = KafkaServer(dataclasses.replace(kafka.options, jvm=jvm))
    with server:
        regions = tuple(Region(name, server.bootstrap_servers) for name in ("a", "b"))
        jvm = JvmOptions(heap_mb=256, extra=(f"-XX:AOTCacheOutput={outputs['mirror']}",))
        log_file = place / "mirror.log"
        mirror = MirrorMaker(MirrorOptions(place / "mirror", log_file, free_ports(1)[0], regions, jvm=jvm))
        with mirror:
            status_topic = place / "kafka" / "log" / "mm2-status.b.internal-0"
            wait_until(lambda: status_topic.exists(), 20.0)
            mirror.stop(term_timeout_s=DUMP_TIMEOUT_S)
        server.stop(term_timeout_s=DUMP_TIMEOUT_S)
    for role, output in outputs.items():
        if output.exists():
            _adopt(output, aot_file(role, class_path))


def _adopt(made: Path, final: Path) -> None:
    """Copy into the cache's file system, then rename: a reader never sees half of it."""
    temporary = final.with_suffix(".tmp")
    temporary.write_bytes(made.read_bytes())
    temporary.replace(final)


if __name__ == "__main__":
    try:
        prepare()
    except StreamsError as failure:
        print(f"starts stay slower: {failure}", file=sys.stderr)
        sys.exit(1)
