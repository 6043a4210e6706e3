"""Asks the checker: porcupine, built to a WASI module that the wasm room runs."""

from __future__ import annotations

import json
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from importlib.resources import files
from typing import Any

import orjson

from streams.model.errors import BadInput
from streams.verify.history import Operation, refuse
from streams.verify.keyed import (
    KV,
    REGISTER,
    KvKeys,
    KvQuestion,
    Question,
    drop_unseen,
    drop_unseen_writes,
    register_question,
)
from streams.verify.orders import BOOK, BookQuestion, Scale
from streams.verify.values import Texts
from streams.wasm.engine import HOST, Limits, ModuleCache, TrapKind, UdfTrap
from streams.wasm.wasi import run_wasi

TIMEOUT_S = 60.0
TIMEOUT_S_MIN, TIMEOUT_S_MAX = 0.001, 3600.0
MEMORY_BYTES = 2 << 30
_GRACE_S = 60.0
"""For reading the question, and for making a counterexample smaller (10 s), beyond the time limit."""
_OUTPUT_BYTES = 256 << 20


class Outcome(Enum):
    """What a check found. UNKNOWN is no success: the time or the memory was not enough."""

    OK = "ok"
    ILLEGAL = "illegal"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Counterexample:
    """Why a history is not linearizable, as small as it was found.

    `history`: the operations that suffice; `culprit`: the one with whose answer they stop being linearizable;
    `placed`: the longest order found for a part of them, `states` after the last of its steps, `state` at its end;
    `blocked`: answered operations that cannot follow there, and why.
    """

    history: list[Operation]
    culprit: Operation
    placed: list[Operation]
    states: list[str]
    state: str
    blocked: list[tuple[Operation, str]]
    texts: dict[int, str]
    """What each operation did, by the line of its invocation."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome for a history. `key` names the partition that failed; `page` is porcupine's HTML, where asked for."""

    outcome: Outcome
    operations: int
    keys: int
    seconds: float
    key: str = ""
    reason: str = ""
    counterexample: Counterexample | None = None
    page: str = ""


@dataclass(slots=True)
class _Partition:
    name: str
    model: str
    operations: list[Operation]
    questions: list[Question]
    keys: Sequence[str] = ()
    orders: Sequence[str] = ()
    price_digits: int = 0
    quantity_digits: int = 0

    def question(self) -> dict[str, Any]:
        """What the checker module is asked, as JSON."""
        lanes: dict[str | int, int] = {}
        made, count = [], 0
        for operation, question in zip(self.operations, self.questions, strict=True):
            if operation.process not in lanes:
                lanes[operation.process] = count
                count += 1
            made.append(
                question
                | {
                    "client": lanes[operation.process],
                    "call": operation.call_ns,
                    "return": operation.return_ns or 0,
                    "known": operation.known,
                }
            )
            if not operation.known:
                del lanes[operation.process]  # it stays open, and what the process does next is drawn in another line
        return {
            "model": self.model,
            "keys": self.keys,
            "orders": self.orders,
            "price_digits": self.price_digits,
            "quantity_digits": self.quantity_digits,
            "ops": made,
        }


def _model_of(operation: Operation) -> str:
    if operation.f in ("place", "cancel", "replace", "book"):
        return BOOK
    if operation.f in ("read", "write") or (operation.f == "cas" and not isinstance(operation.value, dict)):
        return REGISTER
    return KV


def _partitions(operations: Iterable[Operation], texts: Texts) -> list[_Partition]:
    """What can be judged apart: registers and books by key, the strong store by keys that transactions tie together."""
    registers: dict[str, list[tuple[Operation, Question]]] = defaultdict(list)
    books: dict[str, list[tuple[Operation, BookQuestion]]] = defaultdict(list)
    stored: list[tuple[Operation, KvQuestion]] = []
    ties, models = KvKeys(), dict[str, tuple[str, int]]()
    for each in operations:
        model, keys = _model_of(each), [each.key]
        if model == REGISTER:
            registers[each.key].append((each, register_question(each, texts)))
        elif model == BOOK:
            books[each.key].append((each, BookQuestion(each)))
        else:
            asked = KvQuestion(each, texts)
            stored.append((each, asked))
            keys = asked.keys or keys
            ties.tie(keys)
        for key in keys:
            before, line = models.setdefault(key, (model, each.line))
            if before != model:
                refuse(each.line, "f", f"{each.f} is of the model {model}, but line {line} used the key as {before}")
    return [
        *(_registers(key, pairs) for key, pairs in registers.items()),
        *_stores(stored, ties),
        *(_book(key, pairs) for key, pairs in books.items()),
    ]


