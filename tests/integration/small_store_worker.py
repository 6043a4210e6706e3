"""A worker whose stores flush early, started by test_retention.py in a process of its own.

Usage: small_store_worker.py BOOTSTRAP DATA.
"""

from __future__ import annotations

import sys
from pathlib import Path

from streams.processing.main import run_worker
from streams.processing.options import WorkerOptions
from streams.state.options import StoreOptions

SMALL = StoreOptions(write_buffer_bytes=128 << 10, marker_write_s=1.0)

if __name__ == "__main__":
    sys.exit(run_worker(WorkerOptions("us-east", sys.argv[1], Path(sys.argv[2]), session_s=2.0, store=SMALL)))
