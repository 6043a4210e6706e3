"""Whatever order units arrive in, the edge converges, never goes back, and orders and scans like plain Python."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from hypothesis import given, note, settings
from hypothesis import strategies as st

from streams.edge.edge_store import EdgeTables
from streams.edge.ordered_index import OrderedIndex
from streams.edge.raw_merge import merge_encoded
from streams.model.clock import NEVER_MS, pack
from streams.model.merge import merge_rows
from streams.model.row import Cell, MergeType, Row, counter_payload, encode_row, number_payload
from tests.support.edge_units import NOW, SCORE, Clock, FakeUnit, Writer, named_in, store

KEYS = [b"score:%d" % i for i in range(5)]
write = st.tuples(
    st.sampled_from(["put", "put", "put", "delete", "expiring"]), st.sampled_from(KEYS), st.integers(1, 50)
)
history = st.lists(st.lists(write, max_size=4), min_size=1, max_size=8)


def units_of(origin: str, script: list[list[tuple[str, bytes, int]]], *, deletes: bool) -> list[FakeUnit]:
    writer = Writer(origin)
    for step, writes in enumerate(script):
        writer.time_ms = NOW + step * 10
        for kind, key, value in writes:
            if kind == "delete" and deletes:
                writer.delete(key)
            else:
                expires = NOW + 40 + value if kind == "expiring" and deletes else NEVER_MS
                writer.put(key, value, expires_ms=expires)
        writer.commit()
    return writer.units


def deliveries(draw: st.DrawFn, us: list[FakeUnit], eu: list[FakeUnit]) -> list[tuple[str, int] | str]:
    """Steps: the next unit of an origin, a step back of an origin's log, or a restart."""
    at = {"us": 0, "eu": 0}
    steps: list[tuple[str, int] | str] = []
    size = {"us": len(us), "eu": len(eu)}
    disturbances = 6
    while unfinished := [origin for origin in at if at[origin] < size[origin]]:
        origin = draw(st.sampled_from(unfinished))
        what = draw(st.sampled_from(["next", "next", "next", "back", "restart"])) if disturbances else "next"
        if what == "next":
            steps.append((origin, at[origin]))
            at[origin] += 1
            continue
        disturbances -= 1
        if what == "restart":
            steps.append(what)
        else:
            at[origin] = draw(st.integers(0, at[origin]))
    return steps


@settings(max_examples=40, deadline=None, print_blob=True)
@given(us=history, eu=history, deletes=st.booleans(), data=st.data())
def test_any_interleaving_converges_and_never_goes_back(
    us: list[list[tuple[str, bytes, int]]], eu: list[list[tuple[str, bytes, int]]], deletes: bool, data: st.DataObject
) -> None:
    units = {"us": units_of("us", us, deletes=deletes), "eu": units_of("eu", eu, deletes=deletes)}
    orders = [data.draw(st.composite(deliveries)(units["us"], units["eu"])) for _ in range(2)]
    note(f"orders: {orders}")
    with tempfile.TemporaryDirectory() as folder:
        digests = []
        for index, (region, steps) in enumerate(zip(("us", "eu"), orders, strict=True)):
            digests.append(asyncio.run(deliver(Path(folder) / str(index), region, units, steps, monotone=not deletes)))
        assert digests[0] == digests[1]


async def deliver(
    path: Path, region: str, units: dict[str, list[FakeUnit]], steps: list[tuple[str, int] | str], *, monotone: bool
) -> tuple[object, object, object]:
    clock = Clock()
    tables = store(path, region, clock=clock)
    seen: dict[bytes, int] = {}
    offset = 0
    for step in steps:
        if isinstance(step, str):
            await tables.close()
            tables = store(path, region, clock=clock)
        else:
            offset += 1
            unit = named_in(units[step[0]][step[1]], step[0], SCORE, region)
            await tables.publish(FakeUnit(unit.topic, 0, unit.rows, unit.marker, None, offset))
        await check(tables, seen, monotone)
    clock.ms = NOW + 60
    digest = await tables.table("score").digest(NOW + 60)
    rows = tables.table("score").scan().rows
    await check(tables, {}, monotone)
    assert not tables.problems
    await tables.close()
    return digest, rows, tables.applied


