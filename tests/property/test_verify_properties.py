"""Correct histories always pass, changed ones mostly fail, and the order-book model agrees with an obvious one."""

from __future__ import annotations

import copy
import itertools
import random
from collections.abc import Callable
from typing import Any

import pytest

from streams.model.errors import BadInput
from streams.verify import Outcome, checker
from tests.property.book_model import PlainBook
from tests.support.histories import INFO, Store, judge, line, run_clients, sequence

ROUNDS = 12


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    found = random.SystemRandom().randrange(1 << 32)
    print(f"seed {found}")
    return found


def store_asker(rng: random.Random) -> Callable[[], tuple[str, str, Any]]:
    numbers = itertools.count(1)

    def ask() -> tuple[str, str, Any]:
        key = rng.choice("abcd")
        kind = rng.random()
        if kind < 0.45:
            return "get", key, None
        if kind < 0.7:
            return "put", key, {"value": next(numbers)}
        if kind < 0.85:
            return "put", key, {"value": next(numbers), "if_version": rng.randrange(12)}
        if kind < 0.9:
            return "delete", key, None
        other = "ab" if key in "ab" else "cd"
        return "txn", "", {
            "if": [{"key": other[0], "version": rng.randrange(6)}] if rng.random() < 0.5 else [],
            "then": [{"put": other[0], "value": next(numbers)}, {"put": other[1], "value": next(numbers)}],
        }  # fmt: skip

    return ask


def test_histories_of_a_correct_store_pass_and_changed_reads_mostly_fail(seed: int) -> None:
    rng = random.Random(seed)
    caught = 0
    for _ in range(ROUNDS):
        lines = run_clients(rng, Store().apply, store_asker(rng), 120)
        verdict = judge(lines)
        assert verdict.outcome is Outcome.OK, (seed, verdict)
        reads = [i for i, each in enumerate(lines) if each["type"] == "ok" and each["f"] == "get" and each["value"]]
        changed = copy.deepcopy(lines)
        changed[rng.choice(reads)]["value"]["value"] = rng.choice(reads)  # often a value that someone wrote
        caught += judge(changed).outcome is Outcome.ILLEGAL
    assert caught >= ROUNDS * 2 // 3, (seed, caught)


def test_leaving_out_unseen_writes_changes_no_verdict(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(seed)
    found: dict[Outcome, int] = {}
    for _ in range(2 * ROUNDS):
        lines = run_clients(rng, Store().apply, store_asker(rng), 48)
        answers = [each for each in lines if each["type"] == "ok" and isinstance(each["value"], dict)]
        if rng.random() < 0.7:
            name = rng.choice(["value", "version", "applied"])
            chosen = [each for each in answers if name in each["value"]]
            changed, other = rng.sample(chosen, 2)
            if name != "applied" or (changed["f"] == "put" and "version" in changed["value"]):
                changed["value"][name] = other["value"][name]
        try:
            short = judge(lines).outcome
        except BadInput:
            continue  # refused though it had no condition
        with monkeypatch.context() as patch:
            patch.setattr(checker, "drop_unseen_writes", lambda pairs: pairs)
            assert judge(lines).outcome is short, seed
        found[short] = found.get(short, 0) + 1
    assert found[Outcome.OK] and found[Outcome.ILLEGAL], (seed, found)


def test_histories_of_a_correct_register_pass(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(ROUNDS):
        state: dict[str, int | None] = {}

        def apply(f: str, key: str, asked: Any, state: dict[str, int | None] = state) -> Any:
            if f == "write":
                state[key] = asked
            return state.get(key)

        def ask() -> tuple[str, str, Any]:
            return ("read", "x", None) if rng.random() < 0.5 else ("write", "x", rng.randrange(5))

        assert judge(run_clients(rng, apply, ask, 120)).outcome is Outcome.OK, seed


def book_asker(rng: random.Random) -> Callable[[], tuple[str, str, Any]]:
    numbers = itertools.count(1)

    def decimal(low: int, high: int, digits: int) -> str:
        return f"{rng.randrange(low, high) / 10**digits:.{digits}f}"

    def ask() -> tuple[str, str, Any]:
        kind, used = rng.random(), next(numbers)
        some = f"o{rng.randrange(1, used + 1)}"
        if kind < 0.6:
            order = {
                "id": some if rng.random() < 0.03 else f"o{used}",
                "side": rng.choice(["buy", "sell"]),
                "type": rng.choices(["limit", "market", "ioc", "fok"], [7, 1, 1, 1])[0],
                "quantity": decimal(1, 50, 1),
            }
            return "place", "A", order if order["type"] == "market" else order | {"price": decimal(9990, 10010, 2)}
        if kind < 0.7:
            return "cancel", "A", {"id": some}
        if kind < 0.8:
            change = {"price": decimal(9990, 10010, 2), "quantity": decimal(1, 50, 1)}
            chosen = rng.sample(sorted(change), rng.randrange(1, 3))
            return "replace", "A", {"id": some} | {name: change[name] for name in chosen}
        return "book", "A", rng.choice([None, {"depth": 1}, {"depth": 3}])

    return ask


def test_the_order_book_model_agrees_with_an_obvious_one(seed: int) -> None:
    """One after the other, so there is one explanation only; any change of an answer is found, where it was made."""
    rng = random.Random(seed)
    for _ in range(ROUNDS):
        plain, ask, lines = PlainBook(), book_asker(rng), []
        for i in range(400):
            f, key, asked = ask()
            lines.append(line(0, "invoke", f, key, asked, 2 * i))
            lines.append(line(0, "ok", f, key, plain.apply(f, key, asked), 2 * i + 1))
        verdict = judge(lines)
        assert verdict.outcome is Outcome.OK, (seed, verdict)
        at = rng.choice([i for i, each in enumerate(lines) if each["type"] == "ok" and each["value"].get("trades")])
        lines[at]["value"]["trades"][-1]["quantity"] = "0.7999"
        found = judge(lines)
        assert found.outcome is Outcome.ILLEGAL, seed
        assert found.counterexample is not None and found.counterexample.culprit.result_line == at + 1, seed


def test_concurrent_order_books_pass(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(ROUNDS):
        lines = run_clients(rng, PlainBook().apply, book_asker(rng), 60)
        verdict = judge(lines)
        assert verdict.outcome is Outcome.OK, (seed, verdict)


def test_what_is_unknown_may_happen_late_or_never() -> None:
    lost = ("0", "put", "x", {"value": 1}, INFO)
    for reads in ([None, 1, 1], [None, None], [1]):
        seen = [("1", "get", "x", None, None if value is None else {"value": value}) for value in reads]
        assert judge(sequence(lost, *seen)).outcome is Outcome.OK
    back = [("1", "get", "x", None, {"value": 1}), ("1", "get", "x", None, None)]
    assert judge(sequence(lost, *back)).outcome is Outcome.ILLEGAL
