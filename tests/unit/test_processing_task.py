"""PartitionTask and PartitionRunner on fakes: taking over, runs, dead letters, and exactness under failures."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace

import pytest

from streams.kafka.errors import Fenced, UnknownOutcome
from streams.model.errors import Conflict
from streams.model.fold_table import fold_tables
from streams.model.keyspace import BUILTIN, Keyspace
from streams.model.marker import CLAIM_KEY, InputPosition, Marker
from streams.model.row import MergeType
from streams.processing.commit import CommitOptions
from streams.processing.outputs import outputs_of
from streams.processing.partition_runner import PartitionRunner, RunnerOptions
from streams.processing.partition_task import PartitionTask, TaskIdentity, TaskOptions, TaskState
from streams.processing.ports import Decoded, LoadRows, Rejected, TaskPorts
from streams.processing.position import PositionError, lost_are_expired
from tests.support.polling import eventually
from tests.support.processing_fakes import (
    BAD,
    LOUD,
    FakeBroker,
    FakeChangelog,
    FakeDecoder,
    FakeFold,
    FakeInput,
    FakeSchemas,
    FakeStore,
    FakeWriter,
    changelog_state,
    markers,
    random_trouble,
)

IDENTITY = TaskIdentity("score", 0, "events.score", "dead-letter.score", "abc123", "me", "us", ("late.score",))
QUICK = TaskOptions(
    commit=CommitOptions(spacing_s=0.0, behind_linger_s=0.0, heartbeat_s=0.02),
    seek_again_s=0.01,
    schema_wait_s=0.01,
    refetch_s=0.02,
)


TICK_S = 0.001


class World:
    """A broker, a local directory, and the tasks made over them."""

    def __init__(self, trouble: Callable[[str], None] = lambda _: None, schema_arrives: bool = False) -> None:
        self.broker = FakeBroker()
        self.local = FakeStore()
        self.trouble = trouble
        self.input = FakeInput(self.broker)
        self.decoder = FakeDecoder(self.broker)
        self.schemas = FakeSchemas(self.decoder, schema_arrives)

    def task(
        self,
        local: FakeStore | None = None,
        *,
        fold: FakeFold | None = None,
        blocking: Executor | None = None,
        identity: TaskIdentity | None = None,
    ) -> PartitionTask:
        ports = TaskPorts(
            FakeWriter(self.broker, self.trouble),
            FakeChangelog(self.broker, local or self.local),
            self.input,
            self.decoder,
            fold or FakeFold(),
            self.schemas,
            blocking=blocking,
        )
        return PartitionTask(identity or IDENTITY, ports, QUICK)

    def expected(self) -> dict[str, int]:
        totals: Counter[str] = Counter()
        for key, amount in self.broker.events:
            if key != BAD and not key.startswith("new"):
                totals[key] += amount
        return dict(totals)


async def until(check: Callable[[], bool]) -> None:
    await eventually(check, 10.0, every_s=TICK_S)


def ignore() -> None:
    return


async def serve(world: World, task: PartitionTask) -> asyncio.Task[None]:
    await task.take_over()
    return asyncio.create_task(task.run())


async def test_take_over_order_claim_then_heartbeat_with_the_position() -> None:
    world = World()
    task = world.task()
    running = await serve(world, task)
    assert world.broker.units[0][0][0] == CLAIM_KEY
    assert task.state is TaskState.RUNNING and world.input.position == 0
    await until(lambda: len(markers(world.broker)) >= 2)
    assert markers(world.broker)[0] == Marker(
        "heartbeat", 1, 0, {"events.score/0": InputPosition(0, "id-1")}, "abc123", "me"
    )
    task.request_close()
    await running
    await task.release()
    assert task.state is TaskState.CLOSED and world.local.closed


async def test_overlaps_are_sliced_and_gaps_sought_back() -> None:
    world = World()
    world.broker.events = [("a", 1)] * 10
    task = world.task()
    running = await serve(world, task)
    task.offer(world.broker.run(0, 4), ignore)
    task.offer(world.broker.run(2, 6), ignore)
    task.offer(world.broker.run(0, 5), ignore)
    await until(lambda: task.committed_position == 6)

    def gap() -> bool:
        task.offer(world.broker.run(8, 10), ignore)
        return task.stats.seeks_back == 1

    await until(gap)
    assert world.input.position == 6
    task.offer(world.broker.run(6, 10), ignore)
    await until(lambda: task.committed_position == 10)
    assert changelog_state(world.broker) == {"a": 10}
    task.request_close()
    await running


async def test_bad_events_become_dead_letters_in_the_same_unit() -> None:
    world = World()
    world.broker.events = [("a", 1), (BAD, 0), ("b", 2)]
    task = world.task()
    running = await serve(world, task)
    task.offer(world.broker.run(0, 3), ignore)
    await until(lambda: task.committed_position == 3)
    (letter,) = world.broker.outputs
    headers = dict(letter.headers)
    assert (letter.topic, letter.partition, letter.key, letter.value) == ("dead-letter.score", 0, b"bad", b"?")
    assert headers["dead_letter_reason"] == b"wrong magic"
    assert headers["dead_letter_topic"] == b"events.score"
    assert headers["dead_letter_offset"] == b"1"
    assert headers["dead_letter_udf"] == b"abc123"
    assert headers["h"] == b"1"
    assert changelog_state(world.broker) == {"a": 1, "b": 2}
    task.request_close()
    await running


@pytest.mark.parametrize("arrives", [True, False])
async def test_an_unknown_schema_is_waited_for_once(arrives: bool) -> None:
    world = World(schema_arrives=arrives)
    world.broker.events = [("new", 1), ("a", 1), ("new", 1)]
    task = world.task()
    running = await serve(world, task)
    task.offer(world.broker.run(0, 2), ignore)
    task.offer(world.broker.run(2, 3), ignore)
    await until(lambda: task.committed_position == 3)
    assert world.schemas.waits == 1
    assert len(world.broker.outputs) == (0 if arrives else 2)
    assert changelog_state(world.broker) == ({"a": 1, "new": 2} if arrives else {"a": 1})
    task.request_close()
    await running


@pytest.mark.parametrize(("topic_id", "start", "events"), [("other", 0, 10), ("id-1", 8, 10), ("id-1", 0, 3)])
async def test_a_marker_off_its_log_is_an_error_never_a_reset(topic_id: str, start: int, events: int) -> None:
    world = World()
    world.broker.events = [("a", 1)] * 10
    task = world.task()
    running = await serve(world, task)
    task.offer(world.broker.run(0, 5), ignore)
    await until(lambda: task.committed_position == 5)
    task.request_close()
    await running
    world.broker.topic_id, world.broker.log_start = topic_id, start
    world.broker.events = world.broker.events[:events]
    with pytest.raises(PositionError):
        await world.task().take_over()


@pytest.mark.parametrize("expired", [True, False])
async def test_what_retention_has_removed_is_passed_over_only_if_it_has_expired(expired: bool) -> None:
    world = World()
    world.broker.events = [("a", 1)] * 10
    task = world.task()
    running = await serve(world, task)
    task.offer(world.broker.run(0, 5), ignore)
    await until(lambda: task.committed_position == 5)
    task.request_close()
    await running
    world.broker.log_start = 8
    behind = world.task(identity=replace(IDENTITY, lost_are_expired=expired))
    if not expired:
        with pytest.raises(PositionError, match="events 5 to 8 of"):
            await behind.take_over()
        return
    assert await behind.take_over() == 8 and behind.stats.skipped == 3
    running = asyncio.create_task(behind.run())
    behind.offer(world.broker.run(8, 10), ignore)
    await until(lambda: behind.committed_position == 10)
    assert changelog_state(world.broker) == {"a": 7} and markers(world.broker)[-1].inputs["events.score/0"].next == 10
    behind.request_close()
    await running


def test_what_may_be_passed_over_is_what_later_puts_replace() -> None:
    tables = {each.name: each for each in fold_tables(BUILTIN)}
    expired = {name for name, table in tables.items() if lost_are_expired(table, deployed=False)}
    assert expired == {"device", "telemetry", "anomaly"}
    for merge in MergeType:
        brief = fold_tables([Keyspace("brief", merge, ttl_ms=1_000)])[0]
        assert lost_are_expired(brief, deployed=False) == (merge in (MergeType.LWW, MergeType.OPAQUE))
        assert not lost_are_expired(brief, deployed=True)


async def test_a_slow_commit_or_fold_is_work_and_not_for_ever() -> None:
    world, held, now_s = World(), asyncio.Event(), [0.0]
    world.broker.events = [("a", 1)] * 5
    task = world.task()
    task._ports = replace(task._ports, now_s=lambda: now_s[0])
    await task.take_over()
    commit = task._ports.writer.commit

    async def slow(*given: object) -> int:
        await held.wait()
        return await commit(*given)  # type: ignore[arg-type]

    task._ports.writer.commit = slow  # type: ignore[method-assign]
    running = asyncio.create_task(task.run())
    assert not task.working
    now_s[0] = 1.0
    task.offer(world.broker.run(0, 5), ignore)
    await until(lambda: task.working)
    now_s[0] = 62.0
    assert not task.working, "so long is standing still"
    held.set()
    await until(lambda: task.committed_position == 5)
    assert not task.working
    task.request_close()
    await running


async def test_without_a_marker_the_log_is_read_from_its_start() -> None:
    world = World()
    world.broker.events, world.broker.log_start = [("a", 1)] * 10, 4
    assert await world.task().take_over() == 4


async def test_a_zombie_is_fenced_and_the_new_owner_goes_on() -> None:
    world = World()
    world.broker.events = [("a", 1)] * 6
    zombie = world.task()
    running = await serve(world, zombie)
    zombie.offer(world.broker.run(0, 2), ignore)
    await until(lambda: zombie.committed_position == 2)
    owner = world.task(FakeStore())
    serving = await serve(world, owner)
    zombie.offer(world.broker.run(2, 6), ignore)
    with pytest.raises(Fenced):
        await running
    owner.offer(world.broker.run(2, 6), ignore)
    await until(lambda: owner.committed_position == 6)
    assert changelog_state(world.broker) == {"a": 6}
    owner.request_close()
    await serving


async def test_outputs_go_in_the_unit_of_their_input_even_without_rows() -> None:
    world = World()
    world.broker.events = [("a", 1), ("b", LOUD), ("b", LOUD + 1)]
    task = world.task()
    running = await serve(world, task)
    task.offer(world.broker.run(0, 1), ignore)
    await until(lambda: task.committed_position == 1)
    assert not world.broker.outputs
    task.offer(world.broker.run(1, 3), ignore)
    await until(lambda: task.committed_position == 3)
    assert [(out.topic, out.partition, out.key, out.value) for out in world.broker.outputs] == [
        ("late.score", None, b"b", b"1000"),
        ("late.score", None, b"b", b"1001"),
    ]
    assert dict(world.broker.outputs[0].headers) == {
        "hlc": str(1_003 << 16).encode(),
        "origin": b"us",
        "source": b"events.score/0:3",
    }
    assert changelog_state(world.broker) == {"a": 1} and task.stats.outputs == 2
    task.request_close()
    await running


async def test_outputs_of_a_commit_that_fails_are_made_again_with_it() -> None:
    failed: list[str] = []

    def trouble(when: str) -> None:
        if when == "before" and world.broker.units and not failed and runner.task and runner.task.position == 2:
            failed.append(when)
            raise UnknownOutcome("lost")

    world = World(trouble)
    world.broker.events = [("a", LOUD), ("a", 2)]

    async def make() -> PartitionTask:
        return world.task()

    runner = PartitionRunner("score/0", make, RunnerOptions(0.001, 0.01, 0.001, 0.001))
    runner.start()

    def in_and_out() -> bool:
        runner.offer(world.broker.run(0, 2), ignore)
        return bool(world.broker.outputs)

    await until(in_and_out)
    await runner.close(5.0)
    assert failed and [out.value for out in world.broker.outputs] == [b"1000"]
    assert changelog_state(world.broker) == {"a": 2}


async def test_an_output_without_a_topic_is_a_visible_error() -> None:
    with pytest.raises(Conflict, match="beyond its 1"):
        outputs_of([(1, b"k", b"v")], ("late.score",), ())


async def test_every_offered_run_is_given_back() -> None:
    world = World()
    world.broker.events = [("a", 1)] * 100
    task = world.task()
    given_back: list[int] = []
    task.offer(world.broker.run(0, 5), lambda: given_back.append(-1))
    assert given_back == [-1], "not running yet"
    await task.take_over()
    for at in [*range(0, 50, 5), 3, 90]:
        task.offer(world.broker.run(at, at + 5), lambda at=at: given_back.append(at))  # type: ignore[misc]
    assert given_back == [-1]
    running = asyncio.create_task(task.run())
    await until(lambda: task.committed_position == 50)
    assert given_back == [-1, *range(0, 50, 5), 3, 90]
    task.request_close()
    await running


async def test_an_input_that_goes_on_without_being_fetched_is_sought_again() -> None:
    world = World()
    task = world.task()
    running = await serve(world, task)
    world.broker.events = [("a", 1)] * 3
    world.input.position = 99
    async with asyncio.timeout(5):
        while world.input.position != 0:
            task.observe_end(1, 3)
            await asyncio.sleep(TICK_S)
    task.request_close()
    await running


async def test_time_of_a_marker_follows_events_and_the_probe() -> None:
    world = World()
    world.broker.events = [("a", 1)] * 4
    task = world.task()
    running = await serve(world, task)
    task.offer(world.broker.run(0, 2), ignore)
    await until(lambda: task.committed_position == 2)
    assert markers(world.broker)[-1].time_ms == 1_002
    task.observe_end(50_000, 4)
    assert all(marker.time_ms < 50_000 for marker in markers(world.broker))
    task.offer(world.broker.run(2, 4), ignore)
    await until(lambda: task.committed_position == 4)
    task.observe_end(60_000, 4)
    await until(lambda: markers(world.broker)[-1].time_ms == 60_000)
    task.request_close()
    await running


async def test_runner_starts_again_after_an_unknown_outcome_and_stays_exact() -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    world = World(random_trouble(rng, 0.2))
    world.broker.events = [(rng.choice("abcdef"), rng.randrange(10)) for _ in range(600)]

    async def make() -> PartitionTask:
        return world.task(FakeStore() if rng.random() < 0.3 else None)

    runner = PartitionRunner("score/0", make, RunnerOptions(0.001, 0.01, 0.001, 0.001))
    runner.start()
    async with asyncio.timeout(20):
        while runner.task is None or runner.task.committed_position < 600:
            at = max(0, world.input.position - rng.randrange(3))
            end = min(600, at + rng.randrange(1, 40))
            runner.offer(world.broker.run(at, max(at + 1, end)), ignore)
            world.input.position = max(world.input.position, end)
            await asyncio.sleep(TICK_S)
            if rng.random() < 0.05:
                runner.restart()
    await runner.close(5.0)
    assert changelog_state(world.broker) == world.expected()
    seqs = [marker.seq for marker in markers(world.broker)]
    assert seqs == sorted(set(seqs)), "one seq per unit, growing"
    print(f"failures {runner.failures}")


async def test_close_commits_what_is_folded() -> None:
    world = World()
    world.broker.events = [("a", 1)] * 10

    async def make() -> PartitionTask:
        return world.task()

    runner = PartitionRunner("score/0", make, RunnerOptions())
    runner.start()
    await until(lambda: runner.state == "running")
    runner.offer(world.broker.run(0, 10), ignore)
    task = runner.task
    assert task is not None
    await until(lambda: task.position == 10)
    await runner.close(5.0)
    assert changelog_state(world.broker) == {"a": 10}


class HeldFold(FakeFold):
    """Folds its second batch only when `release` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.batches, self.release = 0, threading.Event()

    def fold(self, decoded: Decoded, load_rows: LoadRows) -> Sequence[Rejected]:
        self.batches += 1
        assert self.batches == 1 or self.release.wait(10)
        return super().fold(decoded, load_rows)


