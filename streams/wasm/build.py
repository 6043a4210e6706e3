"""Builds a UDF directory to WebAssembly.

C and Zig with the `ziglang` wheel, Python with `componentize-py`: the same source gives the same bytes, anywhere
(Python's where steady.py holds).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from importlib.resources import as_file, files
from pathlib import Path

from streams.model.errors import BadInput
from streams.model.row import MergeType
from streams.wasm.componentize import componentize
from streams.wasm.languages import run_zig
from streams.wasm.manifest import Manifest, read_manifest

Tell = Callable[[str], None]
SUFFIXES = (".c", ".zig", ".py")
_FLAGS = (
    "-target", "wasm32-freestanding", "-std=c11", "-O3", "-mcpu=generic+bulk_memory+simd128", "-nostdlib",
    "-fno-strict-aliasing", "-Wall", "-Wextra", "-Wl,--no-entry", "-Wl,-z,stack-size=131072",
)  # fmt: skip
_STRIPPED, _NAMED = "-Wl,--strip-all", "-g0"  # half a kilobyte of functions' names, no other debug information
_ZIG_FLAGS = (
    "-target", "wasm32-freestanding", "-mcpu=generic+bulk_memory+simd128", "-O", "ReleaseFast", "-fstrip",
)  # fmt: skip


def build_directory(directory: Path, *, names: bool = False, tell: Tell | None = None) -> dict[str, bytes]:
    """The modules of a UDF directory, by file name; nothing is written there. `names`: keep functions' names, which
    backtraces of traps show. `tell` is called with what is to be known of them.

    BadInput carries the compiler's first errors when the source does not compile.
    """
    manifest = read_manifest(directory)
    source = source_of(directory, manifest.name)
    if source is None:
        raise BadInput(
            f"there is no {manifest.name}.c, .zig or .py in it", field="directory", fix="see `streams udf new`"
        )
    if source.suffix == ".py":
        component = componentize(source, manifest)
        if tell is not None and not component.steady:
            tell("built again, the same source gives other bytes: on this machine nothing holds the interpreter's seed")
        return {f"{manifest.name}.wasm": component.wasm}
    compile_one = compile_zig if source.suffix == ".zig" else compile_source
    macros = _macros(manifest)
    return {name: compile_one(source, merge, macros, names=names) for name, merge in manifest.modules().items()}


def source_of(directory: Path, name: str) -> Path | None:
    """The source of a UDF directory, C before Zig before Python; None when there is none."""
    found = (directory / f"{name}{suffix}" for suffix in SUFFIXES)
    return next((each for each in found if each.is_file()), None)


def write_modules(directory: Path, *, names: bool = True, tell: Tell | None = None) -> list[Path]:
    """Builds a UDF directory and writes its modules into it; the files written."""
    written = []
    for name, wasm in build_directory(directory, names=names, tell=tell).items():
        path = directory / name
        path.write_bytes(wasm)
        written.append(path)
    return written


def _macros(manifest: Manifest) -> dict[str, int]:
    outputs = {"STREAMS_OUTPUTS": len(manifest.outputs)} if manifest.outputs else {}
    if manifest.is_map:
        outputs = {f"STREAMS_{manifest.kind.upper()}": 1, "STREAMS_PUTS": len(manifest.puts)}
    return {**outputs, **dict(manifest.constants)}


def _defines(merge: MergeType | None, macros: Mapping[str, int] | None) -> list[str]:
    define = [] if merge is None else [f"-DSTREAMS_MERGE={int(merge)}"]
    return [*define, *(f"-D{name}={value}" for name, value in (macros or {}).items())]


def compile_source(
    source: Path, merge: MergeType | None, macros: Mapping[str, int] | None = None, *, names: bool = False
) -> bytes:
    """One C file, built with the SDK; `merge` becomes STREAMS_MERGE. BadInput with the compiler's errors."""
    with as_file(files("wasm_udfs").joinpath("sdk")) as sdk, tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch) / "module.wasm"
        flags = [*_FLAGS, _NAMED if names else _STRIPPED, *_defines(merge, macros)]
        return run_zig(["cc", *flags, "-I", str(sdk), "-o", str(output), source.name], source, output)


def compile_zig(
    source: Path, merge: MergeType | None, macros: Mapping[str, int] | None = None, *, names: bool = False
) -> bytes:
    """One Zig file, linked with the C SDK; constants of udf.toml are not seen by Zig. BadInput with the errors."""
    with as_file(files("wasm_udfs").joinpath("sdk")) as sdk, tempfile.TemporaryDirectory() as scratch:
        compiled, output = Path(scratch) / "source.o", Path(scratch) / "module.wasm"
        modules = ["--dep", "streams", f"-Mroot={source.name}", f"-Mstreams={sdk / 'zig' / 'streams.zig'}"]
        run_zig(["build-obj", *_ZIG_FLAGS, *modules, f"-femit-bin={compiled}"], source, compiled)
        glue = [f"-I{sdk}", "-o", str(output), str(sdk / "zig" / "glue.c"), str(compiled)]
        flags = [*_FLAGS, _NAMED if names else _STRIPPED, *_defines(merge, macros)]
        return run_zig(["cc", *flags, *glue], source, output)
