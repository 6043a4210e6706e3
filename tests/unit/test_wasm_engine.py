"""Module cache, limits, validation of modules, and calls."""

from __future__ import annotations

from pathlib import Path

import pytest
import wasmtime

from streams.model.errors import BadInput
from streams.wasm.abi import validate_module
from streams.wasm.builtin import builtin_for_merge, builtin_module
from streams.wasm.engine import HOST, Limits, ModuleCache, TrapKind, UdfTrap, default_cache_dir, module_hash
from streams.wasm.fold_host import FoldHost
from streams.wasm.guest import Guest


def module(exports: str, before: str = "") -> bytes:
    return bytes(wasmtime.wat2wasm(f"(module {before} {exports})"))


ALL = {
    "memory": '(memory (export "memory") 1)',
    "abi": '(func (export "streams_abi_v1") (result i32) i32.const 1)',
    "alloc": '(func (export "streams_alloc") (param i32) (result i32) i32.const 0)',
    "prepare": '(func (export "streams_prepare") (param i32 i32) (result i32) i32.const 0)',
    "load": '(func (export "streams_load") (param i32 i32) (result i32) i32.const 0)',
    "fold": '(func (export "streams_fold") (param i32 i32) (result i32) i32.const 0)',
    "take": '(func (export "streams_take") (result i32) i32.const 0)',
}


def without(name: str, instead: str = "") -> bytes:
    return module("".join(v for k, v in ALL.items() if k != name) + instead)


@pytest.fixture
def cache(tmp_path: Path) -> ModuleCache:
    return ModuleCache(tmp_path / "cache")


def test_a_module_is_compiled_once_and_a_corrupted_file_again(cache: ModuleCache, tmp_path: Path) -> None:
    wasm = builtin_module("counter")
    loaded = cache.load(wasm)
    assert cache.load(wasm) is loaded
    file = cache.path(loaded.sha256, metered=False)
    good = file.read_bytes()
    changed = file.stat().st_mtime_ns
    ModuleCache(tmp_path / "cache").load(wasm)
    assert file.stat().st_mtime_ns == changed
    for bad in (b"", good[:100], good[:-1] + bytes([good[-1] ^ 1]), b"x" * len(good)):
        file.write_bytes(bad)
        again = ModuleCache(tmp_path / "cache").load(wasm)
        Guest(again, Limits(), HOST).close()
        assert file.read_bytes() != bad


def test_a_cache_directory_that_cannot_be_written_only_costs_time(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    Guest(ModuleCache(blocked / "sub").load(builtin_module("kv")), Limits(), HOST).close()


def test_cache_directory_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("STREAMS_CACHE", str(tmp_path))
    assert default_cache_dir() == tmp_path / "wasm"
    monkeypatch.delenv("STREAMS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_cache_dir() == tmp_path / "xdg" / "streams" / "wasm"


@pytest.mark.parametrize("name", ["counter", "kv", "max", "min", "telemetry"])
def test_built_in_udfs_are_valid(cache: ModuleCache, name: str) -> None:
    assert validate_module(builtin_module(name), cache) == module_hash(builtin_module(name))
    assert FoldHost(builtin_module(name), cache).sha256 == module_hash(builtin_module(name))


def test_built_ins_by_merge_type() -> None:
    assert [builtin_for_merge(m) for m in ("counter", "lww", "max", "min")] == ["counter", "kv", "max", "min"]
    with pytest.raises(Exception, match="no built-in UDF"):
        builtin_for_merge("text")
    with pytest.raises(Exception, match="no built-in module"):
        builtin_module("../secret")


@pytest.mark.parametrize(
    ("wasm", "words"),
    [
        (b"", "not a WebAssembly"),
        (b"#!/bin/sh", "not a WebAssembly"),
        (b"\0asm\x01\0\0\0garbage", "does not compile"),
        (builtin_module("record_decoder"), "does not export streams_abi_v1"),
        (without("abi"), "does not export streams_abi_v1"),
        (without("abi", ALL["abi"].replace("v1", "v2")), "is of streams_abi_v2"),
        (without("abi", ALL["abi"].replace("const 1", "const 3")), "answers ABI version 3"),
        (without("take"), "does not export streams_take"),
        (without("memory"), "does not export its memory"),
        (without("load", '(func (export "streams_load"))'), "wrong signature"),
        (without("load", '(global (export "streams_load") i32 i32.const 0)'), "wrong signature"),
        (module("".join(ALL.values()), '(import "wasi_snapshot_preview1" "fd_write" (func (param i32)))'), "imports"),
        (
            module("".join(ALL.values()) + "(func $s unreachable) (start $s)"),
            "does not start: the module cannot be inst",
        ),
        (module("".join(ALL.values()) + "(func $s (loop $l br $l)) (start $s)"), "does not start: ran longer"),
        (without("memory", '(memory (export "memory") 40000)'), "does not start"),
    ],
)
def test_modules_that_are_refused(cache: ModuleCache, wasm: bytes, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        validate_module(wasm, cache, Limits(deadline_s=0.05))


def test_limits_must_make_sense() -> None:
    for bad in ({"memory_bytes": 0}, {"deadline_s": -1.0}, {"fuel": 0}, {"memory_bytes": 5 << 30}):
        with pytest.raises(BadInput):
            Limits(**bad)  # type: ignore[arg-type]


def test_a_wrong_signature_or_missing_export_is_a_trap_not_a_crash(cache: ModuleCache) -> None:
    wasm = without("take", '(func (export "streams_take") (param i64) (result f32) f32.const 1)')
    guest = Guest(cache.load(wasm), Limits(), HOST)
    for name in ("streams_take", "streams_nothing"):
        with pytest.raises(UdfTrap):
            guest.call(name)
    guest.close()


def test_endless_take_is_stopped(cache: ModuleCache) -> None:
    """A take that always says "more", with a row each time, ends at the memory limit."""
    from streams.wasm.fold_instance import FoldInstance

    row = b"\\01\\02" + b"\\00" * 30
    text = "\\01\\00\\00\\00\\01\\00\\00\\00\\20\\00\\00\\00\\01k" + row.decode()
    take = (
        '(func (export "streams_take") (result i32) i32.const 100)'
        f'(data (i32.const 0) "{text}") (data (i32.const 100) "\\00\\00\\00\\00\\2e\\00\\00\\00\\01\\00\\00\\00")'
    )
    limits = Limits(memory_bytes=65536)
    instance = FoldInstance(cache.load(without("take", take)), limits, HOST)
    with pytest.raises(UdfTrap, match="without end") as caught:
        instance.take()
    assert caught.value.kind is TrapKind.OUTPUT
    instance.close()
