"""What a module must export to be a fold module of ABI v1; refusals say what is missing."""

from __future__ import annotations

import wasmtime

from streams.model.errors import BadInput
from streams.wasm.engine import CompiledModule, Limits, ModuleCache, UdfTrap
from streams.wasm.guest import Guest

ABI_VERSION = 1
MODULE_BYTES_MAX = 32 << 20
_FOLD_EXPORTS: dict[str, int] = {
    "streams_alloc": 1,
    "streams_prepare": 2,
    "streams_load": 2,
    "streams_fold": 2,
    "streams_take": 0,
}
OUTPUTS_EXPORT = "streams_outputs"
"""Optional: a module that writes to output topics exports it."""


def _is_i32_function(kind: object, n_params: int) -> bool:
    if not isinstance(kind, wasmtime.FuncType):
        return False
    params, results = [str(p) for p in kind.params], [str(r) for r in kind.results]
    return params == ["i32"] * n_params and results == ["i32"]


def check_fold_module(compiled: CompiledModule) -> None:
    """BadInput unless the module's imports and exports are those of a fold UDF of ABI v1; nothing is run."""
    imports = [f"{i.module}.{i.name}" for i in compiled.module.imports]
    if imports:
        raise BadInput(
            f"the module imports {', '.join(imports[:5])}",
            field="module",
            fix="a fold UDF imports nothing: no WASI, clock or randomness",
        )
    exports = {e.name: e.type for e in compiled.module.exports}
    marker = f"streams_abi_v{ABI_VERSION}"
    if marker not in exports:
        other = sorted(n for n in exports if n.startswith("streams_abi_v"))
        detail = f"the module is of {other[0]}" if other else f"the module does not export {marker}"
        raise BadInput(detail, field="module", fix=f"build it with the SDK of ABI v{ABI_VERSION}")
    for name, n_params in {marker: 0, **_FOLD_EXPORTS}.items():
        if name not in exports:
            raise BadInput(f"the module does not export {name}", field="module", fix="see wasm_udfs/ABI.md")
        if not _is_i32_function(exports[name], n_params):
            raise BadInput(f"export {name} has a wrong signature", field="module", fix="see wasm_udfs/ABI.md")
    if OUTPUTS_EXPORT in exports and not _is_i32_function(exports[OUTPUTS_EXPORT], 0):
        raise BadInput(f"export {OUTPUTS_EXPORT} has a wrong signature", field="module", fix="see wasm_udfs/ABI.md")
    if not isinstance(exports.get("memory"), wasmtime.MemoryType):
        raise BadInput("the module does not export its memory", field="module", fix="see wasm_udfs/ABI.md")


def validate_module(wasm: bytes, cache: ModuleCache, limits: Limits | None = None) -> str:
    """The module's hash, if it is a fold module of ABI v1 that starts within `limits`; BadInput otherwise.

    Refuses what is not WebAssembly, is over 32 MiB, has imports, lacks an export or answers another ABI version.
    """
    if len(wasm) > MODULE_BYTES_MAX:
        raise BadInput(f"the module has {len(wasm)} bytes, over {MODULE_BYTES_MAX}", field="module")
    limits = limits or Limits()
    compiled = cache.load(wasm, stack_bytes=limits.stack_bytes)
    check_fold_module(compiled)
    try:
        guest = Guest(compiled, limits, cache.host)
        try:
            answered = guest.call(f"streams_abi_v{ABI_VERSION}")
        finally:
            guest.close()
    except UdfTrap as trap:
        raise BadInput(f"the module does not start: {trap.detail}", field="module") from None
    if answered != ABI_VERSION:
        raise BadInput(f"the module answers ABI version {answered}, not {ABI_VERSION}", field="module")
    return compiled.sha256
