"""Histories for the checker's tests: lines as they are in a file, and simulated stores that are linearizable."""

from __future__ import annotations

import io
import itertools
import json
import random
from collections.abc import Callable
from typing import Any

from streams.verify import Verdict, check_history, read_history

Step = tuple[str, str, str, Any, Any]
"""process, f, key, value asked, value answered (or INFO, FAIL, OPEN)"""
INFO, FAIL, OPEN = object(), object(), object()
Line = dict[str, Any]


def line(process: str | int, kind: str, f: str, key: str | None, value: Any, time_ns: int) -> Line:
    return {"process": process, "type": kind, "f": f, "key": key, "value": value, "time": time_ns}


def sequence(*steps: Step) -> list[Line]:
    """One operation after the other."""
    clock, lines = itertools.count(1), []
    for process, f, key, asked, answered in steps:
        lines.append(line(process, "invoke", f, key, asked, next(clock)))
        if answered is INFO or answered is FAIL:
            lines.append(line(process, "info" if answered is INFO else "fail", f, key, None, next(clock)))
        elif answered is not OPEN:
            lines.append(line(process, "ok", f, key, answered, next(clock)))
    return lines


def judge(lines: list[Line], **options: Any) -> Verdict:
    text = "".join(json.dumps(each) + "\n" for each in lines)
    return check_history(read_history(io.BytesIO(text.encode())), **options)


class Store:
    """The strong store, obviously: what a correct server does at one instant. Versions count all writes."""

    def __init__(self) -> None:
        self.rows: dict[str, tuple[Any, int]] = {}
        self.version = 0

    def apply(self, f: str, key: str, asked: Any) -> Any:
        if f == "get":
            row = self.rows.get(key)
            return None if row is None else {"value": row[0], "version": row[1]}
        if f == "txn":
            conditions, writes = asked["if"], asked["then"]
        else:
            wanted = (asked or {}).get("if_version")
            conditions = [] if wanted is None else [{"key": key, "version": wanted}]
            writes = [{"delete": key}] if f == "delete" else [{"put": key, "value": asked["value"]}]
        if any(self.rows.get(each["key"], (0, 0))[1] != each["version"] for each in conditions):
            return {"applied": False}
        self.version += 1
        for each in writes:
            if "put" in each:
                self.rows[each["put"]] = (each["value"], self.version)
            else:
                self.rows.pop(each["delete"], None)
        return {"applied": True, "version": self.version}


def run_clients(
    rng: random.Random, apply: Callable[[str, str, Any], Any], ask: Callable[[], tuple[str, str, Any]], count: int
) -> list[Line]:
    """Clients ask concurrently; each operation takes effect at one instant between its lines, or, where the answer is
    lost, at any later instant or never.
    """
    events: list[tuple[int, int, str, Any]] = []
    number = 0
    for client in range(4):
        process, now = f"{client}", rng.randrange(100)
        for _ in range(count // 4):
            call = now + rng.randrange(1, 40)
            effect = call + rng.randrange(1, 60)
            end = effect + rng.randrange(1, 60)
            number += 1
            lost = rng.random() < 0.06
            if lost:
                effect = effect + rng.randrange(0, 2_000)
            asked = [process, *ask()]
            events.append((call, number, "call", asked))
            if not lost or rng.random() < 0.6:
                events.append((effect, number, "effect", asked))
            events.append((end, number, "lost" if lost else "end", asked))
            now = end
            if lost:
                process = f"{client}.{number}"
    answers: dict[int, Any] = {}
    lines = []
    for time_ns, number, what, (process, f, key, asked) in sorted(events, key=lambda event: event[:2]):
        if what == "effect":
            answers[number] = apply(f, key, asked)
        elif what == "call":
            lines.append(line(process, "invoke", f, key, asked, time_ns))
        elif what == "end":
            lines.append(line(process, "ok", f, key, answers[number], time_ns))
        elif rng.random() < 0.5:
            lines.append(line(process, "info", f, key, None, time_ns))
    return lines
