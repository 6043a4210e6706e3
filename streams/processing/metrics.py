"""The worker's numbers: Prometheus text on a loopback port, and one line a minute for the log."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from streams.processing.partition_runner import PartitionRunner
from streams.processing.task_stats import TaskStats
from streams.processing.udf_runs import UdfUse

_COUNTERS = {
    "events": "Events folded",
    "runs": "Fetched runs folded",
    "commits": "Commits, heartbeats included",
    "heartbeats": "Heartbeat markers",
    "rows": "Rows committed",
    "dead_letters": "Events sent to the dead-letter topic",
    "outputs": "Records written to output topics",
    "seeks_back": "Times a gap made the consumer seek back",
    "skipped": "Offsets that retention removed before they were folded, and that had expired",
    "decode_s": "Seconds decoding",
    "fold_s": "Seconds folding",
    "take_s": "Seconds taking changed rows",
    "commit_s": "Seconds waiting for changelog transactions",
    "apply_s": "Seconds writing the store",
    "restore_s": "Seconds taking over and restoring",
}


class WorkerCollector:
    """Reads the runners when scraped."""

    def __init__(
        self,
        runners: Callable[[], Mapping[str, PartitionRunner]],
        restarts: Callable[[], int],
        uses: Callable[[], Sequence[UdfUse]] = tuple,
    ) -> None:
        self._runners, self._restarts, self._uses = runners, restarts, uses

    def collect(self) -> Iterable[Metric]:
        """All metrics, labelled by table and partition."""
        runners = dict(self._runners())
        labels = ["table", "partition"]
        for field, text in _COUNTERS.items():
            unit = field.replace("_s", "_seconds") if field.endswith("_s") else field
            family = CounterMetricFamily(f"streams_worker_{unit}", text, labels=labels)
            for name, runner in runners.items():
                family.add_metric(name.split("/"), getattr(runner.stats, field))
            yield family
        lag = GaugeMetricFamily("streams_worker_lag_events", "Offsets between committed and the end", labels=labels)
        state = GaugeMetricFamily("streams_worker_state", "1 for the state it is in", labels=[*labels, "state"])
        duration = GaugeMetricFamily("streams_worker_last_commit_seconds", "Duration of the last commit", labels=labels)
        failures = CounterMetricFamily("streams_worker_failures", "Ownerships that ended in an error", labels=labels)
        fenced = CounterMetricFamily("streams_worker_fenced", "Times a newer owner had fenced this one", labels=labels)
        for name, runner in runners.items():
            at = name.split("/")
            state.add_metric([*at, runner.state], 1)
            failures.add_metric(at, runner.failures)
            fenced.add_metric(at, runner.fenced)
            if runner.task is not None:
                lag.add_metric(at, runner.task.lag)
                duration.add_metric(at, runner.task.policy.last_duration_s)
        yield from (lag, state, duration, failures, fenced)
        restarts = CounterMetricFamily("streams_worker_watchdog_restarts", "Restarts by the lag watchdog")
        restarts.add_metric([], self._restarts())
        yield restarts
        yield from udf_metrics(self._uses())


def udf_metrics(uses: Sequence[UdfUse]) -> Iterable[Metric]:
    """What each UDF has used in this process, labelled by UDF, table and version."""
    labels = ["udf", "table", "version"]
    counters: dict[str, tuple[str, Callable[[UdfUse], float]]] = {
        "calls": ("Calls into the module", lambda use: use.reading.calls),
        "events": ("Events folded", lambda use: use.events),
        "cpu_seconds": ("Processor time inside the module", lambda use: use.reading.cpu_s),
        "fuel": ("Instructions of the calls that count them", lambda use: use.reading.fuel),
        "instances": ("Instances made", lambda use: use.reading.instances),
        "dead_letters": ("Events refused or put aside", lambda use: use.dead_letters),
    }
    gauges: dict[str, tuple[str, Callable[[UdfUse], float]]] = {
        "memory_high_bytes": ("Most linear memory of one instance", lambda use: use.reading.memory_high_bytes),
        "lag_events": ("Offsets between committed and the inputs' ends", lambda use: use.lag_events),
        "paused": ("1 while it folds nothing until it is resumed", lambda use: bool(use.paused)),
    }
    for kind, families in ((CounterMetricFamily, counters), (GaugeMetricFamily, gauges)):
        for name, (text, value) in families.items():
            family = kind(f"streams_udf_{name}", text, labels=labels)
            for use in uses:
                family.add_metric([use.info.udf, use.info.table, use.info.version], float(value(use)))
            yield family
    traps = CounterMetricFamily("streams_udf_traps", "Events that stopped the module", labels=[*labels, "kind"])
    for use in uses:
        for trap, count in use.reading.traps.items():
            traps.add_metric([use.info.udf, use.info.table, use.info.version, trap], count)
    yield traps


class MetricsServer:
    """Serves a collector at http://127.0.0.1:PORT/metrics from a thread of its own."""

    def __init__(self, collector: WorkerCollector, port: int) -> None:
        registry = CollectorRegistry()
        registry.register(collector)
        server: tuple[WSGIServer, threading.Thread] = start_http_server(port, addr="127.0.0.1", registry=registry)
        self._server, self._thread = server

    def stop(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._thread.join()


class MinuteLine:
    """Builds the log's one line a minute from what changed since the last."""

    def __init__(self, now_s: float) -> None:
        self._at_s = now_s
        self._last: dict[PartitionRunner, TaskStats] = {}

    def line(self, runners: Mapping[str, PartitionRunner], now_s: float) -> str:
        """Rates and sums since the last call."""
        stats = {runner: runner.stats for runner in runners.values()}
        passed_s = max(now_s - self._at_s, 1e-9)
        # Each by itself: partitions come and go, and one that comes again begins at nothing.
        new = sum((now - self._last.get(runner, TaskStats()) for runner, now in stats.items()), TaskStats())
        self._last, self._at_s = stats, now_s
        commit_ms = 1000 * (new.commit_s + new.apply_s) / max(new.commits, 1)
        lag = sum(runner.task.lag for runner in runners.values() if runner.task is not None)
        return (
            f"{new.events / passed_s:.0f} events/s, {new.commits} commits of {commit_ms:.1f} ms "
            f"({new.heartbeats} heartbeats), {new.rows} rows, lag {lag}, {new.dead_letters} dead letters, "
            f"{len(runners)} partitions"
        )
