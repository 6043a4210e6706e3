"""Test vectors of a function (vectors.json): tables and a request in, the answer and puts out.

{"cases": [{"name", "now_ms"?, "tables"?: {TABLE: {KEY: VALUE}}, "request"?: {FIELD: TEXT}, "body"?: TEXT or JSON,
            "expect": {"status"?, "headers"?: {NAME: TEXT}, "body"?: TEXT, "contains"?: [TEXT],
                       "puts"?: [{"key", "value", "ttl_ms"?}], "log"?: [TEXT]}}]}
FIELD: region, query.NAME, header.NAME, user.NAME, …; values are JSON. Only what `expect` names is compared. Time is
`now_ms` (1,700,000,000,000), random bytes are 00 01 02 …, so a vector says the same everywhere.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from streams.model.errors import BadInput
from streams.model.keys import keyspace_of, validate_key
from streams.wasm.engine import UdfTrap
from streams.wasm.function_abi import FunctionRequest
from streams.wasm.function_engine import FunctionModules
from streams.wasm.function_host import FunctionHost, FunctionResult
from streams.wasm.function_manifest import FunctionPart
from streams.wasm.manifest import read_manifest

NOW_MS = 1_700_000_000_000


@dataclass(slots=True)
class MemoryServices:
    """Host functions over tables in memory: values are JSON, as a gateway has them."""

    part: FunctionPart
    tables: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    time_ms: int = NOW_MS

    def read(self, table: str, key: bytes) -> bytes | None:
        """A row's value."""
        rows = self.tables.get(table, {})
        name = key.decode(errors="replace")
        return _json(rows[name]) if name in rows else None

    def scan(self, table: str, prefix: bytes, limit: int) -> Sequence[tuple[bytes, bytes]]:
        """Rows in key order."""
        found = sorted((key.encode(), _json(value)) for key, value in self.tables.get(table, {}).items())
        return [each for each in found if each[0].startswith(prefix)][:limit]

    def top(self, table: str, n: int, by: str | None) -> Sequence[tuple[bytes, bytes]]:
        """The highest rows that have a number."""
        ranked = []
        for key, value in self.tables.get(table, {}).items():
            number = value if by is None else value.get(by) if isinstance(value, dict) else None
            if isinstance(number, int | float) and not isinstance(number, bool):
                ranked.append((-number, key.encode(), _json(value)))
        return [(key, value) for _, key, value in sorted(ranked)[:n]]

    def check_put(self, key: bytes, value: bytes, ttl_ms: int | None) -> object:
        """A put as vectors write it."""
        keyspace = keyspace_of(validate_key(key))
        if keyspace not in self.part.puts:
            raise BadInput(f"keyspace {keyspace} is not in puts of udf.toml", field="puts")
        try:
            found: dict[str, Any] = {"key": key.decode(), "value": json.loads(value)}
        except ValueError:
            raise BadInput("the value is not JSON", field="value") from None
        return found if ttl_ms is None else {**found, "ttl_ms": ttl_ms}

    def now_ms(self) -> int:
        """The vector's time."""
        return self.time_ms

    def random(self, size: int) -> bytes:
        """00 01 02 …"""
        return bytes(i % 256 for i in range(size))


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def run_function_vectors(directory: Path, modules: FunctionModules | None = None) -> list[str]:
    """Runs a function directory's vectors on its built module; what differs, one line each (empty: all good)."""
    manifest = read_manifest(directory)
    if manifest.function is None:
        raise BadInput(f"{manifest.name} is a {manifest.kind}", field="kind", fix="name a function's directory")
    try:
        cases = json.loads((directory / "vectors.json").read_text())["cases"]
        wasm = (directory / f"{manifest.name}.wasm").read_bytes()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"cannot read {manifest.name}.wasm and vectors.json: {error}", field="directory") from None
    host = FunctionHost(wasm, modules or FunctionModules(), manifest.function, manifest.limits)
    failures: list[str] = []
    for case in cases:
        try:
            found = host.run(request_of(case).encode(), _services(manifest.function, case))
        except UdfTrap as trap:
            failures.append(f"{case['name']}: {trap.detail}")
            continue
        failures += [f"{case['name']}: {line}" for line in _differences(found, case["expect"])]
    return failures


def request_of(case: Mapping[str, Any]) -> FunctionRequest:
    """The request of a vector."""
    body = case.get("body", "")
    fields = {"method": b"POST", "region": b"test"}
    fields |= {name: str(value).encode() for name, value in case.get("request", {}).items()}
    fields["body"] = body.encode() if isinstance(body, str) else _json(body)
    return FunctionRequest(fields)


def _services(part: FunctionPart, case: Mapping[str, Any]) -> MemoryServices:
    return MemoryServices(part, case.get("tables", {}), case.get("now_ms", NOW_MS))


def _differences(found: FunctionResult, expect: Mapping[str, Any]) -> list[str]:
    answer = found.answer
    body = answer.body.decode(errors="replace")
    headers = {name.decode(): value.decode("latin-1") for name, value in answer.headers}
    headers["content-type"] = answer.content_type.decode("latin-1")
    got = {"status": answer.status, "body": body, "puts": found.puts, "log": found.log}
    lines = [
        f"{name} {got[name]!r} is not {expect[name]!r}" for name in got if name in expect and got[name] != expect[name]
    ]
    lines += [f"the body lacks {text!r}: {body!r:.300}" for text in expect.get("contains", []) if text not in body]
    for name, value in expect.get("headers", {}).items():
        if headers.get(name) != value:
            lines.append(f"header {name} is {headers.get(name)!r}, not {value!r}")
    return lines
