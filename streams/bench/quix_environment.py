"""Quix Streams in an environment of its own, in the user's cache: it needs another confluent-kafka than our tests, and
40 packages that nothing else here uses.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from pathlib import Path

from filelock import FileLock

from streams.bench.java import run
from streams.model.errors import StreamsError, Unavailable
from streams.region.paths import cache_dir

LOCK = Path(__file__).with_name("peers") / "quix.lock"
INSTALL_TIMEOUT_S = 600.0


def quix_python(lock: Path = LOCK) -> Path:
    """The Python that has Quix Streams, installed on first use from `lock`, every file checked by its hash.

    Unavailable when it cannot be installed: no network, no `venv`, or no wheel for this Python.
    """
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    digest = hashlib.sha256(lock.read_bytes() + version.encode()).hexdigest()[:16]
    place = cache_dir() / "bench-quix" / digest
    python = place / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    place.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{place}.lock"):
        if not (place / "complete").exists():
            shutil.rmtree(place, ignore_errors=True)
            try:
                run([sys.executable, "-m", "venv", str(place)], timeout_s=INSTALL_TIMEOUT_S)
                install = [
                    str(python),
                    "-m",
                    "pip",
                    "install",
                    "-q",
                    "--disable-pip-version-check",
                    "--only-binary",
                    ":all:",
                ]
                run([*install, "--require-hashes", "-r", str(lock)], timeout_s=INSTALL_TIMEOUT_S)
            except (StreamsError, OSError) as error:
                shutil.rmtree(place, ignore_errors=True)
                raise Unavailable(f"Quix Streams could not be installed: {error}") from None
            (place / "complete").touch()
    return python
