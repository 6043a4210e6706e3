"""`streams load KEYSPACE FILE`: a CSV or NDJSON file as puts."""

from __future__ import annotations

import csv
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from streams.cli.session import DataOption, RegionOption, UrlOption, run
from streams.model.errors import BadInput, NotFound

if TYPE_CHECKING:
    from streams.client import AsyncClient, BatchReceipt

app = typer.Typer(help="Bulk puts.", pretty_exceptions_enable=False)
CHUNK_BYTES = 4 << 20
SHOWN_REJECTS = 20
FIELD_CHARACTERS_MAX = 16 << 20


@app.command()
def load(
    keyspace: Annotated[str, typer.Argument(help="The keyspace; put before keys that do not name it.")],
    file: Annotated[Path, typer.Argument(help="A .csv file with a header, or a file of JSON lines.")],
    region: RegionOption = None,
    url: UrlOption = None,
    data: DataOption = None,
) -> None:
    """Put every row of a file: a `key` column, then `value` or the value's fields, and optionally `ttl`.

    Bad rows are listed and the others loaded; the exit status is 0 only when all were accepted.
    """

    async def work(edge: AsyncClient) -> None:
        source = _chunks_of(keyspace, file)
        receipts, seconds = await _send(edge, file.name, file_bytes(file), source)
        _report(file, receipts, seconds)

    run(work, region, url, data)


def file_bytes(file: Path) -> int:
    """The size of a file; NotFound when it is none."""
    if not file.is_file():
        raise NotFound(f"{file} is no file", field="FILE", fix="name a CSV or NDJSON file")
    return file.stat().st_size


def _chunks_of(keyspace: str, file: Path) -> Iterator[Chunk]:
    as_csv = file.suffix.lower() == ".csv"
    if not as_csv and file.suffix.lower() not in (".ndjson", ".jsonl", ".json"):
        raise BadInput(f"{file.suffix!r} is no known format", field="FILE", fix="use .csv, .ndjson or .jsonl")
    return _csv_chunks(keyspace, file) if as_csv else _ndjson_chunks(keyspace, file)


Chunk = tuple[bytes, list[int], int]
"""NDJSON, the file's line of each of its lines, and how far into the file it reaches in bytes."""


async def _send(
    edge: AsyncClient, name: str, size_bytes: int, source: Iterator[Chunk]
) -> tuple[list[tuple[BatchReceipt, list[int]]], float]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    receipts = []
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[puts]:,} puts"))
    began_s = time.monotonic()
    console = Console(stderr=True)
    with Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        bar = progress.add_task(name, total=size_bytes, puts=0)
        puts = 0
        for body, lines, position in source:
            receipt = await edge.put_raw(body, "application/x-ndjson")
            receipts.append((receipt, lines))
            puts += receipt.accepted
            progress.update(bar, completed=position, puts=puts)
    return receipts, time.monotonic() - began_s


def _report(file: Path, receipts: list[tuple[BatchReceipt, list[int]]], seconds: float) -> None:
    accepted = sum(receipt.accepted for receipt, _ in receipts)
    refused = sum(receipt.rejected_count for receipt, _ in receipts)
    print(f"{accepted:,} puts accepted, {refused:,} rejected, {accepted / max(seconds, 1e-9):,.0f} puts/s")
    shown = [(lines[each.line - 1], each.reason) for receipt, lines in receipts for each in receipt.rejected]
    for line, reason in shown[:SHOWN_REJECTS]:
        print(f"{file.name}:{line}: {reason}", file=sys.stderr)
    if refused > SHOWN_REJECTS:
        print(f"… and {refused - SHOWN_REJECTS:,} more", file=sys.stderr)
    if refused:
        raise typer.Exit(1)


def _ndjson_chunks(keyspace: str, file: Path) -> Iterator[Chunk]:
    prefix = f"{keyspace}:"

    def puts() -> Iterator[tuple[bytes, int, int]]:
        position = 0
        with file.open("rb") as source:
            for number, raw in enumerate(source, 1):
                position += len(raw)
                if raw.strip():
                    yield _prefixed(raw, prefix), number, position

    return _chunked(puts())


def _prefixed(raw: bytes, prefix: str) -> bytes:
    """The line with the keyspace before its key; a line that is no put goes as it is, for the gateway to judge."""
    try:
        put = json.loads(raw)
        key = put["key"]
        if isinstance(key, str) and not key.startswith(prefix):
            put["key"] = prefix + key
            return json.dumps(put).encode() + b"\n"
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    return raw if raw.endswith(b"\n") else raw + b"\n"


def _csv_chunks(keyspace: str, file: Path) -> Iterator[Chunk]:
    prefix = f"{keyspace}:"

    def puts() -> Iterator[tuple[bytes, int, int]]:
        position = 0
        with file.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as source:
            rows = _csv_rows(source, file)
            head = [name.strip() for name in next(rows, (1, []))[1]]
            if "key" not in head:
                raise BadInput(f"{file} has no column `key`", field="FILE", fix="name the columns key,value or key,…")
            for line, row in rows:
                position += sum(map(len, row)) + len(row)
                if row:
                    whole = len(row) == len(head)
                    yield _csv_put(dict(zip(head, row, strict=False)), whole, prefix), line, position

    return _chunked(puts())


def _csv_rows(source: TextIO, file: Path) -> Iterator[tuple[int, list[str]]]:
    """Rows with the line that each begins in. BadInput where the file stops being CSV."""
    csv.field_size_limit(FIELD_CHARACTERS_MAX)
    rows = csv.reader(source)
    while True:
        line = rows.line_num + 1
        try:
            row = next(rows, None)
        except csv.Error as error:
            raise BadInput(f"{file.name}:{line}: not CSV: {error}", field="FILE", fix="close its quotes") from None
        if row is None:
            return
        yield line, row


def _csv_put(named: dict[str, str], whole: bool, prefix: str) -> bytes:
    if not whole:
        return b'"the row has another number of fields than the header"\n'
    key, ttl = named.pop("key"), named.pop("ttl", "")
    put: dict[str, Any] = {"key": key if key.startswith(prefix) else prefix + key}
    if named.keys() == {"value"}:
        put["value"] = _cell(named["value"])
    else:
        put["value"] = {name: _cell(text) for name, text in named.items() if text != ""}
    if ttl:
        put["ttl"] = ttl
    return json.dumps(put).encode() + b"\n"


def _cell(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _chunked(puts: Iterator[tuple[bytes, int, int]]) -> Iterator[Chunk]:
    held: list[bytes] = []
    lines: list[int] = []
    size = position = 0
    for body, line, position in puts:
        held.append(body)
        lines.append(line)
        size += len(body)
        if size >= CHUNK_BYTES:
            yield b"".join(held), lines, position
            held, lines, size = [], [], 0
    if held:
        yield b"".join(held), lines, position
