"""Keeps the region's log readable: transactions that hang in it are ended (`kafka/hanging.py`)."""

from __future__ import annotations

from streams.gateway.metrics import Metrics
from streams.kafka.admin import Admin
from streams.kafka.hanging import HangingTransactions
from streams.model.topology import Topology

INTERVAL_S = 5.0
"""Between two looks; what hangs is ended in the third."""


async def watch_log(admin: Admin, topology: Topology, metrics: Metrics) -> None:
    """Look for hanging transactions until cancelled. Any gateway of the region may; all of them do."""
    watch = HangingTransactions(admin, lambda topic: safe_end(topic, topology.names))
    await watch.run(INTERVAL_S, lambda _: metrics.hanging.inc())


def safe_end(topic: str, regions: tuple[str, ...]) -> bool | None:
    """How to end a transaction of which nobody knows how it ended: commit, abort (False), or neither (None).

    MirrorMaker's carry copies and, with them, how far it has read. A copy too many is ignored by who reads it, one too
    few is lost; a position too old costs copies again, one too new loses them. So copies are committed, positions not.
    """
    if topic.startswith("mm2-") and topic.endswith(".internal"):
        return False
    return True if topic.startswith(tuple(f"{region}." for region in regions)) else None
