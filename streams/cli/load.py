"""`streams load KEYSPACE FILE`: a CSV, NDJSON, Parquet or Arrow file as puts."""

from __future__ import annotations

import asyncio
import gc
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer

from streams.cli.session import DataOption, RegionOption, UrlOption, run
from streams.model.errors import BadInput, NotFound, StreamsError
from streams.model.ttl import parse_ttl_ms

if TYPE_CHECKING:
    from streams.cli.targets import Sent, Target
    from streams.client import AsyncClient
    from streams.tabular.files import Chunk

app = typer.Typer(help="Bulk puts.", pretty_exceptions_enable=False)
SHOWN_REJECTS = 20
_SUFFIXES = {
    ".csv": "csv", ".ndjson": "ndjson", ".jsonl": "ndjson", ".json": "ndjson",
    ".parquet": "parquet", ".arrow": "arrow", ".arrows": "arrow", ".feather": "arrow",
}  # fmt: skip
_BROKEN = ("a quoted field does not end", "the line is over", "the record is over")

FormatOption = Annotated[
    str | None, typer.Option("--format", help="csv, ndjson, parquet or arrow; default: by the file's suffix.")
]
BootstrapOption = Annotated[
    str | None, typer.Option("--bootstrap-servers", help="The region's Kafka, to write to it directly.")
]


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """What a load's chunks depend on, and where rejected rows go."""

    kind: str
    key: str | None
    renames: dict[str, str]
    ttl_ms: int | None
    rejects: Path | None


@app.command()
def load(
    keyspace: Annotated[str, typer.Argument(help="The keyspace; put before keys that do not name it.")],
    file: Annotated[Path, typer.Argument(help="A file with a column `key`; `-` is standard input.")],
    kind: FormatOption = None,
    key: Annotated[
        str | None, typer.Option("--key", help="The key's column, or a template of columns: 'device:{id}'.")
    ] = None,
    columns: Annotated[list[str] | None, typer.Option("--columns", metavar="A=B", help="Column A is called B.")] = None,
    ttl: Annotated[str | None, typer.Option(help="Time to live of rows without one: 3600, 90s, 1h, 7d.")] = None,
    rejects: Annotated[Path | None, typer.Option(help="Write rejected rows here, with reasons, as JSON lines.")] = None,
    bootstrap_servers: BootstrapOption = None,
    region: RegionOption = None,
    url: UrlOption = None,
    data: DataOption = None,
) -> None:
    """Put every row of a file: a `key` column, then `value` or the value's fields, and optionally `ttl`.

    Bad rows are listed and the others loaded; the exit status is 0 only when all were accepted. A load that was
    interrupted goes on where it stopped when the same command is given again: nothing is counted twice.
    """

    async def work(edge: AsyncClient) -> None:
        from streams.cli.targets import open_target

        # Parsed lines are thousands of short-lived objects: the default threshold collects them over and over.
        gc.freeze()
        gc.set_threshold(50_000, 20, 50)
        renames = _renames(columns or [])
        ttl_ms = None if ttl is None else parse_ttl_ms(ttl)
        options = LoadOptions(format_of(file, kind), key, renames, ttl_ms, rejects)
        size_bytes = 0 if str(file) == "-" else file_bytes(file)
        target = await open_target(edge, keyspace, file, options, bootstrap_servers, region, url, data)
        try:
            refused = await _Load(keyspace, file, options, target).run(size_bytes)
        finally:
            await target.close()
        if refused:
            raise typer.Exit(1)

    run(work, region, url, data)


def file_bytes(file: Path) -> int:
    """The size of a file; NotFound when it is none."""
    if not file.is_file():
        raise NotFound(f"{file} is no file", field="FILE", fix="name a CSV, NDJSON, Parquet or Arrow file")
    return file.stat().st_size


def format_of(file: Path, kind: str | None) -> str:
    """The format, as told or by suffix. BadInput."""
    if kind is not None:
        if kind not in _SUFFIXES.values():
            raise BadInput(f"{kind[:40]!r} is no format", field="--format", fix="use csv, ndjson, parquet or arrow")
        found = kind
    elif file.suffix.lower() in _SUFFIXES:
        found = _SUFFIXES[file.suffix.lower()]
    elif str(file) == "-":
        raise BadInput("standard input and output name no format", field="--format", fix="use csv or ndjson")
    else:
        raise BadInput(
            f"{file.suffix!r} is no known format", field="FILE", fix="use .csv, .ndjson, .parquet, .arrow or --format"
        )
    if str(file) == "-" and found not in ("csv", "ndjson"):
        raise BadInput("standard input and output are for text", field="--format", fix="use csv or ndjson")
    return found


def _renames(given: list[str]) -> dict[str, str]:
    found = {}
    for each in (part for text in given for part in text.split(",")):
        old, equals, new = each.partition("=")
        if not (old and equals and new):
            raise BadInput(f"{each[:80]!r} is no renaming", field="--columns", fix="write OLD=NEW")
        found[old] = new
    return found


