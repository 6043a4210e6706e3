"""Compiles a parsed Avro schema to the program that the decoder checks values with.

The interpreter is wasm_udfs/record_decoder/avro_check.h.

A node is an opcode byte and its operands, little endian; positions are from the start of the program:
0 null, 1 boolean, 2 int, 3 long, 4 float, 5 double, 6 bytes, 7 string, 8 fixed u32 size, 9 enum u32 symbols,
10 array u32 end, item; 11 map u32 end, value; 12 union u16 n, u32 end, n × u32 branch, branches;
13 record u16 n, n fields; 14 reference u32 position of a record, enum or fixed defined earlier.
"""

from __future__ import annotations

import struct
from typing import Any

from streams.model.errors import BadInput

DEPTH_MAX = 64
_PRIMITIVES = ("null", "boolean", "int", "long", "float", "double", "bytes", "string")
_FIXED, _ENUM, _ARRAY, _MAP, _UNION, _RECORD, _REF = range(8, 15)


def avro_program(schema: Any) -> bytes:
    """The program of a schema as parsed JSON (dict, list or str). BadInput names what is not valid Avro.

    Named types may be given in full or short names; logical types and defaults are ignored.
    """
    compiler = _Compiler()
    compiler.node(schema, "", 0)
    return bytes(compiler.code)


class _Compiler:
    def __init__(self) -> None:
        self.code = bytearray()
        self._named: dict[str, int] = {}

    def node(self, schema: Any, namespace: str, depth: int) -> None:
        """Append the code of a schema; BadInput when it is nested too deep."""
        if depth > DEPTH_MAX:
            raise BadInput(f"the schema is nested deeper than {DEPTH_MAX}", field="schema")
        if isinstance(schema, str):
            self._name(schema, namespace)
        elif isinstance(schema, list):
            self._union(schema, namespace, depth)
        elif isinstance(schema, dict):
            self._complex(schema, namespace, depth)
        else:
            raise BadInput(f"{schema!r:.80} is not a schema", field="schema")

    def _name(self, name: str, namespace: str) -> None:
        if name in _PRIMITIVES:
            self.code.append(_PRIMITIVES.index(name))
            return
        full = name if "." in name or not namespace else f"{namespace}.{name}"
        position = self._named.get(full, self._named.get(name))
        if position is None:
            raise BadInput(f"type {name!r:.80} is not defined", field="schema")
        self.code += struct.pack("<BI", _REF, position)

    def _union(self, branches: list[Any], namespace: str, depth: int) -> None:
        self.code += struct.pack("<BH", _UNION, len(branches))
        table = len(self.code)
        self.code += bytes(4 + 4 * len(branches))
        for i, branch in enumerate(branches):
            struct.pack_into("<I", self.code, table + 4 + 4 * i, len(self.code))
            self.node(branch, namespace, depth + 1)
        struct.pack_into("<I", self.code, table, len(self.code))

    def _complex(self, schema: dict[str, Any], namespace: str, depth: int) -> None:
        kind = schema.get("type")
        if kind in ("array", "map"):
            self._blocks(schema, kind, namespace, depth)
        elif kind in ("record", "error", "enum", "fixed"):
            self._define(schema, kind, namespace, depth)
        elif isinstance(kind, str | list | dict):
            self.node(kind, namespace, depth + 1)
        else:
            raise BadInput(f"{schema!r:.80} has no type", field="schema")

    def _blocks(self, schema: dict[str, Any], kind: str, namespace: str, depth: int) -> None:
        inner = "items" if kind == "array" else "values"
        if inner not in schema:
            raise BadInput(f"an {kind} has no {inner}", field="schema")
        self.code += struct.pack("<BI", _ARRAY if kind == "array" else _MAP, 0)
        end_at = len(self.code) - 4
        self.node(schema[inner], namespace, depth + 1)
        struct.pack_into("<I", self.code, end_at, len(self.code))

    def _define(self, schema: dict[str, Any], kind: str, namespace: str, depth: int) -> None:
        name = schema.get("name")
        if not isinstance(name, str) or not name:
            raise BadInput(f"a {kind} has no name", field="schema")
        if "." in name:
            full, namespace = name, name.rpartition(".")[0]
        else:
            namespace = schema.get("namespace", namespace) or ""
            full = f"{namespace}.{name}" if namespace else name
        if full in self._named:
            raise BadInput(f"type {full!r:.80} is defined twice", field="schema")
        self._named[full] = len(self.code)
        if kind == "enum":
            self.code += struct.pack("<BI", _ENUM, len(schema.get("symbols", ())))
        elif kind == "fixed":
            size = schema.get("size")
            if not isinstance(size, int) or not 0 <= size < 1 << 31:
                raise BadInput(f"fixed {full} has no valid size", field="schema")
            self.code += struct.pack("<BI", _FIXED, size)
        else:
            fields = schema.get("fields")
            if not isinstance(fields, list) or len(fields) > 0xFFFF:
                raise BadInput(f"record {full} has no list of fields", field="schema")
            self.code += struct.pack("<BH", _RECORD, len(fields))
            for field in fields:
                if not isinstance(field, dict) or "type" not in field:
                    raise BadInput(f"record {full} has a field without a type", field="schema")
                self.node(field["type"], namespace, depth + 1)
