"""Compilers of UDFs run as child processes: `ziglang`, from its wheel, for C and Zig; componentize.py has Python's."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from streams.model.errors import BadInput, Timeout, Unavailable

BUILD_TIMEOUT_S = 120.0


def run_zig(arguments: list[str], source: Path, output: Path) -> bytes:
    """Run `zig` beside `source`; what it wrote to `output`. BadInput with its first errors."""
    done = run_child([sys.executable, "-m", "ziglang", *arguments], source)
    if "No module named ziglang" in done.stderr:
        raise Unavailable("the C and Zig compiler is not installed", fix="pip install ziglang")
    if done.returncode or not output.is_file():
        raise BadInput(_errors(done.stderr), field="source", fix="correct the source and build again")
    return output.read_bytes()


def run_child(
    command: list[str],
    source: Path,
    timeout_s: float = BUILD_TIMEOUT_S,
    where: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Runs a compiler of `source` beside it, or in `where`. Timeout when it takes longer."""
    try:
        return subprocess.run(
            command,
            cwd=where or source.parent,
            env={**(environment or os.environ), "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Timeout(f"building {source.name} took longer than {timeout_s:g} s") from None


def _errors(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if "error:" in line]
    return "; ".join(lines[:3])[:600] or stderr.strip()[-600:] or "the compiler failed without a message"
