"""`streams put get delete tail top table`."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from streams.cli.session import DataOption, RegionOption, UrlOption, run
from streams.model.errors import BadInput, NotFound
from streams.model.partition import is_partition

if TYPE_CHECKING:
    from streams.client import AsyncClient

app = typer.Typer(help="Put, get, follow and rank.", no_args_is_help=True, pretty_exceptions_enable=False)

IfVersion = Annotated[
    int | None,
    typer.Option("--if-version", "--if-match", min=0, help="Only if the strong key has this version (0: is absent)."),
]
Identity = Annotated[
    str | None,
    typer.Option("--idempotency-key", help="The same command with the same key is executed once; strong keyspaces."),
]
Key = Annotated[str, typer.Argument(help="keyspace:rest, as in score:alice.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object per line.")]


@app.command(context_settings={"ignore_unknown_options": True})  # -5 is a value, not an option
def put(
    key: Key,
    value: Annotated[str, typer.Argument(metavar="JSON", help='The value; for a counter {"add": n}.')],
    ttl: Annotated[str | None, typer.Option(help="Time to live: seconds, or 90s, 15m, 1h, 7d.")] = None,
    if_version: IfVersion = None,
    idempotency_key: Identity = None,
    region: RegionOption = None,
    url: UrlOption = None,
    data: DataOption = None,
) -> None:
    """Put a value; prints where the event is once it is durable."""

    async def work(edge: AsyncClient) -> None:
        if if_version is None:
            receipt = await edge.put(key, _json(value), ttl=ttl, idempotency_key=idempotency_key)
        else:
            receipt = await edge.put_strong(
                key, _json(value), ttl=ttl, if_version=if_version, idempotency_key=idempotency_key
            )
        _print(_plain(receipt))

    run(work, region, url, data)


@app.command()
def get(
    key: Key,
    consistency: Annotated[
        str | None, typer.Option(help="Of strong keyspaces: strong (the default) or eventual, this region's copy.")
    ] = None,
    region: RegionOption = None,
    url: UrlOption = None,
    data: DataOption = None,
) -> None:
    """Print the merged row of a key."""

    async def work(edge: AsyncClient) -> None:
        row = await edge.get(key, consistency=consistency)
        if row is None:
            raise NotFound(f"{key} has no value", fix="it was never put, was deleted, or has expired")
        _print(_plain(row))

    run(work, region, url, data)


@app.command()
def delete(
    key: Key,
    if_version: IfVersion = None,
    idempotency_key: Identity = None,
    region: RegionOption = None,
    url: UrlOption = None,
    data: DataOption = None,
) -> None:
    """Delete a key; prints where the event is once it is durable."""

    async def work(edge: AsyncClient) -> None:
        if if_version is None and idempotency_key is None:
            receipt = await edge.delete(key)
        else:
            receipt = await edge.delete_strong(key, if_version=if_version, idempotency_key=idempotency_key)
        _print(_plain(receipt))

    run(work, region, url, data)


@app.command()
def tail(
    keyspace: Annotated[str, typer.Argument(help="The keyspace to follow, or a partition: iot:region:NAME.")],
    since: Annotated[
        str | None,
        typer.Option("--from", help="A token, `start` (all that is kept) or `latest`; default: from now on."),
    ] = None,
    count: Annotated[int | None, typer.Option("-n", "--count", min=1, help="Stop after so many events.")] = None,
    prefix: Annotated[str, typer.Option(help="Only keys that start with this.")] = "",
    stream: Annotated[str, typer.Option(help="`events`, or what a UDF puts out: `alerts`, `late`.")] = "events",
    tokens: Annotated[bool, typer.Option("--tokens", help="Show each event's token, for --from.")] = False,
    region: RegionOption = None,
    url: UrlOption = None,
    data: DataOption = None,
) -> None:
    """Print events as JSON lines, as they are accepted, until Ctrl-C; goes on where it was when a gateway restarts."""

    async def work(edge: AsyncClient) -> None:
        left = count
        if is_partition(keyspace):
            events = edge.subscribe_partition(keyspace, from_=since, prefix=prefix, stream=stream)
        else:
            events = edge.subscribe(keyspace, since=since, prefix=prefix, stream=stream)
        async with contextlib.aclosing(events):
            async for event in events:
                row = _plain(event, "position", *(("part",) if event.part is None else ()))
                _print({**row, "token": event.token} if tokens else row)
                if left is not None:
                    left -= 1
                    if not left:
                        return

    run(work, region, url, data)


@app.command()
def top(
    table: Annotated[str, typer.Argument(help="The table.")],
    n: Annotated[int, typer.Option("-n", help="How many rows, 1 to 10000.")] = 10,
    by: Annotated[str | None, typer.Option(help="Order by this field of the value.")] = None,
    as_json: AsJson = False,
    region: RegionOption = None,
    url: UrlOption = None,
    data: DataOption = None,
) -> None:
    """Show the highest rows of a table."""

    async def work(edge: AsyncClient) -> None:
        rows = await edge.top(table, n, by=by)
        _show(("rank", "key", "value"), ((row.rank, row.key, row.value) for row in rows), as_json)

    run(work, region, url, data)


@app.command()
def table(
    name: Annotated[str, typer.Argument(metavar="TABLE", help="The table.")],
    prefix: Annotated[str, typer.Option(help="Only keys that start with this.")] = "",
    limit: Annotated[int | None, typer.Option("-n", "--limit", min=1, help="At most so many rows.")] = None,
    as_json: AsJson = False,
    region: RegionOption = None,
    url: UrlOption = None,
    data: DataOption = None,
) -> None:
    """Show a table's rows in key order."""

    async def work(edge: AsyncClient) -> None:
        if as_json or not sys.stdout.isatty():
            async for row in edge.scan(name, prefix=prefix, limit=limit):
                _print(_plain(row)) if as_json else print(f"{_text(row.key)}\t{_text(row.value)}")
            return
        rows = [row async for row in edge.scan(name, prefix=prefix, limit=limit)]
        _show(("key", "value"), ((row.key, row.value) for row in rows), False)

    run(work, region, url, data)


