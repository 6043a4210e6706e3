"""UDF directories: reproducible builds, manifests, vectors, and clear refusals."""

from __future__ import annotations

import json
import shutil
from importlib.resources import files
from pathlib import Path

import pytest

from streams.model.errors import BadInput
from streams.model.row import MergeType
from streams.wasm.build import build_directory, write_modules
from streams.wasm.engine import ModuleCache
from streams.wasm.manifest import parse_manifest, read_manifest
from streams.wasm.vectors import run_vectors

ROOT = Path(str(files("wasm_udfs").joinpath("sdk"))).parent
GOOD = 'name = "n"\nversion = "1"\nabi = 1\nkind = "fold"\nmerge = "lww"\n'


BUILT = [
    "counter",
    "kv",
    "extremum",
    "record_decoder",
    "telemetry",
    "anomaly",
    "strong_kv",
    "order_book",
    "handle_request",
]


@pytest.mark.parametrize("name", BUILT)
def test_building_again_gives_the_bytes_checked_in(name: str, tmp_path: Path) -> None:
    """From another directory too: a module holds no path and no time."""
    elsewhere = tmp_path / "else where" / name
    shutil.copytree(ROOT / name, elsewhere)
    for directory in (ROOT / name, elsewhere):
        built = build_directory(directory)
        assert built == {module: (ROOT / name / module).read_bytes() for module in built}
    for wasm in built.values():
        assert str(tmp_path).encode() not in wasm
        assert b"ziglang" not in wasm


@pytest.mark.parametrize("name", ["counter", "kv", "extremum", "anomaly"])
def test_vectors(name: str, tmp_path: Path) -> None:
    assert run_vectors(ROOT / name, ModuleCache(tmp_path)) == []


def test_a_wrong_vector_is_reported(tmp_path: Path) -> None:
    directory = tmp_path / "kv"
    shutil.copytree(ROOT / "kv", directory)
    file = directory / "vectors.json"
    cases = json.loads(file.read_text())
    cases["cases"][0]["expect"]["k:a"]["last_hlc"] += 1
    cases["cases"][1]["rejects"] = [{"index": 0, "reason": "no"}]
    file.write_text(json.dumps(cases))
    failures = run_vectors(directory, ModuleCache(tmp_path / "cache"))
    assert len(failures) == 4  # both cases, whole and one event at a time
    assert "k:a" in failures[0]
    file.write_text("[")
    with pytest.raises(BadInput, match=r"vectors\.json"):
        run_vectors(directory, ModuleCache(tmp_path / "cache"))


def test_source_that_does_not_compile_is_refused_with_the_compilers_words(tmp_path: Path) -> None:
    directory = tmp_path / "n"
    directory.mkdir()
    (directory / "udf.toml").write_text(GOOD)
    with pytest.raises(BadInput, match=r"there is no n\.c"):
        build_directory(directory)
    signature = '#include "streams.h"\nint streams_fold_event(const streams_event *e, streams_row *r) '
    (directory / "n.c").write_text(signature + "{ return nonsense; }\n")
    with pytest.raises(BadInput, match=r"n\.c:2:.*error:.*nonsense") as caught:
        build_directory(directory)
    assert str(tmp_path) not in str(caught.value)
    (directory / "n.c").write_text("int getpid(void);\n" + signature + "{ (void)e; (void)r; return getpid(); }\n")
    with pytest.raises(BadInput, match="getpid"):
        build_directory(directory)
    (directory / "n.c").write_text(signature + "{ streams_touch(e, r, 1); return 0; }\n")
    assert [p.name for p in write_modules(directory)] == ["n.wasm"]


def test_manifests() -> None:
    manifest = parse_manifest(GOOD + "[limits]\nmemory_bytes = 1e6\ndeadline_s = 1\n")
    limits = manifest.limits
    assert (manifest.outputs, manifest.constants) == ((), ())
    more = parse_manifest(GOOD + 'outputs = ["late.device"]\n[constants]\nGRACE_MS = 5\n')
    assert (more.outputs, more.constants) == (("late.device",), (("GRACE_MS", 5),))
    assert (manifest.merges, limits.memory_bytes, limits.deadline_s) == (
        (MergeType.LWW,),
        1_000_000,
        1,
    )
    assert read_manifest(ROOT / "extremum").modules() == {"max.wasm": MergeType.MAX, "min.wasm": MergeType.MIN}


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("=", "manifest"),
        (GOOD.replace("abi = 1", "abi = 2"), "abi"),
        (GOOD.replace('"fold"', '"cron"'), "kind"),
        (GOOD.replace('"n"', '"../n"'), "name"),
        (GOOD.replace('"lww"', '"sum"'), "merge"),
        (GOOD.replace('merge = "lww"', ""), "merge"),
        (GOOD.replace('"1"', "1"), "version"),
        (GOOD + "[limits]\nhats = 3\n", "limits.hats"),
        (GOOD + "[limits]\nmemory_bytes = -3\n", "limits.memory_bytes"),
        (GOOD + "limits = 3\n", "limits"),
        (GOOD + 'outputs = "late.device"\n', "outputs"),
        (GOOD + 'outputs = ["Late"]\n', "outputs"),
        (GOOD + 'outputs = ["late.a", "late.a"]\n', "outputs"),
        (GOOD + "constants = 3\n", "constants"),
        (GOOD + "[constants]\ngrace = 3\n", "constants.grace"),
        (GOOD + "[constants]\nGRACE = 1.5\n", "constants.GRACE"),
        (GOOD + "[constants]\nSTREAMS_MERGE = 1\n", "constants.STREAMS_MERGE"),
    ],
)
def test_wrong_manifests_name_the_field(text: str, field: str) -> None:
    with pytest.raises(BadInput) as caught:
        parse_manifest(text)
    assert caught.value.field == field
