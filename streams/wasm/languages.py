"""The compilers of UDFs: `ziglang` (C and Zig) and `componentize-py` (Python), each from its wheel, as a child process.

componentize-py runs the interpreter up to after the imports and keeps its memory, the seed of its hashes included: two
builds of a source behave alike but for the order of sets, and their bytes differ. So a Python UDF is built once, and
what is deployed is that one component, everywhere.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from importlib.resources import as_file, files
from importlib.util import find_spec
from pathlib import Path

from streams.model.errors import BadInput, Timeout, Unavailable
from streams.model.keyspace import BUILTIN
from streams.wasm.manifest import Manifest

BUILD_TIMEOUT_S = 120.0
COMPONENT_TIMEOUT_S = 600.0
"""componentize-py takes ten seconds of a core, and this much where the machine is busy."""
SCHEMA_IDS = {
    597403240: "streams.CounterAdd",
    1968485633: "streams.Number",
    497969218: "streams.Reading",
    293954584: "streams.Json",
}
"""Fingerprints of the schemas that the Python SDK reads and writes (a test holds them to schemas/*.avsc)."""
_SOURCE = "streams_udf_source"
_APP = """\
import streams_udf
import {source}
import wit_world

streams_udf.SCHEMAS.update({schemas!r})
_udf = streams_udf.udf_of({source}, {kind!r})
_udf.merge, _udf.writes = {merge!r}, {writes!r}
_dispatcher = streams_udf.Dispatcher(_udf)


class WitWorld(wit_world.WitWorld):
    def call(self, name, input):
        return _dispatcher.call(name, input)
"""


def run_zig(arguments: list[str], source: Path, output: Path) -> bytes:
    """Run `zig` beside `source`; what it wrote to `output`. BadInput with its first errors."""
    done = _run([sys.executable, "-m", "ziglang", *arguments], source)
    if "No module named ziglang" in done.stderr:
        raise Unavailable("the C and Zig compiler is not installed", fix="pip install ziglang")
    if done.returncode or not output.is_file():
        raise BadInput(_errors(done.stderr), field="source", fix="correct the source and build again")
    return output.read_bytes()


def componentize(source: Path, manifest: Manifest) -> bytes:
    """A Python UDF as a component without imports. BadInput with the exception when it cannot be imported."""
    if find_spec("componentize_py") is None:
        raise Unavailable("the compiler of Python UDFs is not installed", fix="pip install componentize-py")
    try:
        compile(source.read_text(), source.name, "exec", dont_inherit=True)
    except SyntaxError as error:
        raise BadInput(
            f"{source.name}:{error.lineno}: {error.msg}", field="source", fix="correct the source and build again"
        ) from None
    builtin = {each.name: each.schema for each in BUILTIN}
    written = zip(manifest.puts, manifest.writes, strict=True)
    text = _APP.format(
        source=_SOURCE,
        schemas=SCHEMA_IDS,
        kind=manifest.kind,
        merge=int(manifest.merges[0]) if manifest.merges else 0,
        writes=tuple(schema or builtin.get(name, "") for name, schema in written),
    )
    with as_file(files("wasm_udfs").joinpath("sdk", "python")) as sdk, tempfile.TemporaryDirectory() as scratch:
        place, output = Path(scratch), Path(scratch) / "module.wasm"
        (place / f"{_SOURCE}.py").write_text(source.read_text())
        (place / "streams_app.py").write_text(text)
        where = ["-p", str(place), "-p", str(sdk), "-p", str(source.parent.resolve())]
        command = [sys.executable, "-c", "import componentize_py; componentize_py.script()", "-q"]
        command += [
            "-d",
            str(sdk),
            "-w",
            "udf",
            "componentize",
            "--stub-wasi",
            *where,
            "streams_app",
            "-o",
            str(output),
        ]
        done = _run(command, source, COMPONENT_TIMEOUT_S)
        if done.returncode or not output.is_file():
            raise BadInput(_exception(done.stderr), field="source", fix="correct the source and build again")
        return output.read_bytes()


def _run(command: list[str], source: Path, timeout_s: float = BUILD_TIMEOUT_S) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("VIRTUAL_ENV", None)  # componentize-py would take its packages in
    try:
        return subprocess.run(
            command,
            cwd=source.parent,
            env=environment,
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


def _exception(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    told = [line for line in lines if re.match(r"(\w+\.)*\w*(Error|Exception)\b", line)]
    return "; ".join(told[:2])[:600] or " ".join(lines)[-600:] or "the compiler failed without a message"
