"""The machine of strong keyspaces against the obvious model, over any cut of the log into batches."""

from __future__ import annotations

import random
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import pytest

from streams.model.errors import Conflict
from streams.model.row import decode_row
from streams.sequencer.commands import (
    ABSENT,
    ANY_VERSION,
    Change,
    Code,
    Condition,
    Result,
    barrier,
    command_id,
    resolve,
    transaction,
)
from streams.sequencer.state import SequencedState
from streams.wasm.build import compile_source
from streams.wasm.builtin import builtin_module
from streams.wasm.engine import ModuleCache
from streams.wasm.machine_host import LogCommand, MachineHost
from tests.support.strong_model import StrongModel

KEEP_MS, SPENT_MS = 300, 900  # short, so that random logs pass them; the module is built with these
KEYS = [f"strong:{index}".encode() for index in range(6)]
TOPIC = "sequenced.strong"
Step = tuple[int, int, bytes, Callable[[StrongModel], Result]]


@pytest.fixture(scope="module")
def wasm() -> bytes:
    """The checked-in source, built with short times."""
    source = Path(str(files("wasm_udfs"))) / "strong_kv" / "strong_kv.c"
    return compile_source(source, None, {"KEEP_MS": KEEP_MS, "SPENT_MS": SPENT_MS})


def state_in(path: Path, wasm: bytes, cache: ModuleCache) -> SequencedState:
    state = SequencedState(path, TOPIC, MachineHost(wasm, cache))
    state.begin("topic")
    return state


def random_log(rng: random.Random, length: int) -> list[Step]:
    """(offset, append time, command, the model's answer to it); offsets have gaps, times step back now and then."""
    steps: list[Step] = []
    offset, now_ms = rng.randrange(3), 1_000_000
    sent: list[tuple[bytes, list[Condition], list[Change]]] = []
    versions = [0]
    for _ in range(length):
        offset += rng.choice((1, 1, 1, 2, 5))
        now_ms += rng.choice((0, 1, 3, 20, 60, -40))
        dice = rng.random()
        if dice < 0.05:
            steps.append((offset, now_ms, barrier(), passed(offset)))
            continue
        if dice < 0.15:
            identity = rng.choice(sent)[0] if sent and rng.random() < 0.6 else command_id("", rng.randbytes(4))
            steps.append((offset, now_ms, resolve(identity), lambda m, o=offset, i=identity: m.resolve(o, i)))
            continue
        if dice < 0.2:
            junk = rng.choice((b"", rng.randbytes(rng.randrange(90)), transaction(bytes(16), [], [])[:-1]))
            steps.append((offset, now_ms, junk, malformed(offset)))
            continue
        again = rng.choice(sent) if sent and dice < 0.4 else None
        conditions = [
            Condition(key, rng.choice((ABSENT, ANY_VERSION, rng.choice(versions), rng.choice(versions[-4:]))))
            for key in rng.sample(KEYS, rng.choice((0, 0, 1, 1, 2, 3)))
        ]
        changes = [random_change(rng, key) for key in rng.sample(KEYS, rng.choice((0, 1, 1, 2, 4)))]
        if again is None:
            identity = command_id("", b"%d" % offset)
        else:
            identity = again[0]
            if rng.random() < 0.7:
                _, conditions, changes = again
        sent.append((identity, conditions, changes))
        versions.append(offset + 1)
        command = transaction(identity, conditions, changes)
        steps.append(
            (offset, now_ms, command, lambda m, o=offset, i=identity, c=conditions, x=changes: m.transact(o, i, c, x))
        )
    return steps


def random_change(rng: random.Random, key: bytes) -> Change:
    if rng.random() < 0.25:
        return Change(key, None)
    return Change(key, rng.randbytes(rng.choice((0, 1, 7, 40, 3000))), rng.choice((None, 1, 25, 100)))


def passed(offset: int) -> Callable[[StrongModel], Result]:
    return lambda model: Result(Code.PASSED, False, 0, offset, 0, model.now_ms)


def malformed(offset: int) -> Callable[[StrongModel], Result]:
    return lambda model: Result(Code.MALFORMED, False, 0, offset, 0, model.now_ms)


def run(state: SequencedState, steps: list[Step], cuts: list[int]) -> list[Result]:
    found: list[Result] = []
    for start, stop in zip([0, *cuts], [*cuts, len(steps)], strict=True):
        piece = [LogCommand(offset, at_ms, command) for offset, at_ms, command, _ in steps[start:stop]]
        if piece:
            found += state.apply(piece, piece[-1].offset + 1).results
    return found


def live(state: SequencedState) -> dict[bytes, tuple[bytes, int, int]]:
    """The users' rows at the time of the log."""
    found = {}
    for key, row in state.store.iterate(b"strong:"):
        cell = decode_row(row).cells[0]
        if cell.expires_ms > state.machine_state.time_ms:
            found[key] = (cell.payload, decode_row(row).seq, cell.expires_ms)
    return found


