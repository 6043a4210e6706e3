"""Several tables of one input: everyone gets every run, is decoded for once, and nobody is skipped by a seek."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from streams.model.fold_table import DerivedFold, fold_tables
from streams.model.keyspace import BUILTIN, Keyspace
from streams.model.row import MergeType
from streams.processing.partition_runner import PartitionRunner
from streams.processing.partition_task import TaskState
from streams.processing.shared_input import MEMOS, SharedInput, SharedRun
from tests.support.processing_fakes import FakeBroker


class Runner:
    """A runner that keeps what it is offered until told to be done with it."""

    def __init__(self, position: int = 0, state: TaskState = TaskState.RUNNING) -> None:
        wanted = position if state is TaskState.RUNNING else None
        self.task = SimpleNamespace(position=position, wanted=wanted)
        self.held: list[tuple[Any, Any]] = []

    def offer(self, run: Any, done: Any) -> None:
        self.held.append((run, done))


def shared_by(**runners: Runner) -> tuple[SharedInput, list[int]]:
    sought: list[int] = []

    async def seek(offset: int) -> None:
        sought.append(offset)

    shared = SharedInput(seek)
    shared.runners = cast("dict[str, PartitionRunner]", dict(runners))
    return shared, sought


def a_run() -> Any:
    broker = FakeBroker()
    broker.events = [("a", 1)] * 4
    return broker.run(0, 4)


def test_a_run_is_done_when_every_table_is_done_with_it() -> None:
    fast, slow = Runner(), Runner()
    shared, _ = shared_by(fast=fast, slow=slow)
    done: list[int] = []
    shared.offer(a_run(), lambda: done.append(1))
    fast.held[0][1]()
    assert not done
    slow.held[0][1]()
    assert done == [1]


def test_without_a_table_a_run_is_done_at_once() -> None:
    shared, _ = shared_by()
    done: list[int] = []
    shared.offer(a_run(), lambda: done.append(1))
    assert done == [1]


def test_a_run_is_decoded_once_for_tables_at_the_same_position() -> None:
    made: list[object] = []

    def decode() -> object:
        made.append(object())
        return made[-1]

    run = SharedRun(a_run())
    assert run.once((0, "rules"), decode) is run.once((0, "rules"), decode)
    assert run.once((2, "rules"), decode) is not made[0]
    assert len(made) == 2
    run.forget()
    run.once((2, "rules"), decode)
    assert len(made) == 3


def test_only_the_latest_runs_keep_what_was_decoded() -> None:
    fast, slow = Runner(), Runner()
    shared, _ = shared_by(fast=fast, slow=slow)
    for number in range(MEMOS + 1):
        shared.offer(a_run(), lambda: None)
        fast.held[number][0].once(number, object)
    first, last = slow.held[0][0], slow.held[MEMOS][0]
    assert last.once(MEMOS, lambda: "again") != "again"
    assert first.once(0, lambda: "again") == "again"


async def test_a_seek_goes_to_the_least_position_of_the_running_tables() -> None:
    shared, sought = shared_by(
        ahead=Runner(900), behind=Runner(300), restoring=Runner(5, TaskState.RESTORING), fresh=Runner(-1, TaskState.NEW)
    )
    await shared.seek("ahead", 900)
    await shared.seek("fresh", 100)
    await shared.seek("behind", 300)
    assert sought == [300, 100, 300]
    assert shared.rewound(shared.runners["ahead"]) and not shared.rewound(shared.runners["behind"])
    shared.offer(FakeBroker().run(300, 950), lambda: None)
    assert not shared.rewound(shared.runners["ahead"])


def test_tables_of_a_keyspace_its_own_first() -> None:
    device = next(each for each in BUILTIN if each.name == "device")
    extra = DerivedFold("readings", "device", "counter", outputs=("late.device",))
    found = fold_tables([Keyspace("kv"), device], [extra])
    assert [(each.name, each.is_own, each.topic) for each in found] == [
        ("kv", True, "table.kv"),
        ("device", True, "table.device"),
        ("readings", False, "table.readings"),
    ]
    assert found[2].merge is MergeType.OPAQUE and found[2].outputs == ("late.device",)
