"""A stock faust.App over the Runs transport, started by test_kafka_transport.py in a process of its own.

Usage: kafka_worker.py OUT BOOTSTRAP GROUP TOPIC worker --without-web. Writes what happens to OUT, one JSON a line.
Environment: START (first position), BUDGET_BYTES, HOLD (a file: while it exists, the agent waits before acking).
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

OUT, BOOTSTRAP, GROUP, TOPIC = sys.argv[1:5]
del sys.argv[1:5]

import faust  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from streams.kafka.run import TP  # noqa: E402
from streams.kafka.transport import TransportOptions, attach, run_topic  # noqa: E402
from tests.support.polling import eventually  # noqa: E402

out = Path(OUT).open("a", buffering=1)  # noqa: SIM115


def log(**fields: Any) -> None:
    out.write(json.dumps({"at_ms": time.time() * 1000, "pid": os.getpid(), **fields}) + "\n")


async def on_assigned(tps: frozenset[TP]) -> Mapping[TP, int]:
    """What the processing room does with its changelog, done here with the lines of every worker."""
    log(assigned=sorted(tp.partition for tp in tps))
    done = positions_so_far()
    return {tp: done.get(tp, int(os.environ.get("START", "0"))) for tp in tps}


def positions_so_far() -> dict[TP, int]:
    """Where the lines of all workers end."""
    done: dict[TP, int] = {}
    for line in Path(OUT).read_text().rpartition("\n")[0].splitlines():  # the last may be being written
        entry = json.loads(line)
        if "next" in entry:
            done[TP(TOPIC, entry["partition"])] = entry["next"]
    return done


def held_back() -> bool:
    """Whether the test wants the agent to wait."""
    return "HOLD" in os.environ and Path(os.environ["HOLD"]).exists()


app = faust.App(
    GROUP,
    broker=f"kafka://{BOOTSTRAP}",
    topic_disable_leader=True,
    reply_create_topic=False,
    broker_session_timeout=10.0,
    broker_heartbeat_interval=0.5,
    datadir=f"{OUT}.{os.getpid()}",
)
attach(app, TransportOptions(on_assigned=on_assigned, budget_bytes=int(os.environ.get("BUDGET_BYTES", "33554432"))))


@app.agent(run_topic(app, TOPIC), concurrency=1)
async def fold(runs: Any) -> None:
    async for run in runs:
        held = app.consumer.flow._held[run.tp]
        log(
            partition=run.partition,
            base=run.base,
            next=run.next,
            count=run.count,
            size=run.size_bytes,
            held_bytes=sum(size for size, _ in held.values()),
        )
        await eventually(lambda: not held_back(), 120.0)


app.main()
