"""What `streams udf new` writes: a UDF of a kind, in C, Zig or Python, that works, with vectors that hold.

The sources are wasm_udfs/templates/KIND.LANGUAGE; the three languages' do the same, so one set of vectors fits all.
"""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

from streams.client.function_template import function_files
from streams.client.machine_template import machine_files
from streams.serde import delete_value, encode, load_builtin

LANGUAGES = {"c": ".c", "zig": ".zig", "python": ".py"}
KINDS = ("fold", "map", "filter", "flat_map", "function", "machine")
_HEAD = """\
name = "{name}"
version = "1.0.0"
abi = 1
kind = "{kind}"
"""
_FOLD = """\
inputs = ["score"] # the keyspaces whose events are folded
table = "{name}" # what GET /v1/tables/{name} shows
merge = "counter" # how the regions' rows become one: counter, max, min or lww
# ttl = "7d" # how long a row lives whose put does not say
"""
_MAP = """\
inputs = ["{inputs}"] # the keyspaces whose events are read
output = "{output}" # the keyspace that is written to, or a list of several
# ttl = "7d" # how long what comes out lives, where the put does not say; else as the output keyspace says
"""
_WAYS = {"map": ("score", "best"), "filter": ("kv", "content"), "flat_map": ("kv", "score")}
_LIMITS = """
[limits]
memory_bytes = {memory}
deadline_s = {deadline}
output_bytes = 16777216
"""


def files_of(name: str, lang: str = "c", kind: str = "fold") -> dict[str, str]:
    """The files of a new UDF, by name. Functions and machines are in C."""
    if kind == "function":
        return function_files(name)
    if kind == "machine":
        return machine_files(name)
    inputs, output = _WAYS.get(kind, ("", ""))
    body = (_HEAD + (_FOLD if kind == "fold" else _MAP)).format(name=name, kind=kind, inputs=inputs, output=output)
    # An interpreter starts with 30 MiB, and is a hundred times slower.
    memory, deadline = (256 << 20, "5.0") if lang == "python" else (64 << 20, "2.0")
    suffix = LANGUAGES[lang]
    source = files("wasm_udfs").joinpath("templates", f"{kind}{suffix}").read_text()
    return {
        "udf.toml": body + _LIMITS.format(memory=memory, deadline=deadline),
        f"{name}{suffix}": source.replace("NAME", name, 1),
        "vectors.json": json.dumps({"cases": _CASES[kind]()}, indent=1) + "\n",
    }


def _event(key: str, schema: str, value: Any, at_ms: int) -> dict[str, Any]:
    return {"key": key, "value": encode(load_builtin()[schema], value).hex(), "append_ms": at_ms}


def _add(add: int, at_ms: int) -> dict[str, Any]:
    return _event("score:a", "streams.CounterAdd", {"add": add}, at_ms)


def _text(key: str, value: Any, at_ms: int) -> dict[str, Any]:
    return _event(key, "streams.Json", {"json": json.dumps(value, separators=(",", ":"))}, at_ms)


def _delete(key: str, at_ms: int) -> dict[str, Any]:
    return {"key": key, "value": delete_value().hex(), "append_ms": at_ms, "op": "delete"}


def _body(schema: str, value: Any) -> str:
    return encode(load_builtin()[schema], value)[5:].hex()


def _row(count: int, start_ms: int, last_ms: int) -> dict[str, Any]:
    cell = {
        "start_hlc": start_ms << 16,
        "last_hlc": last_ms << 16,
        "expires_ms": 2**63 - 1,
        "payload": (count.to_bytes(8, "little") + bytes(8)).hex(),
    }
    return {"deleted_hlc": 0, "last_hlc": last_ms << 16, "cells": [cell]}


def _fold_cases() -> list[dict[str, Any]]:
    return [
        {
            "name": "two of three puts are large",
            "events": [_add(10, 1_000_000), _add(9, 1_000_001), _add(60, 1_000_002)],
            "expect": {"score:a": _row(2, 1_000_000, 1_000_002)},
        },
        {"name": "a small put makes no row", "events": [_add(1, 1_000_000)], "expect": {}},
    ]


def _map_cases() -> list[dict[str, Any]]:
    return [
        {
            "name": "a put becomes a number, a delete a delete",
            "events": [_add(10, 1_000_000), _delete("score:a", 1_000_001)],
            "puts": [
                {"key": "best:a", "event": 0, "body": _body("streams.Number", {"value": 10.0})},
                {"key": "best:a", "event": 1, "op": "delete"},
            ],
        }
    ]


def _filter_cases() -> list[dict[str, Any]]:
    return [
        {
            "name": "objects pass, and deletes",
            "events": [_text("kv:a", {"n": 1}, 1_000_000), _text("kv:b", 7, 1_000_001), _delete("kv:b", 1_000_002)],
            "puts": [
                {"key": "content:a", "event": 0, "op": "pass"},
                {"key": "content:b", "event": 2, "op": "delete"},
            ],
        }
    ]


def _flat_map_cases() -> list[dict[str, Any]]:
    one = _body("streams.CounterAdd", {"add": 1})
    return [
        {
            "name": "each word counts",
            "events": [_text("kv:a", "to be or to be", 1_000_000), _text("kv:b", 7, 1_000_001)],
            "puts": [{"key": f"score:{word}", "event": 0, "body": one} for word in ("to", "be", "or", "to", "be")],
        },
        {"name": "a delete counts nothing", "events": [_delete("kv:a", 1_000_000)], "puts": []},
    ]


_CASES = {"fold": _fold_cases, "map": _map_cases, "filter": _filter_cases, "flat_map": _flat_map_cases}
