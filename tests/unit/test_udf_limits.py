"""What a UDF may use: policy and limits in its manifest, the operator's caps and flags, the size of its table."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
import typer
from typer.testing import CliRunner

from streams.cli.udf_caps import with_udf_caps
from streams.model.errors import BadInput
from streams.processing.table_use import CountedStore, TableUse
from streams.state.partition import TablePartition
from streams.wasm.admission import DeployCaps, admit_manifest
from streams.wasm.caps import CAPS, DEFAULT_CAPS, capped, caps_from_env
from streams.wasm.engine import Limits
from streams.wasm.manifest import parse_manifest
from streams.wasm.quarantine import OnTrap, TrapPolicy, TrapWindow
from tests.support.functions import HANDLE_REQUEST

MANIFEST = """
name = "bigs"
version = "1.0.0"
abi = 1
kind = "fold"
inputs = ["score"]
merge = "counter"
"""


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """Flags of caps go into the process's environment: back to what it was, for the tests that start systems."""
    with patch.dict(os.environ):
        yield


# ---- the policy


def test_skip_bounds_the_rate_and_pause_counts_to_its_limit() -> None:
    skip = TrapWindow(TrapPolicy(OnTrap.SKIP, 3, 10.0))
    assert (skip.allowed(0.0), skip.free_at(0.0)) == (3, 0.0)
    skip.trapped(1.0, 2)
    skip.trapped(4.0)
    assert (skip.allowed(5.0), skip.free_at(5.0)) == (0, 11.0)
    assert (skip.allowed(11.0), skip.free_at(11.0)) == (2, 11.0)
    pause = TrapWindow(TrapPolicy(OnTrap.PAUSE, 3, 10.0))
    assert pause.allowed(0.0) == 2, "the third stops it"
    pause.trapped(0.0)
    assert pause.allowed(9.9) == 1 and pause.allowed(10.0) == 2


@pytest.mark.parametrize("inside", [False, True])
def test_the_policy_in_a_manifest(inside: bool) -> None:
    lines = 'on_trap = "pause"\ntrap_limit = 5\ntrap_window_s = 1.5\n'
    manifest = admit_manifest(MANIFEST + ("[limits]\n" if inside else "") + lines, DeployCaps())
    assert manifest.policy == TrapPolicy(OnTrap.PAUSE, 5, 1.5)
    assert admit_manifest(MANIFEST, DeployCaps()).policy == TrapPolicy()


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ('on_trap = "explode"', "on_trap"),
        ("on_trap = 1", "on_trap"),
        ("trap_limit = 0", "trap_limit"),
        ("trap_limit = 1.5", "trap_limit"),
        ("trap_limit = true", "trap_limit"),
        ("trap_window_s = 0", "trap_window_s"),
        ("trap_window_s = nan", "trap_window_s"),
        ('trap_window_s = "1h"', "trap_window_s"),
        ("trap_limit = 2\n[limits]\ntrap_limit = 2", "trap_limit"),
        ("[limits]\nstack_bytes = 1024", "limits.stack_bytes"),
        ("[limits]\nrow_bytes = 99999999", "limits.row_bytes"),
        ("[limits]\ntable_rows = -1", "limits.table_rows"),
    ],
)
def test_a_bad_policy_or_limit_is_refused_by_its_field(line: str, field: str) -> None:
    with pytest.raises(BadInput) as refused:
        admit_manifest(MANIFEST + line, DeployCaps())
    assert refused.value.field == field


def test_the_operators_caps() -> None:
    assert caps_from_env({}) == DEFAULT_CAPS
    caps = caps_from_env({"STREAMS_UDF_DEADLINE_MAX_S": "0.5", "STREAMS_UDF_TABLE_MAX_ROWS": "1000"})
    assert (caps.deadline_s, caps.table_rows) == (0.5, 1000)
    with pytest.raises(BadInput) as refused:
        capped(parse_manifest(MANIFEST + "[limits]\ndeadline_s = 1"), caps)
    assert refused.value.field == "limits.deadline_s" and "--udf-deadline-max-s" in str(refused.value)
    with pytest.raises(BadInput):
        capped(parse_manifest(MANIFEST + "[limits]\ntable_rows = 1001"), caps)
    lowered = capped(parse_manifest(MANIFEST + "[limits]\nmemory_bytes = 1048576"), caps)
    assert (lowered.deadline_s, lowered.table_rows, lowered.memory_bytes) == (0.5, 1000, 1 << 20)
    for cap in CAPS:
        for bad in ("0", "-1", "many", "nan", "inf"):
            with pytest.raises(BadInput) as refused:
                caps_from_env({cap.variable: bad})
            assert refused.value.field == cap.flag


