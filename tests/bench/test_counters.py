"""The peers run, count exactly, and are reported as the contract says. Small: speeds mean nothing here."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest


@pytest.mark.kafka
def test_counters_beside_kafka_streams() -> None:
    arguments = [
        "counters",
        "--json",
        "--events",
        "50000",
        "--rounds",
        "1",
        "--only",
        "kafka-streams-eos-v2",
    ]
    command = [sys.executable, "-m", "streams.bench.command", *arguments]
    run = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert run.returncode == 0, run.stderr
    report = json.loads(run.stdout)
    assert report["bench"] == "counters"
    assert {"what", "value", "unit", "peers", "ratio", "goal", "met"} == set(report["results"][0])
    assert set(report["results"][0]["peers"]) == {"kafka-streams-eos-v2"}
    assert all(speed > 0 for speed in report["results"][0]["peers"].values())
    assert run.stderr.count("exact") == 1
