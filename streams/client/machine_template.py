"""What `streams udf new --kind machine` writes: a small machine in C with vectors that hold."""

from __future__ import annotations

import json
from importlib.resources import files

MANIFEST = """\
name = "{name}"
version = "1.0.0"
abi = 1
kind = "machine"
group = "{name}" # its log is the topic sequenced.{name}, in the home region; tokens' scopes name it as a keyspace
layout = 1 # what its rows look like: another version takes over only where this is the same

[limits] # of each command; the same on all replicas
memory_bytes = 16777216
fuel = 50000000 # instructions: there is no clock in a machine
output_bytes = 1048576
table_rows = 1000000
"""

_ASK = {"error": "say take SEAT WHO, free SEAT WHO or who SEAT"}
VECTORS = {
    "cases": [
        {
            "name": "a seat is taken once",
            "steps": [
                {"command": "take 1A ann", "expect": {"ok": True, "holder": "ann"}},
                {"command": "take 1A bob", "expect": {"ok": False, "holder": "ann"}},
                {"command": "take 1A ann", "expect": {"ok": True, "holder": "ann"}},
                {"command": "who 1A", "expect": {"ok": True, "holder": "ann"}},
                {"command": "who 1B", "expect": {"ok": True, "holder": None}},
            ],
            "rows": {"seat:1A": "ann", "seat:1B": None},
        },
        {
            "name": "only its holder frees it",
            "steps": [
                {"command": "take 1A ann"},
                {"command": "free 1A bob", "expect": {"ok": False, "holder": "ann"}},
                {"command": "free 1A ann", "expect": {"ok": True, "holder": None}},
                {"command": "take 1A bob", "expect": {"ok": True, "holder": "bob"}},
            ],
            "rows": {"seat:1A": "bob"},
        },
        {
            "name": "nonsense is told so",
            "steps": [
                {"command": text, "expect": _ASK} for text in ("", "take", "take 1A", "sell 1A ann", "who 1A b c")
            ],
            "rows": {"seat:1A": None},
        },
    ]
}


def machine_files(name: str) -> dict[str, str]:
    """The files of a new machine, by name."""
    source = files("wasm_udfs").joinpath("templates", "machine.c").read_text()
    return {
        "udf.toml": MANIFEST.format(name=name),
        f"{name}.c": source.replace("NAME", name, 1),
        "vectors.json": json.dumps(VECTORS, indent=1) + "\n",
    }
