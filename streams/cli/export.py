"""`streams export TABLE FILE`: a table's rows as CSV, NDJSON, Parquet or Arrow, which `streams load` reads back."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from streams.cli.load import FormatOption, format_of
from streams.cli.session import DataOption, RegionOption, UrlOption, run
from streams.model.errors import NotFound

if TYPE_CHECKING:
    from streams.client import AsyncClient

app = typer.Typer(help="Tables as files.", pretty_exceptions_enable=False)
PAGE_ROWS = 8_192


@app.command()
def export(
    table: Annotated[str, typer.Argument(help="The table, or a keyspace, whose table has its name.")],
    file: Annotated[Path, typer.Argument(help="Where to; `-` is standard output.")],
    kind: FormatOption = None,
    prefix: Annotated[str, typer.Option(help="Only keys that start with this.")] = "",
    region: RegionOption = None,
    url: UrlOption = None,
    data: DataOption = None,
) -> None:
    """Write the rows of a table, merged over all regions, in key order. Loading the file gives the same values.

    A counter's row is written as `{"add": n}`, which is what loading it takes. The file appears when it is complete.
    """

    async def work(edge: AsyncClient) -> None:
        from streams.tabular.files import writer_of

        found = format_of(file, kind)
        described = {each["name"]: each for each in await edge.tables()}
        if table not in described:
            raise NotFound(f"there is no table {table[:80]}", field="TABLE", fix="see `GET /v1/tables`")
        counter = described[table].get("merge") == "counter"
        began_s, count = time.monotonic(), 0
        draft = file.with_name(f".{file.name}.part")
        with ExitStack() as stack:
            target: Any = sys.stdout.buffer if str(file) == "-" else stack.enter_context(draft.open("wb"))
            writer = writer_of(target, found)
            keys: list[str] = []
            values: list[Any] = []
            async for row in edge.scan(table, prefix=prefix):
                keys.append(row.key)
                values.append({"add": row.value} if counter else row.value)
                count += 1
                if len(keys) == PAGE_ROWS:
                    writer.write(keys, values)
                    keys, values = [], []
            if keys:
                writer.write(keys, values)
            writer.close()
            target.flush()
        if str(file) != "-":
            draft.replace(file)
        seconds = max(time.monotonic() - began_s, 1e-9)
        print(f"{count:,} rows written, {count / seconds:,.0f} rows/s", file=sys.stderr)

    run(work, region, url, data)