def _json(text: str) -> Any:
    def refuse(name: str) -> None:
        raise ValueError(f"JSON has no {name}")

    try:
        return json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        fix = """quote it for your shell, as in '{"add": 5}' or '"text"'"""
        raise BadInput(f"{text[:60]!r} is not JSON: {error}", field="JSON", fix=fix) from None


def _plain(row: Any, *without: str) -> dict[str, Any]:
    """A dataclass as JSON shows it."""
    names = [name for name in row.__slots__ if name not in without]
    if getattr(row, "version", 0) is None:  # only strong keyspaces have versions
        names.remove("version")
    values = {name: getattr(row, name) for name in names}
    return {name: value.encode() if hasattr(value, "positions") else value for name, value in values.items()}


def _print(row: dict[str, Any]) -> None:
    print(json.dumps(row, ensure_ascii=False), flush=True)


def _text(value: object) -> str:
    """One line: text as it is, unless it would break the line; anything else as JSON."""
    if isinstance(value, str) and value.isprintable():
        return value
    return json.dumps(value, ensure_ascii=False)


def _show(head: tuple[str, ...], rows: Iterable[tuple[Any, ...]], as_json: bool) -> None:
    """JSON lines, a table on a terminal, or tab-separated lines in a pipe."""
    if as_json:
        for row in rows:
            _print(dict(zip(head, row, strict=True)))
        return
    if not sys.stdout.isatty():
        for row in rows:
            print("\t".join(_text(cell) for cell in row))
        return
    from rich.console import Console
    from rich.table import Table

    shown = Table(*head)
    for row in rows:
        shown.add_row(*(_text(cell) for cell in row))
    Console().print(shown)
