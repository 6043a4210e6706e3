"""Where a group's log is, and the limits of who follows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from streams.kafka.admin import TopicSpec
from streams.kafka.raw_fetch import FetchOptions
from streams.model.topology import Topology

GROUP = "strong"
"""The consistency group that every strong keyspace belongs to."""
ORDERS_GROUP = "orders"
"""The group of the order books, with a machine of its own."""
RECORD_BYTES_MAX = 20 << 20
BarrierMode = Literal["auto", "index", "append"]


@dataclass(frozen=True, slots=True)
class SequencerOptions:
    """Waits in seconds.

    `wait_s` bounds a command or a read. `unreachable_s`: the home region has not answered for so long: writes are then
    refused at once. `barrier`: how a linearizable read finds out how far the log is: `index` asks the partition's
    leader for its end, `append` writes a record; `auto`: `append` when the partition has more than one replica.
    `batch_commands` and `batch_bytes`: how much is applied in one step, of the loop or of a thread. `results_bytes`:
    how much of the latest results is kept for those who wait for one.
    """

    wait_s: float = 5.0
    unreachable_s: float = 3.0
    probe_every_s: float = 1.0
    retry_s: float = 0.25
    barrier: BarrierMode = "auto"
    batch_commands: int = 256
    batch_bytes: int = 4 << 20
    results_bytes: int = 16 << 20
    fetch: FetchOptions = FetchOptions(  # noqa: RUF009 (frozen)
        read_committed=False, max_wait_ms=500, client_id="streams-sequencer", request_timeout_s=10.0
    )


def topic_of(group: str) -> str:
    """The sequenced topic of a group, in its home region."""
    return f"sequenced.{group}"


def topic_spec(group: str) -> TopicSpec:
    """One partition, the broker's append time, kept for ever: state can be made anew from the log alone."""
    return TopicSpec(
        topic_of(group),
        1,
        {
            "cleanup.policy": "delete",
            "retention.ms": "-1",
            "retention.bytes": "-1",
            "max.message.bytes": str(RECORD_BYTES_MAX),
            "message.timestamp.type": "LogAppendTime",
            "unclean.leader.election.enable": "false",
        },
    )


def home_servers(topology: Topology, region: str) -> str:
    """Where a gateway of `region` reaches the home region's Kafka: from afar by the listener that mirrors use too."""
    home = topology.home
    if region == home.name:
        return home.bootstrap_servers
    return home.mirror_bootstrap_servers or home.bootstrap_servers
