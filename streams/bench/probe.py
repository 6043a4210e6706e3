"""One reading at a time over HTTP, timed: until it is durable, and until the aggregates show it. A process of its own,
so that a load in the same interpreter does not stand in its way: `python -m streams.bench.probe URL SECONDS PAUSE_S`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from streams.bench.http_client import Connection
from streams.model.errors import StreamsError
from streams.region.processes import die_with_parent

DEVICE, METRIC = "device:probe", "probe"
MIN_PUTS = 20


@dataclass(frozen=True, slots=True)
class Latencies:
    """Milliseconds of each put: until it was acknowledged, and until a read of the telemetry table that asked for it
    was answered (the put's own time is in it).
    """

    durable_ms: Sequence[float]
    visible_ms: Sequence[float]


def start_probe(gateway: str, seconds: float, pause_s: float = 0.02) -> subprocess.Popen[str]:
    """Start probing a gateway."""
    command = [sys.executable, "-m", "streams.bench.probe", gateway, str(seconds), str(pause_s)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=die_with_parent()
    )


def end_probe(process: subprocess.Popen[str], timeout_s: float = 120.0) -> Latencies:
    """Wait for a probe's end; StreamsError with its last words when it failed."""
    try:
        out, errors = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise StreamsError("the probe did not end") from None
    if process.returncode:
        raise StreamsError(f"the probe failed: {' | '.join(errors.strip().splitlines()[-1:])}")
    return Latencies(*json.loads(out))


def probe(gateway: str, seconds: float, pause_s: float) -> tuple[list[float], list[float]]:
    """Put and read until the time is over, but at least some puts."""
    durable, visible = [], []
    deadline = time.monotonic() + seconds
    with Connection(gateway) as writer, Connection(gateway) as reader:
        number = 0
        while time.monotonic() < deadline or number < MIN_PUTS:
            start = time.perf_counter()
            answer = writer.put(f"{DEVICE}:telemetry", {"metric": METRIC, "value": number})
            token = answer.json()["token"]
            durable.append(answer.seconds * 1e3)
            path = f"/v1/tables/telemetry?prefix={DEVICE}%1f{METRIC}&limit=1000"
            rows = reader.request("GET", path, headers={"causal-token": token}).json()["rows"]
            visible.append((time.perf_counter() - start) * 1e3)
            if not rows:
                raise StreamsError("a read with a reading's token shows no aggregate of its device")
            number += 1
            time.sleep(pause_s)
    return durable, visible


if __name__ == "__main__":
    print(json.dumps(probe(sys.argv[1], float(sys.argv[2]), float(sys.argv[3]))))
