"""What the benches measure with: truths, progress, dumps, the HTTP client, memory."""

from __future__ import annotations

import os
import struct
import subprocess
import sys

import pytest

from streams.bench.contenders import advance
from streams.bench.http_client import client_overhead_ms
from streams.bench.load import Load, counter_rows, parse_dump
from streams.bench.own_system import memory_of, parse_status, with_descendants
from streams.bench.restore import player_row
from streams.model.errors import StreamsError
from streams.model.marker import InputPosition, Marker

MASK = (1 << 64) - 1


def mixed(number: int) -> int:
    """splitmix64 in Python's own integers."""
    value = (number * 0x9E3779B97F4A7C15 + 0x9E3779B97F4A7C15) & MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
    return value ^ (value >> 31)


def load(events: int = 900, warmup: int = 100) -> Load:
    return Load("127.0.0.1:1", "bench.plain", events, warmup, 37)


def test_the_truth_is_every_events_sum() -> None:
    wanted: dict[str, int] = {}
    for number in range(1000):
        key = f"score:p{mixed(number) % 37:04d}"
        wanted[key] = wanted.get(key, 0) + number % 7 + 1
    assert load().totals() == wanted


@pytest.mark.parametrize("damage", ["more", "less", "missing", "extra"])
def test_one_wrong_total_fails(damage: str) -> None:
    found = load().totals()
    load().verify("ours", dict(found))
    key = next(iter(found))
    found.update(
        {"more": {key: found[key] + 1}, "less": {key: found[key] - 1}, "extra": {"score:x": 1}}.get(damage, {})
    )
    if damage == "missing":
        del found[key]
    with pytest.raises(StreamsError, match="ours counted wrong: 1 of 37 keys differ"):
        load().verify("ours", found)


def test_dumps_are_read_back_without_tombstones() -> None:
    def record(key: bytes, value: bytes | None) -> bytes:
        size = -1 if value is None else len(value)
        return struct.pack(">i", len(key)) + key + struct.pack(">i", size) + (value or b"")

    assert parse_dump(record(b"a", b"1") + record(b"bb", None) + record(b"c", b"")) == {b"a": b"1", b"c": b""}


def test_counters_come_from_rows_and_not_from_markers() -> None:
    key, row = player_row(42, 1)
    assert counter_rows({key: row, b"\x00marker": b"{}"}) == {"score:m0000042": 42}


def test_progress_is_the_sum_over_partitions_and_never_goes_back() -> None:
    def marker(partition: int, position: int) -> str:
        return Marker("commit", 1, 1, {f"events.score/{partition}": InputPosition(position, "id")}).encode().decode()

    positions: dict[str, int] = {}
    assert advance(positions, f"0.5\t0.6\t{marker(0, 10)}\n").position == 10
    assert advance(positions, f"0.7\t0.8\t{marker(1, 5)}\t{marker(0, 8)}\n").position == 15
    assert advance(positions, "0.9\t1.0\t\n").position == 15


def test_the_client_reads_answers_and_knows_its_own_cost() -> None:
    assert 0 < client_overhead_ms(requests=20) < 1000


def test_memory_counts_children_and_forgets_the_dead() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        try:
            family = with_descendants({os.getpid()})
            assert {os.getpid(), child.pid} <= family
            assert memory_of(family).rss_bytes >= memory_of(family).pss_bytes > 0
        finally:
            child.kill()
    assert memory_of({child.pid}).rss_bytes == 0


def test_a_status_names_gateways_and_processes(tmp_path: os.PathLike[str]) -> None:
    processes = [{"name": "kafka-us-east", "pid": 7, "state": "running"}]
    region = {"gateway": "http://127.0.0.1:8101", "bootstrap_servers": "127.0.0.1:9092", "processes": processes}
    system = parse_status(tmp_path, {"regions": {"us-east": region}})  # type: ignore[arg-type]
    assert (system.first, system.pids) == ("http://127.0.0.1:8101", {"kafka-us-east": 7})
    with pytest.raises(StreamsError):
        _ = system.second