class _Load:
    """One run of a load."""

    def __init__(self, keyspace: str, file: Path, options: LoadOptions, target: Target) -> None:
        self._keyspace, self._file, self._options, self._target = keyspace, file, options, target
        self._accepted = self._skipped = self._refused = 0
        self._rejects: IO[bytes] | None = None
        self._shown = 0

    async def run(self, size_bytes: int) -> int:
        """Send all of it; how many rows were refused."""
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        text = (TextColumn("{task.description}"), TextColumn("{task.fields[puts]:,} puts"))
        columns = (text[0], BarColumn(), text[1], TimeRemainingColumn())
        console = Console(stderr=True)
        began_s = time.monotonic()
        with ExitStack() as stack:
            source = sys.stdin.buffer if str(self._file) == "-" else stack.enter_context(self._file.open("rb"))
            if self._options.rejects is not None:
                self._rejects = stack.enter_context(self._options.rejects.open("wb"))
            progress = stack.enter_context(
                Progress(
                    *columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal
                )
            )
            bar = progress.add_task(self._file.name, total=self._total(source, size_bytes), puts=0)
            try:
                await self._send(source, lambda at: progress.update(bar, completed=at, puts=self._accepted))
            except StreamsError as error:
                done = self._accepted + self._skipped
                error.detail = f"{error.detail}; {done:,} puts are durable, and the same command goes on from there"
                raise
        self._target.done()
        self._report(time.monotonic() - began_s)
        return self._refused

    def _total(self, source: IO[bytes], size_bytes: int) -> int | None:
        from streams.tabular.files import total_of

        return total_of(source, self._options.kind, size_bytes) if size_bytes else None

    async def _send(self, source: IO[bytes], show: Any) -> None:
        from streams.tabular.files import chunks_of
        from streams.tabular.shape import Shape

        shape = Shape(self._options.key, self._options.renames)
        chunks = chunks_of(source, self._options.kind, self._keyspace, shape)
        following = asyncio.ensure_future(asyncio.to_thread(self._next, chunks, 0))
        number = 0
        while (found := await following) is not None:
            chunk, ready = found
            number += 1
            following = asyncio.ensure_future(asyncio.to_thread(self._next, chunks, number))
            try:
                sent = await self._target.send(ready) if ready is not None else None
            except BaseException:
                await asyncio.wait([following])
                raise
            self._note(chunk, sent)
            show(chunk.position)

    def _next(self, chunks: Iterator[Chunk], number: int) -> tuple[Chunk, Any] | None:
        """In a thread: the next chunk, and what the target makes of it; a chunk may be without rows."""
        chunk = next(chunks, None)
        if chunk is None:
            return None
        return chunk, None if chunk.rows is None else self._target.prepare(chunk.rows, number)

    def _note(self, chunk: Chunk, sent: Sent | None) -> None:
        for bad in chunk.rejections:
            if self._options.kind == "csv" and bad.reason.startswith(_BROKEN):
                where = f"{self._file.name}:{bad.line}"
                raise BadInput(f"{where}: not CSV: {bad.reason}", field="FILE", fix="close its quotes")
        found = [*chunk.rejections, *(sent.rejections if sent else ())]
        if sent is not None:
            self._accepted += sent.accepted
            self._skipped += sent.skipped
        self._refused += sent.rejected_count - len(sent.rejections) if sent else 0
        self._refused += len(found)
        for bad in sorted(found, key=lambda each: each.line):
            if self._shown < SHOWN_REJECTS:
                self._shown += 1
                print(f"{self._file.name}:{bad.line}: {bad.reason}", file=sys.stderr)
            if self._rejects is not None:
                self._rejects.write(_reject_line(chunk, bad.line, bad.reason))

    def _report(self, seconds: float) -> None:
        rate = self._accepted / max(seconds, 1e-9)
        before = f" ({self._skipped:,} were there from before)" if self._skipped else ""
        print(f"{self._accepted:,} puts accepted, {self._refused:,} rejected, {rate:,.0f} puts/s{before}")
        if self._refused > self._shown:
            print(f"… and {self._refused - self._shown:,} more", file=sys.stderr)


def _reject_line(chunk: Chunk, line: int, reason: str) -> bytes:
    import numpy as np
    import orjson

    entry: dict[str, object] = {"line": line, "reason": reason}
    if chunk.rows is not None:
        at = int(np.searchsorted(chunk.rows.numbers, line))
        if at < len(chunk.rows.numbers) and chunk.rows.numbers[at] == line:
            entry["key"] = chunk.rows.keys[at].as_py()
            entry["value"] = chunk.rows.bodies(np.array([at]))[0]
    return orjson.dumps(entry, default=str) + b"\n"
