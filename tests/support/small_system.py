"""A supervised system with real Kafka and MirrorMaker 2 whose workers and gateways are small stand-ins.

For tests of supervision itself: `python -m tests.support.small_system up --data DIR [--regions a,b]` is `streams up`
with these stand-ins.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

from streams.model.topology import Region
from streams.region import up
from streams.region.processes import die_with_parent
from tests.support.polling import eventually_sync

ROOT = Path(__file__).resolve().parents[2]
GATEWAY = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def script(code: str) -> Callable[[Path, Region], Sequence[str]]:
    """A process of `streams up` that runs this code with the region's gateway port as its argument."""
    return lambda data, region: [sys.executable, "-c", code, str(region.gateway_port)]


def overrides() -> dict[str, object]:
    """The stand-ins, for UpOptions."""
    return {"worker": script("import time; time.sleep(3600)"), "gateway": script(GATEWAY), "udf_worker": None}


class SmallSystem:
    """`streams up` in a process of its own; `lines` are what it has said. `module` is what is run."""

    module = "tests.support.small_system"

    def __init__(self, data: Path, *arguments: str, env: Mapping[str, str] | None = None) -> None:
        self.data = data
        self.output = data.with_name(f"{data.name}-{os.urandom(3).hex()}.out")
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", self.module, "--data", str(data), *arguments],
                stdout=output, stderr=subprocess.STDOUT, cwd=ROOT, env={**os.environ, **(env or {})},
                preexec_fn=die_with_parent(),
            )  # fmt: skip

    @property
    def lines(self) -> list[str]:
        """What it has said until now."""
        return self.output.read_text().splitlines()

    def wait_ready(self, timeout_s: float = 120.0) -> None:
        """Wait for `ready`; AssertionError with its output when it ends or takes too long."""

        def is_ready() -> bool:
            if any(line.startswith("ready") for line in self.lines):
                return True
            if self.process.poll() is not None:
                raise RuntimeError("\n".join(self.lines))
            return False

        eventually_sync(is_ready, timeout_s)

    def cli(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A `streams` command on it."""
        command = [sys.executable, "-m", "streams.cli.main", *arguments, "--data", str(self.data)]
        return subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=ROOT, check=False)

    def family(self) -> list[psutil.Process]:
        """Every process it started, directly or not."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def stop(self) -> int:
        """Ctrl-C, then its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(2)
        return self.process.wait(60)


if __name__ == "__main__":
    sys.exit(up.main(overrides=overrides()))
