"""What UDFs use, by region: workers' reports on the region's `udf-states` topic, added up where they are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from streams.definitions.entries import Entry
from streams.model.errors import BadInput

KIND = "meter"
STALE_MS = 150_000
"""A report that is older says nothing of now: no rate, no lag. Workers report at least once a minute."""


@dataclass(frozen=True, slots=True)
class MeterReport:
    """What one worker says of the UDF of one table: sums since the process began, `events_per_s` since its last report.

    `partitions`: the table's that it has. `cpu_s`: processor time inside the module. `fuel`: instructions of the calls
    that count them. `memory_high_bytes`: the most that one instance held. `traps`: by kind. `lag_events`: offsets
    between what is committed and the inputs' ends.
    """

    udf: str
    version: str
    table: str
    partitions: tuple[int, ...]
    at_ms: int
    calls: int = 0
    events: int = 0
    events_per_s: float = 0.0
    cpu_s: float = 0.0
    fuel: int = 0
    memory_high_bytes: int = 0
    traps: Mapping[str, int] = field(default_factory=dict)
    dead_letters: int = 0
    lag_events: int = 0

    def entry(self) -> Entry:
        """Its record: one for the worker that has the first of these partitions, so that keys are as few as those."""
        return Entry(f"{KIND}/{self.table}/{min(self.partitions, default=0)}", asdict(self))

    @classmethod
    def of(cls, entry: Entry) -> MeterReport:
        """The report in a record. BadInput when it is none."""
        body: dict[str, Any] = dict(entry.value or {})
        try:
            body["partitions"] = tuple(int(each) for each in body["partitions"])
            return cls(**body)
        except (KeyError, TypeError, ValueError) as error:
            raise BadInput(f"{entry.key} is no report of a meter: {error}", field="value") from None


class Meters:
    """The last reports of every region, by table."""

    def __init__(self) -> None:
        self._reports: dict[tuple[str, str], dict[int, MeterReport]] = {}

    def take(self, region: str, report: MeterReport) -> None:
        """A report has come. Of each partition, the newest counts."""
        found = self._reports.setdefault((region, report.table), {})
        for partition in report.partitions:
            if partition not in found or found[partition].at_ms <= report.at_ms:
                found[partition] = report

    def tables(self) -> list[str]:
        """All that a region has reported of."""
        return sorted({table for _, table in self._reports})

    def region(self, region: str, table: str, now_ms: int) -> dict[str, Any] | None:
        """The sum over a region's workers, as listed over HTTP; None: nothing was reported."""
        parts = {id(each): each for each in self._reports.get((region, table), {}).values()}
        reports = list(parts.values())
        if not reports:
            return None
        newest = max(reports, key=lambda each: each.at_ms)
        reports = [each for each in reports if (each.udf, each.version) == (newest.udf, newest.version)]
        fresh = [each for each in reports if now_ms - each.at_ms < STALE_MS]
        kinds = sorted({kind for each in reports for kind in each.traps})
        return {
            "udf": newest.udf,
            "version": newest.version,
            "calls": sum(each.calls for each in reports),
            "events": sum(each.events for each in reports),
            "events_per_s": round(sum(each.events_per_s for each in fresh), 1),
            "cpu_s": round(sum(each.cpu_s for each in reports), 6),
            "fuel": sum(each.fuel for each in reports),
            "memory_high_bytes": max(each.memory_high_bytes for each in reports),
            "traps": {kind: sum(each.traps.get(kind, 0) for each in reports) for kind in kinds},
            "dead_letters": sum(each.dead_letters for each in reports),
            "lag_events": sum(each.lag_events for each in fresh) if fresh else None,
            "at": newest.at_ms,
        }