@pytest.mark.parametrize("round_", range(12))
def test_any_cut_gives_the_models_results_and_equal_state(round_: int, wasm: bytes, tmp_path: Path) -> None:
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    steps = random_log(rng, 220)
    model = StrongModel(KEEP_MS, SPENT_MS)
    expected = []
    for _, at_ms, _, answer in steps:
        model.at(at_ms)
        expected.append(answer(model))
    codes = {result.code for result in expected}
    assert {Code.APPLIED, Code.FAILED, Code.CANCELLED, Code.MALFORMED} <= codes, (seed, codes)
    cache = ModuleCache(tmp_path / "cache")
    chains = set()
    whole, single = [], list(range(1, len(steps)))
    for number, cuts in enumerate((whole, single, sorted(rng.sample(single, 9)), sorted(rng.sample(single, 60)))):
        state = state_in(tmp_path / str(number), wasm, cache)
        found = run(state, steps, cuts)
        for index, (got, wanted) in enumerate(zip(found, expected, strict=True)):
            assert got == wanted, (seed, cuts, index)
        assert live(state) == model.live(), (seed, cuts)
        chains.add((state.machine_state.chain, state.machine_state.next, state.machine_state.commands))
        state.close()
    assert len(chains) == 1, seed


def test_the_chain_tells_states_apart(wasm: bytes, tmp_path: Path) -> None:
    cache = ModuleCache(tmp_path / "cache")
    chains = set()
    for number, value in enumerate((b"a", b"b")):
        state = state_in(tmp_path / str(number), wasm, cache)
        command = transaction(command_id("", b"1"), [], [Change(KEYS[0], value)])
        state.apply([LogCommand(0, 5, command)], 1)
        chains.add(state.machine_state.chain)
        state.close()
    assert len(chains) == 2


def test_a_restart_goes_on_where_it_was_and_dead_rows_go(wasm: bytes, tmp_path: Path) -> None:
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    steps = random_log(rng, 150)
    cache = ModuleCache(tmp_path / "cache")
    state = state_in(tmp_path / "through", wasm, cache)
    through = run(state, steps, [])
    state.close()
    found: list[Result] = []
    for start in range(0, len(steps), 50):
        state = state_in(tmp_path / "again", wasm, cache)
        assert state.next == (steps[start - 1][0] + 1 if start else 0)
        found += run(state, steps[start : start + 50], [])
        if start + 50 < len(steps):
            state.close()
    assert found == through, seed
    last, now_ms = steps[-1][0], state.machine_state.time_ms
    for count in range(1, 12):
        state.apply([LogCommand(last + count, now_ms + 10_000, barrier())], last + count + 1)
    kept = [key for key, _ in state.store.iterate(b"\x01")]
    assert not [key for key in kept if key.startswith(b"\x01i")], seed
    assert all(decode_row(row).cells[0].expires_ms > now_ms + 10_000 for _, row in state.store.iterate(b"strong:"))
    state.close()


def test_a_log_that_steps_back_is_refused(wasm: bytes, tmp_path: Path) -> None:
    state = state_in(tmp_path / "s", wasm, ModuleCache(tmp_path / "cache"))
    state.apply([LogCommand(7, 1, barrier())], 8)
    with pytest.raises(Conflict, match="stepped back"):
        state.apply([LogCommand(7, 1, barrier())], 8)
    state.close()


def test_made_anew_after_another_log(wasm: bytes, tmp_path: Path) -> None:
    cache = ModuleCache(tmp_path / "cache")
    state = state_in(tmp_path / "s", wasm, cache)
    state.apply([LogCommand(0, 1, transaction(command_id("", b"x"), [], [Change(KEYS[0], b"v", 50)]))], 1)
    assert state.belongs_to("topic") and not state.belongs_to("another")
    state.reset()
    assert state.next == 0 and not list(state.store.iterate()) and state.machine_state.commands == 0
    state.close()
    other = SequencedState(tmp_path / "s", TOPIC, MachineHost(builtin_module("strong_kv"), cache))
    assert not other.belongs_to("topic"), "the rows of another machine are not taken over"
    other.close()


def test_dead_rows_go_whenever_they_die_and_however_many_they_are(wasm: bytes, tmp_path: Path) -> None:
    """The index of expiries is only looked at when its first entry is due: none may be overlooked by that."""
    state, offset = state_in(tmp_path, wasm, ModuleCache()), 0

    def apply(now_ms: int, *changes: Change) -> None:
        nonlocal offset
        commands = []
        for change in changes or (None,):
            command = barrier() if change is None else transaction(command_id("", b"%d" % offset), [], [change])
            commands.append(LogCommand(offset, now_ms, command))
            offset += 1
        state.apply(commands, offset)

    def held() -> int:
        return sum(1 for key, _ in state.store.iterate() if key != b"\x01m")

    apply(1_000_000, Change(b"strong:later", b"x", 10_000))
    apply(1_000_010, *(Change(b"strong:%d" % n, b"x", 5) for n in range(500)))  # three sweeps' worth
    apply(1_000_010, Change(b"strong:early", b"x", 2))  # dies before what was first until now
    assert held() > 1_000
    apply(1_000_013)
    assert state.store.get(b"strong:early") is None and state.store.get(b"strong:499") is not None
    apply(1_000_016, Change(b"strong:3", b"again", 100))  # due in the very batch that puts it anew
    for _ in range(8):
        apply(1_000_020)
    assert state.store.get(b"strong:499") is None and state.store.get(b"strong:later") is not None
    assert state.store.get(b"strong:3") is not None
    for _ in range(8):
        apply(1_100_000)  # ids are forgotten, too
    assert held() == 0, list(state.store.iterate())[:3]
    state.close()
