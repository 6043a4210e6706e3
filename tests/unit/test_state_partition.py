"""Table partitions: rows, marker and offset together; scans; the sequence guard; what a broken directory says."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from streams.model.clock import wall_ms
from streams.model.errors import BadInput
from streams.model.marker import InputPosition, Marker
from streams.model.row import MergeType, Row, encode_row
from streams.state.errors import StoreClosed, StoreCorrupt, StoreLocked
from streams.state.options import StoreOptions
from streams.state.partition import TablePartition, upper_bound
from streams.state.store_set import StoreSet, close_all
from tests.support.polling import eventually_sync

SMALL = StoreOptions(block_cache_bytes=8 << 20, write_buffers_bytes=8 << 20, write_buffer_bytes=1 << 20)


def row(seq: int) -> bytes:
    return encode_row(Row(MergeType.COUNTER, seq, 0, 1, ()))


def marker(seq: int) -> Marker:
    return Marker("commit", seq, 1000 + seq, {"events.score/0": InputPosition(seq * 10, "id")})


@pytest.fixture
def part(tmp_path: Path) -> Iterator[TablePartition]:
    found = TablePartition(tmp_path / "p", SMALL)
    yield found
    found.close()


def test_rows_marker_and_offset_survive_a_reopen(tmp_path: Path) -> None:
    part = TablePartition(tmp_path / "p", SMALL)
    assert part.marker() is None and part.changelog_offset() is None
    assert part.apply([(b"score:a", row(1)), (b"score:b", row(1))], marker(1), 7) == 2
    part.apply([(b"score:b", None)], marker(2), 9)
    part.set_meta("topic_id", "abc")
    part.close()
    part = TablePartition(tmp_path / "p", SMALL)
    assert part.get(b"score:a") == row(1) and part.get(b"score:b") is None
    assert part.multi_get([b"score:b", b"score:a"]) == [None, row(1)]
    assert part.marker() == marker(2) and part.changelog_offset() == 9 and part.meta("topic_id") == "abc"
    assert list(part.iterate()) == [(b"score:a", row(1))]
    part.close()


def test_scan_by_prefix_and_cursor(part: TablePartition) -> None:
    keys = [b"a:1", b"a:2", b"a:\xff", b"a:\xff\xff", b"b:1"]
    part.apply([(key, row(1)) for key in keys], marker(1), 1)
    assert [key for key, _ in part.scan()] == keys
    assert [key for key, _ in part.scan(b"a:")] == keys[:4]
    assert [key for key, _ in part.scan(b"a:", after=b"a:1", limit=2)] == [b"a:2", b"a:\xff"]
    assert [key for key, _ in part.scan(b"a:\xff")] == [b"a:\xff", b"a:\xff\xff"]
    assert part.scan(b"a:", after=b"b:") == [] and part.scan(b"zz") == []
    assert upper_bound(b"\xff\xff") is None


def test_an_iterator_is_of_one_moment(part: TablePartition) -> None:
    part.apply([(b"a:1", row(1))], marker(1), 1)
    earlier = part.iterate()
    part.apply([(b"a:1", None), (b"a:2", row(2))], marker(2), 2)
    assert [key for key, _ in earlier] == [b"a:1"]
    assert [key for key, _ in part.iterate()] == [b"a:2"]


def test_internal_keys_cannot_be_written_as_rows(part: TablePartition) -> None:
    for key in (b"\x00marker", b""):
        with pytest.raises(BadInput):
            part.apply([(key, row(1))], marker(1), 1)
    assert part.marker() is None


def test_guard_leaves_out_what_is_older_than_stored(part: TablePartition) -> None:
    part.apply([(b"a:1", row(5)), (b"a:2", row(3))], marker(5), 5, guard_seq=True)
    written = part.apply(
        [(b"a:1", row(4)), (b"a:2", row(4)), (b"a:3", row(6)), (b"a:3", row(2))], marker(6), 6, guard_seq=True
    )
    assert written == 2
    assert part.multi_get([b"a:1", b"a:2", b"a:3"]) == [row(5), row(4), row(6)]


def test_restore_flag_survives_until_ended(tmp_path: Path) -> None:
    part = TablePartition(tmp_path / "p", SMALL)
    part.begin_restore()
    part.apply([(b"a:1", row(1))], marker(1), 4)
    part.close()
    part = TablePartition(tmp_path / "p", SMALL)
    assert part.restoring
    part.end_restore()
    part.close()
    part = TablePartition(tmp_path / "p", SMALL)
    assert not part.restoring and part.changelog_offset() == 4 and part.get(b"a:1") == row(1)
    part.close()


def test_locked_corrupt_and_closed_are_told_apart(tmp_path: Path) -> None:
    part = TablePartition(tmp_path / "p", SMALL)
    part.apply([(b"a:1", row(1))], marker(1), 4)
    with pytest.raises(StoreLocked, match="open elsewhere"):
        TablePartition(tmp_path / "p", SMALL)
    code = (
        "import sys; from pathlib import Path; from streams.state.partition import TablePartition as T\n"
        "try: T(Path(sys.argv[1]))\nexcept Exception as e: print(type(e).__name__)"
    )
    other = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "p")], capture_output=True, text=True, timeout=60, check=True
    )
    assert other.stdout.strip() == "StoreLocked"
    part.close()
    part.close()
    with pytest.raises(StoreClosed):
        part.get(b"a:1")
    next((tmp_path / "p").glob("MANIFEST-*")).write_bytes(b"garbage" * 20)
    with pytest.raises(StoreCorrupt, match="wipe"):
        TablePartition(tmp_path / "p", SMALL)
    TablePartition.wipe(tmp_path / "p")
    part = TablePartition(tmp_path / "p", SMALL)
    assert part.changelog_offset() is None
    part.close()


def test_a_lost_current_file_is_not_an_empty_store(tmp_path: Path) -> None:
    part = TablePartition(tmp_path / "p", SMALL)
    part.begin_restore()
    part.apply([(b"a:1", row(1))], marker(1), 4)
    part.end_restore()
    part.close()
    (tmp_path / "p" / "CURRENT").unlink()
    with pytest.raises(StoreCorrupt):
        TablePartition(tmp_path / "p", SMALL)


def test_many_partitions_close_together_and_can_be_reopened(tmp_path: Path) -> None:
    stores = StoreSet(SMALL)
    for index in range(12):
        stores.open(tmp_path / str(index)).apply([(b"a:1", row(1))], marker(1), index)
    assert len(stores) == 12
    stores.close_all()
    again = [TablePartition(tmp_path / str(index), SMALL) for index in range(12)]
    assert [part.changelog_offset() for part in again] == list(range(12))
    close_all(again)
    assert stores.fresh(tmp_path / "3").changelog_offset() is None
    stores.close_all()


def test_a_process_takes_bounded_memory_for_many_partitions(tmp_path: Path) -> None:
    stores = StoreSet(SMALL)
    for index in range(8):
        part = stores.open(tmp_path / str(index))
        for step in range(4):
            part.apply([(b"a:%d" % i, os.urandom(100)) for i in range(step * 5000, step * 5000 + 5000)], None, step)
    from streams.state.options import cache_usage_bytes

    for index in range(8):
        assert sum(1 for _ in stores.open(tmp_path / str(index)).iterate()) == 20_000
    assert cache_usage_bytes(SMALL) <= 9 << 20
    stores.close_all()


def test_without_a_log_removals_do_not_wait_in_memory_for_long(tmp_path: Path) -> None:
    part = TablePartition(tmp_path / "p", replace(SMALL, wal=False, removals_flush_s=0.0))
    part.apply([(b"a:1", row(1))], marker(1), 2)
    part.apply([], marker(2), 3)
    assert part.size_bytes() == 0, "rows wait for more of them"
    part.apply([(b"a:0", None)], marker(3), 4)
    eventually_sync(lambda: part.size_bytes() > 0)
    part.close()


def test_a_flush_that_fails_does_not_undo_what_was_applied(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    part = TablePartition(tmp_path / "p", replace(SMALL, wal=False, removals_flush_s=0.0))

    class Failing:
        def __init__(self, db: Any) -> None:
            self._db = db

        def __getattr__(self, name: str) -> Any:
            return getattr(self._db, name)

        def flush(self, wait: bool) -> None:
            raise OSError("no space left")

    whole, part._db = part._db, Failing(part._db)  # type: ignore[assignment]
    assert part.apply([(b"a:0", None)], marker(3), 4) == 1
    assert part.changelog_offset() == 4
    assert part.apply([], marker(4), 5) == 0, "it is tried again, and no more"
    assert caplog.text.count("no space left") == 2
    part._db = whole
    part.apply([], marker(5), 6)
    eventually_sync(lambda: part.size_bytes() > 0)
    part.close()


def test_when_a_unit_was_applied_is_kept_but_not_of_a_restore(tmp_path: Path) -> None:
    part = TablePartition(tmp_path / "p", SMALL)
    assert part.applied_ms() is None
    part.begin_restore()
    part.apply([(b"a:1", row(1))], marker(1), 2)
    part.end_restore()
    assert part.applied_ms() is None
    before = wall_ms()
    part.apply([(b"a:1", row(2))], marker(2), 3)
    part.close()
    part = TablePartition(tmp_path / "p", SMALL)
    assert before <= (part.applied_ms() or 0) <= wall_ms()
    part.close()
