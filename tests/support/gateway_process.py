"""Gateway processes for tests: real subprocesses with the real command line, to be killed and started again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from streams.client import AsyncClient
from streams.model.errors import StreamsError
from streams.model.topology import Topology
from streams.region.processes import die_with_parent
from tests.support.gateway import free_port
from tests.support.polling import eventually

ROOT = Path(__file__).parents[2]


class GatewayProcess:
    """`streams gateway` of one region on a port of its own, which it keeps over restarts."""

    def __init__(self, directory: Path, topology: Topology, region: str, *arguments: str) -> None:
        self.region, self.port = region, free_port()
        self.data = directory / f"gateway-{region}"
        self.data.mkdir(parents=True)
        topology.save(self.data)
        self.log_file = directory / f"gateway-{region}.log"
        self._command = [
            *(sys.executable, "-m", "streams.cli.main", "gateway", "--region", region),
            *("--data", str(self.data), "--port", str(self.port), *arguments),
        ]
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start; does not wait."""
        with self.log_file.open("ab") as output:
            self.process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=ROOT,
                preexec_fn=die_with_parent(), start_new_session=True,
            )  # fmt: skip

    async def serving(self, edge: AsyncClient, timeout_s: float = 90.0) -> None:
        """Wait until it answers; RuntimeError with its log when it has ended."""

        async def answers() -> bool:
            if self.process is None or self.process.poll() is not None:
                raise RuntimeError(self.log_file.read_text(errors="replace")[-3000:])
            try:
                return bool(await edge.keyspaces())
            except StreamsError:
                return False

        await eventually(answers, timeout_s, every_s=0.05)

    def kill(self) -> None:
        """SIGKILL, and wait."""
        if self.process is not None and self.process.poll() is None:
            os.kill(self.process.pid, signal.SIGKILL)
            self.process.wait(10)

    def stop(self) -> int:
        """SIGTERM, and the exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)
