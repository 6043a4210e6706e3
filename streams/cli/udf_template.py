"""What `streams udf new` writes: a fold in C that counts the puts of 10 points or more, with vectors that hold."""

from __future__ import annotations

import json

from streams.cli.function_template import function_files

MANIFEST = """\
name = "{name}"
version = "1.0.0"
abi = 1
kind = "fold"
inputs = ["score"] # the keyspaces whose events are folded
table = "{name}" # what GET /v1/tables/{name} shows
merge = "counter" # how the regions' rows become one: counter, max, min or lww
# ttl = "7d" # how long a row lives whose put does not say

[limits]
memory_bytes = 67108864
deadline_s = 2.0
output_bytes = 16777216
"""

SOURCE = """\
/* {name}: how many puts of 10 points or more each key of `score` got. Called once for every put, in the log's order. */
#include "streams.h"

int streams_fold_event(const streams_event *e, streams_row *r) {{
  streams_reader body = streams_body(e); /* streams.CounterAdd {{"add": long}} */
  int64_t add = streams_read_long(&body);
  if (body.error) return streams_reject("malformed value"); /* becomes a dead letter */
  if (add < 10) return 0;

  streams_cell *old = streams_peek(e, r);
  uint64_t count = old ? streams_get64(streams_payload(old)) : 0;
  streams_put64(streams_payload(streams_touch(e, r, 16)), count + 1); /* a counter's cell: sum added, sum subtracted */
  return 0;
}}
"""


def _put(add: int, at_ms: int) -> dict[str, object]:
    return {"key": "score:a", "value": (b"\0\0\0\0\0" + bytes([add * 2])).hex(), "append_ms": at_ms}


def _row(count: int, start_ms: int, last_ms: int) -> dict[str, object]:
    cell = {
        "start_hlc": start_ms << 16,
        "last_hlc": last_ms << 16,
        "expires_ms": 2**63 - 1,
        "payload": (count.to_bytes(8, "little") + bytes(8)).hex(),
    }
    return {"deleted_hlc": 0, "last_hlc": last_ms << 16, "cells": [cell]}


VECTORS = {
    "cases": [
        {
            "name": "two of three puts are large",
            "events": [_put(10, 1_000_000), _put(9, 1_000_001), _put(60, 1_000_002)],
            "expect": {"score:a": _row(2, 1_000_000, 1_000_002)},
        },
        {"name": "a small put makes no row", "events": [_put(1, 1_000_000)], "expect": {}},
    ]
}


def files_of(name: str, kind: str = "fold") -> dict[str, str]:
    """The files of a new UDF, by name."""
    if kind == "function":
        return function_files(name)
    return {
        "udf.toml": MANIFEST.format(name=name),
        f"{name}.c": SOURCE.format(name=name),
        "vectors.json": json.dumps(VECTORS, indent=1) + "\n",
    }
