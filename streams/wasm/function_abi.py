"""Functions' ABI v1: what a module must import and export, and how requests and answers are laid out. See ABI.md."""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import wasmtime

from streams.model.errors import BadInput
from streams.wasm.engine import CompiledModule, TrapKind, UdfTrap

MARKER = "streams_function_v1"
ABI_VERSION = 1
IMPORT_MODULE = "streams"
HEADERS_MAX = 32
HEADER_BYTES_MAX = 8 << 10
REQUEST_MAGIC = 0x31465453
_EXPORTS = {MARKER: 0, "streams_alloc": 1, "streams_handle": 2}
_U32 = struct.Struct("<I")
_HEAD = struct.Struct("<III")
_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]{1,64}\Z")
_TEXT = re.compile(rb"[\t\x20-\x7e\x80-\xff]*\Z")
_OWN_HEADERS = (
    b"content-length", b"connection", b"transfer-encoding", b"keep-alive", b"upgrade", b"te", b"trailer", b"date",
    b"server", b"causal-token", b"staleness-ms", b"idempotent-replayed", b"set-cookie2",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class HostImport:
    """A host function: what capability names it, and its parameters and result (i = i32, l = i64)."""

    capability: str
    params: str
    result: str = "i"


IMPORTS: dict[str, HostImport] = {
    "table_get": HostImport("tables.read", "iiiiii"),
    "table_scan": HostImport("tables.read", "iiiiiii"),
    "table_top": HostImport("tables.read", "iiiiiii"),
    "put": HostImport("put", "iiiil"),
    "clock": HostImport("clock", "", "l"),
    "random": HostImport("random", "ii"),
    "log": HostImport("log", "ii"),
}
KINDS = {"i": "i32", "l": "i64"}


@dataclass(frozen=True, slots=True)
class FunctionAnswer:
    """What a function answers: checked, ready to go out. `headers` without the content type."""

    status: int
    content_type: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes


@dataclass(slots=True)
class FunctionRequest:
    """A request's fields, by name: `method`, `region`, `query.NAME`, `header.NAME`, `user.NAME`, `body`, …"""

    fields: dict[str, bytes] = field(default_factory=dict)

    def encode(self) -> bytes:
        """As the function gets it."""
        lengths, parts = [], []
        for name, value in self.fields.items():
            raw = name.encode()
            lengths += [len(raw), len(value)]
            parts += [raw, value]
        head = struct.pack(f"<{2 + len(lengths)}I", REQUEST_MAGIC, len(self.fields), *lengths)
        return head + b"".join(parts)


def encode_rows(rows: Sequence[tuple[bytes, bytes]]) -> bytes:
    """Rows of a scan: u32 n, then n × (u32 key length, u32 value length), then keys and values in turn."""
    lengths, parts = [], []
    for key, value in rows:
        lengths += [len(key), len(value)]
        parts += [key, value]
    return struct.pack(f"<{1 + len(lengths)}I", len(rows), *lengths) + b"".join(parts)


def _malformed(what: str) -> UdfTrap:
    return UdfTrap(f"its answer {what}", TrapKind.MALFORMED)


def decode_answer(data: bytes) -> FunctionAnswer:
    """u32 status, u32 n, u32 body length, n × (u32 name length, u32 value length), names and values, body.

    UdfTrap when it is not that, or no answer of HTTP.
    """
    if len(data) < _HEAD.size:
        raise _malformed("is cut off")
    status, n, body_len = _HEAD.unpack_from(data)
    if not 200 <= status <= 599:
        raise _malformed(f"has status {status}, which is not from 200 to 599")
    if n > HEADERS_MAX:
        raise _malformed(f"has {n} headers, over {HEADERS_MAX}")
    at = _HEAD.size + 8 * n
    if at > len(data):
        raise _malformed("is cut off")
    lengths = struct.unpack_from(f"<{2 * n}I", data, _HEAD.size)
    if at + sum(lengths) + body_len != len(data):
        raise _malformed("has lengths that do not fit")
    if sum(lengths) > HEADER_BYTES_MAX:
        raise _malformed(f"has over {HEADER_BYTES_MAX} bytes of headers")
    content_type, headers = b"application/octet-stream", []
    for i in range(n):
        name = data[at : at + lengths[2 * i]].lower()
        at += lengths[2 * i]
        value = data[at : at + lengths[2 * i + 1]]
        at += lengths[2 * i + 1]
        if not _TOKEN.match(name) or not _TEXT.match(value):
            raise _malformed(f"has a header that HTTP does not allow: {name[:40]!r}")
        if name in _OWN_HEADERS or name.startswith(b"streams-"):
            raise _malformed(f"has the header {name.decode()}, which is the gateway's own")
        if name == b"content-type":
            content_type = value
        else:
            headers.append((name, value))
    body = data[at:]
    if body and status in (204, 205, 304):
        raise _malformed(f"has a body and status {status}")
    return FunctionAnswer(status, content_type, tuple(headers), body)


def check_function_module(compiled: CompiledModule, capabilities: Sequence[str]) -> None:
    """BadInput unless imports and exports are those of a function of ABI v1 with these capabilities; nothing is run."""
    for each in compiled.module.imports:
        name = each.name
        known = IMPORTS.get(name) if each.module == IMPORT_MODULE else None
        if known is None:
            raise BadInput(
                f"the module imports {each.module}.{name}, which no function has",
                field="module",
                fix=f"import from {IMPORT_MODULE} some of {', '.join(IMPORTS)}",
            )
        if not _is_function(each.type, known.params, known.result):
            raise BadInput(f"import {name} has a wrong signature", field="module", fix="see wasm_udfs/ABI.md")
        if known.capability not in capabilities:
            raise BadInput(
                f"the module imports {IMPORT_MODULE}.{name}, which needs the capability {known.capability}",
                field="capabilities",
                fix=f'add "{known.capability}" to capabilities in udf.toml',
            )
    exports: Mapping[str, object] = {each.name: each.type for each in compiled.module.exports}
    if MARKER not in exports:
        raise BadInput(f"the module does not export {MARKER}", field="module", fix="build it with streams_function.h")
    for name, params in _EXPORTS.items():
        if name not in exports:
            raise BadInput(f"the module does not export {name}", field="module", fix="see wasm_udfs/ABI.md")
        if not _is_function(exports[name], "i" * params, "i"):
            raise BadInput(f"export {name} has a wrong signature", field="module", fix="see wasm_udfs/ABI.md")
    if not isinstance(exports.get("memory"), wasmtime.MemoryType):
        raise BadInput("the module does not export its memory", field="module", fix="see wasm_udfs/ABI.md")


def _is_function(kind: object, params: str, result: str) -> bool:
    if not isinstance(kind, wasmtime.FuncType):
        return False
    return [str(p) for p in kind.params] == [KINDS[p] for p in params] and [str(r) for r in kind.results] == [
        KINDS[r] for r in result
    ]
