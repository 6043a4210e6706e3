"""What readers notice of a hostile UDF: the same point reads and top lists before it is deployed and while it rages."""

from __future__ import annotations

import json
import random
import tempfile
import threading
import time
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

from streams.bench.http_client import Connection
from streams.bench.latency import LatencyOptions, load_players, measure_reads
from streams.bench.own_system import OwnSystem, own_system, streams_command
from streams.bench.report import Result
from streams.bench.statistics import percentile
from streams.model.errors import StreamsError

Say = Callable[[str], None]
NAME = "rager"
MANIFEST = f"""\
name = "{NAME}"
version = "1.0.0"
abi = 1
kind = "fold"
inputs = ["best"]
table = "{NAME}"
merge = "max"
on_trap = "skip"
trap_limit = 1000
trap_window_s = 1.0

[limits]
memory_bytes = 67108864
deadline_s = 1.0
"""
OPTIONS = LatencyOptions(reads=1500, players=50_000)
EVENTS_PER_S = 100


def bench_hostile(say: Say, options: LatencyOptions = OPTIONS) -> list[Result]:
    """Reads in a region of one, alone and beside a UDF that loops, fills memory, recurses or traps on every event.

    Its events are put in both cases, so that the difference is the UDF. StreamsError when it trapped on nothing.
    """
    say("starting one region")
    with own_system("us-east") as system:
        say(f"loading {options.players:,} players")
        load_players(system.first, options)
        samples = {"without it": _reads(system, options)}
        say("deploying a UDF that traps on every event")
        with tempfile.TemporaryDirectory() as place:
            (Path(place) / "udf.toml").write_text(MANIFEST)
            source = files("streams.bench").joinpath("hostile.c").read_text()
            (Path(place) / f"{NAME}.c").write_text(source)
            streams_command("udf", "deploy", place, "--wait", "50", data=system.data)
        samples["beside it"] = _reads(system, options)
        traps = _traps(system)
    results = []
    for how, kinds in samples.items():
        for what, seconds in kinds.items():
            for at in (50, 99):
                ms = percentile([each * 1e3 for each in seconds], at)
                results.append(Result(f"{what} of {options.players:,} players, {how}, p{at}", ms, "ms"))
    return [*results, Result("events that stopped the hostile UDF meanwhile", traps, "events")]


def _reads(system: OwnSystem, options: LatencyOptions) -> dict[str, list[float]]:
    """Reads while its events are put."""
    over = threading.Event()
    putting = threading.Thread(target=_put, args=(system.first, over), daemon=True)
    putting.start()
    try:
        return measure_reads(system.first, options)
    finally:
        over.set()
        putting.join()


def _put(gateway: str, over: threading.Event) -> None:
    choose = random.Random(7)
    with Connection(gateway) as connection:
        while not over.is_set():
            began_s = time.monotonic()
            connection.put(f"best:{choose.randrange(1000)}", 1).json()
            over.wait(max(0.0, began_s + 1 / EVENTS_PER_S - time.monotonic()))


def _traps(system: OwnSystem) -> int:
    deadline = time.monotonic() + 30
    with Connection(system.first) as connection:
        while time.monotonic() < deadline:
            meter = json.loads(connection.request("GET", f"/v1/udfs/{NAME}").body)["regions"]["us-east"]["meter"]
            if meter and (count := sum(meter["traps"].values())):
                return int(count)
            time.sleep(0.5)
    raise StreamsError("the hostile UDF trapped on nothing: there is nothing to compare")
