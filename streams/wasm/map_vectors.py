"""Test vectors of maps, filters and flat_maps (vectors.json): events in, puts and rejects out.

{"cases": [{"name", "events": [EVENT], "puts": [PUT], "rejects"?: [{"index", "reason"}]}]}, EVENT as a fold's
(vectors.py). PUT: key (`keyspace:rest`), event (its index), and body (hex, Avro), or `"op": "delete"` or `"pass"`
(the event's value as it came). Each case is run whole and one event at a time.
"""

from __future__ import annotations

from typing import Any

from streams.wasm.batch import Event, build
from streams.wasm.engine import ModuleCache
from streams.wasm.manifest import Manifest
from streams.wasm.map_host import DELETE, PASS, Emitted, MapHost

_OPS = {DELETE: "delete", PASS: "pass"}


def run_map_case(
    wasm: bytes, cache: ModuleCache, manifest: Manifest, case: dict[str, Any], events: list[Event]
) -> list[str]:
    """What differs from a case's expectation, one line each."""
    failures = []
    for size in dict.fromkeys((max(1, len(events)), 1)):
        host = MapHost(wasm, cache, manifest.kind, len(manifest.puts), manifest.limits)
        puts: list[dict[str, Any]] = []
        rejects: list[dict[str, Any]] = []
        for at in range(0, len(events), size):
            part = events[at : at + size]
            emitted, refused = host.map(build(part).raw)
            puts += [_put(each, at, part[each.event], manifest) for each in emitted]
            rejects += [{"index": at + each.index, "reason": each.reason} for each in refused]
        host.close()
        lines = [] if puts == case["puts"] else [f"expected puts {case['puts']}, got {puts}"]
        if rejects != case.get("rejects", []):
            lines.append(f"expected rejects {case.get('rejects', [])}, got {rejects}")
        failures += [f"{case['name']} (batches of {size}): {line}" for line in lines]
    return failures


def _put(each: Emitted, first: int, event: Event, manifest: Manifest) -> dict[str, Any]:
    rest = each.rest or event.key.partition(b":")[2]
    key = f"{manifest.puts[each.output]}:{rest.decode(errors='replace')}"
    made: dict[str, Any] = {"key": key, "event": first + each.event}
    return {**made, "op": _OPS[each.op]} if each.op in _OPS else {**made, "body": each.body.hex()}
