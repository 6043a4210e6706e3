"""Functions without a gateway: the ABI, capabilities, limits, and what a hostile one can do (nothing)."""

from __future__ import annotations

import struct
import threading
import time
from pathlib import Path

import pytest

from streams.client.udf_template import files_of
from streams.client.udfs import ready_module
from streams.definitions.deployment import Deployment, check_function, deployed_tables, follows
from streams.definitions.entries import decode_entry
from streams.model.errors import BadInput, Conflict
from streams.model.keyspace import BUILTIN, Keyspace
from streams.wasm.admission import DeployCaps, admit_manifest, admit_module
from streams.wasm.engine import ModuleCache, TrapKind, UdfTrap
from streams.wasm.function_abi import FunctionRequest, decode_answer
from streams.wasm.function_engine import FunctionModules, starts_at_once
from streams.wasm.function_host import FunctionHost, FunctionResult
from streams.wasm.function_vectors import MemoryServices, run_function_vectors
from streams.wasm.manifest import parse_manifest
from tests.support.functions import HANDLE_REQUEST, HOSTILE_TOML, deployment, handle_request, hostile, hostile_module

KEYSPACES = {each.name: each for each in BUILTIN}


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> FunctionModules:
    return FunctionModules(tmp_path_factory.mktemp("functions"))


def hosted(modules: FunctionModules, of: Deployment) -> FunctionHost:
    assert of.manifest.function is not None
    return FunctionHost(of.module, modules, of.manifest.function, of.manifest.limits)


def ask(host: FunctionHost, what: str, **fields: str) -> FunctionResult:
    tables = {"kv": {"kv:a": 1, "kv:s1": "x", "kv:s2": [1], "kv:t": 0}, "score": {"score:a": 3, "score:b": 9}}
    given = {"query.do": what, **fields}
    request = FunctionRequest({name: value.encode() for name, value in given.items()})
    return host.run(request.encode(), MemoryServices(host.part, tables))


def test_the_examples_vectors_hold_and_notice(modules: FunctionModules, tmp_path: Path) -> None:
    assert run_function_vectors(HANDLE_REQUEST, modules) == []
    for file, text in files_of("points", kind="function").items():
        (tmp_path / file).write_text(text)
    module = ready_module(tmp_path, (tmp_path / "udf.toml").read_bytes())
    manifest = admit_manifest((tmp_path / "udf.toml").read_text(), DeployCaps())
    assert admit_module(module, manifest, DeployCaps(), ModuleCache(tmp_path / "cache"))
    assert run_function_vectors(tmp_path, modules) == []
    vectors = tmp_path / "vectors.json"
    for old, new in (('"status": 200', '"status": 201'), ('"add": 1', '"add": 2'), ("application/json", "text/x")):
        good = vectors.read_text()
        assert old in good
        vectors.write_text(good.replace(old, new))
        assert len(run_function_vectors(tmp_path, modules)) == 1, old
        vectors.write_text(good)


