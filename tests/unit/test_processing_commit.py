"""The commit policy and the unit's records: pure, driven with made-up times."""

from __future__ import annotations

import dataclasses

from streams.model.marker import MARKER_KEY, InputPosition, Marker
from streams.model.row import MergeType, Row, decode_row, encode_row
from streams.processing.commit import (
    MANY_ROWS,
    ROW_OBJECTS_BYTES,
    Action,
    CommitOptions,
    CommitPolicy,
    row_bytes_of,
    unit_records,
)
from streams.processing.watchdog import WatchdogOptions

OPTIONS = CommitOptions(
    spacing_s=0.0,
    caught_up_factor=1.0,
    behind_factor=4.0,
    behind_linger_s=0.1,
    age_s=1.0,
    soft_bytes=1000,
    hard_bytes=3000,
    heartbeat_s=0.5,
)


def committed(policy: CommitPolicy, start_s: float, took_s: float) -> float:
    policy.started(start_s)
    policy.finished(start_s + took_s)
    return start_s + took_s


def test_a_lone_event_is_committed_at_once() -> None:
    policy = CommitPolicy(OPTIONS, 0.0)
    end = committed(policy, 0.0, 0.009)
    policy.folded(end + 0.2, 10, caught_up=True)
    assert policy.decide(end + 0.2).action is Action.COMMIT


def test_back_to_back_commits_leave_room_when_caught_up() -> None:
    policy = CommitPolicy(OPTIONS, 0.0)
    end = committed(policy, 0.0, 0.010)
    policy.folded(end + 0.001, 10, caught_up=True)
    decision = policy.decide(end + 0.001)
    assert decision.action is Action.WAIT
    assert decision.at_s is not None and abs(decision.at_s - (end + 0.010)) < 1e-9
    assert policy.decide(decision.at_s).action is Action.COMMIT


def test_long_commits_of_many_rows_are_spaced_as_behind_even_when_caught_up() -> None:
    for rows, due_s in ((MANY_ROWS, 0.8), (MANY_ROWS - 1, 0.2)):
        policy = CommitPolicy(OPTIONS, 0.0)
        policy.started(0.0, 1, rows)
        policy.finished(0.2)
        policy.folded(0.2, 10, caught_up=True, rows=1)
        assert policy.decide(0.2 + due_s - 0.01).action is Action.WAIT
        assert policy.decide(0.2 + due_s + 0.01).action is Action.COMMIT


def test_no_commit_waits_longer_than_the_most_after_the_last() -> None:
    policy = CommitPolicy(dataclasses.replace(OPTIONS, late_share=4.0, age_max_s=7.5), 0.0)
    end = committed(policy, 0.0, 3.0)
    policy.folded(end + 2.5, 10, caught_up=False, events=1, late_s=100.0)
    assert policy.decide(end + 7.4).action is Action.WAIT
    assert policy.decide(end + 7.5).action is Action.COMMIT


def test_behind_commits_are_rare_but_bounded_by_age() -> None:
    policy = CommitPolicy(OPTIONS, 0.0)
    end = committed(policy, 0.0, 0.050)
    policy.folded(end, 10, caught_up=False)
    assert policy.decide(end + 0.19).action is Action.WAIT
    assert policy.decide(end + 0.21).action is Action.COMMIT
    end = committed(policy, 1.0, 5.0)
    policy.folded(end, 10, caught_up=False)
    assert policy.decide(end + 0.99).action is Action.WAIT
    assert policy.decide(end + 1.0).action is Action.COMMIT


def test_bytes_force_a_commit_and_then_hold_folding_back() -> None:
    policy = CommitPolicy(OPTIONS, 0.0)
    end = committed(policy, 0.0, 0.5)
    policy.folded(end, 1000, caught_up=False)
    assert policy.decide(end).action is Action.COMMIT
    policy.started(end)
    policy.folded(end + 0.01, 1999, caught_up=False)
    assert policy.decide(end + 10).action is Action.WAIT, "one commit in flight at a time"
    assert policy.may_fold
    policy.folded(end + 0.02, 1, caught_up=False)
    assert not policy.may_fold
    policy.finished(end + 0.03)
    assert policy.may_fold and policy.uncommitted_bytes == 2000


def test_silence_makes_heartbeats() -> None:
    policy = CommitPolicy(OPTIONS, 10.0)
    first = policy.decide(10.0)
    assert (first.action, first.at_s) == (Action.WAIT, 10.5)
    assert policy.decide(10.5).action is Action.HEARTBEAT


def test_what_is_folded_during_a_commit_belongs_to_the_next() -> None:
    policy = CommitPolicy(OPTIONS, 0.0)
    policy.folded(1.0, 10, caught_up=True)
    policy.started(1.0)
    assert not policy.has_work
    policy.folded(1.001, 10, caught_up=True)
    policy.finished(1.010)
    assert policy.has_work


def test_unit_ends_in_its_marker_and_rows_carry_its_seq() -> None:
    row = encode_row(Row(MergeType.LWW, 0, 0, 5, ()))
    marker = Marker("commit", 7, 1, {"events.kv/0": InputPosition(3, "id")}, "hash", "me")
    stamped, records = unit_records([(b"kv:a", row), (b"kv:b", None)], marker)
    assert decode_row(stamped[0][1] or b"").seq == 7
    assert records[-1][0] == MARKER_KEY
    assert records[-1][1] is not None and Marker.decode(records[-1][1]) == marker
    assert records[1] == (b"kv:b", None, (("seq", (7).to_bytes(8, "little")),))
    assert [key for key, _, _ in records] == [b"kv:a", b"kv:b", MARKER_KEY]