async def check(tables: EdgeTables, seen: dict[bytes, int], monotone: bool) -> None:
    """Point reads, scan and order agree; where nothing is deleted, counters of positive adds only grow."""
    table = tables.table("score")
    points = {key: merged.value for key in KEYS if (merged := table.get(key)) is not None}
    assert [(key, row.value) for key, row in table.scan().rows] == sorted(points.items())
    ordered = sorted(points.items(), key=lambda pair: (-pair[1], pair[0]))  # type: ignore[operator]
    assert [(row.key, row.number) for row in await table.top(100)] == ordered
    if monotone:
        for key, value in seen.items():
            assert points.get(key, 0) >= value  # type: ignore[operator]
        seen.update(points)  # type: ignore[arg-type]


index_steps = st.lists(
    st.tuples(
        st.sampled_from(["set", "set", "discard", "expire"]),
        st.integers(0, 30),
        st.one_of(st.integers(-5, 5), st.floats(allow_nan=False, width=16), st.integers(2**60, 2**60 + 2)),
        st.one_of(st.just(NEVER_MS), st.integers(1, 40)),
    ),
    max_size=120,
)


@settings(max_examples=200, deadline=None, print_blob=True)
@given(first=st.dictionaries(st.integers(0, 30), st.integers(-5, 5)), steps=index_steps)
def test_the_index_is_a_sorted_list(first: dict[int, int], steps: list[tuple[str, int, float, int]]) -> None:
    import streams.edge.ordered_index as module

    load, module._LOAD = module._LOAD, 3
    try:
        run_index(first, steps)
    finally:
        module._LOAD = load


def run_index(first: dict[int, int], steps: list[tuple[str, int, float, int]]) -> None:
    index = OrderedIndex()
    for _ in index.load([(-value, b"%d" % key) for key, value in first.items()], {}):
        pass
    slow: dict[bytes, tuple[float, int]] = {b"%d" % key: (value, NEVER_MS) for key, value in first.items()}
    now = 0
    for kind, number, value, expires in steps:
        key = b"%d" % number
        if kind == "set" and expires > now:
            index.set(key, value, expires)
            slow[key] = (value, expires)
        elif kind == "discard":
            index.discard(key)
            slow.pop(key, None)
        elif kind == "expire":
            now += 1
            for gone in index.expired(now, 1000):
                index.discard(gone)
            slow = {key: pair for key, pair in slow.items() if pair[1] > now}
        expected = sorted(((-pair[0], key) for key, pair in slow.items()))
        assert [(-value, key) for _, key, value in index.top(100)] == expected and len(index) == len(expected)
        rank = next((at for at, (_, found) in enumerate(expected, 1) if found == key), None)
        assert index.rank(key) == rank
        if rank is not None:
            around = [(at, found) for at, (_, found) in enumerate(expected, 1) if abs(at - rank) <= 2]
            assert [(at, found) for at, found, _ in index.around(key, 2)] == around


@settings(max_examples=300, deadline=None, print_blob=True)
@given(
    kind=st.sampled_from([MergeType.LWW, MergeType.COUNTER, MergeType.MAX, MergeType.MIN]),
    rows=st.lists(
        st.tuples(st.integers(0, 25), st.lists(st.tuples(st.integers(1, 20), st.integers(1, 20)), max_size=2)),
        min_size=1,
        max_size=3,
    ),
    now=st.integers(0, 45),
)
def test_the_short_cut_merges_like_the_model(
    kind: MergeType, rows: list[tuple[int, list[tuple[int, int]]]], now: int
) -> None:
    payload = {MergeType.LWW: b"x", MergeType.COUNTER: counter_payload(5, 2)}.get(kind, number_payload(1.5))
    decoded = {
        ("r", number): Row(
            kind, 1, pack(deleted), 1, tuple(Cell(pack(s), pack(s) + 1, s + n, payload) for s, n in found)
        )
        for number, (deleted, found) in enumerate(rows)
    }
    encoded = {replica: encode_row(row) for replica, row in decoded.items()}
    assert merge_encoded(encoded, now) == merge_rows(decoded, now)