@pytest.mark.parametrize(
    ("what", "kind", "says"),
    [
        ("trap", TrapKind.TRAP, "unreachable"),
        ("divide", TrapKind.TRAP, "integer division by zero"),
        ("wild", TrapKind.TRAP, "out of bounds"),
        ("loop", TrapKind.DEADLINE, "deadline of 0.3 s"),
        ("bomb", TrapKind.MEMORY, "memory limit of 33554432"),
        ("deep", TrapKind.TRAP, ""),
        ("giant", TrapKind.OUTPUT, "over the limit of 1048576"),
        ("wild-key", TrapKind.MALFORMED, "outside its memory"),
        ("wild-value", TrapKind.MALFORMED, "outside its memory"),
        ("wild-out", TrapKind.MALFORMED, "outside its memory"),
        ("wild-log", TrapKind.MALFORMED, "outside its memory"),
        ("wild-random", TrapKind.MALFORMED, "outside its memory"),
        ("huge-random", TrapKind.OUTPUT, "random bytes"),
        ("foreign-table", TrapKind.TRAP, "table 'prefs', which udf.toml does not name"),
        ("reads", TrapKind.OUTPUT, "more than 100 rows"),
        ("puts", TrapKind.OUTPUT, "more than 8 events"),
        ("bad-status", TrapKind.MALFORMED, "status 99"),
        ("continue", TrapKind.MALFORMED, "status 101"),
        ("no-content", TrapKind.MALFORMED, "a body and status 204"),
        ("split", TrapKind.MALFORMED, "does not allow"),
        ("name", TrapKind.MALFORMED, "does not allow"),
        ("own", TrapKind.MALFORMED, "the gateway's own"),
        ("headers", TrapKind.MALFORMED, "41 headers"),
    ],
)
def test_a_hostile_request_costs_itself(modules: FunctionModules, what: str, kind: TrapKind, says: str) -> None:
    host = hosted(modules, hostile())
    with pytest.raises(UdfTrap) as trap:
        ask(host, what)
    assert trap.value.kind is kind and says in trap.value.detail, trap.value.detail
    assert ask(host, "").answer.body == b"fine"


def test_instances_share_nothing_and_are_given_back(modules: FunctionModules) -> None:
    """More requests than the pool has places, in several threads, one in three of which ends badly."""
    host, wrong = hosted(modules, hostile()), []

    def work() -> None:
        for number in range(60):
            if number % 3 == 0:
                with pytest.raises(UdfTrap):
                    ask(host, "trap")
            elif (found := ask(host, "echo", body=f"{threading.get_ident()}-{number}")).answer.body != (
                f"{threading.get_ident()}-{number}".encode()
            ):
                wrong.append(found)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(60)
    assert not wrong and not any(each.is_alive() for each in threads)


def test_host_functions(modules: FunctionModules) -> None:
    host = hosted(modules, hostile())
    assert ask(host, "scan").answer.body == b'kv:s1="x" kv:s2=[1] '
    assert ask(host, "top").answer.body == b"score:b=9 score:a=3 "
    assert ask(host, "random").answer.body == b"01234567"
    assert ask(host, "clock").answer.body == b"1700000000000"
    found = ask(host, "refused")
    assert found.answer.body == b"-1-1-1" and not found.puts
    assert ["names no keyspace" in found.log[0], "not in puts" in found.log[1], "not JSON" in found.log[2]] == [
        True
    ] * 3
    assert [each["key"] for each in ask(host, "two-puts").puts] == ["kv:two", "kv:two", "best:x"]
    chatty = ask(host, "chatty")
    assert sum(map(len, chatty.log)) <= 8 << 10 and chatty.log[-1] == "…"
    assert chatty.answer.headers == () and chatty.answer.content_type == b"text/plain"


def test_fuel_stops_the_same_way_each_time(modules: FunctionModules) -> None:
    host = hosted(modules, hostile({"[limits]": "[limits]\nfuel = 20000000", "deadline_s = 0.3": "deadline_s = 9"}))
    for _ in range(2):
        with pytest.raises(UdfTrap) as trap:
            ask(host, "work")
        assert trap.value.kind is TrapKind.FUEL and "20000000" in trap.value.detail
    assert ask(host, "").answer.body == b"fine"


