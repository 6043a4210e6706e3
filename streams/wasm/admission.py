"""What a UDF must be to be deployed: its manifest within the operator's caps, its module of the ABI."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace

from streams.model.errors import BadInput
from streams.wasm.abi import MODULE_BYTES_MAX, validate_module
from streams.wasm.caps import DEFAULT_CAPS, capped
from streams.wasm.engine import COMPONENT, Limits, ModuleCache
from streams.wasm.function_host import check_function
from streams.wasm.function_manifest import FIELDS, FunctionCaps, caps_within, check_function_caps
from streams.wasm.machine_run import check_machine
from streams.wasm.manifest import MAPS, Manifest, parse_manifest
from streams.wasm.packing import packed

MANIFEST_BYTES_MAX = 64 << 10
_FIELDS = (
    "name", "version", "abi", "kind", "inputs", "table", "merge", "ttl", "outputs", "limits", "constants", "output",
    "writes", "on_trap", "trap_limit", "trap_window_s",
)  # fmt: skip
_MACHINE_FIELDS = ("name", "version", "abi", "kind", "group", "layout", "limits", "constants")
_MACHINE_LIMITS = ("memory_bytes", "fuel", "output_bytes", "stack_bytes", "row_bytes", "table_rows", "table_bytes")
MACHINE_FUEL = 1_000_000_000
"""The most that a command may use, whatever the operator allows others: those behind it in the log wait."""
_GROUPS = ("strong", "orders")
"""Consistency groups that have a machine of the platform's own."""
_FUNCTION_FIELDS = ("name", "version", "abi", "kind", "limits", "constants", *FIELDS)
_MERGES = ("lww", "counter", "max", "min")
_VERSION = re.compile(r"(0|[1-9]\d{0,8})(\.(0|[1-9]\d{0,8})){0,3}\Z")
_RESERVED = ("events", "table", "dead-letter", "late", "alerts", "definitions", "udfs", "udf-states")


@dataclass(frozen=True, slots=True)
class DeployCaps:
    """What the operator allows. `module_bytes`: a module travels as one Kafka record (a component packed); `udfs`: how
    many are deployed at once, each a process in every region; `limits`: the most that a manifest may ask for,
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
    """The manifest of a UDF of a kind that may be deployed, with the limits it gets. BadInput names the wrong field."""
    if len(text.encode(errors="replace")) > MANIFEST_BYTES_MAX:
        raise BadInput(f"udf.toml is over {MANIFEST_BYTES_MAX} bytes", field="manifest", fix="say less in it")
    manifest = parse_manifest(text)
    fields: tuple[str, ...] = _FUNCTION_FIELDS if manifest.function is not None else _FIELDS
    fields = _MACHINE_FIELDS if manifest.is_machine else fields
    if unknown := tomllib.loads(text).keys() - set(fields):
        raise BadInput(
            f"udf.toml of a {manifest.kind} has no such field", field=min(unknown)[:80], fix=f"use {', '.join(fields)}"
        )
    version_key(manifest.version)
    if manifest.function is not None:
        check_function_caps(manifest.function, manifest.limits, caps_within(caps.functions, caps.limits))
        return manifest
    if manifest.is_machine:
        return _admit_machine(manifest, caps)
    if manifest.kind != "fold" and not manifest.is_map:
        kinds = f"fold, {', '.join(MAPS)}, function, machine"
        raise BadInput(f"a {manifest.kind} is not deployed", field="kind", fix=f"use {kinds}")
    if not manifest.inputs:
        raise BadInput("udf.toml names no keyspace to read", field="inputs", fix='add inputs = ["score"], for example')
    _check_map(manifest, tomllib.loads(text)) if manifest.is_map else _check_fold(manifest)
    return replace(manifest, limits=capped(manifest, caps.limits))


def _admit_machine(manifest: Manifest, caps: DeployCaps) -> Manifest:
    if manifest.group in _GROUPS:
        raise BadInput(f"{manifest.group} is the platform's own group", field="group", fix="name another")
    for name in sorted(manifest.asked):
        if name not in _MACHINE_LIMITS:
            raise BadInput(
                "does not bound a machine: what stops a command must be the same on all replicas",
                field=f"limits.{name}",
                fix=f"use some of {', '.join(_MACHINE_LIMITS)}",
            )
    most = replace(caps.limits, fuel=min(caps.limits.fuel, MACHINE_FUEL))
    return replace(manifest, limits=capped(manifest, most))


def _check_map(manifest: Manifest, given: Mapping[str, object]) -> None:
    for name in ("table", "merge", "outputs"):
        if name in given:
            raise BadInput(
                f"a {manifest.kind} makes no table", field=name, fix='remove it; output = "keyspace" says where'
            )
    if not manifest.puts:
        raise BadInput("udf.toml does not say where it writes to", field="output", fix='add output = "kv", for example')
    if manifest.kind == "filter" and any(manifest.writes):
        raise BadInput("a filter passes values as they are", field="writes", fix="remove it")


def _check_fold(manifest: Manifest) -> None:
    if manifest.puts:
        raise BadInput(
            "a fold makes a table, no puts", field="output", fix="use outputs, or kind map, filter, flat_map"
        )
    if len(manifest.merges) != 1:
        raise BadInput("a deployed UDF has one merge type", field="merge", fix=f"use one of {', '.join(_MERGES)}")
    if manifest.merges[0].label not in _MERGES:
        raise BadInput(
            f"tables of {manifest.merges[0].label} rows are not deployed",
            field="merge",
            fix=f"use {', '.join(_MERGES)}",
        )
    for topic in manifest.outputs:
        if topic.partition(".")[0] in _RESERVED:
            raise BadInput(
                f"{topic[:80]} is the platform's own", field="outputs", fix=f"name it {manifest.name}.something"
            )


def admit_module(wasm: bytes, manifest: Manifest, caps: DeployCaps, cache: ModuleCache) -> str:
    """The module's SHA-256, if it is one of the ABI that starts under the manifest's limits. BadInput: why not."""
    if not wasm:
        raise BadInput("the module is empty", field="module", fix="build it with `streams udf build`")
    size = len(packed(wasm)) if wasm[:8] == COMPONENT and len(wasm) <= MODULE_BYTES_MAX else len(wasm)
    if size > caps.module_bytes:
        raise BadInput(
            f"the module has {size} bytes, over the limit of {caps.module_bytes}",
            field="module",
            fix="strip it, or raise the gateway's --udf-module-mib",
        )
    if manifest.function is not None:
        return check_function(wasm, manifest.function, manifest.limits)
    if manifest.is_machine:
        return check_machine(wasm, cache, manifest.limits)
    return validate_module(wasm, cache, manifest.limits, is_map=manifest.is_map)
