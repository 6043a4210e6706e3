"""Readings folded by the real telemetry module into the rows of real edge tables, and a plain oracle for windows."""

from __future__ import annotations

import math
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from streams.edge.edge_store import EdgeTables
from streams.edge.options import EdgeOptions, TableSpec
from streams.model.fold_table import FoldTable, fold_tables
from streams.model.keys import partition_for
from streams.model.keyspace import BUILTIN
from streams.model.marker import InputPosition, Marker
from streams.model.row import patch_seq
from streams.processing.udf_ports import builtin_fold
from streams.serde import encode, load_builtin
from streams.use_cases.telemetry.answer import AnswerLimits, answer
from streams.use_cases.telemetry.query import window_query
from streams.wasm.batch import Event, build
from streams.wasm.engine import ModuleCache
from tests.support.edge_units import STORE, Clock, FakeUnit, rows_of

TABLE: FoldTable = next(table for table in fold_tables(BUILTIN) if table.name == "telemetry")
MODULES = ModuleCache(Path(tempfile.gettempdir()) / "streams-test-wasm")
READING = load_builtin()["streams.Reading"]
REGIONS = ("us-east", "eu-west")
DAY_MS = 86_400_000
IDLE_MS = AnswerLimits().idle_ms
Reading = tuple[str, str, float, int]
"""(device, metric, value, event time in milliseconds)."""


def event(reading: Reading, append_ms: int, ttl_ms: int = DAY_MS) -> Event:
    """The put of a reading, as a batch holds it."""
    device, metric, value, time_ms = reading
    body = encode(READING, {"metric": metric, "value": value, "time": time_ms})
    key = f"device:{device}:telemetry".encode()
    return Event(append_ms, append_ms << 16, append_ms + ttl_ms, 0, 0, key, body)


@dataclass
class TelemetryTables:
    """The edge's telemetry table of `here`, with folds of every origin's partitions behind it. Move `clock` by hand."""

    path: Path
    here: str = REGIONS[0]
    clock: Clock = field(default_factory=Clock)
    limits: AnswerLimits = field(default_factory=AnswerLimits)

    def __post_init__(self) -> None:
        options = EdgeOptions(self.path, self.here, REGIONS, store=STORE)
        self.tables = EdgeTables(options, clock=self.clock)
        self.tables.set_tables([TableSpec.folded(TABLE)])
        for replica in self.tables.replica_ids():
            self.tables.attach(replica)
        self._folds = {
            (origin, number): builtin_fold(TABLE, MODULES) for origin in REGIONS for number in range(TABLE.partitions)
        }
        self._seqs: dict[tuple[str, int], int] = defaultdict(int)
        self.late: list[tuple[int, bytes, bytes]] = []

    def put(
        self,
        readings: Iterable[Reading],
        origin: str = REGIONS[0],
        *,
        ttl_ms: int = DAY_MS,
        partition: int | None = None,
    ) -> None:
        """Fold readings that are accepted now, by partition, and publish. Every origin's markers are brought to now."""
        chosen: dict[int, list[Event]] = defaultdict(list)
        for each in readings:
            found = event(each, self.clock.ms, ttl_ms)
            number = partition_for(found.key, TABLE.partitions) if partition is None else partition
            chosen[number].append(found)
        for number, events in chosen.items():
            self._fold(origin, number, events)
        self.beat()

    def _fold(self, origin: str, number: int, events: Sequence[Event]) -> None:
        replica = self.tables.table(TABLE.name).replicas[origin, number]
        fold = self._folds[origin, number]
        assert not fold.fold(build(list(events)).raw, replica.multi_get)
        rows = fold.take()
        self.late += fold.take_outputs()
        self._publish(origin, number, rows)
        fold.committed()

    def _publish(self, origin: str, number: int, rows: Sequence[tuple[bytes, bytes | None]]) -> None:
        self._seqs[origin, number] += 1
        seq = self._seqs[origin, number]
        spec = self.tables.table(TABLE.name).spec
        marker = Marker("commit", seq, self.clock.ms, {f"{spec.inputs[0]}/{number}": InputPosition(seq, "id")})
        stamped = [(key, None if row is None else patch_seq(row, seq), seq) for key, row in rows]
        unit = FakeUnit(spec.topic(origin, self.here), number, rows_of(stamped), marker, None, seq * 10)
        assert self.tables.publish_now(unit)

    def beat(self) -> None:
        """Heartbeats of all origins, at the clock's time."""
        for origin, number in self._folds:
            self._publish(origin, number, [])

    def ask(self, partition: str = f"iot:region:{REGIONS[0]}", **given: object) -> dict[str, Any]:
        """The answer to a query; parameters as in the query string (`from_` is `from`)."""
        texts = {name.rstrip("_"): str(value) for name, value in given.items()}
        query = window_query(partition, texts, REGIONS)
        found = answer(self.tables.table(TABLE.name).view_of(query.origin), query, self.limits)
        parsed: dict[str, Any] = orjson.loads(found)
        return parsed

    async def close(self) -> None:
        """Release everything."""
        for fold in self._folds.values():
            fold.close()
        await self.tables.close()


