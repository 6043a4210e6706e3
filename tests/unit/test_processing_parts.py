"""Watchdog, metrics, dead letters and catalog rules: the small parts."""

from __future__ import annotations

import subprocess
import sys

from streams.model.fold_table import DerivedFold, fold_tables
from streams.model.keyspace import BUILTIN, Keyspace
from streams.model.row import MergeType
from streams.processing.catalog import BuiltinCatalog, RulesCache, keyspace_rules
from streams.processing.dead_letter import dead_letter
from streams.processing.metrics import MinuteLine
from streams.processing.partition_runner import PartitionRunner, RunnerOptions
from streams.processing.partition_task import PartitionTask, TaskStats
from streams.processing.ports import Rejected
from streams.processing.udf_ports import VALUE_BYTES_MAX, fit, purges_of
from streams.processing.watchdog import LagWatchdog, Verdict, WatchdogOptions
from streams.serde import encode, load_builtin, parse_schema, purge_value
from streams.wasm.batch import OP_PURGE, OP_PUT, Event, build


def event(offset: int, value: bytes) -> Event:
    return Event(1_000, 1_000 << 16, 2**63 - 1, 0, OP_PUT, b"score:a", value, offset)


def test_watchdog_restarts_a_partition_that_stands_still_then_gives_up() -> None:
    dog = LagWatchdog(WatchdogOptions(stall_s=10.0, restarts_max=2))
    assert dog.judge("t/0", 5, 9, 0.0) is Verdict.FINE
    assert dog.judge("t/0", 5, 9, 9.9) is Verdict.FINE
    assert dog.judge("t/0", 5, 9, 10.0) is Verdict.RESTART
    assert dog.judge("t/0", 5, 9, 15.0) is Verdict.FINE
    assert dog.judge("t/0", 5, 9, 20.0) is Verdict.RESTART
    assert dog.judge("t/0", 5, 9, 30.0) is Verdict.GIVE_UP
    assert dog.restarts == 2


def test_watchdog_forgives_progress_rest_and_excuses() -> None:
    dog = LagWatchdog(WatchdogOptions(stall_s=10.0, restarts_max=1))
    dog.judge("t/0", 5, 9, 0.0)
    assert dog.judge("t/0", 6, 20, 100.0) is Verdict.FINE, "it moved"
    assert dog.judge("t/0", 20, 20, 200.0) is Verdict.FINE, "it is at the end"
    assert dog.judge("t/0", 20, 30, 205.0) is Verdict.FINE
    assert dog.judge("t/0", 20, 30, 300.0, excused=True) is Verdict.FINE, "restoring"
    assert dog.judge("t/0", 20, 30, 309.0) is Verdict.FINE
    assert dog.judge("t/0", 20, 30, 310.0) is Verdict.RESTART


def test_dead_letter_keeps_the_record_and_says_why() -> None:
    rejected = Rejected(7, "x" * 1000, b"k", None, (("hlc", b"1"), ("dead_letter_reason", b"an older one")))
    letter = dead_letter("dead-letter.score", ("events.score", 1), rejected, "hash", 99)
    headers = dict(letter.headers)
    assert (letter.key, letter.value, headers["hlc"]) == (b"k", None, b"1")
    assert headers["dead_letter_reason"] == b"x" * 500
    assert headers["dead_letter_partition"] == b"1" and headers["dead_letter_time_ms"] == b"99"
    assert [name for name, _ in letter.headers].count("dead_letter_reason") == 1


def test_stats_add_up_field_by_field() -> None:
    assert TaskStats(events=1, fold_s=0.5) + TaskStats(events=2, commits=3) == TaskStats(3, commits=3, fold_s=0.5)
    assert TaskStats(events=3) - TaskStats(events=1) == TaskStats(events=2)
    assert "0 events/s" in MinuteLine(0.0).line({}, 60.0)


