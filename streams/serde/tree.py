"""An Avro schema as a graph of nodes, checked while it is built; what is wrong is named by its path."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from streams.model.errors import BadInput

PRIMITIVES = frozenset({"null", "boolean", "int", "long", "float", "double", "bytes", "string"})
NESTING_MAX = 64
NODES_MAX = 10_000
FIXED_BYTES_MAX = 1 << 20
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_FULL_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*\Z")


@dataclass(slots=True, eq=False)
class Node:
    """One type of a schema. `kind` is Avro's type name; references to a named type share its one node.

    `items`: of an array, or the values of a map. `branches`: of a union. `fields`: of a record, in order.
    """

    kind: str
    name: str = ""
    logical: str = ""
    fields: list[FieldNode] = field(default_factory=list)
    items: Node | None = None
    branches: list[Node] = field(default_factory=list)
    symbols: tuple[str, ...] = ()
    size: int = 0

    @property
    def label(self) -> str:
        """How a union tells this branch from others: the full name, or the type."""
        return self.name or self.kind


@dataclass(slots=True, eq=False)
class FieldNode:
    """A record's field. `default` is JSON, meaningful when `has_default`."""

    name: str
    node: Node
    has_default: bool
    default: Any


def build_tree(document: Any) -> Node:
    """The graph of a schema document (parsed JSON). BadInput says where and what is wrong."""
    return _Builder().build(document, "", "", 0)


def walk_nodes(root: Node) -> Iterator[Node]:
    """Every node of the graph, once."""
    seen: set[int] = set()
    stack = [root]
    while stack:
        node = stack.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        yield node
        stack.extend(member.node for member in node.fields)
        stack.extend(node.branches)
        if node.items is not None:
            stack.append(node.items)


class _Builder:
    def __init__(self) -> None:
        self._named: dict[str, Node] = {}
        self._count = 0

    def build(self, document: Any, namespace: str, path: str, depth: int) -> Node:
        """The node of a schema document at `path`; BadInput when it is none or too large."""
        self._count += 1
        if depth > NESTING_MAX or self._count > NODES_MAX:
            raise _wrong(path, f"the schema is too large (over {NESTING_MAX} levels or {NODES_MAX} types)")
        if isinstance(document, str):
            return self._reference(document, namespace, path)
        if isinstance(document, list):
            return self._union(document, namespace, path, depth)
        if not isinstance(document, dict):
            raise _wrong(path, "a schema is a JSON object, array or string")
        kind = document.get("type")
        if isinstance(kind, dict | list):
            return self.build(kind, namespace, _under(path, "type"), depth + 1)
        if not isinstance(kind, str):
            raise _wrong(path, "the type is missing")
        return self._complex(kind, document, namespace, path, depth)

    def _complex(self, kind: str, document: dict[str, Any], namespace: str, path: str, depth: int) -> Node:
        logical = document.get("logicalType")
        node = Node(kind, logical=logical if isinstance(logical, str) else "")
        if kind in PRIMITIVES:
            return node
        if kind in ("array", "map"):
            part = "items" if kind == "array" else "values"
            if part not in document:
                raise _wrong(path, f"the {kind} has no {part!r}")
            node.items = self.build(document[part], namespace, _under(path, part), depth + 1)
            return node
        if kind not in ("record", "error", "enum", "fixed"):
            return self._reference(kind, namespace, path)
        node.kind = "record" if kind == "error" else kind
        inner = self._declare(node, document, namespace, path)
        if node.kind == "record":
            self._fields(node, document, inner, path, depth)
        elif kind == "enum":
            node.symbols = _symbols(document, path)
        else:
            size = document.get("size")
            if type(size) is not int or not 0 <= size <= FIXED_BYTES_MAX:
                raise _wrong(path, f"'size' is not a number of bytes up to {FIXED_BYTES_MAX}")
            node.size = size
        return node

    def _declare(self, node: Node, document: dict[str, Any], namespace: str, path: str) -> str:
        name, given = document.get("name"), document.get("namespace")
        if not isinstance(name, str) or not _FULL_NAME.match(name):
            raise _wrong(path, f"{str(name)[:80]!r} is not a name (letters, digits and _, not starting with a digit)")
        if given is not None and (not isinstance(given, str) or (given and not _FULL_NAME.match(given))):
            raise _wrong(path, f"{str(given)[:80]!r} is not a namespace")
        if "." in name:
            inner = name.rpartition(".")[0]
        else:
            inner = namespace if given is None else given
            name = f"{inner}.{name}" if inner else name
        if name in self._named or name in PRIMITIVES:
            raise _wrong(path, f"the name {name} is taken")
        node.name = name
        self._named[name] = node
        return inner

    def _fields(self, node: Node, document: dict[str, Any], namespace: str, path: str, depth: int) -> None:
        members = document.get("fields")
        if not isinstance(members, list):
            raise _wrong(path, f"the record {node.name} has no list of 'fields'")
        seen: set[str] = set()
        for index, member in enumerate(members):
            if not isinstance(member, dict) or not isinstance(member.get("name"), str):
                raise _wrong(_under(path, f"fields[{index}]"), "a field is an object with a 'name' and a 'type'")
            name = member["name"]
            where = _under(path, name[:80])
            if not _NAME.match(name):
                raise _wrong(where, f"{name[:80]!r} is not a field name (letters, digits and _)")
            if name in seen:
                raise _wrong(where, "the record has two fields of this name")
            if "type" not in member:
                raise _wrong(where, "the field has no type")
            seen.add(name)
            inner = self.build(member["type"], namespace, where, depth + 1)
            node.fields.append(FieldNode(name, inner, "default" in member, member.get("default")))

    def _union(self, branches: list[Any], namespace: str, path: str, depth: int) -> Node:
        node = Node("union")
        seen: set[str] = set()
        for index, branch in enumerate(branches):
            where = _under(path, f"[{index}]")
            if isinstance(branch, list):
                raise _wrong(where, "a union must not hold a union")
            inner = self.build(branch, namespace, where, depth + 1)
            if inner.label in seen:
                raise _wrong(where, f"the union holds {inner.label} twice")
            seen.add(inner.label)
            node.branches.append(inner)
        if not branches:
            raise _wrong(path, "the union is empty")
        return node

    def _reference(self, name: str, namespace: str, path: str) -> Node:
        if name in PRIMITIVES:
            return Node(name)
        full = name if "." in name or not namespace else f"{namespace}.{name}"
        found = self._named.get(full) or self._named.get(name)
        if found is None:
            raise _wrong(path, f"there is no type {name[:80]!r}")
        return found


def _symbols(document: dict[str, Any], path: str) -> tuple[str, ...]:
    symbols = document.get("symbols")
    if not isinstance(symbols, list) or not symbols:
        raise _wrong(path, "the enum has no list of 'symbols'")
    for symbol in symbols:
        if not isinstance(symbol, str) or not _NAME.match(symbol):
            raise _wrong(path, f"{str(symbol)[:80]!r} is not a symbol (letters, digits and _)")
    if len(set(symbols)) != len(symbols):
        raise _wrong(path, "the enum has a symbol twice")
    return tuple(symbols)


def _under(path: str, part: str) -> str:
    return f"{path}.{part}" if path and not part.startswith("[") else f"{path}{part}"


def _wrong(path: str, detail: str) -> BadInput:
    where = f"at {path}: " if path else ""
    return BadInput(f"{where}{detail}", field="schema", fix="send a valid Avro 1.12 schema")