# ---- the table's size


def test_a_tables_rows_are_counted_through_changes_and_reopening(tmp_path: Path) -> None:
    from streams.model.marker import InputPosition, Marker

    use = TableUse(Limits(table_rows=2, table_bytes=10_000))
    said: list[str] = []

    def row(size: int) -> bytes:
        return bytes(40 + size)

    def marker(seq: int) -> Marker:
        return Marker("commit", seq, 0, {"events.k/0": InputPosition(seq, "id")}, "hash", "me")

    store = CountedStore(TablePartition(tmp_path / "p"), use, "0", said.append)
    store.apply([(b"a", row(0)), (b"b", row(5))], marker(1), 1)
    assert use.total == (2, 41 + 46) and not said
    store.apply([(b"a", row(10)), (b"c", row(0)), (b"none", None)], marker(2), 2)
    assert use.total == (3, 51 + 46 + 41) and "table_rows = 2" in said[0]
    store.apply([(b"b", None)], marker(3), 3)
    assert use.total == (2, 51 + 41) and len(said) == 1, "it shrank"
    store.close()
    assert use.total == (0, 0)
    again = CountedStore(TablePartition(tmp_path / "p"), use, "0", said.append)
    assert use.total == (2, 51 + 41)
    again.apply([(b"a", row(20_000))], marker(4), 4)
    assert "table_bytes = 10000" in said[1]
    again.close()


# ---- the operator's flags


def test_flags_reach_the_processes_that_are_started(monkeypatch: pytest.MonkeyPatch) -> None:
    for cap in CAPS:
        monkeypatch.delenv(cap.variable, raising=False)
    seen: list[Limits] = []
    app = typer.Typer()

    @app.command()
    @with_udf_caps
    def command(place: str = "here") -> None:
        seen.append(caps_from_env(os.environ))

    runner = CliRunner()
    assert runner.invoke(app, ["--udf-deadline-max-s", "0.25", "--udf-table-max-rows", "7"]).exit_code == 0
    assert (seen[0].deadline_s, seen[0].table_rows, seen[0].fuel) == (0.25, 7, DEFAULT_CAPS.fuel)
    monkeypatch.setenv("STREAMS_UDF_DEADLINE_MAX_S", "0.25")  # so that what the command set is taken back
    monkeypatch.setenv("STREAMS_UDF_TABLE_MAX_ROWS", "7")
    bad = runner.invoke(app, ["--udf-stack-max-bytes", "12"])
    assert bad.exit_code != 0 and isinstance(bad.exception, BadInput) and bad.exception.field == "--udf-stack-max-bytes"
    assert all(cap.flag in runner.invoke(app, ["--help"], env={"COLUMNS": "200"}).output for cap in CAPS)


def test_the_operators_caps_bind_functions_too() -> None:
    text = (HANDLE_REQUEST / "udf.toml").read_text()
    asked = admit_manifest(text, DeployCaps()).limits
    for name in ("memory_bytes", "deadline_s", "output_bytes"):
        most = getattr(asked, name)
        assert admit_manifest(text, DeployCaps(limits=replace(DEFAULT_CAPS, **{name: most}))).limits == asked
        less = DeployCaps(limits=replace(DEFAULT_CAPS, **{name: most / 2 if name == "deadline_s" else most - 1}))
        with pytest.raises(BadInput, match="over the operator's") as refused:
            admit_manifest(text, less)
        assert refused.value.field == f"limits.{name}"
    with pytest.raises(BadInput) as refused:
        admit_manifest(f"{text}\nfuel = 1000\n", DeployCaps(limits=replace(DEFAULT_CAPS, fuel=999)))
    assert refused.value.field == "limits.fuel"
