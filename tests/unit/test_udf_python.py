"""UDFs in Python: the component on the real host, against the same in C; the SDK's other kinds in this interpreter."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from streams.cli.udf_fuzz import Bench, Keyspaces, random_events
from streams.client.udf_template import files_of
from streams.model.errors import BadInput
from streams.serde import encode, load_builtin
from streams.wasm import build as build_room
from streams.wasm import steady
from streams.wasm.admission import DeployCaps, admit_manifest, admit_module
from streams.wasm.batch import Event, build
from streams.wasm.componentize import SCHEMA_IDS
from streams.wasm.engine import ModuleCache
from streams.wasm.fold_host import FoldHost, FoldOptions
from streams.wasm.map_host import MapHost
from streams.wasm.vectors import run_vectors

SDK = Path(str(files("wasm_udfs").joinpath("sdk", "python")))
pytestmark = pytest.mark.timeout(900)  # an interpreter is built and compiled: 20 s alone, minutes beside others
holds = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in steady.HELD_BY, reason="nothing is held there"
)
KEEPING = """

import os
import uuid

import helper
import pack.inner

KEPT = {str(each) for each in range(99)}, {object() for _ in range(99)}, time.time(), time.perf_counter(), uuid.uuid4()
SEEN = os.listdir("/python"), os.listdir("/2"), os.stat("/python"), os.stat(__file__), dict(os.environ), os.urandom(9)
"""
HOSTILE = Path(__file__).parent / "hostile_udfs" / "hostile_counter.py"


@pytest.fixture
def seeded() -> random.Random:
    seed = int(os.environ.get("STREAMS_TEST_SEED") or random.SystemRandom().randrange(2**32))
    print(f"seed {seed}")
    return random.Random(seed)


def scaffold(place: Path, lang: str, kind: str, source: str = "") -> Path:
    place.mkdir(parents=True)
    for file, text in files_of("fresh", lang, kind).items():
        (place / file).write_text(source if source and not file.endswith((".toml", ".json")) else text)
    return place


def test_the_sdk_knows_the_built_in_schemas_by_their_fingerprints() -> None:
    assert {load_builtin()[name].id: name for name in SCHEMA_IDS.values()} == SCHEMA_IDS


def hostile(place: Path) -> Path:
    """A UDF's directory, whose source keeps all that differs from build to build, and imports what lies beside it."""
    scaffold(place, "python", "fold", HOSTILE.read_text() + KEEPING)
    (place / "helper.py").write_text("NAMES = {'a', 'b'}\n")
    (place / "pack").mkdir()
    (place / "pack" / "__init__.py").write_text("")
    (place / "pack" / "inner.py").write_text("from logging import getLogger\n")
    return place


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of one built component, since building an interpreter takes seconds."""
    place = hostile(tmp_path_factory.mktemp("built") / "python")
    build_room.write_modules(place)
    return place


@holds
def test_building_again_gives_the_same_bytes(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In another directory, beside what is not its own, with another home, on another file system if there is one."""
    wasm = (built / "fresh.wasm").read_bytes()
    place = hostile(tmp_path / "else where" / "python")
    (place / "fresh.wasm").write_bytes(wasm)
    (place / "notes.txt").write_text("not the source's")
    (place / ".git").mkdir()
    (place / "__pycache__").mkdir()
    shared = Path("/dev/shm")
    temporary = Path(tempfile.mkdtemp(dir=shared if os.access(shared, os.W_OK) else tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PYTHONHASHSEED", "7")
    monkeypatch.setenv("VIRTUAL_ENV", sys.prefix)
    said: list[str] = []
    before = os.umask(0o077)
    try:
        again = build_room.build_directory(place, tell=said.append)["fresh.wasm"]
        assert not list(temporary.iterdir())
    finally:
        os.umask(before)
        shutil.rmtree(temporary)
    assert hashlib.sha256(again).hexdigest() == hashlib.sha256(wasm).hexdigest()
    assert said == []
    assert str(tmp_path).encode() not in again


@holds
def test_where_nothing_can_be_held_a_component_is_built_all_the_same_and_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trap may end the child: a call of a thread that holds signals back has no handler."""
    preloaded = []

    def run(command: list[str], source: Path, timeout_s: float, where: Path, environment: dict[str, str]) -> Any:
        preloaded.append("LD_PRELOAD" in environment)
        if preloaded[-1]:
            return subprocess.CompletedProcess(command, -signal.SIGSYS, "", "")
        (where / "module.wasm").write_bytes(b"component")
        return subprocess.CompletedProcess(command, 0, "not preloaded\n", "")

    monkeypatch.setattr(steady, "run_child", run)
    said: list[str] = []
    place = scaffold(tmp_path / "python", "python", "fold")
    assert build_room.build_directory(place, tell=said.append) == {"fresh.wasm": b"component"}
    assert (preloaded, len(said)) == ([True, False], 1) and "other bytes" in said[0]
    monkeypatch.setattr(steady.platform, "machine", lambda: "riscv64")
    assert build_room.build_directory(place) == {"fresh.wasm": b"component"}
    assert preloaded == [True, False, False]


def test_a_fold_in_python_is_the_fold_in_c_and_is_contained(built: Path, tmp_path: Path, seeded: random.Random) -> None:
    cache = ModuleCache(tmp_path / "cache")
    place = built
    wasm = (place / "fresh.wasm").read_bytes()
    manifest = admit_manifest((place / "udf.toml").read_text(), DeployCaps())
    assert admit_module(wasm, manifest, DeployCaps(), cache)
    with pytest.raises(BadInput, match="answers ABI version 0"):
        admit_module(
            wasm, admit_manifest(files_of("m", "python", "map")["udf.toml"], DeployCaps()), DeployCaps(), cache
        )
    assert run_vectors(place, cache) == []

    in_c = scaffold(tmp_path / "c", "c", "fold")
    same = Bench(build_room.build_directory(in_c)["fresh.wasm"], manifest, Keyspaces(), cache)
    bench = Bench(wasm, manifest, Keyspaces(), cache)
    events = random_events(manifest, bench.keyspaces, 400, seeded)
    whole = bench.run([events])
    assert whole == same.run([events]) and whole[0]
    pieces = [events[at : at + 37] for at in range(0, 400, 37)]
    assert bench.run(pieces, frozenset({2, 5})) == whole

    words = ["a", "clock", "random", "system", "file", "raise", "memory", "deep", "refuse", "a"]
    host = FoldHost(wasm, cache, FoldOptions(manifest.limits, merge=2))
    value = encode(load_builtin()["streams.CounterAdd"], {"add": 10})
    batch = [
        Event(1_000 + i, 1_000 + i << 16, 2**63 - 1, 0, 0, f"score:{w}".encode(), value, i) for i, w in enumerate(words)
    ]
    rejects = {words[each.index]: each.reason for each in host.fold(build(batch).raw, lambda keys: [None] * len(keys))}
    assert rejects.keys() == set(words) - {"a"}
    for word, says in {
        "clock": "unreachable", "system": "unreachable", "file": "unreachable", "random": "has no randomness",
        "raise": "ValueError: not this one", "memory": "MemoryError", "deep": "RecursionError", "refuse": "no thanks",
    }.items():  # fmt: skip
        assert says in rejects[word], rejects
    assert [key for key, _ in host.take()] == [b"score:a"]
    host.close()


def test_a_source_that_is_no_python_is_refused_by_its_line(tmp_path: Path) -> None:
    place = scaffold(tmp_path / "bad", "python", "fold", "from streams_udf import Fold\nclass Udf(Fold:\n")
    with pytest.raises(BadInput, match=r"fresh\.py:2: ") as refused:
        build_room.build_directory(place)
    assert refused.value.field == "source"


@pytest.fixture
def sdk(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The SDK in this interpreter; it takes the module-level randomness away, which comes back afterwards."""
    monkeypatch.syspath_prepend(str(SDK))
    kept = {name: getattr(random, name) for name in random.__all__}
    try:
        import_of = importlib.import_module("streams_udf")
        import_of.SCHEMAS.update(SCHEMA_IDS)
        yield import_of
    finally:
        sys.modules.pop("streams_udf", None)
        for name, value in kept.items():
            setattr(random, name, value)


class InThisInterpreter:
    """A UDF's class behind a guest's calls, without a component: for what the SDK does, not for the sandbox."""

    memory_bytes = 0

    def __init__(self, dispatcher: Any) -> None:
        self._dispatcher, self._input, self._answer = dispatcher, b"", b""

    def put(self, data: bytes) -> tuple[int, int]:
        self._input = data
        return 0, len(data)

    def call(self, name: str, *_: int) -> int:
        self._answer = self._dispatcher.call(name, self._input.decode("latin-1")).encode("latin-1")
        return int.from_bytes(self._answer[:4], "little")

    def describe(self, _: int) -> tuple[bytes, int]:
        assert self._answer[:4] == bytes(4), self._answer
        return self._answer[4:], 0

    def close(self) -> None:
        return


@pytest.mark.parametrize("kind", ["map", "filter", "flat_map"])
def test_the_stateless_kinds_in_python_do_what_those_in_c_do(
    kind: str, tmp_path: Path, seeded: random.Random, sdk: ModuleType
) -> None:
    cache = ModuleCache(tmp_path / "cache")
    place = scaffold(tmp_path / "python", "python", kind)
    spec = importlib.util.spec_from_file_location("fresh", place / "fresh.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    udf = sdk.udf_of(module, kind)
    manifest = admit_manifest((place / "udf.toml").read_text(), DeployCaps())
    known = Keyspaces()
    udf.writes = tuple(known.all[name].schema for name in manifest.puts)

    wasm = build_room.build_directory(scaffold(tmp_path / "c", "c", kind))["fresh.wasm"]
    host, mine = (MapHost(wasm, cache, kind, 1, manifest.limits) for _ in range(2))
    mine._guest = InThisInterpreter(sdk.Dispatcher(udf))  # type: ignore[assignment]
    events = random_events(manifest, known, 200, seeded)
    if kind == "flat_map":  # the template in C reads the text, that in Python the value: escapes differ
        events = [each for each in events if b"\\" not in each.value]
    batch = build(events).raw
    emitted, rejects = host.map(batch)
    assert mine.map(batch) == (emitted, rejects) and emitted
    host.close()
