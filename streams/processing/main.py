"""Runs a worker process: logging, event loop, definitions, exit status. Faust is imported only in here."""

from __future__ import annotations

import logging
import sys

import uvloop

from streams.model.errors import StreamsError
from streams.processing.options import WorkerOptions

log = logging.getLogger(__name__)


def run_worker(options: WorkerOptions) -> int:
    """Serve until SIGTERM or SIGINT; the exit status: 0 when asked to stop, 1 when it cannot go on."""
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True
    )
    for noisy in ("aiokafka", "faust", "mode"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        return uvloop.run(_serve(options))
    except StreamsError as error:
        log.error("%s", error)
        return 1


async def _serve(options: WorkerOptions) -> int:
    from streams.processing.catalog import BuiltinCatalog
    from streams.processing.worker import Worker

    return await Worker(options, BuiltinCatalog()).run()
