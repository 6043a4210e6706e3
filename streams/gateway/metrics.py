"""What a gateway tells Prometheus."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_BUCKETS = (0.0002, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


_UDFS = {
    "calls": "Calls into the module, since the region's workers began",
    "events": "Events folded, since the region's workers began",
    "events_per_s": "Events folded a second, of the last seconds",
    "cpu_seconds": "Processor time inside the module, since the region's workers began",
    "fuel": "Instructions of the calls that count them",
    "memory_high_bytes": "Most linear memory that one instance held",
    "dead_letters": "Events refused or put aside",
    "lag_events": "Offsets between what is committed and the inputs' ends",
    "paused": "1 while it folds nothing until it is resumed",
}


class Metrics:
    """Counters and histograms of one gateway, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "streams_http_requests_total",
            "Requests answered",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "streams_http_request_seconds",
            "Time from the request's head to the answer's end; streams are left out",
            ["method", "route"],
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self.events = Counter(
            "streams_events_accepted_total", "Events acknowledged by Kafka", ["keyspace"], registry=self.registry
        )
        self.rejected = Counter(
            "streams_batch_lines_rejected_total", "Bad lines of batches", ["keyspace"], registry=self.registry
        )
        self.streams = Gauge("streams_subscribers", "Open event streams", ["kind"], registry=self.registry)
        self.dropped = Counter(
            "streams_subscribers_dropped_total", "Event streams cut by the gateway", ["reason"], registry=self.registry
        )
        self.held_bytes = Gauge(
            "streams_subscribers_held_bytes", "Events in memory for event streams", registry=self.registry
        )
        self.staleness_ms = Gauge(
            "streams_table_staleness_milliseconds", "Age of a table's oldest origin", ["table"], registry=self.registry
        )
        self._of_the_log()
        self.udfs = {
            name: Gauge(f"streams_udf_{name}", text, ["udf", "table", "version"], registry=self.registry)
            for name, text in _UDFS.items()
        }
        self.udf_traps = Gauge(
            "streams_udf_traps",
            "Events that stopped a UDF of this region, as its workers reported, since those began",
            ["udf", "table", "version", "kind"],
            registry=self.registry,
        )

    def _of_the_log(self) -> None:
        """What is about logs, the mirror and the tables made of them."""
        self.log_bytes = Gauge(
            "streams_log_bytes",
            "Bytes of a topic's segments on the brokers' disks, without indices",
            ["topic"],
            registry=self.registry,
        )
        self.table_bytes = Gauge(
            "streams_table_disk_bytes",
            "Bytes of a table's rows on this gateway's disk, by the region that wrote them, without write-ahead log",
            ["table", "origin"],
            registry=self.registry,
        )
        self.purges = Gauge(
            "streams_purges_emitted", "Purges of dead rows put on the log since the start", registry=self.registry
        )
        self.mirrored_bytes = Gauge(
            "streams_mirrored_log_bytes",
            "Bytes of the segments of topics mirrored from an origin, on this region's brokers",
            ["origin"],
            registry=self.registry,
        )
        self.events_bytes = Gauge(
            "streams_events_log_bytes",
            "Bytes of the segments of this region's raw events",
            registry=self.registry,
        )

        self.copied_ms = Gauge(
            "streams_mirrored_age_milliseconds",
            "Age of the oldest copy of another region's tables, here",
            ["origin"],
            registry=self.registry,
        )
        self.hanging = Counter(
            "streams_hanging_transactions_ended_total",
            "Transactions in the region's log whose markers were lost, ended by this gateway",
            registry=self.registry,
        )

    def udf(self, table: str, meter: Mapping[str, Any], *, paused: bool) -> None:
        """Show what a UDF of this region uses."""
        labels = (meter["udf"], table, meter["version"])
        for name, key in (("cpu_seconds", "cpu_s"), *((each, each) for each in _UDFS if each != "cpu_seconds")):
            value = paused if name == "paused" else meter[key]
            self.udfs[name].labels(*labels).set(math.nan if value is None else value)
        for kind, count in meter["traps"].items():
            self.udf_traps.labels(*labels, kind).set(count)

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self.registry)