def test_a_module_is_compiled_once_and_then_read_from_disk(tmp_path: Path) -> None:
    of = hostile()
    hosted(FunctionModules(tmp_path), of)
    files = list(tmp_path.iterdir())
    assert len(files) == 1
    stamp = files[0].stat().st_mtime_ns
    assert ask(hosted(FunctionModules(tmp_path), of), "").answer.body == b"fine"
    assert [each.stat().st_mtime_ns for each in tmp_path.iterdir()] == [stamp]


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ('"tables.read", ', "", "tables"),
        ('tables = ["kv", "score"]', "", "tables"),
        ('tables = ["kv", "score"]', 'tables = ["No Table"]', "tables"),
        ('puts = ["kv", "best"]', "", "puts"),
        ('puts = ["kv", "best"]', 'puts = "kv"', "puts"),
        ('"clock"', '"network"', "capabilities"),
        ('"clock"', '"log"', "capabilities"),
        ("abi = 1", "abi = 1\nidempotent = 1", "idempotent"),
        ("abi = 1", 'abi = 1\ninputs = ["score"]', "inputs"),
        ("abi = 1", "abi = 3", "abi"),
        ('kind = "function"', 'kind = "functions"', "kind"),
        ("deadline_s = 0.3", "deadline_s = 60", "limits.deadline_s"),
        ("deadline_s = 0.3", "deadline_s = 0", "limits.deadline_s"),
        ("memory_bytes = 33554432", "memory_bytes = 1e9", "limits.memory_bytes"),
        ("output_bytes = 1048576", "output_bytes = 1e9", "limits.output_bytes"),
        ("table_rows = 100", "table_rows = 1e9", "limits.table_rows"),
        ("events = 8", "events = 65", "limits.events"),
        ("concurrency = 4", "concurrency = 100000", "limits.concurrency"),
        ("concurrency = 4", "wings = 2", "limits.wings"),
    ],
)
def test_a_bad_manifest_is_refused_by_its_field(old: str, new: str, field: str) -> None:
    assert old in HOSTILE_TOML
    with pytest.raises(BadInput) as refused:
        admit_manifest(HOSTILE_TOML.replace(old, new), DeployCaps())
    assert refused.value.field == field, refused.value


def wat(body: str) -> bytes:
    import wasmtime

    return bytes(wasmtime.wat2wasm(f"(module {body})"))


MEMORY = '(memory (export "memory") 1)'
MARKER = '(func (export "streams_function_v1") (result i32) i32.const 1)'
ALLOC = '(func (export "streams_alloc") (param i32) (result i32) i32.const 8)'
HANDLE = '(func (export "streams_handle") (param i32 i32) (result i32) i32.const 0)'
ALL = MEMORY + MARKER + ALLOC + HANDLE


def test_only_a_small_module_without_a_start_is_there_at_once() -> None:
    assert starts_at_once(wat(ALL)) and starts_at_once(hostile_module())
    assert not starts_at_once(wat(ALL + "(func $s) (start $s)"))
    assert not starts_at_once(wat(ALL + f'(data (i32.const 0) "{"x" * 1_100_000}")'))


@pytest.mark.parametrize(
    ("module", "field", "says"),
    [
        (b"MZ", "module", "not a WebAssembly"),
        (wat(MEMORY + ALLOC + HANDLE), "module", "does not export streams_function_v1"),
        (wat(MEMORY + MARKER + HANDLE), "module", "does not export streams_alloc"),
        (wat(MARKER + ALLOC + HANDLE), "module", "its memory"),
        (wat(MEMORY + MARKER + ALLOC + HANDLE.replace("i32 i32", "i64 i32")), "module", "wrong signature"),
        (wat(ALL.replace("i32.const 1)", "i32.const 2)", 1)), "module", "answers ABI version 2"),
        (wat(ALL + "(func $s unreachable) (start $s)"), "module", "does not start"),
        (wat(ALL + "(func $s (loop br 0)) (start $s)"), "module", "does not start"),
        (wat(ALL.replace('"memory") 1', '"memory") 1000')), "module", ""),
        (wat('(import "wasi_snapshot_preview1" "fd_write" (func))' + ALL), "module", "imports wasi_snapshot"),
        (wat('(import "streams" "launch" (func))' + ALL), "module", "streams.launch, which no function has"),
        (wat('(import "streams" "log" (func (param i64)))' + ALL), "module", "import log has a wrong signature"),
        (wat('(import "streams" "clock" (func (result i64)))' + ALL), "capabilities", "needs the capability clock"),
        (
            wat('(import "streams" "log" (func $l (param i32 i32) (result i32)))' + ALL
                + "(func $s (drop (call $l (i32.const 0) (i32.const 0)))) (start $s)"),
            "",
            "",
        ),
        (
            wat('(import "streams" "log" (func $l (param i32 i32) (result i32)))' + ALL
                + "(func $s (drop (call $l (i32.const 0) (i32.const 5)))) (start $s)"),
            "module",
            "before it had started",
        ),
    ],
)  # fmt: skip
def test_a_bad_module_is_refused_with_the_reason(module: bytes, field: str, says: str) -> None:
    manifest = admit_manifest(HOSTILE_TOML.replace('"clock", ', ""), DeployCaps())
    assert admit_module(wat(ALL), manifest, DeployCaps(), ModuleCache())
    if not field:
        assert admit_module(module, manifest, DeployCaps(), ModuleCache())  # logging at the start is its right
        return
    with pytest.raises(BadInput) as refused:
        admit_module(module, manifest, DeployCaps(), ModuleCache())
    assert refused.value.field == field and says in refused.value.detail, refused.value


