"""An installed wheel carries what is no Python: schemas, built modules, the lock of jars, pages."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOOKS = """
import streams
from importlib.resources import files
from streams.region.jars import read_lock
from streams.serde import load_builtin
from streams.wasm.builtin import builtin_module

assert streams.__file__.startswith({place!r}), streams.__file__
assert {{"streams.CounterAdd", "streams.Frame"}} <= load_builtin().keys()
for name in {modules!r}:
    assert builtin_module(name).startswith(b"\\0asm"), name
assert len(read_lock()) > 50
for page in ("docs.html", "dashboard.html"):
    assert (files("streams.gateway") / "pages" / page).read_bytes()
assert (files("streams.verify") / "checker" / "checker.wasm").read_bytes()
"""


@pytest.mark.timeout(180)
def test_an_installed_wheel_carries_schemas_and_modules(tmp_path: Path) -> None:
    pip, place = [sys.executable, "-m", "pip"], tmp_path / "site"
    source = tmp_path / "source"  # building leaves directories beside the sources
    source.mkdir()
    for packed_dir in ("streams", "wasm_udfs", "schemas", "compose"):
        shutil.copytree(ROOT / packed_dir, source / packed_dir, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source / file)
    build = [*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), str(source)]
    subprocess.run(build, check=True, timeout=120)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        names = set(packed.namelist())
    for kind in ("schemas/*.avsc", "wasm_udfs/*/*.wasm", "wasm_udfs/sdk/*.h"):
        wanted = {path.relative_to(ROOT).as_posix() for path in ROOT.glob(kind)}
        assert wanted and wanted <= names, wanted - names
    subprocess.run([*pip, "install", "-q", "--no-deps", "--target", str(place), str(wheel)], check=True, timeout=120)
    modules = sorted(path.stem for path in ROOT.glob("wasm_udfs/*/*.wasm") if path.stem != "handle_request")
    looks = LOOKS.format(place=str(place), modules=modules)
    env = {**os.environ, "PYTHONPATH": str(place)}
    subprocess.run([sys.executable, "-c", looks], cwd=tmp_path, env=env, check=True, timeout=60)
