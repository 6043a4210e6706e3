"""`streams verify HISTORY`: is a history of concurrent clients linearizable?"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from streams.model.errors import BadInput, NotFound, StreamsError

if TYPE_CHECKING:
    from streams.verify import Counterexample, Operation, Verdict

ILLEGAL, MALFORMED, UNKNOWN = 1, 2, 3
"""Exit statuses."""
_SHOWN = 12
_SIZES = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_SIZE_MAX = 4 << 30


def parse_timeout_s(text: str) -> float:
    """60s, 500ms, 2m or a number of seconds."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s|m)?", text.strip())
    if found is None:
        raise BadInput(f"{text[:40]!r} is no duration", field="--timeout", fix="write it as 60s, 500ms or 2m")
    return float(found[1]) * {"ms": 0.001, "m": 60.0}.get(found[2] or "s", 1.0)


def parse_size_bytes(text: str) -> int:
    """64M, 512K, 1G or a number of bytes."""
    found = re.fullmatch(r"(\d{1,12})\s*([kmg]?)(i?b)?", text.strip().lower())
    size = int(found[1]) * _SIZES[found[2]] if found else 0
    if not 0 < size <= _SIZE_MAX:
        raise BadInput(f"{text[:40]!r} is no size up to 4G", field="--max-size", fix="write it as 64M or 1G")
    return size


def verify(
    history: Annotated[Path, typer.Argument(help="The history, a JSON object a line; `-` is standard input.")],
    timeout: Annotated[
        str, typer.Option(help="Of the search: 60s, 500ms, 2m. Past it the verdict is Unknown.")
    ] = "60s",
    html: Annotated[Path | None, typer.Option(help="Write porcupine's picture of it here.")] = None,
    max_size: Annotated[str, typer.Option("--max-size", help="Refuse a longer history: 64M, 1G.")] = "64M",
    as_json: Annotated[bool, typer.Option("--json", help="JSON and nothing else on standard output.")] = False,
) -> None:
    """Check that some order of the operations, true to real time, explains every answer that clients got.

    Exit status: 0 Ok, 1 Illegal (with a counterexample), 2 malformed, 3 Unknown (time or memory ran out), no success.
    """
    try:
        verdict = _check(history, parse_timeout_s(timeout), parse_size_bytes(max_size), html)
    except StreamsError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        raise typer.Exit(MALFORMED) from None
    lines = [json.dumps(report(verdict))] if as_json else list(describe(verdict, html))
    sys.stdout.write("\n".join(lines) + "\n")
    status = {"ok": 0, "illegal": ILLEGAL, "unknown": UNKNOWN}[verdict.outcome.value]
    if status:
        raise typer.Exit(status)


def _check(history: Path, timeout_s: float, bytes_max: int, html: Path | None) -> Verdict:
    from streams.verify import check_history, read_history

    if str(history) == "-":
        operations = read_history(sys.stdin.buffer, bytes_max)
    elif not history.is_file():
        what = "is not a file" if history.exists() else "does not exist"
        raise NotFound(f"{history} {what}", field="HISTORY", fix="give a file of JSON lines, or - for standard input")
    else:
        with history.open("rb") as file:
            operations = read_history(file, bytes_max)
    verdict = check_history(operations, timeout_s, html=html is not None)
    if html is not None and verdict.page:
        html.write_text(verdict.page)
    return verdict


def _line(operation: Operation, found: Counterexample) -> str:
    lines = f"line {operation.line}" + (f"-{operation.result_line}" if operation.result_line else "")
    return f"{lines}, process {operation.process}: {found.texts[operation.line]}"


def describe(verdict: Verdict, html: Path | None) -> list[str]:
    """The verdict in words; one line unless it is Illegal."""
    size = f"{verdict.operations:,} operations on {verdict.keys:,} keys in {verdict.seconds:.1f} s"
    missing = [] if html is None or verdict.page else ["no picture was made: the history is too long, or not decided"]
    if verdict.outcome.value == "ok":
        return [f"Ok: linearizable: {size}", *missing]
    if verdict.counterexample is None:
        at = f" at {verdict.key}" if verdict.key else ""
        return [f"Unknown: {verdict.reason}{at}: {size}; this is not a success (raise --timeout)", *missing]
    found = verdict.counterexample
    placed = found.placed[-len(found.states) :] if found.states else []
    hidden = len(found.placed) - len(placed)
    out = [f"Illegal: {verdict.key or 'the history'} is not linearizable: {size}"]
    out.append(f"  with this answer it stops being so: {_line(found.culprit, found)}")
    out.append(f"  {len(found.history):,} operations suffice; the longest order found of them:")
    out += [f"    … {hidden:,} operations before"] if hidden else []
    out += [f"    {_line(each, found)}   [{state}]" for each, state in zip(placed, found.states, strict=True)]
    out.append(f"  after it the state is: {found.state}; what was answered and cannot follow:")
    out += [f"    {_line(each, found)}: {why}" for each, why in found.blocked[:_SHOWN]]
    return out


def report(verdict: Verdict) -> dict[str, Any]:
    """The verdict as JSON."""
    found: dict[str, Any] = {
        "verdict": verdict.outcome.value,
        "operations": verdict.operations,
        "keys": verdict.keys,
        "seconds": round(verdict.seconds, 3),
    }
    if verdict.key or verdict.reason:
        found |= {"key": verdict.key, "reason": verdict.reason}
    if (counterexample := verdict.counterexample) is not None:
        found |= {
            "culprit": _line(counterexample.culprit, counterexample),
            "history": [_line(each, counterexample) for each in counterexample.history],
            "placed": [_line(each, counterexample) for each in counterexample.placed],
            "state": counterexample.state,
            "blocked": [{"operation": _line(each, counterexample), "why": why} for each, why in counterexample.blocked],
        }
    return found
