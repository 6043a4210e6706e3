"""A restore that is killed (-9) goes on from where the disk is: rows and offset agree."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from streams.model.row import MergeType, Row, encode_row
from streams.state.options import StoreOptions
from streams.state.partition import TablePartition
from tests.unit.test_state_partition import marker

SMALL = StoreOptions(block_cache_bytes=8 << 20, write_buffers_bytes=8 << 20, write_buffer_bytes=256 << 10)
CHUNK = 500
CHILD = """
import sys
from pathlib import Path
from streams.state.options import StoreOptions
from streams.state.partition import TablePartition
part = TablePartition(Path(sys.argv[1]), StoreOptions(8 << 20, 8 << 20, 256 << 10))
part.begin_restore()
for chunk in range(10**6):
    part.apply([(b"a:%09d" % i, b"x" * 100) for i in range(chunk * 500, chunk * 500 + 500)], None, chunk * 500 + 500)
    print(chunk, flush=True)
"""


def test_killed_restore_is_a_consistent_prefix(tmp_path: Path) -> None:
    path = tmp_path / "p"
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    for line in child.stdout:
        if int(line) >= 60:
            break
    child.kill()
    child.wait(timeout=30)
    part = TablePartition(path, SMALL)
    assert part.restoring, "a killed restore must not look whole"
    done = part.changelog_offset() or 0
    rows = list(part.iterate())
    print("reopened at", done)
    assert 0 < done < 61 * CHUNK and [key for key, _ in rows] == [b"a:%09d" % i for i in range(done)]
    row = encode_row(Row(MergeType.COUNTER, 1, 0, 1, ()))
    part.apply([(b"a:%09d" % i, row) for i in range(done, 61 * CHUNK)], marker(1), 61 * CHUNK)
    part.end_restore()
    part.close()
    part = TablePartition(path, SMALL)
    assert not part.restoring and sum(1 for _ in part.iterate()) == 61 * CHUNK and part.marker() == marker(1)
    part.close()


WITHOUT_WAL = """
import sys
from pathlib import Path
from streams.state.options import StoreOptions
from streams.state.partition import TablePartition
part = TablePartition(Path(sys.argv[1]), StoreOptions(8 << 20, 8 << 20, 256 << 10, wal=False))
for unit in range(10**6):
    rows = [(b"a:%09d" % i, b"%09d" % unit + b"x" * 100) for i in range(unit % 7, 500, 7)]
    part.apply([*rows, (b"b:%09d" % (unit - 3), None), (b"b:%09d" % unit, b"y")], None, unit + 1)
    part.set_meta("unit", str(unit))
    print(unit, flush=True)
"""


def test_a_kill_without_a_wal_loses_the_last_units_each_whole(tmp_path: Path) -> None:
    path = tmp_path / "p"
    child = subprocess.Popen([sys.executable, "-c", WITHOUT_WAL, str(path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    for line in child.stdout:
        if int(line) >= 300:
            break
    child.kill()
    child.wait(timeout=30)
    options = StoreOptions(8 << 20, 8 << 20, 256 << 10, wal=False)
    part = TablePartition(path, options)
    done = part.changelog_offset() or 0
    print("reopened at", done)
    assert done > 7, "nothing was flushed: the test shows nothing"
    rows = dict(part.iterate(b"a:"))
    wanted = {b"a:%09d" % i: max(unit for unit in range(done) if unit % 7 == i % 7) for i in range(500)}
    assert {key: int(row[:9]) for key, row in rows.items()} == wanted
    assert [key for key, _ in part.iterate(b"b:")] == [b"b:%09d" % unit for unit in range(done - 3, done)]
    assert part.meta("unit") in (str(done - 1), str(done - 2)), "notes are lost with the rows that they go with"
    part.apply([(b"c:1", b"z")], None, done + 1)
    part.close()
    part = TablePartition(path, options)
    assert part.get(b"c:1") == b"z" and part.changelog_offset() == done + 1, "closing is no kill"
    part.close()
