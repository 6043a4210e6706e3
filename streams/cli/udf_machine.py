"""`streams udf send` and `ask`: a deployed machine's commands and questions."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from streams.cli.errors import one_line_errors
from streams.cli.session import DataOption, RegionOption, UrlOption, run

if TYPE_CHECKING:
    from streams.client import AsyncClient

Name = Annotated[str, typer.Argument(help="The machine.")]
Command = Annotated[str, typer.Argument(metavar="COMMAND", help="What it is told, as it takes it: text or JSON.")]


def register(app: typer.Typer) -> None:
    """Add the commands to `streams udf`."""
    for command in (send, ask):
        app.command()(one_line_errors(command))


def send(
    name: Name,
    command: Command,
    idempotency_key: Annotated[str | None, typer.Option(help="Executes once, however often it is sent.")] = None,
    region: RegionOption = None,
    url: UrlOption = None,
    data: DataOption = None,
) -> None:
    """Send a machine a command and print its answer, once it is executed. Exit status 1 when it trapped."""

    async def work(edge: AsyncClient) -> None:
        found = await edge.machine(name).send(command, idempotency_key=idempotency_key)
        print(_shown(found.result))

    run(work, region, url, data)


def ask(
    name: Name,
    command: Command,
    eventual: Annotated[bool, typer.Option("--eventual", help="As this region has it, without asking home.")] = False,
    region: RegionOption = None,
    url: UrlOption = None,
    data: DataOption = None,
) -> None:
    """Ask a machine with a command that changes nothing, and print its answer."""

    async def work(edge: AsyncClient) -> None:
        print(_shown(await edge.machine(name).query(command, consistency="eventual" if eventual else "strong")))

    run(work, region, url, data)


def _shown(result: Any) -> str:
    return result if isinstance(result, str) else json.dumps(result, ensure_ascii=False)
