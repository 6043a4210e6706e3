"""`python -m streams.processing`: a worker process without the `streams` command around it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from streams.processing.main import run_worker
from streams.processing.options import WorkerOptions


def main() -> int:
    """Parse arguments and serve."""
    parser = argparse.ArgumentParser(prog="python -m streams.processing")
    parser.add_argument("--region", required=True)
    parser.add_argument("--bootstrap-servers", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--udf", default="")
    parser.add_argument("--metrics-port", type=int, default=0)
    parser.add_argument("--session-s", type=float, default=6.0)
    parser.add_argument("--only-builtin", action="store_true", help="follow no definitions topic")
    found = parser.parse_args()
    return run_worker(
        WorkerOptions(
            found.region,
            found.bootstrap_servers,
            found.data,
            found.udf,
            found.metrics_port,
            session_s=found.session_s,
            only_builtin=found.only_builtin,
        )
    )


if __name__ == "__main__":
    sys.exit(main())