async def test_a_commit_that_ends_while_a_run_is_folded_is_known_before_the_next_take() -> None:
    world, fold = World(), HeldFold()
    world.broker.events = [("a", 1)] * 10
    with ThreadPoolExecutor(4) as pool:
        task = world.task(fold=fold, blocking=pool)
        running = await serve(world, task)
        task.offer(world.broker.run(0, 5), ignore)
        task.offer(world.broker.run(5, 10), ignore)
        await until(lambda: fold.batches == 2 and not task.policy.in_flight and task.committed_position == 5)
        due_s = time.monotonic() + 10 * task.policy.last_duration_s
        await until(lambda: time.monotonic() > due_s)  # so that the next commit is due as soon as this is folded
        fold.release.set()
        await until(lambda: running.done() or task.committed_position == 10)
        task.request_close()
        await running
        await task.release()
    assert changelog_state(world.broker) == {"a": 10}


async def test_close_drops_at_the_deadline() -> None:
    def hang(_: str) -> None:
        raise UnknownOutcome("never")

    world = World(hang)

    async def make() -> PartitionTask:
        return world.task()

    runner = PartitionRunner("score/0", make, RunnerOptions())
    runner.start()
    await until(lambda: runner.failures > 0)
    async with asyncio.timeout(2):
        await runner.close(0.05)
