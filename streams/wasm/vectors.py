"""Test vectors of a UDF (vectors.json): rows and events in, rows and rejects out.

{"cases": [{"name", "rows"?: {key: ROW}, "events": [EVENT], "expect": {key: ROW or null},
            "rejects"?: [{"index", "reason"}]}]}
EVENT: key, value (hex, wire format), append_ms; optional hlc (append_ms << 16), expires_ms (never), generation (0),
op ("put", "delete", "purge"). ROW: deleted_hlc, last_hlc, cells [{start_hlc, last_hlc, expires_ms, payload (hex)}].
`expect` names every row that changed; null is a removed row. Each case is folded whole and one event at a time.
Of maps, filters and flat_maps: map_vectors.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from streams.model.clock import NEVER_MS
from streams.model.errors import BadInput
from streams.model.row import Cell, MergeType, Row, decode_row, encode_row
from streams.wasm.batch import Event, build
from streams.wasm.engine import ModuleCache
from streams.wasm.fold_host import FoldHost, FoldOptions
from streams.wasm.manifest import read_manifest
from streams.wasm.map_vectors import run_map_case

_OPS = {"put": 0, "delete": 1, "purge": 2}


def run_vectors(directory: Path, cache: ModuleCache) -> list[str]:
    """Runs a UDF directory's vectors on its built modules; what differs, one line each (empty: all good).

    vectors.json, or vectors.<merge>.json for each module of a directory that builds several.
    """
    manifest = read_manifest(directory)
    failures: list[str] = []
    for name, merge in manifest.modules().items():
        if manifest.is_map:
            cases, wasm = _read(directory / name, directory / "vectors.json")
            for case in cases:
                events = [_event(each) for each in case["events"]]
                failures += [f"{name}: {line}" for line in run_map_case(wasm, cache, manifest, case, events)]
        if merge is None:
            continue
        file = directory / ("vectors.json" if len(manifest.merges) == 1 else f"vectors.{merge.label}.json")
        cases, wasm = _read(directory / name, file)
        options = FoldOptions(limits=manifest.limits, merge=int(merge), outputs=len(manifest.outputs))
        for case in cases:
            for size in (len(case["events"]), 1):
                host = FoldHost(wasm, cache, options)
                for line in _run_case(host, case, merge, max(1, size)):
                    failures.append(f"{name}: {case['name']} (batches of {size}): {line}")
                host.close()
    return failures


def _read(module: Path, vectors: Path) -> tuple[list[dict[str, Any]], bytes]:
    try:
        return json.loads(vectors.read_text())["cases"], module.read_bytes()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"cannot read {module.name} and {vectors.name}: {error}", field="directory") from None


def _run_case(host: FoldHost, case: dict[str, Any], merge: MergeType, size: int) -> list[str]:
    stored = {key.encode(): encode_row(_row(row, merge)) for key, row in case.get("rows", {}).items()}
    events = [_event(e) for e in case["events"]]
    rejects = []
    for at in range(0, len(events), size):
        batch = build(events[at : at + size])
        for reject in host.fold(batch.raw, lambda keys: [stored.get(k) for k in keys]):
            rejects.append({"index": at + reject.index, "reason": reject.reason})
    got = {key.decode(): row and decode_row(row) for key, row in host.take()}
    want = {key: None if row is None else _row(row, merge) for key, row in case["expect"].items()}
    differ = [key for key in got | want if got.get(key) != want.get(key)]
    lines = [f"{key}: expected {_shown(want.get(key))}, got {_shown(got.get(key))}" for key in differ]
    if got.keys() != want.keys():
        lines.append(f"expected changes of {sorted(want)}, got {sorted(got)}")
    if rejects != case.get("rejects", []):
        lines.append(f"expected rejects {case.get('rejects', [])}, got {rejects}")
    return lines


def _shown(row: Row | bytes | None) -> str:
    """A row as vectors have it, which is what has to be corrected when the code is right."""
    if not isinstance(row, Row):
        return "no row"
    names = ("start_hlc", "last_hlc", "expires_ms")
    cells = [{**{name: getattr(c, name) for name in names}, "payload": c.payload.hex()} for c in row.cells]
    return json.dumps({"deleted_hlc": row.deleted_hlc, "last_hlc": row.last_hlc, "cells": cells})


def _event(data: dict[str, Any]) -> Event:
    append_ms = data["append_ms"]
    return Event(
        append_ms=append_ms,
        hlc=data.get("hlc", append_ms << 16),
        expires_ms=data.get("expires_ms", NEVER_MS),
        generation=data.get("generation", 0),
        op=_OPS[data.get("op", "put")],
        key=data["key"].encode(),
        value=bytes.fromhex(data["value"]),
    )


def _row(data: dict[str, Any], merge: MergeType) -> Row:
    cells = tuple(
        Cell(c["start_hlc"], c["last_hlc"], c["expires_ms"], bytes.fromhex(c["payload"])) for c in data["cells"]
    )
    return Row(merge, 0, data["deleted_hlc"], data["last_hlc"], cells)
