"""The ingest bench end to end, tiny: every contender aggregates exactly, and the answer is as the contract says."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

ALL = ("kafka-streams-eos-v2", "quix", "faust")


@pytest.mark.kafka
@pytest.mark.timeout(600)
@pytest.mark.parametrize("peers", [ALL[:1], pytest.param(ALL, marks=pytest.mark.slow)], ids=["one peer", "all"])
def test_ingest_beside_peers(peers: tuple[str, ...]) -> None:
    sizes = [
        "--seconds",
        "1",
        "--rounds",
        "1",
        "--events",
        "5000",
        "--only",
        ",".join(("streams", *peers)),
        "--parts",
        "sustained,latency,http",
    ]
    command = [sys.executable, "-m", "streams.bench.command", "ingest", "--json", *sizes]
    run = subprocess.run(command, capture_output=True, text=True, timeout=580)
    print(run.stderr)
    assert run.returncode == 0, run.stderr
    report = json.loads(run.stdout)
    assert report["bench"] == "ingest"
    first, ratio = report["results"][:2]
    assert {"what", "value", "unit", "peers", "ratio", "goal", "met"} == set(first)
    assert (first["what"], first["unit"]) == ("readings_committed", "readings/s")
    assert first["met"] == (first["value"] >= 1_000_000)
    missing = {name for name in peers if f"{name} is left out" in run.stderr}
    assert missing <= {"quix"}, "only what is installed for the bench may be missing"
    assert set(first["peers"]) == set(peers) - missing == set(first["ratio"])
    assert all(speed > 0 for speed in first["peers"].values())
    assert ratio["value"] == pytest.approx(first["ratio"]["kafka-streams-eos-v2"], rel=0.01)
    assert run.stderr.count("exact") == len(first["peers"]) + 2
    rows = {row["what"]: row for row in report["results"]}
    assert len(rows) == len(report["results"])
    for part in (
        "CPU time of the worker",
        "RSS of the worker",
        "lag, most",
        "idle, p99",
        "half the sustained load, p99",
    ):
        assert any(part in what for what in rows), part
    assert sum(row["unit"] == "puts/s" and row["value"] > 0 for row in rows.values()) == 2
