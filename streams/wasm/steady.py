"""Runs `componentize-py` so that a Python UDF's source gives the same bytes, anywhere and on any day.

componentize-py runs the interpreter up to after the imports and keeps its memory: the seed of its hashes and all that
follows from it, the clock, what directories hold and since when. It has no option for any of these. So its process has
steady.c preloaded (built with `ziglang`; Linux on x86-64 and aarch64), which holds them, and it is given a directory of
its own with copies of what it needs: neither what else lies beside the source nor an installation's packages.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
from importlib.resources import as_file, files
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from streams.model.errors import BadInput, StreamsError, Timeout
from streams.wasm.languages import run_child, run_zig

COMPONENT_TIMEOUT_S = 600.0
"""componentize-py takes ten seconds of a core, and this much where the machine is busy."""
HELD_TIMEOUT_S = 120.0
"""After so long it is tried again without being held."""
APP = "streams_app"
_PRELOADED = "steady.so"
_JUNK = shutil.ignore_patterns("__pycache__", ".*")
HELD_BY = ("x86_64", "aarch64")
"""The machines, under Linux, that steady.c is written for."""
_CHILD = f"""\
import ctypes

try:
    print("steady", ctypes.CDLL(None).streams_hold())
except AttributeError:
    print("not preloaded")

import componentize_py

componentize_py.componentize(
    wit_path=["sdk"], worlds=["udf"], features=[], all_features=False, world_module=None,
    python_path=["app", "sdk", "beside"], module_worlds=[], app_name="{APP}", output_path="module.wasm", stub_wasi=True,
    import_interface_names=[], export_interface_names=[], full_names=False, intersect_world=None,
)
"""
"""Its function, not its command: that would take in the packages of whichever `python3` or virtualenv it finds."""


class Component(NamedTuple):
    """A component that was built; `steady`: built again, its source gives the same bytes."""

    wasm: bytes
    steady: bool


def run_componentize(source: Path, app: dict[str, bytes], scratch: Path) -> Component:
    """The component of the modules `app` (by name, one of them APP) with those beside `source`; `scratch`, which is
    empty, is used up. BadInput with the exception when it cannot be imported; Timeout after COMPONENT_TIMEOUT_S.
    """
    for place in ("app", "beside", "temporary"):
        (scratch / place).mkdir()
    for name, text in app.items():
        (scratch / "app" / f"{name}.py").write_bytes(text)
    with as_file(files("wasm_udfs").joinpath("sdk", "python")) as sdk:
        shutil.copytree(sdk, scratch / "sdk", ignore=_JUNK)
    _copy_modules(source.parent, scratch / "beside")
    environment = {**os.environ, "TMPDIR": str(scratch / "temporary")}
    # Whoever sends events must not know the seed of a UDF's hashes, so it comes from the source.
    held = _preload(scratch, hashlib.sha256(b"".join(app.values())).hexdigest()[:16])
    # -P: the modules here are the guest's. ./: a path from here, since LD_PRELOAD is split at spaces and colons.
    command = [sys.executable, "-P", "-c", _CHILD]
    preloaded = {**environment, "LD_PRELOAD": f"./{_PRELOADED}"} if held else environment
    done = _run_held(command, source, scratch, preloaded) if held else None
    if done is None:
        done = run_child(command, source, COMPONENT_TIMEOUT_S, scratch, environment)
    output = scratch / "module.wasm"
    if done.returncode or not output.is_file():
        raise BadInput(_exception(done.stderr), field="source", fix="correct the source and build again")
    return Component(output.read_bytes(), done.stdout.strip() == "steady 1")


def _run_held(
    command: list[str], source: Path, scratch: Path, environment: dict[str, str]
) -> subprocess.CompletedProcess[str] | None:
    """None: being held is what ended it. While the clock stands still a wait has no end, and a system call with signals
    held back has no answer."""
    try:
        done = run_child(command, source, HELD_TIMEOUT_S, scratch, environment)
    except Timeout:
        return None
    return done if done.returncode >= 0 else None


def _copy_modules(source: Path, target: Path) -> None:
    """The modules and packages beside a source. Nothing else: the interpreter keeps the names of all that it saw there,
    and what was built, or lies about, is not the same everywhere."""
    try:
        for each in source.iterdir():
            if each.name.startswith("."):
                continue
            if each.suffix == ".py" and each.is_file():
                shutil.copyfile(each, target / each.name)
            elif any(each.glob("*.py")):
                shutil.copytree(each, target / each.name, ignore=_JUNK, ignore_dangling_symlinks=True)
    except OSError as error:  # shutil's too
        raise BadInput(
            f"what lies beside {source.name} cannot be read: {str(error)[:300]}",
            field="source",
            fix="keep modules and packages alone beside it",
        ) from None


def _preload(scratch: Path, seed: str) -> bool:
    """Builds steady.c into `scratch`; False where it does not hold, or cannot be built."""
    machine = platform.machine()
    if sys.platform != "linux" or machine not in HELD_BY or find_spec("ziglang") is None:
        return False
    target = ["-target", f"{machine}-linux-gnu"]  # for its headers
    compiled, linked = scratch / "steady.o", scratch / _PRELOADED
    flags = ["-c", "-O2", "-fPIC", "-fno-builtin", "-fno-stack-protector", f"-DSTREAMS_SEED=0x{seed}u"]
    with as_file(files("streams.wasm").joinpath("steady.c")) as source:
        try:
            run_zig(["cc", *target, *flags, "-o", str(compiled), source.name], source, compiled)
            # A command of its own: with -nostdlib there would be no headers.
            run_zig(["cc", *target, "-shared", "-nostdlib", "-o", str(linked), str(compiled)], source, linked)
        except StreamsError:  # a compiler that cannot be used here; the component can be built all the same
            return False
    return True


def _exception(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    told = [line for line in lines if re.match(r"(\w+\.)*\w*(Error|Exception)\b", line)]
    return "; ".join(told[:2])[:600] or " ".join(lines)[-600:] or "the compiler failed without a message"
