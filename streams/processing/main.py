"""Runs a worker process: logging, event loop, definitions, exit status. Faust is imported only in here."""

from __future__ import annotations

import logging
import sys
from dataclasses import replace

import uvloop

from streams.definitions.registry import Definitions
from streams.definitions.udf_states import StateWriter
from streams.kafka.admin import wait_for_broker
from streams.model.errors import NotFound, StreamsError
from streams.model.memory import bound_malloc, calm_collector
from streams.model.topology import Region, Topology
from streams.processing.catalog import BuiltinCatalog, DefinitionsCatalog
from streams.processing.options import WorkerOptions

_BROKER_WAIT_S = 60.0
log = logging.getLogger(__name__)


def run_worker(options: WorkerOptions) -> int:
    """Serve until SIGTERM or SIGINT; the exit status: 0 when asked to stop, 1 when it cannot go on."""
    bound_malloc()
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
    from streams.processing.worker import Worker

    calm_collector()
    if options.only_builtin:
        return await Worker(options, BuiltinCatalog()).run()
    await wait_for_broker(options.bootstrap_servers, _BROKER_WAIT_S)
    if options.udf:
        from streams.processing.deployed import serve_udf

        return await serve_udf(options, topology_of(options))
    async with Definitions(topology_of(options), options.region) as definitions:
        states = StateWriter(options.bootstrap_servers)
        try:
            await states.start()
            return await Worker(options, DefinitionsCatalog(definitions), states).run()
        finally:
            await states.stop()


def topology_of(options: WorkerOptions) -> Topology:
    """The data directory's topology with this worker's bootstrap servers; without one, this region alone."""
    here = Region(options.region, options.bootstrap_servers)
    try:
        found = Topology.load(options.data)
        found.region(options.region)
    except NotFound:
        return Topology((here,))
    servers = options.bootstrap_servers
    return Topology(
        tuple(replace(each, bootstrap_servers=servers) if each.name == here.name else each for each in found.regions)
    )
