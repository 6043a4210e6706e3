"""Units and tables for tests of the edge: a writer folds puts as a UDF would, and cuts units."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from streams.edge.edge_store import EdgeTables, ReplicaId
from streams.edge.options import EdgeOptions, TableSpec
from streams.edge.purger import Purge
from streams.model.clock import NEVER_MS, pack
from streams.model.marker import Claim, InputPosition, Marker
from streams.model.row import Cell, MergeType, Row, counter_payload, counter_sums, encode_row, number_payload
from streams.model.unit_rows import Row as Row3
from streams.model.unit_rows import UnitRows
from streams.state.options import StoreOptions

NOW = 1_700_000_000_000
REGIONS = ("us", "eu")
STORE = StoreOptions(16 << 20, 16 << 20, 1 << 20)
SCORE = TableSpec("score", "score", MergeType.COUNTER, 1, ("events.score",))
KV = TableSpec("kv", "kv", MergeType.LWW, 1, ("events.kv",))


def rows_of(rows: Iterable[Row3]) -> UnitRows:
    """Rows in columns; their sequence numbers are those in them."""
    given = list(rows)
    removed = {at: seq for at, (_, row, seq) in enumerate(given) if row is None}
    found = UnitRows([key for key, _, _ in given], [row for _, row, _ in given], removed)
    assert list(found) == given
    return found


@dataclass(frozen=True)
class FakeUnit:
    """Same shape as streams.kafka.changelog_reader.Unit."""

    topic: str
    partition: int
    rows: UnitRows
    marker: Marker | None
    claim: Claim | None
    next_offset: int


@dataclass
class Clock:
    """A clock that a test moves."""

    ms: int = NOW

    def __call__(self) -> int:
        return self.ms


def store(
    path: Path,
    region: str = "us",
    specs: Iterable[TableSpec] = (SCORE,),
    clock: Clock | None = None,
    attach: bool = True,
    **options: object,
) -> EdgeTables:
    """Tables of `region` with every replica attached."""
    found = EdgeTables(
        EdgeOptions(path / region, region, REGIONS, store=STORE, **options),  # type: ignore[arg-type]
        clock=clock or Clock(),
        decode=lambda _table, payload: __import__("json").loads(payload),
    )
    found.set_tables(specs)
    for replica in found.replica_ids() if attach else []:
        found.attach(replica)
    return found


def attach_all(tables: EdgeTables) -> list[ReplicaId]:
    """Attach what there should be."""
    found = tables.replica_ids()
    for replica in found:
        tables.attach(replica)
    return found


@dataclass
class Writer:
    """One replica's worker: folds puts and deletes as SPEC says, cuts units, remembers them."""

    origin: str
    spec: TableSpec = SCORE
    partition: int = 0
    seq: int = 0
    next_input: int = 0
    time_ms: int = NOW
    rows: dict[bytes, Row] = field(default_factory=dict)
    changed: dict[bytes, None] = field(default_factory=dict)
    removed: set[bytes] = field(default_factory=set)
    units: list[FakeUnit] = field(default_factory=list)

    def put(
        self,
        key: bytes,
        value: int | float | bytes,
        *,
        at_ms: int | None = None,
        expires_ms: int = NEVER_MS,
        generation: int = 0,
    ) -> None:
        append_ms = self.time_ms if at_ms is None else at_ms
        row = self.rows.get(key) or Row(self.spec.merge, 0, 0, 0, ())
        deleted = max(row.deleted_hlc, generation)
        hlc = max(pack(append_ms), row.last_hlc + 1, deleted + 1)
        lww = self.spec.merge is MergeType.LWW
        cells = [c for c in row.cells if (c.last_hlc if lww else c.start_hlc) > deleted]
        last = cells.pop() if cells else None
        if last is not None and last.expires_ms <= append_ms:
            if not lww:
                cells.append(last)
            last = None
        start = last.start_hlc if last else hlc
        expires = max(last.expires_ms, expires_ms) if last else expires_ms
        cells.append(Cell(start, hlc, expires, self._payload(last, value)))
        self._set(key, Row(self.spec.merge, 0, deleted, hlc, tuple(cells[-16:])))

    def _payload(self, last: Cell | None, value: int | float | bytes) -> bytes:
        if isinstance(value, bytes):
            return value
        if isinstance(value, float):
            return number_payload(value)
        positive, negative = counter_sums(last.payload) if last else (0, 0)
        return counter_payload(positive + max(value, 0), negative + max(-value, 0))

    def delete(self, key: bytes, *, at_ms: int | None = None, generation: int = 0) -> int:
        row = self.rows.get(key) or Row(self.spec.merge, 0, 0, 0, ())
        at_ms = self.time_ms if at_ms is None else at_ms
        hlc = max(pack(at_ms), row.last_hlc + 1, row.deleted_hlc + 1, generation + 1)
        self._set(key, Row(self.spec.merge, 0, hlc, hlc, ()))
        return hlc

    def purge(self, key: bytes, purge: Purge) -> None:
        row = self.rows.get(key)
        if row is None:
            return
        lww = self.spec.merge is MergeType.LWW
        cells = tuple(
            c
            for c in row.cells
            if (c.last_hlc if lww else c.start_hlc) > purge.generation and c.expires_ms > purge.before_ms
        )
        if purge.remove and not cells and row.last_hlc == purge.last_hlc:
            del self.rows[key]
            self.removed.add(key)
            self.changed[key] = None
        else:
            self._set(key, Row(row.merge_type, 0, max(row.deleted_hlc, purge.generation), row.last_hlc, cells))

    def _set(self, key: bytes, row: Row) -> None:
        self.rows[key] = row
        self.removed.discard(key)
        self.changed[key] = None
        self.next_input += 1

    def commit(self, region: str = "us", *, time_ms: int | None = None) -> FakeUnit:
        """The unit of what changed, as named in `region`."""
        self.seq += 1
        self.time_ms = self.time_ms if time_ms is None else time_ms
        rows: list[tuple[bytes, bytes | None, int]] = []
        for key in self.changed:
            row = self.rows.get(key)
            data = None
            if row is not None:
                data = encode_row(Row(row.merge_type, self.seq, row.deleted_hlc, row.last_hlc, row.cells))
            rows.append((key, data, self.seq))
        self.changed.clear()
        inputs = {f"{self.spec.inputs[0]}/{self.partition}": InputPosition(self.next_input, "id")}
        marker = Marker("commit", self.seq, self.time_ms, inputs)
        unit = FakeUnit(
            self.spec.topic(self.origin, region), self.partition, rows_of(rows), marker, None, self.seq * 100
        )
        self.units.append(unit)
        return unit


def named_in(unit: FakeUnit, origin: str, spec: TableSpec, region: str) -> FakeUnit:
    """The same unit as it is called in another region."""
    return FakeUnit(spec.topic(origin, region), unit.partition, unit.rows, unit.marker, unit.claim, unit.next_offset)