Group = dict[tuple[str | None, str, float], list[float]]


def slotted(readings: Iterable[Reading], window_s: int, hop_s: int, *, by_device: bool = True) -> Group:
    """The values of each (device, metric, start), by the definition: a window holds start <= time < start + window."""
    found: Group = defaultdict(list)
    for device, metric, value, time_ms in readings:
        number = time_ms // (hop_s * 1000)
        while number * hop_s * 1000 + window_s * 1000 > time_ms:
            found[device if by_device else None, metric, float(number * hop_s)].append(value)
            number -= 1
    return dict(found)


def sessioned(readings: Iterable[Reading], gap_ms: int, *, by_device: bool = True) -> dict[Any, list[float]]:
    """The values of each (device, metric, start, end): one begins with a reading more than the gap after the last."""
    series: dict[Any, list[tuple[int, float]]] = defaultdict(list)
    for device, metric, value, time_ms in readings:
        series[device if by_device else None, metric].append((time_ms, value))
    found = {}
    for who, points in series.items():
        points.sort(key=lambda point: point[0])
        run: list[tuple[int, float]] = []
        for time_ms, value in [*points, (2**60, 0.0)]:
            if run and time_ms - run[-1][0] > gap_ms:
                found[(*who, run[0][0] / 1000, (run[-1][0] + gap_ms) / 1000)] = [v for _, v in run]
                run = []
            run.append((time_ms, value))
    return found


def check_window(window: dict[str, Any], values: Sequence[float]) -> None:
    """Count, min and max bit-exact; sum, mean and deviation to 1e-9 of the magnitudes; quantiles within 1 %."""
    exact = np.array(values, np.float64)
    scale = float(np.abs(exact).max()) or 1.0
    assert (window["count"], window["min"], window["max"]) == (len(exact), exact.min(), exact.max()), window
    assert math.isclose(window["sum"], math.fsum(values), rel_tol=1e-12, abs_tol=1e-12 * scale * len(exact)), window
    assert math.isclose(window["mean"], math.fsum(values) / len(exact), rel_tol=1e-12, abs_tol=1e-12 * scale), window
    deviation = float(exact.std(ddof=1)) if len(exact) > 1 else 0.0
    assert math.isclose(window["stddev"], deviation, rel_tol=1e-7, abs_tol=1e-7 * scale), (window, deviation)
    for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99)):
        check_quantile(window[name], exact, share)


def check_quantile(found: float, values: np.ndarray[Any, Any], share: float) -> None:
    """Within 1 % of the interpolated quantile; where its two readings differ in sign, of the larger one."""
    ordered, rank = np.sort(values), share * (len(values) - 1)
    low, high = float(ordered[math.floor(rank)]), float(ordered[math.ceil(rank)])
    exact = float(np.quantile(ordered, share))
    allowed = abs(exact) if low * high >= 0 else max(abs(low), abs(high))
    assert abs(found - exact) <= 0.01 * allowed + 1e-300, (found, exact, share)
