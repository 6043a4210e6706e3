"""What a module must export to be a fold module of ABI v1, or one of map v1; refusals say what is missing."""

from __future__ import annotations

from collections.abc import Mapping

import wasmtime

from streams.model.errors import BadInput
from streams.wasm.engine import CompiledModule, Limits, ModuleCache, UdfTrap
from streams.wasm.guest import open_guest

ABI_VERSION = 1
MODULE_BYTES_MAX = 32 << 20
_FOLD_EXPORTS: dict[str, int] = {
    "streams_alloc": 1,
    "streams_prepare": 2,
    "streams_load": 2,
    "streams_fold": 2,
    "streams_take": 0,
}
FOLD_MARKER, MAP_MARKER = f"streams_abi_v{ABI_VERSION}", f"streams_map_v{ABI_VERSION}"
MACHINE_MARKER = "streams_machine_v1"
_MARKERS = (FOLD_MARKER, MAP_MARKER, MACHINE_MARKER, "streams_decoder_v1", "streams_encoder_v1")
_MACHINE_EXPORTS: dict[str, int] = {
    "streams_alloc": 1,
    "streams_prepare": 2,
    "streams_load": 2,
    "streams_apply": 0,
    "streams_take": 0,
}
_MAP_EXPORTS: dict[str, int] = {"streams_alloc": 1, "streams_map": 2}
OUTPUTS_EXPORT = "streams_outputs"
"""Optional: a module that writes to output topics exports it."""
CHANGED_EXPORT = "streams_changed"
"""Optional: how many rows the next take gives."""
COMPACT_EXPORT = "streams_compact_v1"
"""Optional: the module takes compact batches too."""


def _is_i32_function(kind: object, n_params: int) -> bool:
    if not isinstance(kind, wasmtime.FuncType):
        return False
    params, results = [str(p) for p in kind.params], [str(r) for r in kind.results]
    return params == ["i32"] * n_params and results == ["i32"]


def _check_module(compiled: CompiledModule, marker: str, wanted: Mapping[str, int]) -> dict[str, object]:
    """The module's exports by name, if they are those wanted and it imports nothing."""
    imports = [f"{i.module}.{i.name}" for i in compiled.module.imports]
    if imports:
        raise BadInput(
            f"the module imports {', '.join(imports[:5])}",
            field="module",
            fix="a UDF imports nothing: no WASI, clock or randomness",
        )
    exports: dict[str, object] = {e.name: e.type for e in compiled.module.exports}
    if marker not in exports:
        versions = sorted(n for n in exports if n.startswith(marker[:-1]))
        kinds = sorted(n for n in exports if n in _MARKERS)
        detail = f"the module does not export {marker}" + (f", but {kinds[0]}" if kinds else "")
        detail = f"the module is of {versions[0]}" if versions else detail
        raise BadInput(detail, field="module", fix=f"build it with the SDK of ABI v{ABI_VERSION}, as udf.toml's kind")
    for name, n_params in {marker: 0, **wanted}.items():
        if name not in exports:
            raise BadInput(f"the module does not export {name}", field="module", fix="see wasm_udfs/ABI.md")
        if not _is_i32_function(exports[name], n_params):
            raise BadInput(f"export {name} has a wrong signature", field="module", fix="see wasm_udfs/ABI.md")
    if not isinstance(exports.get("memory"), wasmtime.MemoryType):
        raise BadInput("the module does not export its memory", field="module", fix="see wasm_udfs/ABI.md")
    return exports


def check_fold_module(compiled: CompiledModule) -> None:
    """BadInput unless the module's imports and exports are those of a fold UDF of ABI v1; nothing is run."""
    if compiled.is_component:
        return  # it has one export for all, and is asked what it is when it starts
    exports = _check_module(compiled, FOLD_MARKER, _FOLD_EXPORTS)
    for name in (OUTPUTS_EXPORT, CHANGED_EXPORT, COMPACT_EXPORT):
        if name in exports and not _is_i32_function(exports[name], 0):
            raise BadInput(f"export {name} has a wrong signature", field="module", fix="see wasm_udfs/ABI.md")


def takes_compact(compiled: CompiledModule) -> bool:
    """Whether a fold module takes compact batches too; else the host makes batches v1 of them."""
    return not compiled.is_component and any(each.name == COMPACT_EXPORT for each in compiled.module.exports)


def check_map_module(compiled: CompiledModule) -> None:
    """BadInput unless the module is one of map v1 (map, filter, flat_map); nothing is run."""
    if not compiled.is_component:
        _check_module(compiled, MAP_MARKER, _MAP_EXPORTS)


def check_machine_module(compiled: CompiledModule) -> None:
    """BadInput unless the module is a machine that keeps nothing in memory; nothing is run."""
    if compiled.is_component:
        raise BadInput("machines are core modules", field="module", fix="write it in C")
    exports = _check_module(compiled, MACHINE_MARKER, _MACHINE_EXPORTS)
    if "streams_resident_v1" in exports:
        raise BadInput(
            "resident machines are not deployed", field="module", fix="keep all state in rows: streams_machine_kv.h"
        )


def validate_module(wasm: bytes, cache: ModuleCache, limits: Limits | None = None, *, is_map: bool = False) -> str:
    """The module's hash, if it is a fold module of ABI v1 (or one of map v1) that starts within `limits`; BadInput
    otherwise.

    Refuses what is not WebAssembly, is over 32 MiB, has imports, lacks an export or answers another ABI version.
    """
    if len(wasm) > MODULE_BYTES_MAX:
        raise BadInput(f"the module has {len(wasm)} bytes, over {MODULE_BYTES_MAX}", field="module")
    limits = limits or Limits()
    compiled = cache.load(wasm, stack_bytes=limits.stack_bytes)
    check_map_module(compiled) if is_map else check_fold_module(compiled)
    try:
        guest = open_guest(compiled, limits, cache.host)
        try:
            answered = guest.call(MAP_MARKER if is_map else FOLD_MARKER)
        finally:
            guest.close()
    except UdfTrap as trap:
        raise BadInput(f"the module does not start: {trap.detail}", field="module") from None
    if answered != ABI_VERSION:
        raise BadInput(f"the module answers ABI version {answered}, not {ABI_VERSION}", field="module")
    return compiled.sha256