def test_the_minute_line_counts_what_partitions_did_meanwhile_wherever_they_go() -> None:
    def runner(events: int) -> PartitionRunner:
        made = PartitionRunner("t/0", unused, RunnerOptions())
        made._past = TaskStats(events=events, commits=1)
        return made

    async def unused() -> PartitionTask:
        raise AssertionError

    line, stays, goes = MinuteLine(0.0), runner(600), runner(6_000)
    assert "110 events/s, 2 commits" in line.line({"a": stays, "b": goes}, 60.0)
    stays._past = TaskStats(events=1_200, commits=3)
    assert "10 events/s, 2 commits" in line.line({"a": stays}, 120.0), "what left takes nothing away"
    assert "10 events/s, 1 commits" in line.line({"a": stays, "b": runner(600)}, 180.0), "and begins at nothing"


def test_values_of_another_version_are_projected_for_the_counter() -> None:
    builtin = load_builtin()["streams.CounterAdd"]
    newer = parse_schema(
        {
            "type": "record",
            "name": "CounterAdd",
            "namespace": "streams",
            "fields": [{"name": "note", "type": "string"}, {"name": "add", "type": "long"}],
        }
    )
    rules = keyspace_rules(BUILTIN[0], {builtin.id: builtin, newer.id: newer})
    assert set(rules.others) == {newer.id}
    same = build([event(1, encode(builtin, {"add": 3}))])
    assert fit(same, rules) == (same, [])
    mixed = build([event(1, encode(builtin, {"add": 3})), event(2, encode(newer, {"note": "hi", "add": 4}))])
    fitted, refused = fit(mixed, rules)
    assert not refused
    assert [each.value for each in fitted.events()] == [encode(builtin, {"add": 3}), encode(builtin, {"add": 4})]
    assert [each.offset for each in fitted.events()] == [1, 2]


def test_lww_takes_values_as_they_came_and_huge_ones_not_at_all() -> None:
    schema = load_builtin()["streams.Json"]
    rules = keyspace_rules(Keyspace("kv"), {schema.id: schema})
    assert rules.input_schema is None and not rules.others
    huge = b"\x00" * (VALUE_BYTES_MAX + 1)
    small = encode(schema, {"json": "1"})
    fitted, refused = fit(build([event(1, small), event(2, huge)]), rules)
    assert [each.value for each in fitted.events()] == [small]
    (letter,) = refused
    assert letter.offset == 2 and "over the limit" in letter.reason and len(letter.value or b"") == 1024


def test_rules_are_made_anew_only_when_schemas_change() -> None:
    catalog = BuiltinCatalog()
    cache, (first, second, *_) = RulesCache(catalog), catalog.tables()
    assert cache.rules(first) is cache.rules(first)
    assert cache.rules(first) is not cache.rules(second)
    assert BUILTIN[1].merge is MergeType.MAX


def test_a_purge_reaches_only_the_table_that_it_names() -> None:
    device = next(each for each in BUILTIN if each.name == "device")
    own, one, two = fold_tables([device], [DerivedFold("one", "device", "kv"), DerivedFold("two", "device", "kv")])

    def purge(offset: int, table: str) -> Event:
        value = purge_value(0, offset, 0, remove=True, table=table)
        return Event(1_000, 1_000 << 16, 2**63 - 1, 0, OP_PURGE, b"device:a", value, offset)

    put = event(1, encode(load_builtin()["streams.Json"], {"json": "1"}))
    batch = build([put, purge(2, ""), purge(3, "one"), purge(4, "two")])
    kept = {table.name: [each.offset for each in purges_of(batch, table).events()] for table in (own, one, two)}
    assert kept == {"device": [1, 2], "one": [1, 3], "two": [1, 4]}
    assert purges_of(build([purge(2, "")]), one).n == 0
    alone = build([put])
    assert purges_of(alone, one) is alone
    assert load_builtin()["streams.TablePurge"].id in keyspace_rules(device, {}).config.schemas


def test_importing_the_command_line_and_the_room_imports_no_faust() -> None:
    code = (
        "import sys, streams.processing.main, streams.cli.worker, streams.processing.partition_task\n"
        "sys.exit(any(name.split('.')[0] == 'faust' for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
