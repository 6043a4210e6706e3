"""A gateway of functions as a process, to be killed: `python -m tests.support.function_gateway DIR MODULES`.

Prints its URL once it serves `handle_request` and `hostile`. Kafka behind it is tests.support.gateway's model.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from functools import cached_property
from pathlib import Path

from streams.region.processes import die_with_parent
from tests.support.functions import ROOT, handle_request, hostile, serve
from tests.support.gateway import running_gateway


class FunctionGateway:
    """The process."""

    def __init__(self, directory: Path, modules: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(directory), str(modules)],
            stdout=subprocess.PIPE, text=True, cwd=ROOT, preexec_fn=die_with_parent(), env=dict(os.environ),
        )  # fmt: skip

    @cached_property
    def url(self) -> str:
        """Where it serves; waits until it does."""
        assert self.process.stdout is not None
        found = self.process.stdout.readline().strip()
        assert found.startswith("http"), found
        return found

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait(10)
        assert self.process.stdout is not None
        self.process.stdout.close()


async def _serve(directory: Path, modules: Path) -> None:
    async with running_gateway(directory) as at:
        await serve(at.gateway, modules, handle_request(), hostile({"concurrency = 4": "concurrency = 64"}))
        print(at.url, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1]), Path(sys.argv[2])))