@pytest.mark.parametrize(
    "data",
    [
        b"",
        struct.pack("<III", 200, 0, 5) + b"four",
        struct.pack("<III", 200, 0xFFFFFFFF, 0),
        struct.pack("<III", 200, 1, 0),
        struct.pack("<IIIII", 200, 1, 0, 0xFFFFFFFF, 1) + b"x",
        struct.pack("<IIIII", 200, 1, 0, 5000, 5000) + b"x" * 10_000,
        struct.pack("<III", 200, 0, 0) + b"more",
    ],
)
def test_malformed_answers_are_traps(data: bytes) -> None:
    with pytest.raises(UdfTrap):
        decode_answer(data)


def test_a_function_is_deployed_beside_folds() -> None:
    one = handle_request()
    key, value, _ = one.entry().record()
    assert Deployment.of(decode_entry(key, value)) == one
    assert deployed_tables(one, KEYSPACES) == []
    assert one.to_json()["idempotent"] is True and "merge" not in one.to_json()
    other = hostile()
    assert follows(other, None, [one], 8) and follows(one, None, [other], 8), "functions have no tables to collide"
    fold = deployment(
        'name = "hostile"\nversion = "2"\nabi = 1\nkind = "fold"\ninputs = ["score"]\nmerge = "counter"\n', b"x"
    )
    with pytest.raises(Conflict) as refused:
        follows(fold, other, [other], 8)
    assert refused.value.field == "kind"
    for text, names, error, field in [
        (HOSTILE_TOML, {"kv"}, BadInput, "tables"),
        (HOSTILE_TOML.replace('"best"]', '"nowhere"]'), {"kv", "score"}, BadInput, "puts"),
        (HOSTILE_TOML.replace('"best"]', '"strong"]'), {"kv", "score"}, Conflict, "puts"),
    ]:
        with pytest.raises(error) as wrong:
            check_function(
                parse_manifest(text), {**KEYSPACES, "strong": Keyspace("strong", consistency="strong")}, names
            )
        assert wrong.value.field == field
    check_function(parse_manifest(HOSTILE_TOML), KEYSPACES, {"kv", "score"})


def test_many_threads_trap_and_time_out_at_once(modules: FunctionModules) -> None:
    """An endless loop in one thread does not lengthen what others take beyond their own work."""
    host = hosted(modules, hostile())

    def loop() -> None:
        with pytest.raises(UdfTrap):
            ask(host, "loop")

    looping = threading.Thread(target=loop)
    began = time.monotonic()
    looping.start()
    done = 0
    while looping.is_alive():
        assert ask(host, "").answer.body == b"fine"
        done += 1
    looping.join()
    assert done > 10, done
    assert time.monotonic() - began < 30
    assert hostile_module()
