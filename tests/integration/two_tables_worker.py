"""A worker that folds `events.score` into two tables, started by test_worker_two_tables.py in a process of its own.

Usage: two_tables_worker.py BOOTSTRAP DATA.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from pathlib import Path

from streams.processing.catalog import BuiltinCatalog
from streams.processing.options import WorkerOptions
from streams.processing.worker import Worker
from tests.support.two_tables import KEYSPACES, TWICE

logging.basicConfig(level=logging.INFO, stream=sys.stderr)
options = WorkerOptions("us-east", sys.argv[1], Path(sys.argv[2]), session_s=2.0)


async def serve() -> int:
    return await Worker(options, BuiltinCatalog(KEYSPACES, TWICE)).run()


sys.exit(asyncio.run(serve()))
