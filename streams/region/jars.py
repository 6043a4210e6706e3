"""Kafka's jars: pinned by size and SHA-256 in `jars.lock`, downloaded once per user, never used half or changed.

`python -m streams.region.jars lock` resolves the lock file anew; `… fetch [GROUP…]` downloads.
The repository's address is jgo's own default; a `central` entry in jgo's configuration file overrides it.
"""

from __future__ import annotations

import hashlib
import os
import random
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from filelock import FileLock

from streams.model.errors import StreamsError, Unavailable
from streams.region.paths import cache_dir

if TYPE_CHECKING:  # imported where something is downloaded: a start with the jars there does without
    import requests

LOCK_FILE = Path(__file__).with_name("jars.lock")
KAFKA_VERSION = "4.3.1"
GROUPS = ("kafka", "bench")

Advance = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Jar:
    """One pinned artifact: `coordinate` is group:artifact:version[:classifier]."""

    group: str
    coordinate: str
    size_bytes: int
    sha256: str

    @property
    def filename(self) -> str:
        """The file's name in the repository and in the cache."""
        return self.remote_path.name

    @property
    def remote_path(self) -> PurePosixPath:
        """The artifact's path under a Maven repository's base address."""
        organisation, artifact, version, *classifier = self.coordinate.split(":")
        name = "-".join([artifact, version, *classifier]) + ".jar"
        return PurePosixPath(*organisation.split("."), artifact, version, name)


@dataclass(frozen=True, slots=True)
class FetchOptions:
    """How to download: `base_url` None is jgo's repository; attempts are per file, waits grow from `backoff_s`."""

    base_url: str | None = None
    parallel: int = 4
    attempts: int = 6
    backoff_s: float = 0.5
    timeout_s: float = 20.0
    quiet: bool = False


def read_lock(path: Path = LOCK_FILE) -> tuple[Jar, ...]:
    """Every pinned jar of the lock file, in class path order; StreamsError when a line is malformed."""
    jars = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            group, coordinate, size, digest = line.split()
            jars.append(Jar(group, coordinate, int(size), digest))
        except ValueError:
            raise StreamsError(f"{path.name} line {number} is malformed", fix="reinstall the package") from None
    return tuple(jars)


def class_path(*groups: str, options: FetchOptions | None = None) -> list[Path]:
    """Verified local paths of the jars of `groups` (default: `kafka`), downloading what is missing.

    Every file is checked by size and SHA-256 before this returns (60 MB take under 0.1 s), so a truncated or altered
    one is replaced. Unavailable when the repository cannot be reached or keeps answering wrong bytes.
    """
    wanted = groups or ("kafka",)
    return fetch([jar for jar in read_lock() if jar.group in wanted], cache_dir() / "jars", options or FetchOptions())


def fetch(jars: Sequence[Jar], directory: Path, options: FetchOptions) -> list[Path]:
    """Make `directory` hold exactly these verified jars and return their paths, in order.

    One process at a time downloads into a directory (file lock); others wait and find the files. Partial downloads
    stay as `.part` files and are resumed. A file takes its final name only after its checksum was right.
    """
    paths = [directory / jar.filename for jar in jars]
    if not _missing(jars, directory):
        return paths
    directory.mkdir(parents=True, exist_ok=True)
    with FileLock(directory / ".lock"):
        missing = _missing(jars, directory)
        if missing:
            _download_all(missing, directory, options)
    return paths


def _missing(jars: Sequence[Jar], directory: Path) -> list[Jar]:
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        good = list(pool.map(lambda jar: _verified(directory / jar.filename, jar), jars))
    return [jar for jar, is_good in zip(jars, good, strict=True) if not is_good]


def _verified(path: Path, jar: Jar) -> bool:
    try:
        if path.stat().st_size != jar.size_bytes:
            return False
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == jar.sha256
    except FileNotFoundError:
        return False


def _download_all(jars: Sequence[Jar], directory: Path, options: FetchOptions) -> None:
    import requests
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    base_url = (options.base_url or _repository()).rstrip("/")
    total = sum(jar.size_bytes for jar in jars)
    console = Console(stderr=True, quiet=options.quiet)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(f"Apache Kafka {KAFKA_VERSION}: {len(jars)} jars", total=total)
        # requests.Session is shared by the few threads: its connection pool is thread safe.
        with requests.Session() as session, ThreadPoolExecutor(options.parallel) as pool:
            futures = [
                pool.submit(_download, session, f"{base_url}/{jar.remote_path}", directory, jar, options,
                            lambda n: progress.advance(task, n))
                for jar in jars
            ]  # fmt: skip
            try:
                for future in futures:
                    future.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def _download(
    session: requests.Session, url: str, directory: Path, jar: Jar, options: FetchOptions, advance: Advance
) -> None:
    import requests

    part = directory / f"{jar.filename}.part"
    reason = ""
    for attempt in range(options.attempts):
        if attempt:
            time.sleep(min(8.0, options.backoff_s * 2 ** (attempt - 1)) * random.uniform(0.5, 1.0))
        try:
            _continue_download(session, url, part, jar, options.timeout_s, advance)
        except requests.RequestException as error:
            reason = _short(error)
            continue
        if _verified(part, jar):
            part.replace(directory / jar.filename)
            return
        reason = "its checksum is wrong"
        advance(-part.stat().st_size)
        part.unlink()
    raise Unavailable(
        f"{jar.filename} could not be downloaded in {options.attempts} attempts: {reason}",
        fix="check the network and run the command again; what was downloaded is kept",
    )


