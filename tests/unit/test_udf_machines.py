"""Deployed machines below Kafka: real WASM and RocksDB, records of a log, many cuts and restarts, one truth."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from streams.client.udf_template import files_of
from streams.client.udfs import ready_module
from streams.definitions.deployment import Deployment, check_group, follows
from streams.definitions.entries import decode_entry
from streams.model.errors import BadInput, Conflict, Unavailable
from streams.model.keyspace import BUILTIN
from streams.sequencer.commands import barrier
from streams.sequencer.machine_check import fuzz_machine, run_machine_vectors
from streams.sequencer.machine_log import Code, Installed, MachineResult, command_record
from streams.sequencer.machine_state import KEEP_MS, SPENT_MS, DeployedState
from streams.wasm.admission import DeployCaps, admit_manifest, admit_module
from streams.wasm.build import compile_source
from streams.wasm.builtin import builtin_module
from streams.wasm.caps import DEFAULT_CAPS
from streams.wasm.engine import ModuleCache, module_hash
from streams.wasm.machine_host import LogCommand

HOSTILE = Path(__file__).parent / "hostile_udfs" / "hostile_machine.c"
TOML = """
name = "told"
version = "1.0.0"
abi = 1
kind = "machine"
[limits]
memory_bytes = 8388608
fuel = 20000000
table_rows = 4
row_bytes = 1000
"""
AT_MS = 1_700_000_000_000
Open = Callable[[str], DeployedState]


@pytest.fixture(scope="module")
def module() -> bytes:
    return compile_source(HOSTILE, None, names=True)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> ModuleCache:
    return ModuleCache(tmp_path_factory.mktemp("modules"))


@pytest.fixture
def opened(tmp_path: Path, cache: ModuleCache) -> Iterator[Open]:
    states: list[DeployedState] = []

    def make(name: str) -> DeployedState:
        states.append(DeployedState(tmp_path / name, "sequenced.told", cache))
        states[-1].begin("topic")
        return states[-1]

    yield make
    for each in states:
        each.close()


def installs(module: bytes, serial: int = 1, version: str = "1.0.0", layout: int = 1, name: str = "told") -> bytes:
    limits = admit_manifest(TOML, DeployCaps()).limits
    return Installed(name, serial, version, module_hash(module), layout, limits, module).encode()


class Log:
    """Records with offsets; each command under an id of its own unless one is given."""

    def __init__(self, *first: bytes) -> None:
        self.records = [LogCommand(at, AT_MS + at, value) for at, value in enumerate(first)]

    def add(self, text: str, at_ms: int | None = None, identity: int | None = None) -> None:
        at = len(self.records)
        name = (at if identity is None else 1_000_000 + identity).to_bytes(16, "big")
        self.records.append(LogCommand(at, AT_MS + at if at_ms is None else at_ms, command_record(name, text.encode())))

    def put(self, value: bytes) -> None:
        self.records.append(LogCommand(len(self.records), AT_MS, value))

    def apply(self, state: DeployedState, size: int = 1_000) -> list[MachineResult]:
        found: list[MachineResult] = []
        while left := self.records[state.next :]:
            piece = left[:size]
            found += state.apply(piece, piece[-1].offset + 1).results
        return found


def told(results: Sequence[MachineResult]) -> list[tuple[Code, str]]:
    return [(each.code, each.body.decode()) for each in results]


def test_the_scaffold_passes_its_own_checks_and_they_notice(tmp_path: Path, cache: ModuleCache) -> None:
    for file, text in files_of("seats", kind="machine").items():
        (tmp_path / file).write_text(text)
    module = ready_module(tmp_path, (tmp_path / "udf.toml").read_bytes())
    manifest = admit_manifest((tmp_path / "udf.toml").read_text(), DeployCaps())
    assert admit_module(module, manifest, DeployCaps(), cache) == module_hash(module)
    assert run_machine_vectors(tmp_path, manifest, module, cache) == []
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    assert fuzz_machine(tmp_path, manifest, module, cache, 60, 1, seed) == []
    vectors = tmp_path / "vectors.json"
    good = vectors.read_text()
    for old, new in (('"ok": false', '"ok": true'), ('"seat:1A": "ann"', '"seat:1A": "bob"')):
        assert old in good
        vectors.write_text(good.replace(old, new, 1))
        assert len(run_machine_vectors(tmp_path, manifest, module, cache)) == 1, old


def test_traps_undo_their_command_alike_on_every_replica(opened: Open, module: bytes) -> None:
    log = Log(installs(module))
    hostile = ("trap a 9", "prepare-trap a", "unnamed a", "loop a 9", "deep a 9", "memory a 9", "big a 9", "zero a 9")
    log.add("set a 1")
    for text in hostile:
        log.add(text)
        log.add("get a")
    log.add("calls")
    log.add("calls")
    log.put(barrier())
    log.put(b"rubbish")
    log.add("time", at_ms=1)  # the log's time does not go back
    one = opened("one")
    results = log.apply(one)
    found = told(results)
    assert found[1:2] == [(Code.DONE, "")]
    for index, text in enumerate(hostile):
        assert found[2 + 2 * index][0] is Code.TRAPPED, (text, found[2 + 2 * index])
        assert found[3 + 2 * index] == (Code.DONE, "1"), text
    kinds = [body.partition(":")[0] for code, body in found if code is Code.TRAPPED]
    assert kinds == ["trap", "trap", "trap", "fuel", "trap", "memory", "output", "trap"]
    assert found[-5:-1] == [(Code.DONE, "1"), (Code.DONE, "1"), (Code.PASSED, ""), (Code.MALFORMED, "")]
    assert int(found[-1][1]) == max(each.append_ms for each in log.records)
    for size in (1, 3):
        other = opened(f"cut-{size}")
        assert log.apply(other, size) == results
        assert other.machine_state == one.machine_state
    assert one.machine_state.traps == len(hostile) and one.machine_state.rows == 1


def test_a_restart_goes_on_where_it_was(opened: Open, module: bytes) -> None:
    log, whole = Log(installs(module)), opened("whole")
    for number in range(12):
        log.add(f"set k{number % 3} {number}", identity=number % 5)
    whole_results = log.apply(whole)
    half, results = opened("half"), []
    for upto in (4, 9, 13):
        results += half.apply(log.records[half.next : upto], upto).results
        half.close()
        half = opened("half")
        assert half.next == upto and half.installed is not None
    assert results == whole_results and half.machine_state == whole.machine_state
    with pytest.raises(Conflict):
        half.apply(log.records[3:4], 4)
    half.reset()
    assert half.installed is None and log.apply(half) == whole_results
    half.close()
    with pytest.raises(Unavailable):
        half.apply([], 13)


def test_a_command_is_executed_once(opened: Open, module: bytes) -> None:
    log, state = Log(installs(module)), opened("once")
    log.add("set a 1", identity=7)
    log.add("trap a 2", identity=8)
    log.add("set a 1", identity=7)
    log.add("trap a 2", identity=8)
    log.add("set a 3", identity=7)
    log.add("set a 1", at_ms=AT_MS + KEEP_MS - 10, identity=7)
    log.add("set a 1", at_ms=AT_MS + KEEP_MS + 10, identity=7)
    results = log.apply(state)
    assert [each.code for each in results[1:]] == [
        Code.DONE, Code.TRAPPED, Code.DONE, Code.TRAPPED, Code.MISMATCH, Code.DONE, Code.SPENT,
    ]  # fmt: skip
    assert (results[3].again, results[3].offset, results[3].body) == (True, 1, results[1].body)
    assert results[4].again and results[4].offset == 2 and results[6].again
    assert state.machine_state.commands == 2
    log.add("set b 2", at_ms=AT_MS + SPENT_MS + 1_000, identity=9)
    log.add("set a 5", at_ms=AT_MS + SPENT_MS + 120_000, identity=7)  # a month later the id is forgotten
    assert [each.code for each in log.apply(state, 1)] == [Code.DONE, Code.DONE]
    log.add("get a", at_ms=AT_MS + SPENT_MS + 240_000)
    assert log.apply(state)[0].body == b"5"
    notes = [key for key, _ in state.store.iterate(b"\x01i")]
    assert len(notes) == 3, "those that count no more are dropped"


def test_a_version_takes_over_at_one_offset(opened: Open, module: bytes, cache: ModuleCache) -> None:
    new = compile_source(HOSTILE, None, {"STREAMS_HEADS_": 1}, names=False)
    assert new != module
    log = Log()
    log.add("get a")
    log.put(installs(module, 3))
    log.add("set a 1")
    log.put(installs(new, 5, "2.0.0"))
    log.add("get a")
    log.put(installs(module, 4))  # an older decision that came late
    log.put(installs(new, 9, "9.0.0", layout=2))
    log.put(installs(new, 9, "9.0.0", name="other"))
    log.put(installs(new, 9, "9.0.0").replace(b"streams_apply", b"streams_opply"))
    log.add("get a")
    log.put(installs(module, 6))  # a rollback
    log.add("get a")
    one, other = opened("one"), opened("other")
    results = log.apply(one)
    assert [(each.code, each.version) for each in results] == [
        (Code.NO_MACHINE, ""), (Code.SWAPPED, "1.0.0"), (Code.DONE, "1.0.0"), (Code.SWAPPED, "2.0.0"),
        (Code.DONE, "2.0.0"), (Code.KEPT, "2.0.0"), (Code.KEPT, "2.0.0"), (Code.KEPT, "2.0.0"), (Code.KEPT, "2.0.0"),
        (Code.DONE, "2.0.0"), (Code.SWAPPED, "1.0.0"), (Code.DONE, "1.0.0"),
    ]  # fmt: skip
    assert {each.body for each in results if each.code is Code.DONE} == {b"", b"1"}
    assert log.apply(other, 1) == results and other.machine_state == one.machine_state


def test_queries_change_nothing_and_tables_are_bounded(opened: Open, module: bytes) -> None:
    log, state = Log(installs(module)), opened("asked")
    with pytest.raises(Unavailable):
        state.query(b"get a")
    for key in "abcde":
        log.add(f"set {key} 1")
    log.add("set a " + "1" * 1_001)
    codes = [each.code for each in log.apply(state)[1:]]
    assert codes == [Code.DONE] * 4 + [Code.TRAPPED] * 2 and state.machine_state.rows == 4
    before = state.machine_state
    assert state.query(b"get a") == (b"1", 7, "1.0.0")
    with pytest.raises(Conflict, match="changes nothing"):
        state.query(b"set a 2")
    assert state.machine_state == before and state.query(b"get a")[0] == b"1"


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ('kind = "machine"', 'kind = "machine"\ngroup = "orders"', "group"),
        ('kind = "machine"', 'kind = "machine"\ngroup = "A b"', "group"),
        ('kind = "machine"', 'kind = "machine"\nlayout = 0', "layout"),
        ('kind = "machine"', 'kind = "machine"\ninputs = ["score"]', "inputs"),
        ("fuel = 20000000", "deadline_s = 1.0", "limits.deadline_s"),
        ("fuel = 20000000", "fuel = 2000000000", "limits.fuel"),
        ("memory_bytes = 8388608", "memory_bytes = 2147483648", "limits.memory_bytes"),
    ],
)
def test_a_bad_manifest_is_refused_by_its_field(old: str, new: str, field: str) -> None:
    assert old in TOML
    with pytest.raises(BadInput) as refused:
        admit_manifest(TOML.replace(old, new), DeployCaps())
    assert refused.value.field == field


def test_a_bad_module_is_refused_with_the_reason(module: bytes, cache: ModuleCache) -> None:
    manifest = admit_manifest(TOML, DeployCaps())
    assert admit_module(module, manifest, DeployCaps(), cache) == module_hash(module)
    for bad, says in (
        (b"", "empty"),
        (b"MZ", "not a WebAssembly"),
        (builtin_module("counter"), "streams_abi_v1"),
        (builtin_module("order_book"), "resident"),
        (module.replace(b"streams_apply", b"streams_opply"), "streams_apply"),
    ):
        with pytest.raises(BadInput, match=says) as refused:
            admit_module(bad, manifest, DeployCaps(), cache)
        assert refused.value.field == "module"
    small = replace(manifest, limits=replace(manifest.limits, memory_bytes=65_536))
    with pytest.raises(BadInput, match="does not start"):
        admit_module(module, small, DeployCaps(), cache)


def test_what_may_follow_what(module: bytes) -> None:
    one = Deployment.make(TOML, module, 1, "ann", "us-east")
    assert Deployment.of(decode_entry(one.entry().key.encode(), json.dumps(one.entry().value).encode())) == one
    assert one.to_json()["topic"] == "sequenced.told" and one.manifest.at_gateways

    def made(*changes: tuple[str, str]) -> Deployment:
        text = TOML
        for old, new in changes:
            text = text.replace(old, new)
        return Deployment.make(text, module, 1, "ann", "us-east")

    assert follows(made(("1.0.0", "1.1.0")), one, [], 10)
    for key, line in (("layout", "layout = 2"), ("group", 'group = "else"')):
        with pytest.raises(Conflict) as refused:
            follows(made(("1.0.0", "1.1.0"), ('kind = "machine"', f'kind = "machine"\n{line}')), one, [], 10)
        assert refused.value.field == key
    with pytest.raises(Conflict, match="has the group told"):
        follows(made(('name = "told"', 'name = "other"\ngroup = "told"')), None, [one], 10)
    with pytest.raises(Conflict, match="keyspace"):
        check_group("m", "score", {each.name: each for each in BUILTIN})
    assert DEFAULT_CAPS.fuel >= one.manifest.limits.fuel
