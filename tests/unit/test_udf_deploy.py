"""What may be deployed and what may follow it, without Kafka: manifests, modules, versions, multipart, supervision."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from streams.client.udf_template import files_of
from streams.client.udfs import multipart, ready_module
from streams.definitions.deployment import Deployment, check_inputs, deployed_tables, follows
from streams.definitions.entries import decode_entry
from streams.definitions.udfs import Udfs
from streams.edge.options import TableSpec
from streams.gateway.auth import Authority, Principal, authorize_deploy
from streams.gateway.multipart import parse_multipart
from streams.gateway.supervised import tell_workers
from streams.model.errors import BadInput, Conflict, Forbidden, NotFound, UnsupportedMedia
from streams.model.keyspace import BUILTIN, Keyspace
from streams.model.topology import Region, Topology
from streams.region.deployed import DeployedWorkers
from streams.region.supervisor import ProcessSpec, Supervisor
from streams.wasm import build
from streams.wasm.abi import validate_module
from streams.wasm.admission import DeployCaps, admit_manifest, admit_module, version_key
from streams.wasm.engine import ModuleCache
from streams.wasm.vectors import run_vectors
from tests.support.definitions import MemoryHome, MemoryLog
from tests.support.polling import eventually

GOOD = """
name = "bigs"
version = "1.2.0"
abi = 1
kind = "fold"
inputs = ["score", "best"]
merge = "counter"
ttl = "1h"
[limits]
memory_bytes = 1048576
"""
KEYSPACES = {each.name: each for each in BUILTIN}
TOPOLOGY = Topology((Region("us-east", "unused"), Region("eu-west", "unused")))


def test_a_good_manifest_is_admitted() -> None:
    manifest = admit_manifest(GOOD, DeployCaps())
    assert (manifest.name, manifest.table, manifest.inputs) == ("bigs", "bigs", ("score", "best"))
    assert manifest.ttl_ms == 3_600_000 and manifest.limits.memory_bytes == 1 << 20


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ('name = "bigs"', 'name = "Bigs!"', "name"),
        ('name = "bigs"', "", "name"),
        ('version = "1.2.0"', 'version = "one"', "version"),
        ('version = "1.2.0"', "version = 1", "version"),
        ("abi = 1", "abi = 2", "abi"),
        ("abi = 1", "", "abi"),
        ('kind = "fold"', 'kind = "decoder"', "kind"),
        ('kind = "fold"', 'kind = "wish"', "kind"),
        ('inputs = ["score", "best"]', "", "inputs"),
        ('inputs = ["score", "best"]', 'inputs = "score"', "inputs"),
        ('inputs = ["score", "best"]', 'inputs = ["score", "score"]', "inputs"),
        ('inputs = ["score", "best"]', "inputs = [7]", "inputs"),
        ('merge = "counter"', 'merge = "opaque"', "merge"),
        ('merge = "counter"', 'merge = ["max", "min"]', "merge"),
        ('merge = "counter"', 'merge = "sum"', "merge"),
        ('merge = "counter"', "", "merge"),
        ('ttl = "1h"', 'ttl = "soon"', "ttl"),
        ('ttl = "1h"', "ttl = 0", "ttl"),
        ('ttl = "1h"', "ttl = [1]", "ttl"),
        ('ttl = "1h"', 'table = "No Table"', "table"),
        ('ttl = "1h"', 'outputs = ["events.score"]', "outputs"),
        ('ttl = "1h"', 'outputs = ["nothing"]', "outputs"),
        ('ttl = "1h"', "colour = 3", "colour"),
        ("memory_bytes = 1048576", "memory_bytes = 9000000000", "limits.memory_bytes"),
        ("memory_bytes = 1048576", "memory_bytes = 2000000000", "limits.memory_bytes"),
        ("memory_bytes = 1048576", "memory_bytes = -1", "limits.memory_bytes"),
        ("memory_bytes = 1048576", "deadline_s = nan", "limits.deadline_s"),
        ("memory_bytes = 1048576", "memory_bytes = inf", "limits.memory_bytes"),
        ("memory_bytes = 1048576", "deadline_s = 3600", "limits.deadline_s"),
        ("memory_bytes = 1048576", "wings = 2", "limits.wings"),
        ("abi = 1", "abi = = 1", "manifest"),
        ("abi = 1", f"abi = 1 # {'x' * 70_000}", "manifest"),
    ],
)
def test_a_bad_manifest_is_refused_by_its_field(old: str, new: str, field: str) -> None:
    assert old in GOOD
    with pytest.raises(BadInput) as refused:
        admit_manifest(GOOD.replace(old, new), DeployCaps())
    assert refused.value.field == field, refused.value


def wat(body: str) -> bytes:
    import wasmtime

    return bytes(wasmtime.wat2wasm(f"(module {body})"))


EXPORTS = (
    '(memory (export "memory") 1)'
    '(func (export "streams_abi_v1") (result i32) i32.const 1)'
    '(func (export "streams_alloc") (param i32) (result i32) i32.const 8)'
    '(func (export "streams_prepare") (param i32 i32) (result i32) i32.const 0)'
    '(func (export "streams_load") (param i32 i32) (result i32) i32.const 0)'
    '(func (export "streams_fold") (param i32 i32) (result i32) i32.const 0)'
)
TAKE = '(func (export "streams_take") (result i32) i32.const 0)'


@pytest.mark.parametrize(
    ("module", "says"),
    [
        (lambda: b"", "empty"),
        (lambda: b"\x7fELF" + bytes(100), "not a WebAssembly"),
        (lambda: wat(EXPORTS + TAKE)[:-9], "does not compile"),
        (lambda: wat(EXPORTS), "does not export streams_take"),
        (lambda: wat(EXPORTS.replace("streams_abi_v1", "streams_abi_v9") + TAKE), "is of streams_abi_v9"),
        (lambda: wat(EXPORTS.replace("i32.const 1)", "i32.const 2)", 1) + TAKE), "answers ABI version 2"),
        (lambda: wat('(import "wasi_snapshot_preview1" "fd_write" (func))' + EXPORTS + TAKE), "imports wasi_snapshot"),
        (lambda: wat(EXPORTS + TAKE.replace("(result i32) i32.const 0", "")), "wrong signature"),
        (lambda: wat(EXPORTS + TAKE + "(func $s unreachable) (start $s)"), "does not start"),
        (lambda: wat(EXPORTS + TAKE + "(func $s (loop br 0)) (start $s)"), "does not start"),
        (lambda: wat(EXPORTS.replace('"memory") 1', '"memory") 1000') + TAKE), "does not start"),
        (lambda: wat(EXPORTS + TAKE + '(memory $m 1) (data (memory 0) (i32.const 0) "")'), "does not compile"),
        (lambda: bytes((8 << 20) + 1), "over the limit"),
    ],
)
def test_a_bad_module_is_refused_with_the_reason(module: object, says: str, tmp_path: Path) -> None:
    manifest = admit_manifest(GOOD, DeployCaps())
    assert validate_module(wat(EXPORTS + TAKE), ModuleCache(tmp_path), manifest.limits)
    with pytest.raises(BadInput) as refused:
        admit_module(module(), manifest, DeployCaps(), ModuleCache(tmp_path))  # type: ignore[operator]
    assert says in refused.value.detail and refused.value.field == "module", refused.value


def test_versions_are_ordered_by_their_numbers() -> None:
    ordered = ["0.9", "1", "1.0.1", "1.2", "1.9", "1.10", "2.0"]
    assert [*map(version_key, ordered)] == sorted(map(version_key, ordered))
    assert version_key("1") == version_key("1.0.0")


def deployment(text: str = GOOD, module: bytes = b"one") -> Deployment:
    return Deployment.make(text, module, 1_000, "ci", "us-east")


def test_a_deployment_survives_its_record() -> None:
    key, value, _ = deployment().entry().record()
    assert Deployment.of(decode_entry(key, value)) == deployment()


def test_what_may_follow_what() -> None:
    one = deployment()
    assert follows(one, None, [], 2)
    assert not follows(one, one, [one], 2)
    assert follows(one, replace(one, removed=True), [], 2)
    assert follows(deployment(GOOD.replace("1.2.0", "1.10"), b"two"), one, [one], 1)
    for text, module, field in [
        (GOOD, b"two", "version"),
        (GOOD.replace('"1h"', '"2h"'), b"one", "version"),
        (GOOD.replace("1.2.0", "1.1.9"), b"two", "version"),
        (GOOD.replace("1.2.0", "2").replace("counter", "max"), b"two", "merge"),
        (GOOD.replace("1.2.0", "2").replace(', "best"', ""), b"two", "inputs"),
        (GOOD.replace("1.2.0", "2").replace("ttl =", 'table = "other"\nttl ='), b"two", "table"),
        (GOOD.replace('"bigs"', '"copy"\ntable = "bigs"'), b"one", "table"),
    ]:
        with pytest.raises(Conflict) as refused:
            follows(deployment(text, module), one if 'name = "bigs"' in text else None, [one], 8)
        assert refused.value.field == field, refused.value
    with pytest.raises(Conflict) as full:
        follows(deployment(GOOD.replace('"bigs"', '"copy"')), None, [one], 1)
    assert full.value.field == "name"


def test_inputs_must_be_keyspaces_and_the_table_free() -> None:
    for text, field in [
        (GOOD.replace('"best"', '"nowhere"'), "inputs"),
        (GOOD.replace("ttl =", 'table = "kv"\nttl ='), "table"),
        (GOOD.replace("ttl =", 'table = "telemetry"\nttl ='), "table"),
    ]:
        with pytest.raises((BadInput, Conflict)) as refused:
            check_inputs(admit_manifest(text, DeployCaps()), KEYSPACES)
        assert refused.value.field == field
    check_inputs(admit_manifest(GOOD, DeployCaps()), KEYSPACES)
    strong = {**KEYSPACES, "best": Keyspace("best", consistency="strong")}
    with pytest.raises(Conflict):
        check_inputs(admit_manifest(GOOD, DeployCaps()), strong)


def test_inputs_stand_one_after_the_other_in_the_changelog() -> None:
    keyspaces = {"score": Keyspace("score", partitions=3), "best": Keyspace("best", partitions=2)}
    tables = deployed_tables(deployment(), keyspaces)
    assert {each.topic for each in tables} == {"table.bigs.g1"}
    assert [(each.keyspace.name, each.first, each.partitions) for each in tables] == [("score", 0, 5), ("best", 3, 5)]
    spec = TableSpec.deployed(tables)
    assert [spec.source_of(n) for n in range(5)] == [("score", 0), ("score", 1), ("score", 2), ("best", 0), ("best", 1)]
    assert (spec.partitions_of("events.score"), spec.partitions_of("events.best")) == (3, 2)
    assert spec.keyspaces == ("score", "best")
    assert deployed_tables(deployment(), {"score": keyspaces["score"]}) == []


async def test_deploys_are_sequenced_between_regions_and_idempotent() -> None:
    home = MemoryHome()
    async with (
        Udfs(TOPOLOGY, "us-east", log=MemoryLog(home)) as here,
        Udfs(TOPOLOGY, "eu-west", log=MemoryLog(home)) as there,
    ):
        contenders = [deployment(module=b"one"), deployment(module=b"two")]
        pairs = zip((here, there), contenders, strict=True)
        done = await asyncio.gather(*(at.deploy(what, 8) for at, what in pairs), return_exceptions=True)
        assert sorted(type(each).__name__ for each in done) == ["Conflict", "Deployment"], done
        won = next(each for each in done if isinstance(each, Deployment))
        await eventually(lambda: here.get("bigs").sha256 == there.get("bigs").sha256 == won.sha256)
        before = len(home.entries)
        await there.deploy(won, 8)
        assert len(home.entries) == before
        gone = await there.remove("bigs")
        assert gone.removed and not there.live
        await eventually(lambda: not here.live)
        for missing in (here.remove("bigs"), there.remove("never")):
            with pytest.raises(NotFound):
                await missing
        with pytest.raises(Conflict):
            await here.deploy(next(each for each in contenders if each.sha256 != won.sha256), 8)
        await here.deploy(won, 8)
        assert here.get("bigs").module == b"" and here.every["bigs"].sha256 == won.sha256


async def test_a_lost_answer_deploys_once() -> None:
    home = MemoryHome()
    log = MemoryLog(home)
    async with Udfs(TOPOLOGY, "us-east", log=log) as udfs:
        for outcome, name in (("applied", "first"), ("dropped", "second")):
            log.lose_next = outcome
            await udfs.deploy(deployment(GOOD.replace('"bigs"', f'"{name}"')), 8)
        assert [entry.key for entry in home.entries] == [
            "version/first/1", "udf/first", "version/second/1", "udf/second",
        ]  # fmt: skip


def test_multipart_parts_are_bytes_as_they_were_sent() -> None:
    parts = {"manifest": b"a\r\n--b\n", "module": bytes(range(256)) * 9 + b"\r\n\r\n--"}
    body, kind = multipart(parts)
    assert parse_multipart(kind, body) == parts
    assert parse_multipart(kind.replace("boundary=", 'charset=x; boundary="') + '"', body) == parts
    with pytest.raises(UnsupportedMedia):
        parse_multipart("application/json", body)
    for bad in (b"", body[:-8], body.replace(b"name=", b"nome="), body.replace(b'name="module"', b'name="manifest"')):
        with pytest.raises(BadInput):
            parse_multipart(kind, bad)
    with pytest.raises(BadInput):
        parse_multipart("multipart/form-data", body)


def test_who_may_deploy(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.json"
    scopes = ["score:deploy", "best:admin", "kv:write"]
    tokens.write_text(json.dumps({"tokens": [{"name": "ci", "token": "t", "scopes": scopes}]}))
    who: Principal = Authority.load(tokens).authenticate("Bearer t")
    authorize_deploy(who, ["score", "best"])
    for keyspaces in (["score", "kv"], ["prefs"]):
        with pytest.raises(Forbidden):
            authorize_deploy(who, keyspaces)


def test_a_new_udf_passes_its_vectors(tmp_path: Path) -> None:
    for file, text in files_of("fresh").items():
        (tmp_path / file).write_text(text)
    module = ready_module(tmp_path, (tmp_path / "udf.toml").read_bytes())
    manifest = admit_manifest((tmp_path / "udf.toml").read_text(), DeployCaps())
    assert admit_module(module, manifest, DeployCaps(), ModuleCache(tmp_path / "cache"))
    assert run_vectors(tmp_path, ModuleCache(tmp_path / "cache")) == []
    source = tmp_path / "fresh.c"
    source.write_text(source.read_text().replace("add < 10", "add < 9"))
    (tmp_path / "fresh.wasm").write_bytes(build.build_directory(tmp_path)["fresh.wasm"])
    assert run_vectors(tmp_path, ModuleCache(tmp_path / "cache"))


async def test_the_supervisor_keeps_a_worker_for_each_deployed_udf(tmp_path: Path) -> None:
    supervisor = Supervisor(tmp_path, [])

    def spec(region: Region, udf: str) -> ProcessSpec:
        command = [sys.executable, "-c", "import time; time.sleep(600)"]
        return ProcessSpec(f"worker-{region.name}-udf-{udf}", lambda: command, tmp_path / "log")

    workers = DeployedWorkers(tmp_path, TOPOLOGY.regions, supervisor, spec)
    following = asyncio.create_task(workers.run())

    def running() -> dict[str, int]:
        return {each.spec.name: each.identity.pid for each in supervisor.processes if each.identity is not None}

    try:
        tell_workers(tmp_path, "us-east", ["a", "b"])
        tell_workers(tmp_path, "eu-west", ["a"])
        names = {"worker-us-east-udf-a", "worker-us-east-udf-b", "worker-eu-west-udf-a"}
        await eventually(lambda: running().keys() == names)
        before = running()
        tell_workers(tmp_path, "us-east", ["b"])
        await eventually(lambda: running().keys() == names - {"worker-us-east-udf-a"})
        assert running().items() <= before.items(), "the others go on"
        (tmp_path / "udfs" / "us-east.json").write_text("not JSON")
        tell_workers(tmp_path, "eu-west", [])
        await eventually(lambda: running().keys() == {"worker-us-east-udf-b"})
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await supervisor.stop()
    assert not running()
