"""What `streams udf new --kind function` writes: a small function in C with vectors that hold."""

from __future__ import annotations

import json

MANIFEST = """\
name = "{name}"
version = "1.0.0"
abi = 1
kind = "function"
capabilities = ["tables.read", "put", "log"] # of tables.read, put, clock, random, log
tables = ["score"] # what it may read
puts = ["score"] # the keyspaces that it may put to
idempotent = false # true: a request may be run twice, so clients try again elsewhere when a node dies

[limits]
memory_bytes = 16777216
deadline_s = 1.0
output_bytes = 1048576
"""

SOURCE = """\
/* {name}: adds a point for the player in ?player= and answers how many there were. Called once for every request. */
#include "streams_function.h"

void streams_handle_request(const streams_request *q, streams_response *r) {{
  streams_text player = streams_field(q, "query.player");
  streams_buffer key = {{0, 0, 0}};
  streams_append_literal(&key, "score:");
  streams_append_text(&key, player);
  streams_text old = streams_table_get("score", streams_text_of(&key)); /* JSON; p is NULL when there is none */
  streams_header(r, "content-type", streams_literal("application/json"));
  if (!player.len || streams_put(streams_text_of(&key), streams_literal("{{\\"add\\": 1}}"), 0)) {{
    streams_status(r, 400);
    streams_write(r, "{{\\"detail\\": \\"give ?player=NAME\\"}}");
    return;
  }}
  streams_log(player);
  streams_write(r, "{{\\"player\\": ");
  streams_append_json(&r->body, player);
  streams_write(r, ", \\"points\\": ");
  streams_append_long(&r->body, streams_json_long(old, 0));
  streams_write(r, "}}");
}}
"""

VECTORS = {
    "cases": [
        {
            "name": "a point is put, those of before are answered",
            "tables": {"score": {"score:ann": 41}},
            "request": {"query.player": "ann"},
            "expect": {
                "status": 200,
                "headers": {"content-type": "application/json"},
                "body": '{"player": "ann", "points": 41}',
                "puts": [{"key": "score:ann", "value": {"add": 1}}],
                "log": ["ann"],
            },
        },
        {"name": "nobody: nothing is put", "expect": {"status": 400, "puts": []}},
    ]
}


def function_files(name: str) -> dict[str, str]:
    """The files of a new function, by name."""
    return {
        "udf.toml": MANIFEST.format(name=name),
        f"{name}.c": SOURCE.format(name=name),
        "vectors.json": json.dumps(VECTORS, indent=1) + "\n",
    }
