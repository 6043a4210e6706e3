"""Builds a UDF directory's C source to WebAssembly with the `ziglang` wheel: same source, same bytes, anywhere."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib.resources import as_file, files
from pathlib import Path

from streams.model.errors import BadInput, Timeout, Unavailable
from streams.model.row import MergeType
from streams.wasm.manifest import Manifest, read_manifest

BUILD_TIMEOUT_S = 120.0
_FLAGS = (
    "-target", "wasm32-freestanding", "-std=c11", "-O3", "-mcpu=generic+bulk_memory+simd128", "-nostdlib",
    "-fno-strict-aliasing", "-Wall", "-Wextra", "-Wl,--no-entry", "-Wl,-z,stack-size=131072",
)  # fmt: skip
_STRIPPED, _NAMED = "-Wl,--strip-all", "-g0"  # half a kilobyte of functions' names, no other debug information


def build_directory(directory: Path, *, names: bool = False) -> dict[str, bytes]:
    """The modules of a UDF directory, by file name; nothing is written there. `names`: keep functions' names, which
    backtraces of traps show.

    BadInput carries the compiler's first errors when the source does not compile.
    """
    manifest = read_manifest(directory)
    source = directory / f"{manifest.name}.c"
    if not source.is_file():
        raise BadInput(f"there is no {source.name}", field="directory", fix="only C sources are built")
    macros = _macros(manifest)
    return {name: compile_source(source, merge, macros, names=names) for name, merge in manifest.modules().items()}


def write_modules(directory: Path, *, names: bool = True) -> list[Path]:
    """Builds a UDF directory and writes its modules into it; the files written."""
    written = []
    for name, wasm in build_directory(directory, names=names).items():
        path = directory / name
        path.write_bytes(wasm)
        written.append(path)
    return written


def _macros(manifest: Manifest) -> dict[str, int]:
    outputs = {"STREAMS_OUTPUTS": len(manifest.outputs)} if manifest.outputs else {}
    return {**outputs, **dict(manifest.constants)}


def compile_source(
    source: Path, merge: MergeType | None, macros: Mapping[str, int] | None = None, *, names: bool = False
) -> bytes:
    """One C file, built with the SDK; `merge` becomes STREAMS_MERGE. BadInput with the compiler's errors."""
    define = [] if merge is None else [f"-DSTREAMS_MERGE={int(merge)}"]
    define += [f"-D{name}={value}" for name, value in (macros or {}).items()]
    with as_file(files("wasm_udfs").joinpath("sdk")) as sdk, tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch) / "module.wasm"
        command = [
            sys.executable,
            "-m",
            "ziglang",
            "cc",
            *_FLAGS,
            _NAMED if names else _STRIPPED,
            *define,
            "-I",
            str(sdk),
            "-o",
            str(output),
        ]
        try:
            done = subprocess.run(
                [*command, source.name],
                cwd=source.parent,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=BUILD_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise Timeout(f"building {source.name} took longer than {BUILD_TIMEOUT_S:g} s") from None
        if "No module named ziglang" in done.stderr:
            raise Unavailable("the C compiler is not installed", fix="pip install ziglang")
        if done.returncode or not output.is_file():
            raise BadInput(_errors(done.stderr), field="source", fix="correct the source and build again")
        return output.read_bytes()


def _errors(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if "error:" in line]
    return "; ".join(lines[:3])[:600] or stderr.strip()[-600:] or "the compiler failed without a message"
