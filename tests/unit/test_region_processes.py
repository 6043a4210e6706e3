"""Children of the supervisor: those that follow let others go first, the others do not."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from streams.region.processes import FOLLOWER_NICE, start_child

SHOW = """
import os, pathlib, threading
group = pathlib.Path("/proc/self/autogroup")
def show():
    print(os.getpriority(os.PRIO_PROCESS, 0), os.sched_getscheduler(0) == os.SCHED_BATCH)
    print(group.read_text().split()[-1] if group.exists() else "none")
thread = threading.Thread(target=show)
thread.start()
thread.join()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="scheduling policies and groups are Linux's")
@pytest.mark.parametrize("follows", [False, True])
async def test_a_child_that_follows_lets_others_go_first(tmp_path: Path, follows: bool) -> None:
    log = tmp_path / "log"
    process = await start_child([sys.executable, "-c", SHOW], log, {}, follows=follows)
    assert await process.wait() == 0, log.read_text()
    nice, batch, group = log.read_text().split()
    own = os.getpriority(os.PRIO_PROCESS, 0)
    assert int(nice) == min(19, own + (FOLLOWER_NICE if follows else 0))
    assert batch == str(follows)
    if os.access("/proc/self/autogroup", os.W_OK):  # some containers show /proc read-only
        assert group == str(FOLLOWER_NICE if follows else 0)