def _continue_download(
    session: requests.Session, url: str, part: Path, jar: Jar, timeout_s: float, advance: Advance
) -> None:
    import requests

    have = part.stat().st_size if part.exists() else 0
    if have >= jar.size_bytes:
        part.unlink()
        have = 0
    headers = {"Range": f"bytes={have}-"} if have else {}
    with session.get(url, headers=headers, stream=True, timeout=timeout_s) as response:
        if response.status_code == requests.codes.requested_range_not_satisfiable:
            part.unlink(missing_ok=True)
        response.raise_for_status()
        resumed = have > 0 and response.status_code == requests.codes.partial_content
        written = have if resumed else 0
        advance(written)
        with part.open("ab" if resumed else "wb") as file:
            for chunk in response.iter_content(1 << 16):
                written += len(chunk)
                if written > jar.size_bytes:
                    break
                file.write(chunk)
                advance(len(chunk))
            file.flush()
            os.fsync(file.fileno())
    if written < jar.size_bytes:
        advance(-written)
        raise requests.ConnectionError(f"the connection closed after {written} of {jar.size_bytes} bytes")


def _short(error: requests.RequestException) -> str:
    import requests

    if error.response is not None:
        return f"the server answered {error.response.status_code}"
    if isinstance(error, requests.Timeout):
        return "the server did not answer in time"
    cause = str(error)
    return cause if cause.startswith("the connection closed") else "no connection to the repository"


def _repository() -> str:
    """The Maven repository's base address, from jgo: its configuration's `central`, else its default."""
    from jgo.config import GlobalSettings
    from jgo.constants import MAVEN_CENTRAL_URL

    return str(GlobalSettings.load().repositories.get("central", MAVEN_CENTRAL_URL))


def resolve_lock(roots: Iterable[tuple[str, Sequence[str]]]) -> list[Jar]:
    """Resolve the runtime closure of each (group, coordinates) with jgo; a jar belongs to the first that has it.

    Downloads what it hashes (jgo checks the repository's own sums).
    """
    from jgo.maven import Dependency, MavenContext, PythonResolver

    context = MavenContext(resolver=PythonResolver(), remote_repos={"central": _repository()}, timeout=30)
    found: dict[str, Jar] = {}
    for group, coordinates in roots:
        dependencies = []
        for coordinate in coordinates:
            organisation, artifact, version, *classifier = coordinate.split(":")
            component = context.project(organisation, artifact).at_version(version)
            dependencies.append(Dependency(component.artifact(*classifier)))
        inputs, transitive = context.resolver.resolve(dependencies)
        for dependency in [*inputs, *transitive]:
            artifact = dependency.artifact
            name = f"{artifact.groupId}:{artifact.artifactId}"
            if name in found or dependency.scope in ("test", "provided", "system"):
                continue
            path = Path(artifact.resolve())
            parts = [name, artifact.version, artifact.classifier]
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            found[name] = Jar(group, ":".join(part for part in parts if part), path.stat().st_size, digest)
    return sorted(found.values(), key=lambda jar: (GROUPS.index(jar.group), jar.coordinate))


# Each line is resolved by itself: jgo lets every root's managed versions (log4j's pin an old kafka-clients) rule all.
ROOTS: tuple[tuple[str, Sequence[str]], ...] = (
    ("kafka", (f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}", f"org.apache.kafka:connect-mirror:{KAFKA_VERSION}")),
    ("kafka", ("org.apache.logging.log4j:log4j-slf4j-impl:2.25.4",)),
    ("bench", ("org.rocksdb:rocksdbjni:10.1.3:linux64",)),
    ("bench", (f"org.apache.kafka:kafka-streams:{KAFKA_VERSION}",)),
    ("bench", ("org.eclipse.jdt:ecj:3.46.100",)),
)


def main(arguments: Sequence[str]) -> int:
    """`lock` rewrites jars.lock; `fetch [GROUP…]` downloads; returns the exit status."""
    command, *groups = arguments or ["fetch"]
    if command == "lock":
        jars = resolve_lock(ROOTS)
        lines = ["# group coordinate size_bytes sha256 (made by `python -m streams.region.jars lock`)"]
        lines += [f"{jar.group} {jar.coordinate} {jar.size_bytes} {jar.sha256}" for jar in jars]
        LOCK_FILE.write_text("\n".join(lines) + "\n")
        size_mb = sum(jar.size_bytes for jar in jars) / 1e6
        print(f"{LOCK_FILE.name}: {len(jars)} jars, {size_mb:.0f} MB", file=sys.stderr)
        return 0
    try:
        print(os.pathsep.join(str(path) for path in class_path(*groups)))
    except StreamsError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
