"""What a long-running process tells its allocator and its garbage collector."""

from __future__ import annotations

import gc
import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from streams.model import memory

_PROBE = """
import gc, json, os, threading
from streams.model.memory import MMAP_FROM_BYTES, bound_malloc, calm_collector

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

done = bound_malloc()
calm_collector()
step = threading.Barrier(8)

def work():
    for _ in range(3):
        held = [bytes(2 * MMAP_FROM_BYTES) for _ in range(4)]
        step.wait()
        del held

before = resident()
threads = [threading.Thread(target=work) for _ in range(8)]
for each in threads: each.start()
for each in threads: each.join()
print(json.dumps([done, gc.get_threshold(), gc.get_freeze_count(), resident() - before]))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc alone is told")
def test_what_threads_free_goes_back_to_the_system() -> None:
    done = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, text=True, timeout=60, check=True)
    told, thresholds, frozen, left_bytes = json.loads(done.stdout)
    assert told
    assert thresholds == [50_000, 20, 50] and frozen > 1_000
    assert left_bytes < 16 << 20, "64 MiB were held at once, by eight threads"


def test_a_share_of_the_machine_lies_between_its_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit, older = tmp_path / "memory.max", tmp_path / "limit_in_bytes"
    monkeypatch.setattr(memory, "_CGROUP_LIMITS", (limit, older))
    whole = memory.machine_bytes()
    assert whole > 64 << 20
    limit.write_text("max\n")
    assert memory.machine_bytes() == whole
    limit.write_text("8000000\n")
    assert memory.machine_bytes() == 8_000_000
    assert memory.machine_share(8, 10, 5_000_000) == 1_000_000
    assert memory.machine_share(8, 10, 500_000) == 500_000
    assert memory.machine_share(8, 2_000_000, 5_000_000) == 2_000_000
    older.write_text("7000000\n")
    assert memory.machine_bytes() == 7_000_000


class Holder:
    """Somebody who keeps rows."""


def test_all_may_have_the_most_while_together_they_have_little() -> None:
    share = memory.MemoryShare(100, 10, 40)
    holders = [Holder() for _ in range(4)]
    assert [share.allowed(each, 25) for each in holders] == [40] * 4
    assert share.allowed(holders[0], 26) == 10, "101 of 100"
    assert share.allowed(holders[0], 0) == 40
    assert share.allowed(holders[1], 60) == 10
    del holders[2]
    gc.collect()
    assert share.allowed(holders[1], 60) == 40, "who is gone holds nothing"
