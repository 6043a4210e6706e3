"""`streams up`, `down`, `status`, `logs`: the life of a local system."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from streams.cli.errors import one_line_errors
from streams.cli.udf_caps import with_udf_caps
from streams.region import status as system
from streams.region import up as starting
from streams.region.paths import data_dir
from streams.region.plan import parse_regions

app = typer.Typer(help="Start, look at and stop a local system.", no_args_is_help=True)

Data = Annotated[
    Path | None,
    typer.Option("--data", help="The system's data directory (default: STREAMS_DATA, else one of the user's)."),
]


@app.command()
@one_line_errors
@with_udf_caps
def up(
    regions: Annotated[str | None, typer.Option(help="Region names, home first. Default: us-east,eu-west")] = None,
    brokers: Annotated[
        int | None,
        typer.Option(help="Kafka brokers a region: 1 (the default), or 3, of which any one may be lost.", min=1),
    ] = None,
    data: Data = None,
    detach: Annotated[bool, typer.Option("--detach", help="Return when ready; `streams down` stops it.")] = False,
) -> None:
    """Start Kafka, MirrorMaker 2, workers and gateways; existing data is kept. Ctrl-C stops everything."""
    names = parse_regions(regions) if regions is not None else None
    options = starting.UpOptions(data_dir(data), names, brokers=brokers)
    if detach:
        starting.detach(options, _say)
    else:
        starting.run(options, _say)


@app.command()
@one_line_errors
def down(data: Data = None) -> None:
    """Stop the system, also what a killed supervisor left behind; data stays."""
    place = data_dir(data)
    _say("stopped" if system.down(place) else f"nothing runs in {place}")


@app.command()
@one_line_errors
def status(
    data: Data = None, as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False
) -> None:
    """Show regions and processes; exits 0 while the supervisor lives."""
    found = system.with_mirror_ages(system.status(data_dir(data)))
    if as_json:
        print(json.dumps(found, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("region", "process", "pid", "state", "restarts", title=f"{found['state']} · {found['data']}")
    for name, region in found["regions"].items():
        for process in region["processes"]:
            cells = [str(process[key]) for key in ("name", "pid", "state", "restarts")]
            table.add_row(name, *cells)
    console = Console()
    console.print(table)
    for name, region in found["regions"].items():
        console.print(f"{name}  gateway {region['gateway']}  kafka {region['bootstrap_servers']}", soft_wrap=True)
        for origin, age_ms in (region["mirrored_age_ms"] or {}).items():
            age = "has not come yet" if age_ms is None else f"is {age_ms / 1000:.1f} s old"
            console.print(f"{name}  what comes from {origin} {age}", soft_wrap=True)


@app.command()
@one_line_errors
def logs(
    process: Annotated[str | None, typer.Argument(help="A process's name, as `streams status` shows it.")] = None,
    data: Data = None,
    lines: Annotated[int, typer.Option("-n", "--lines", min=0, help="Last lines of each log.")] = 20,
    keep: Annotated[bool, typer.Option("-f", "--follow", help="Go on showing new lines until Ctrl-C.")] = False,
) -> None:
    """Show the last lines of one process's log, or of all."""
    files = system.log_files(data_dir(data), process)
    for file in files:
        if len(files) > 1:
            print(f"==> {file.stem} <==")
        for line in system.tail(file, lines):
            print(line)
    if keep:
        for name, line in system.follow(files):
            print(f"{name}: {line}" if len(files) > 1 else line, flush=True)


def _say(line: str) -> None:
    print(line, flush=True)