def test_commits_in_a_steady_trickle_are_spaced() -> None:
    policy = CommitPolicy(dataclasses.replace(OPTIONS, spacing_s=0.02), 0.0)
    end = committed(policy, 1.0, 0.001)
    policy.folded(end, 10, caught_up=True)
    decision = policy.decide(end + 0.005)
    assert decision.action is Action.WAIT and decision.at_s is not None and abs(decision.at_s - 1.02) < 1e-9
    assert policy.decide(1.0201).action is Action.COMMIT


def test_heartbeats_of_all_partitions_fall_on_the_same_moments() -> None:
    due = set()
    for ended_s in (20.01, 20.2, 20.49):
        policy = CommitPolicy(OPTIONS, 0.0)
        committed(policy, ended_s, 0.0)
        due.add(policy.decide(ended_s).at_s)
    assert due == {20.5}


def test_a_backlog_makes_large_units_and_what_is_caught_up_small_ones() -> None:
    options = dataclasses.replace(OPTIONS, late_share=0.5, age_max_s=6.0)
    policy = CommitPolicy(options, 0.0)  # age_s 1, a half of how late it was, at most 6
    end = committed(policy, 1.0, 9.0)
    policy.folded(end, 10, caught_up=False, events=1, late_s=1.9)
    assert policy.decide(end).at_s == end + 1.0
    policy.folded(end, 10, caught_up=False, events=1, late_s=8.0)
    assert policy.decide(end).at_s == end + 4.0
    policy.folded(end, 10, caught_up=False, events=1, late_s=1e6)
    assert policy.decide(end).at_s == end + 6.0
    policy.folded(end + 0.1, 10, caught_up=True, events=1, late_s=8.0)
    assert policy.decide(end + 0.1).at_s == end + 1.0
    cheap = CommitPolicy(OPTIONS, 0.0)
    end = committed(cheap, 1.0, 0.1)
    cheap.folded(end, 10, caught_up=False, events=1, late_s=1e6)
    assert cheap.decide(end + 0.41).action is Action.COMMIT, "cheap commits are not put off"


def test_rows_bound_a_unit_by_what_an_event_made_of_them_before() -> None:
    options = dataclasses.replace(OPTIONS, soft_row_bytes=1000, hard_row_bytes=1500)
    policy = CommitPolicy(options, 0.0)
    policy.folded(0.0, 1, caught_up=False, events=10, late_s=100.0)
    policy.started(0.0, 500)
    policy.folded(0.1, 1, caught_up=False, events=19, late_s=100.0)
    assert policy.may_fold
    policy.folded(0.1, 1, caught_up=False, events=1, late_s=100.0)
    assert not policy.may_fold, "1,000 expected beside 500 in flight"
    policy.finished(9.0)
    assert policy.may_fold and policy.decide(9.0).action is Action.COMMIT
    policy.started(9.0, 100)
    policy.finished(9.0)
    policy.folded(9.0, 1, caught_up=False, events=190, late_s=100.0)
    assert policy.decide(9.0).action is Action.WAIT, "5 bytes an event now"


def test_rows_that_are_counted_bound_a_unit_by_what_a_row_took_before() -> None:
    options = dataclasses.replace(OPTIONS, soft_row_bytes=10_000, hard_row_bytes=15_000)
    policy = CommitPolicy(options, 0.0)
    policy.folded(0.0, 1, caught_up=False, events=100, rows=50, late_s=100.0)
    policy.started(0.0, 5_000, 50)
    policy.finished(9.0)
    policy.folded(9.0, 1, caught_up=False, events=100_000, rows=60, late_s=100.0)
    assert policy.decide(9.0).action is Action.WAIT, "more events of the same keys make no more rows"
    policy.folded(9.0, 1, caught_up=False, events=1, rows=100, late_s=100.0)
    assert policy.decide(9.0).action is Action.COMMIT and policy.may_fold
    policy.folded(9.0, 1, caught_up=False, events=1, rows=150, late_s=100.0)
    assert not policy.may_fold


def test_very_many_small_rows_are_no_larger_unit() -> None:
    policy = CommitPolicy(dataclasses.replace(OPTIONS, soft_rows=1_000), 0.0)
    policy.started(0.0, 10, 10)
    policy.finished(0.5)
    policy.folded(0.5, 1, caught_up=False, events=999, rows=999, late_s=100.0)
    assert policy.decide(0.5).action is Action.WAIT
    policy.folded(0.5, 1, caught_up=False, events=1, rows=1_000, late_s=100.0)
    assert policy.decide(0.5).action is Action.COMMIT


def test_a_unit_that_waits_does_not_look_stalled() -> None:
    assert CommitOptions().age_max_s <= 0.75 * WatchdogOptions().stall_s


def test_what_rows_take_is_counted() -> None:
    assert row_bytes_of([(b"kv:a", b"12"), (b"kv:b", None)]) == 10 + 2 * ROW_OBJECTS_BYTES
