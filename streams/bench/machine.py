"""What machine the numbers were measured on."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path
from typing import Any


def machine() -> dict[str, Any]:
    """Cores this process may use, processor model, memory in bytes, Python, system, and the one-minute load now.

    The load is taken before a bench starts: above zero, somebody else was using the machine.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cores": cores,
        "model": _processor_model(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "load_1m": round(os.getloadavg()[0], 2),
    }


def _processor_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def cpu_percent(over_s: float) -> float:
    """How busy all cores together are over the next `over_s` seconds, 0 to 100; 0 where the kernel does not say."""
    before = _cpu_times()
    time.sleep(over_s)
    idle, total = (after - start for after, start in zip(_cpu_times(), before, strict=True))
    return 100.0 * (1 - idle / total) if total else 0.0


def _cpu_times() -> tuple[int, int]:
    """Ticks since boot: idle or waiting for a disk, and all."""
    try:
        fields = [int(each) for each in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    except OSError:
        return 0, 0
    return fields[3] + fields[4], sum(fields)
