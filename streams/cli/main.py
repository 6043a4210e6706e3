"""`streams`: the commands by name. What a command needs is imported when it is called, so that each starts fast."""

from __future__ import annotations

import importlib
import sys
from typing import Any, NamedTuple

import typer
from typer import _click as click  # Typer carries its own click; its exceptions and types are used here
from typer.core import TyperCommand, TyperGroup

PROGRAM = "streams"


class Entry(NamedTuple):
    """Where a command is: a Typer application that has it, or a function."""

    target: str
    help: str


COMMANDS: dict[str, Entry] = {
    "up": Entry("streams.cli.lifecycle:app", "Start Kafka, MirrorMaker 2, workers and gateways."),
    "status": Entry("streams.cli.lifecycle:app", "Show regions and processes."),
    "logs": Entry("streams.cli.lifecycle:app", "Show what processes have logged."),
    "down": Entry("streams.cli.lifecycle:app", "Stop the system; data stays."),
    "put": Entry("streams.cli.data:app", "Put a value: streams put score:alice '{\"add\": 5}'"),
    "get": Entry("streams.cli.data:app", "Show a key's merged value."),
    "delete": Entry("streams.cli.data:app", "Delete a key."),
    "tail": Entry("streams.cli.data:app", "Follow a keyspace's events."),
    "top": Entry("streams.cli.data:app", "Show the highest rows of a table."),
    "table": Entry("streams.cli.data:app", "Show a table's rows in key order."),
    "load": Entry("streams.cli.load:app", "Put a CSV, NDJSON, Parquet or Arrow file."),
    "export": Entry("streams.cli.export:app", "Write a table's rows to such a file."),
    "route": Entry("streams.cli.route:app", "Show the gateway that serves a place: streams route 40.7 -74.0"),
    "invoke": Entry("streams.cli.invoke:app", "Run a function at the nearest edge: streams invoke handle_request '{}'"),
    "verify": Entry("streams.cli.verify:verify", "Check that a history of concurrent clients is linearizable."),
    "udf": Entry("streams.cli.udf:app", "Make, test, deploy, list and remove UDFs."),
    "demo": Entry("streams.demo.command:demo", "Run a use case end to end."),
    "bench": Entry("streams.bench.command:app", "Measure, beside peers."),
    "worker": Entry("streams.cli.worker:worker", "One worker process, for the many-machine topology."),
    "gateway": Entry("streams.cli.gateway:gateway", "One gateway process, for the many-machine topology."),
}


class LazyGroup(TyperGroup):
    """Lists commands from `COMMANDS` and imports one only to run it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of `COMMANDS`."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """A stand-in that knows its name and help."""
        entry = COMMANDS.get(cmd_name)
        return None if entry is None else TyperCommand(cmd_name, help=entry.help)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The real command."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, command if name is None else load(name), rest


def load(name: str) -> click.Command:
    """Import a command."""
    module, _, attribute = COMMANDS[name].target.partition(":")
    found: Any = getattr(importlib.import_module(module), attribute)
    if not isinstance(found, typer.Typer):
        single = typer.Typer(add_completion=False)
        single.command(name)(found)
        found = single
    command: Any = typer.main.get_command(found)
    commands = getattr(command, "commands", None)
    if commands and name in commands:
        command = commands[name]
    command.name = name
    return command  # type: ignore[no-any-return]


app = typer.Typer(
    cls=LazyGroup,
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Event log for edge computing: put events, query the tables they make, in every region.",
)


@app.callback()
def root() -> None:
    """Event log for edge computing: put events, query the tables they make, in every region.

    Start a system with `streams up`; every command finds it by --data DIR or STREAMS_DATA.
    """


def main() -> None:
    """The entry point. Exit status: 0 when it worked, 1 for a failure, 2 for bad usage; errors take one line."""
    try:
        status = app(prog_name=PROGRAM, standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError:
        sys.exit(2)
    except click.ClickException as error:
        print(f"error: {' '.join(error.format_message().split())} (see {PROGRAM} --help)", file=sys.stderr)
        sys.exit(error.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        sys.exit(130)
    except OSError as error:
        named = f"{error.filename}: " if error.filename else ""
        print(f"error: {named}{error.strerror or error} (choose another place, or make it usable)", file=sys.stderr)
        sys.exit(1)
    sys.exit(status if isinstance(status, int) else 0)


if __name__ == "__main__":
    main()
