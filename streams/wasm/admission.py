"""What a UDF must be to be deployed: its manifest within the operator's caps, its module of the ABI."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, replace

from streams.model.errors import BadInput
from streams.wasm.abi import validate_module
from streams.wasm.caps import DEFAULT_CAPS, capped
from streams.wasm.engine import Limits, ModuleCache
from streams.wasm.function_host import check_function
from streams.wasm.function_manifest import FIELDS, FunctionCaps, check_function_caps
from streams.wasm.manifest import Manifest, parse_manifest

MANIFEST_BYTES_MAX = 64 << 10
_FIELDS = (
    "name", "version", "abi", "kind", "inputs", "table", "merge", "ttl", "outputs", "limits", "constants",
    "on_trap", "trap_limit", "trap_window_s",
)  # fmt: skip
_FUNCTION_FIELDS = ("name", "version", "abi", "kind", "limits", "constants", *FIELDS)
_MERGES = ("lww", "counter", "max", "min")
_VERSION = re.compile(r"(0|[1-9]\d{0,8})(\.(0|[1-9]\d{0,8})){0,3}\Z")
_RESERVED = ("events", "table", "dead-letter", "late", "alerts", "definitions", "udfs", "udf-states")


@dataclass(frozen=True, slots=True)
class DeployCaps:
    """What the operator allows. `module_bytes`: a module travels as one Kafka record; `udfs`: how many are deployed at
    once, each a process in every region; `limits`: the most that a manifest may ask for,
    `functions` the same of a function; `keep_s`: how long a version that was replaced, or a removed table, is kept at
    most."""

    module_bytes: int = 8 << 20
    udfs: int = 32
    keep_s: float = 3600.0
    functions: FunctionCaps = FunctionCaps()  # noqa: RUF009
    limits: Limits = DEFAULT_CAPS


def version_key(version: str) -> tuple[int, ...]:
    """What versions are ordered by: 1.10 comes after 1.9, and 1.0 is 1. BadInput names the field."""
    if not _VERSION.match(version):
        raise BadInput(f"{version[:40]!r} is no version", field="version", fix="use 1 to 4 numbers, as in 1.2.0")
    numbers = [int(part) for part in version.split(".")]
    while len(numbers) > 1 and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)


def admit_manifest(text: str, caps: DeployCaps) -> Manifest:
    """The manifest of a fold or function that may be deployed, with the limits it gets. BadInput: what is wrong."""
    if len(text.encode(errors="replace")) > MANIFEST_BYTES_MAX:
        raise BadInput(f"udf.toml is over {MANIFEST_BYTES_MAX} bytes", field="manifest", fix="say less in it")
    manifest = parse_manifest(text)
    fields = _FIELDS if manifest.function is None else _FUNCTION_FIELDS
    if unknown := tomllib.loads(text).keys() - set(fields):
        raise BadInput(
            f"udf.toml of a {manifest.kind} has no such field", field=min(unknown)[:80], fix=f"use {', '.join(fields)}"
        )
    version_key(manifest.version)
    if manifest.function is not None:
        check_function_caps(manifest.function, manifest.limits, caps.functions)
        return manifest
    if manifest.kind != "fold":
        raise BadInput(f"a {manifest.kind} is not deployed", field="kind", fix="use fold or function")
    if len(manifest.merges) != 1:
        raise BadInput("a deployed UDF has one merge type", field="merge", fix=f"use one of {', '.join(_MERGES)}")
    if manifest.merges[0].label not in _MERGES:
        raise BadInput(
            f"tables of {manifest.merges[0].label} rows are not deployed",
            field="merge",
            fix=f"use {', '.join(_MERGES)}",
        )
    if not manifest.inputs:
        raise BadInput("udf.toml names no keyspace to fold", field="inputs", fix='add inputs = ["score"], for example')
    for topic in manifest.outputs:
        if topic.partition(".")[0] in _RESERVED:
            raise BadInput(
                f"{topic[:80]} is the platform's own", field="outputs", fix=f"name it {manifest.name}.something"
            )
    return replace(manifest, limits=capped(manifest, caps.limits))


def admit_module(wasm: bytes, manifest: Manifest, caps: DeployCaps, cache: ModuleCache) -> str:
    """The module's SHA-256, if it is one of the ABI that starts under the manifest's limits. BadInput: why not."""
    if not wasm:
        raise BadInput("the module is empty", field="module", fix="build it with `streams udf build`")
    if len(wasm) > caps.module_bytes:
        raise BadInput(
            f"the module has {len(wasm)} bytes, over the limit of {caps.module_bytes}",
            field="module",
            fix="strip it, or raise the gateway's --udf-module-mib",
        )
    if manifest.function is not None:
        return check_function(wasm, manifest.function, manifest.limits)
    return validate_module(wasm, cache, manifest.limits)
