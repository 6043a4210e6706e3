"""Merging replicas' rows: independent of order and grouping of arrival, and right about generations."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from streams.model.clock import NEVER_MS, pack
from streams.model.merge import Merged, Replica, merge_rows
from streams.model.row import Cell, MergeType, Row, counter_payload

A: Replica = ("us-east", 0)
B: Replica = ("eu-west", 0)


def counter(*lives: tuple[int, int, int], deleted_ms: int = 0) -> Row:
    """A counter row of (start ms, expiry ms, sum) lives."""
    cells = tuple(Cell(pack(start), pack(start), end, counter_payload(total, 0)) for start, end, total in lives)
    return Row(MergeType.COUNTER, 1, pack(deleted_ms) if deleted_ms else 0, pack(99), cells)


def value(rows: dict[Replica, Row], now_ms: int) -> int | float | bytes | None:
    """The merged value alone."""
    merged = merge_rows(rows, now_ms)
    return None if merged is None else merged.value


def test_lives_that_touch_are_one_generation_whatever_the_region() -> None:
    rows = {A: counter((1, 2, 5), (3, 13, 2)), B: counter((1, 5, 7))}
    assert value(rows, 4) == 14
    assert value(rows, 13) is None


def test_after_a_gap_the_counter_starts_again_everywhere() -> None:
    rows = {A: counter((1, 2, 5), (6, 20, 1)), B: counter((1, 5, 7))}
    assert value(rows, 7) == 1


def test_a_put_at_the_moment_of_expiry_starts_again() -> None:
    assert value({A: counter((1, 5, 7), (5, 20, 1))}, 6) == 1


def test_delete_kills_what_began_before_it_in_every_region() -> None:
    rows = {A: counter(deleted_ms=4), B: counter((1, NEVER_MS, 7))}
    assert value(rows, 10) is None
    rows[B] = counter((5, NEVER_MS, 1))
    assert value(rows, 10) == 1


def lww(hlc: int, expires_ms: int, payload: bytes, deleted: int = 0) -> Row:
    """A last-writer-wins row."""
    return Row(MergeType.LWW, 1, deleted, hlc, (Cell(hlc, hlc, expires_ms, payload),))


def test_lww_takes_the_latest_writer_and_the_latest_expiry() -> None:
    rows = {A: lww(pack(1), 1000, b"old"), B: lww(pack(2), 10, b"new")}
    assert merge_rows(rows, 20) == Merged(b"new", 1000, pack(2), "eu-west")


def test_lww_delete_cuts_the_old_expiry_too() -> None:
    rows = {A: lww(pack(1), 1000, b"old"), B: lww(pack(3), 10, b"new", deleted=pack(2))}
    assert value(rows, 5) == b"new" and value(rows, 10) is None


def test_equal_times_are_decided_by_origin() -> None:
    rows = {A: lww(pack(1), 99, b"a"), B: lww(pack(1), 99, b"b")}
    assert value(rows, 5) == b"a"


times = st.integers(0, 40)
cells = st.lists(st.tuples(times, st.integers(1, 20), st.integers(0, 9)), max_size=4)
replica_rows = st.dictionaries(
    st.sampled_from([A, B, ("us-east", 1), ("ap-south", 0)]), st.tuples(cells, st.integers(0, 20)), max_size=4
)


def reference(rows: dict[Replica, tuple[list[tuple[int, int, int]], int]], now_ms: int) -> int | None:
    """Slow and obvious: flood fill over touching lives, from those that contain now."""
    deleted = max((d for _, d in rows.values()), default=0)
    lives = [(s, s + n, v) for row, _ in rows.values() for s, n, v in row if s > deleted]
    group = {i for i, (_, end, _) in enumerate(lives) if end > now_ms}
    changed = True
    while changed:
        changed = False
        for i, j in itertools.product(list(group), range(len(lives))):
            if j not in group and lives[i][0] < lives[j][1] and lives[j][0] < lives[i][1]:
                group.add(j)
                changed = True
    return sum(lives[i][2] for i in group) if group else None


@given(replica_rows, st.integers(41, 60))
def test_counter_equals_the_flood_fill_model(
    rows: dict[Replica, tuple[list[tuple[int, int, int]], int]], now_ms: int
) -> None:
    built = {r: counter(*[(s, s + n, v) for s, n, v in lives], deleted_ms=d) for r, (lives, d) in rows.items()}
    assert value(built, now_ms) == reference(rows, now_ms)


@given(replica_rows, st.integers(0, 60), st.randoms(use_true_random=False))
def test_order_of_arrival_does_not_matter(rows, now_ms, rng) -> None:  # type: ignore[no-untyped-def]
    built = {r: counter(*[(s, s + n, v) for s, n, v in lives], deleted_ms=d) for r, (lives, d) in rows.items()}
    shuffled = list(built.items())
    rng.shuffle(shuffled)
    assert merge_rows(built, now_ms) == merge_rows(dict(shuffled), now_ms)