def _registers(key: str, pairs: list[tuple[Operation, Question]]) -> _Partition:
    kept = drop_unseen(pairs)
    return _Partition(key, REGISTER, [each for each, _ in kept], [question for _, question in kept], [key])


def _stores(stored: list[tuple[Operation, KvQuestion]], ties: KvKeys) -> list[_Partition]:
    members: dict[str, list[tuple[Operation, KvQuestion]]] = defaultdict(list)
    for each, asked in stored:
        if each.known or each.f != "get":
            members[ties.root(asked.keys[0])].append((each, asked))
    found = []
    for root, keys in ties.groups().items():
        numbers = {key: i for i, key in enumerate(keys)}
        pairs = drop_unseen_writes(members[root])
        questions = [asked.question(numbers) for _, asked in pairs]
        found.append(_Partition(", ".join(keys), KV, [each for each, _ in pairs], questions, keys))
    return found


def _book(key: str, pairs: list[tuple[Operation, BookQuestion]]) -> _Partition:
    kept = [(each, asked) for each, asked in pairs if each.known or each.f != "book"]
    scale = Scale(asked for _, asked in kept)
    questions = [asked.question(scale) for _, asked in kept]
    return _Partition(
        key,
        BOOK,
        [each for each, _ in kept],
        questions,
        [key],
        list(scale.orders),
        scale.price_digits,
        scale.quantity_digits,
    )


def module_bytes() -> bytes:
    """The checked-in module."""
    return files("streams.verify").joinpath("checker", "checker.wasm").read_bytes()


_cache: ModuleCache | None = None
_cache_lock = threading.Lock()


def _modules() -> ModuleCache:
    global _cache
    with _cache_lock:
        if _cache is None:
            _cache = ModuleCache()
        return _cache


def check_history(
    operations: Iterable[Operation],
    timeout_s: float = TIMEOUT_S,
    *,
    html: bool = False,
    memory_bytes: int = MEMORY_BYTES,
) -> Verdict:
    """Whether an order of the operations, true to real time, explains every answer: linearizability (Herlihy, Wing).

    All keys share `timeout_s`; past it, or past `memory_bytes`, the outcome is UNKNOWN. A counterexample is made
    smaller for up to 10 s more. BadInput names the line and field of a value that its function does not take.
    """
    if not TIMEOUT_S_MIN <= timeout_s <= TIMEOUT_S_MAX:
        raise BadInput(f"must be from {TIMEOUT_S_MIN:g} s to {TIMEOUT_S_MAX:g} s", field="timeout")
    began_s = time.monotonic()
    texts, every = Texts(), list(operations)
    parts = _partitions(every, texts)
    keys = sum(len(part.keys) for part in parts)
    asked = {
        "timeout_ms": max(1, round(timeout_s * 1000)),
        "memory_bytes": memory_bytes,
        "html": html,
        "texts": texts.shown,
        "partitions": [part.question() for part in parts],
    }
    try:
        limits = Limits(memory_bytes, timeout_s + _GRACE_S, output_bytes=_OUTPUT_BYTES)
        answered = run_wasi(_modules().load(module_bytes()), orjson.dumps(asked), limits, HOST)
    except UdfTrap as trap:
        if trap.kind not in (TrapKind.DEADLINE, TrapKind.MEMORY, TrapKind.OUTPUT):
            raise
        return Verdict(Outcome.UNKNOWN, len(every), keys, time.monotonic() - began_s, reason=str(trap))
    if answered.status:
        raise RuntimeError(f"the checker failed with status {answered.status}: {answered.stderr[:500]}")
    answer = json.loads(answered.stdout)
    outcome = Outcome(answer["verdict"])
    seconds = time.monotonic() - began_s
    page = answer.get("html", "")
    if outcome is Outcome.OK:
        return Verdict(outcome, len(every), keys, seconds, page=page)
    part = parts[answer["partition"]]
    found = _counterexample(part, answer) if outcome is Outcome.ILLEGAL else None
    return Verdict(outcome, len(every), keys, seconds, part.name, answer.get("reason", ""), found, page)


def _counterexample(part: _Partition, answer: dict[str, Any]) -> Counterexample:
    operations = part.operations
    return Counterexample(
        [operations[i] for i in answer["history"] or []],
        operations[answer["culprit"]],
        [operations[i] for i in answer["placed"] or []],
        answer["states"] or [],
        answer["state"],
        [(operations[each["op"]], each["why"]) for each in answer["blocked"] or []],
        {operation.line: question["text"] for operation, question in zip(operations, part.questions, strict=True)},
    )
