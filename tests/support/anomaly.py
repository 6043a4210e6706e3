"""Readings for the anomaly fold, and its rows and alerts, for unit, property and integration tests."""

from __future__ import annotations

import csv
import os
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from streams.model.row import decode_row
from streams.serde import encode, load_builtin
from streams.serde.codec import decode_body
from streams.wasm.batch import Event, build
from streams.wasm.builtin import builtin_module
from streams.wasm.engine import ModuleCache
from streams.wasm.fold_host import FoldHost, FoldOptions

CACHE = ModuleCache(Path(tempfile.gettempdir()) / "streams-test-wasm")
SCHEMAS = load_builtin()
NEVER = 2**63 - 1
BASE_MS = 1_700_000_000_000
SERIES = Path(os.environ.get("STREAMS_TEST_SERIES", Path(__file__).parents[2].parent / "shared" / "data"))
"""Where the two real series may lie; tests of them are skipped where they do not."""


def reading(key: str, value: float, time_ms: int, append_ms: int, metric: str = "t", expires_ms: int = NEVER) -> Event:
    """A put of streams.Reading."""
    body = encode(SCHEMAS["streams.Reading"], {"metric": metric, "value": value, "time": time_ms})
    return Event(append_ms, append_ms << 16, expires_ms, 0, 0, key.encode(), body)


def series(values: Sequence[float], key: str = "device:a:telemetry", start: int = 0) -> list[Event]:
    """One reading a second."""
    return [reading(key, v, BASE_MS + 1000 * (start + i), BASE_MS + start + i) for i, v in enumerate(values)]


def alert_of(value: bytes) -> dict[str, Any]:
    """A record of alerts.device."""
    return decode_body(SCHEMAS["streams.Alert"], value)


def state_of(row: bytes) -> dict[str, Any]:
    """A row's streams.Anomaly."""
    (cell,) = decode_row(row).cells
    return decode_body(SCHEMAS["streams.Anomaly"], cell.payload)


class Table:
    """A committed anomaly table and its alerts, and a FoldHost over it."""

    def __init__(self) -> None:
        self.rows: dict[bytes, bytes] = {}
        self.outputs: list[tuple[int, bytes, bytes]] = []
        self.rejects: list[tuple[int, str]] = []
        self.host = FoldHost(builtin_module("anomaly"), CACHE, FoldOptions(merge=1, outputs=1))

    def fold(self, events: Sequence[Event], at: int = 0) -> None:
        """Fold; rejects are numbered from `at` on."""
        found = self.host.fold(build(events).raw, lambda keys: [self.rows.get(k) for k in keys])
        self.rejects += [(at + r.index, r.reason) for r in found]

    def commit(self) -> None:
        """Take rows and alerts over."""
        for key, row in self.host.take():
            if row is None:
                self.rows.pop(key, None)
            else:
                self.rows[key] = row
        self.outputs += self.host.take_outputs()
        self.host.committed()

    def states(self) -> dict[str, dict[str, Any]]:
        """Every row, decoded."""
        return {key.decode(): state_of(row) for key, row in self.rows.items()}

    def alerts(self) -> list[dict[str, Any]]:
        """Every alert, decoded, in order."""
        return [alert_of(value) for _, _, value in self.outputs]


def folded(events: Sequence[Event], cuts: Sequence[tuple[int, str]] = ()) -> Table:
    """The events folded in pieces of the cuts' sizes: after each goes on ("fold"), commits ("commit"), or commits and
    starts another instance from the rows ("drop")."""
    table, at = Table(), 0
    for size, step in [*cuts, (len(events), "commit")]:
        if at < len(events):
            table.fold(events[at : at + size], at)
        at += size
        if step != "fold":
            table.commit()
        if step == "drop":
            table.host.discard()
    table.host.close()
    return table


def real_series(name: str) -> list[tuple[int, float]]:
    """(time in ms, value) of a CSV of timestamps and values."""
    with (SERIES / f"{name}.csv").open() as file:
        lines = list(csv.DictReader(file))
    times = [datetime.fromisoformat(line["timestamp"]).replace(tzinfo=UTC) for line in lines]
    return [(int(t.timestamp()) * 1000, float(line["value"])) for t, line in zip(times, lines, strict=True)]
