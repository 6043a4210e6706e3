"""Histories as files: a line for each invocation and each completion, read, validated and paired into operations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import IO, Any, NoReturn

import orjson

from streams.model.errors import BadInput, TooLarge

HISTORY_BYTES_MAX = 64 << 20
LINE_BYTES_MAX = 1 << 20
TIME_NS_MAX = 1 << 62
KEY_LENGTH_MAX = 1_000
_TYPES = ("invoke", "ok", "fail", "info")
_SHOWN = 60
FUNCTIONS = frozenset({"read", "write", "cas", "get", "put", "delete", "txn", "place", "cancel", "replace", "book"})


@dataclass(frozen=True, slots=True)
class Operation:
    """An invocation and what became of it; times in ns.

    `return_ns` is None while the outcome is unknown (info, or no completion): it may take effect at any time after
    `call_ns`, or never. `line` and `result_line` say where in the file it is; `result` is the completion's value.
    """

    process: str | int
    f: str
    key: str
    value: Any
    result: Any
    call_ns: int
    return_ns: int | None
    line: int
    result_line: int

    @property
    def known(self) -> bool:
        """Whether it was answered."""
        return self.return_ns is not None


def refuse(line: int, field: str, detail: str, fix: str | None = None) -> NoReturn:
    """Raise the BadInput of a malformed line."""
    raise BadInput(detail, field=f"line {line}: {field}", fix=fix)


def shorten(text: str) -> str:
    """A text of a stranger, cut to be shown in one line."""
    flat = " ".join(text.split())
    return flat if len(flat) <= _SHOWN else flat[: _SHOWN - 1] + "…"


def read_history(file: IO[bytes], bytes_max: int = HISTORY_BYTES_MAX) -> list[Operation]:
    """All operations that happened or may have, in the order of invocation; failed ones, which did not, are left out.

    BadInput names the line and field of what is malformed; TooLarge when the file is over `bytes_max`.
    """
    return list(_pair(_lines(file, bytes_max)))


def _lines(file: IO[bytes], bytes_max: int) -> Iterator[tuple[int, dict[str, Any]]]:
    total = number = 0
    while text := file.readline(LINE_BYTES_MAX + 1):
        number += 1
        total += len(text)
        if total > bytes_max:
            raise TooLarge(f"is over {bytes_max} bytes", field="HISTORY", fix="raise --max-size, or check parts of it")
        if len(text) > LINE_BYTES_MAX:
            refuse(number, "line", f"is over {LINE_BYTES_MAX} bytes")
        if not text.strip():
            continue
        try:
            line = orjson.loads(text)
        except orjson.JSONDecodeError as error:
            cut = not text.endswith(b"\n")
            refuse(number, "line", "is cut off" if cut else f"is not JSON: {error}", "one JSON object a line")
        if not isinstance(line, dict):
            refuse(number, "line", "is not a JSON object")
        yield number, line


@dataclass(frozen=True, slots=True)
class _Line:
    number: int
    process: str | int
    kind: str
    f: str
    key: str | None
    value: Any
    time_ns: int


def _parse(number: int, line: dict[str, Any]) -> _Line:
    process, kind, f = line.get("process"), line.get("type"), line.get("f")
    key, time_ns = line.get("key"), line.get("time")
    if isinstance(process, bool) or not isinstance(process, str | int) or process == "":
        refuse(number, "process", "must be a whole number or a name")
    if kind not in _TYPES:
        refuse(number, "type", f"must be one of {', '.join(_TYPES)}")
    if process != "nemesis" and (not isinstance(f, str) or f not in FUNCTIONS):
        refuse(number, "f", f"must be one of {', '.join(sorted(FUNCTIONS))}")
    if key is not None and (isinstance(key, bool) or not isinstance(key, str | int)):
        refuse(number, "key", "must be a text, or null")
    if key is not None and len(str(key)) > KEY_LENGTH_MAX:
        refuse(number, "key", f"is over {KEY_LENGTH_MAX} characters")
    if isinstance(time_ns, bool) or not isinstance(time_ns, int) or not 0 <= time_ns < TIME_NS_MAX:
        refuse(number, "time", "must be a whole number of nanoseconds, 0 or more")
    return _Line(number, process, str(kind), str(f), None if key is None else str(key), line.get("value"), time_ns)


def _pair(lines: Iterable[tuple[int, dict[str, Any]]]) -> Iterator[Operation]:
    """Operations from lines. A process that was told nothing (info) may go on; its operation stays open."""
    open_: dict[str | int, _Line] = {}
    last_ns: dict[str | int, int] = {}
    found: list[tuple[int, Operation]] = []
    for number, raw in lines:
        line = _parse(number, raw)
        if line.process == "nemesis":
            continue
        before_ns = last_ns.get(line.process, 0)
        if line.time_ns < before_ns:
            refuse(number, "time", f"is before the process's last line ({line.time_ns} after {before_ns})")
        last_ns[line.process] = line.time_ns
        begun = open_.get(line.process)
        if line.kind == "invoke":
            if begun is not None:
                refuse(number, "process", f"invokes while its operation of line {begun.number} is open")
            open_[line.process] = line
            continue
        if begun is None:
            refuse(number, "process", f"has no operation open that could be {line.kind}")
        if line.f != begun.f:
            refuse(number, "f", f"is not that of the invocation in line {begun.number} ({begun.f})")
        if line.key is not None and line.key != begun.key:
            refuse(number, "key", f"is not that of the invocation in line {begun.number}")
        del open_[line.process]
        if line.kind != "fail":
            found.append((begun.number, _operation(begun, line)))
    found += ((begun.number, _operation(begun, None)) for begun in open_.values())
    for _, each in sorted(found, key=lambda pair: pair[0]):
        yield each


def _operation(begun: _Line, end: _Line | None) -> Operation:
    known = end is not None and end.kind == "ok"
    return Operation(
        begun.process,
        begun.f,
        begun.key or "",
        begun.value,
        end.value if end is not None and known else None,
        begun.time_ns,
        end.time_ns if end is not None and known else None,
        begun.number,
        end.number if end is not None else 0,
    )
