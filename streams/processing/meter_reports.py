"""Tells all regions what this worker's UDFs use: a report a table every few seconds while that changes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from streams.definitions.udf_meters import MeterReport
from streams.definitions.udf_states import StateWriter
from streams.model.clock import wall_ms
from streams.processing.udf_runs import UdfUse

EVERY_S = 2.0
QUIET_S = 60.0
"""How often a UDF that does nothing is reported all the same."""


def report_of(use: UdfUse, last: tuple[float, int] | None, now_s: float) -> MeterReport:
    """The report of a use; `last`: when the one before was made, and its events."""
    rate = 0.0
    if last is not None and now_s > last[0] and use.events >= last[1]:
        rate = (use.events - last[1]) / (now_s - last[0])
    reading = use.reading
    return MeterReport(
        use.info.udf,
        use.info.version,
        use.info.table,
        use.partitions,
        wall_ms(),
        reading.calls,
        use.events,
        round(rate, 1),
        reading.cpu_s,
        reading.fuel,
        reading.memory_high_bytes,
        reading.traps,
        use.dead_letters,
        use.lag_events,
    )


class MeterReporter:
    """Reports uses until cancelled."""

    def __init__(self, writer: StateWriter, uses: Callable[[], Sequence[UdfUse]]) -> None:
        self._writer, self._uses = writer, uses
        self._last: dict[str, tuple[float, MeterReport]] = {}

    async def run(self) -> None:
        """Every few seconds."""
        while True:
            await asyncio.sleep(EVERY_S)
            await self.report()

    async def report(self) -> None:
        """What has changed since the last report, or was not said for long."""
        now_s = time.monotonic()
        for use in self._uses():
            if not use.partitions:
                continue
            before = self._last.get(use.info.table)
            report = report_of(use, (before[0], before[1].events) if before else None, now_s)
            if before is None or _news(before[1], report) or now_s - before[0] > QUIET_S:
                self._last[use.info.table] = (now_s, report)
                await self._writer.meter(report)


def _news(before: MeterReport, now: MeterReport) -> bool:
    # Of an idle UDF nothing is called; its rate is then told once as zero.
    return (before.partitions, before.version, before.calls, before.events_per_s, before.lag_events) != (
        now.partitions,
        now.version,
        now.calls,
        now.events_per_s,
        now.lag_events,
    )
