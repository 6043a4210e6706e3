"""A sequenced log's store: whose rows they are, also when wiping them was cut short, or another machine made them."""

from __future__ import annotations

from pathlib import Path

import pytest

from streams.model.errors import Conflict
from streams.sequencer.log_store import LogStore
from streams.wasm.machine_host import LogCommand

ROWS = [(b"a", b"1"), (b"b", b"2")]


def filled(path: Path) -> LogStore:
    """A store with rows of topic `t`, up to offset 7."""
    store = LogStore(path, "orders", "machine-1")
    store.begin("t")
    store.store.apply(ROWS, None, 7)
    return store


def test_rows_are_of_one_topic_and_one_machine(tmp_path: Path) -> None:
    filled(tmp_path / "s").store.close()
    same = LogStore(tmp_path / "s", "orders", "machine-1")
    assert (same.next, same.topic_id, same.belongs_to("t"), same.belongs_to("u")) == (7, "t", True, False)
    with pytest.raises(Conflict):
        same.check_follows([LogCommand(6, 1, b"")])
    same.check_follows([LogCommand(7, 1, b"")])
    same.store.close()
    other = LogStore(tmp_path / "s", "orders", "machine-2")
    assert (other.next, list(other.store.scan(limit=9)), other.belongs_to("t")) == (0, [], False)
    other.store.close()


def test_a_wipe_that_is_cut_short_is_begun_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = filled(tmp_path / "s")
    apply, calls = store.store.apply, 0

    def killed(*given: object) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        apply(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(store.store, "apply", killed)
    with pytest.raises(KeyboardInterrupt):
        store.wipe()
    store.store.close()
    left = LogStore(tmp_path / "s", "orders", "machine-1")
    assert left.next == 0 and list(left.store.scan(limit=9)), "the position is gone, rows are left"
    assert not left.belongs_to("t"), "so they are wiped before the log is read again"
    left.wipe()
    left.begin("t")
    assert left.belongs_to("t") and not list(left.store.scan(limit=9))
    left.store.close()
