"""A warm worker process: `python -m streams.processing.spare` has loaded everything and waits to be told its UDF.

One line of JSON on standard input says what to be: `{"region", "bootstrap_servers", "data", "udf", "log"}`; until then
it does nothing, and it ends when its input does. Loading is most of a start: a deploy is seconds faster.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from streams.model.memory import calm_collector
from streams.processing.main import run_worker
from streams.processing.options import WorkerOptions
from streams.processing.udf_ports import DecoderPool
from streams.wasm.caps import caps_from_env
from streams.wasm.engine import ModuleCache


def _load() -> None:
    """Import what a worker imports only when it serves, Faust above all, and compile or load what every fold needs."""
    from streams.processing import deployed, worker

    assert deployed and worker
    pool = DecoderPool(ModuleCache())
    pool.give_back(pool.take())
    pool.close()
    calm_collector()  # the next one, when it serves, has little left to look at


def main() -> int:
    """Wait, then serve; the worker's exit status, 0 when it was never needed."""
    _load()
    line = sys.stdin.readline()
    if not line.strip():
        return 0
    asked = json.loads(line)
    with Path(asked["log"]).open("ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    with Path(os.devnull).open() as nothing:
        os.dup2(nothing.fileno(), 0)
    place, caps = Path(asked["data"]), caps_from_env(os.environ)
    return run_worker(WorkerOptions(asked["region"], asked["bootstrap_servers"], place, asked["udf"], caps=caps))


if __name__ == "__main__":
    sys.exit(main())
