"""`streams udf new build test deploy list shadow promote rollback remove`; `udf_safety` and `udf_machine` have more."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from streams.cli.errors import one_line_errors
from streams.cli.session import DataOption, RegionOption, UrlOption, run
from streams.cli.udf_machine import register as register_machine
from streams.cli.udf_safety import print_builtin, print_regions, register
from streams.cli.udf_versions import FromOption, check_candidate, print_versions, promote, rollback, shadow
from streams.model.errors import BadInput, Conflict, StreamsError
from streams.model.keys import check_name

if TYPE_CHECKING:
    from streams.client import AsyncClient

app = typer.Typer(help="Make, test, deploy, list and remove UDFs; look into their traps.", no_args_is_help=True)
for each in (shadow, promote, rollback):
    app.command()(each)
Directory = Annotated[Path, typer.Argument(metavar="DIR", help="A UDF's directory: udf.toml, source or module.")]


@app.command()
@one_line_errors
def new(
    name: Annotated[str, typer.Argument(help="The UDF's name; the directory NAME is made here.")],
    lang: Annotated[str, typer.Option(help="The language: c, zig or python.")] = "c",
    kind: Annotated[str, typer.Option(help="The kind: fold, map, filter, flat_map, function, machine.")] = "fold",
) -> None:
    """Write a small UDF that works, with test vectors."""
    from streams.client.udf_template import KINDS, LANGUAGES, files_of

    check_name(name, field="NAME")
    if lang not in LANGUAGES:
        raise BadInput(f"UDFs are not written in {lang[:20]}", field="--lang", fix=f"use {', '.join(LANGUAGES)}")
    if kind not in KINDS:
        raise BadInput(f"{kind[:20]!r} is no kind", field="--kind", fix=f"use {', '.join(KINDS)}")
    if kind in ("function", "machine") and lang != "c":
        raise BadInput(f"{kind}s in {lang} are not built yet", field="--lang", fix="use c")
    place = Path(name)
    try:
        place.mkdir()
    except FileExistsError:
        raise Conflict(f"{place} is there already", field="NAME", fix="choose another name, or remove it") from None
    for file, text in files_of(name, lang, kind).items():
        (place / file).write_text(text)
        print(place / file)


@app.command()
@one_line_errors
def build(
    directory: Directory,
    names: Annotated[bool, typer.Option(help="Keep functions' names, which backtraces of traps show.")] = True,
) -> None:
    """Compile the directory's source (C, Zig or Python) to WebAssembly."""
    from streams.wasm.build import write_modules

    for path in write_modules(directory, names=names, tell=lambda text: print(text, file=sys.stderr)):
        print(f"{path} ({path.stat().st_size} bytes)")


@app.command()
@one_line_errors
def test(
    directory: Directory,
    events: Annotated[int, typer.Option(help="Random events in each round of the fuzz.", min=1, max=100_000)] = 300,
    rounds: Annotated[int, typer.Option(help="Rounds of the fuzz; 0: none.", min=0, max=10_000)] = 3,
    seed: Annotated[int | None, typer.Option(help="The fuzz's seed; it is printed.")] = None,
    schema: Annotated[
        list[str] | None, typer.Option(help="KEYSPACE=FILE: the Avro schema of a keyspace that is not built in.")
    ] = None,
) -> None:
    """Check manifest and module as a deploy does, run vectors.json and a fuzz on the real host, without Kafka."""
    from streams.cli.udf_check import check_machine_udf, check_udf
    from streams.client.udfs import ready_module
    from streams.wasm.admission import DeployCaps, admit_manifest, admit_module
    from streams.wasm.engine import ModuleCache
    from streams.wasm.function_vectors import run_function_vectors
    from streams.wasm.manifest import read_manifest
    from streams.wasm.vectors import run_vectors

    read_manifest(directory)
    text = (directory / "udf.toml").read_text()
    manifest, cache = admit_manifest(text, DeployCaps()), ModuleCache()
    admit_module(ready_module(directory, text.encode()), manifest, DeployCaps(), cache)
    if manifest.is_machine:
        check_machine_udf(directory, manifest, cache, events, rounds, seed)
        return
    run = run_vectors if manifest.function is None else lambda place, _: run_function_vectors(place)
    failures = run(directory, cache)
    for line in failures:
        print(line)
    if failures:
        raise typer.Exit(1)
    count = len(json.loads((directory / "vectors.json").read_text())["cases"])
    print(f"{manifest.name} {manifest.version}: {count} vectors pass")
    if manifest.function is None:
        wasm = (directory / f"{manifest.name}.wasm").read_bytes()
        check_udf(manifest, wasm, cache, events, rounds, seed, schema or [])
    print("the module may be deployed")


@app.command()
def deploy(
    directory: Directory,
    wait: Annotated[int, typer.Option(help="Seconds to wait for the regions, at most.", min=0, max=50)] = 10,
    from_: FromOption = None,
    in_place: Annotated[bool, typer.Option("--in-place", help="Replace the module and keep the rows.")] = False,
    keep: Annotated[str | None, typer.Option(help="How long what is replaced is kept for a rollback: 30m.")] = None,
    region: RegionOption = None,
    url: UrlOption = None,
    data: DataOption = None,
) -> None:
    """Deploy in all regions; builds first where the source is newer. Exit status 1 where a region refuses it.

    Another version of what is deployed builds its table beside the one that is served, and takes over when it has
    caught up in every region; one with the same module only takes the new settings.
    """
    from streams.wasm.manifest import read_manifest

    async def work(edge: AsyncClient) -> None:
        began_s = time.monotonic()
        found = await edge.deploy_globally(directory, wait_s=wait, from_=from_, in_place=in_place, keep=keep)
        took_s, sha = time.monotonic() - began_s, found["sha256"][:12]
        print(f"{found['name']} {found['version']} ({sha}) {_does(found)}, {took_s:.1f} s")
        print_regions(found)
        check_candidate(found, read_manifest(directory).version)
        _check(found)

    run(work, region, url, data)


@app.command("list")
def list_udfs(
    as_json: Annotated[bool, typer.Option("--json", help="As the gateway answers.")] = False,
    region: RegionOption = None,
    url: UrlOption = None,
    data: DataOption = None,
) -> None:
    """Show what is deployed, how it does in each region and what it uses, and what the built-in ones use."""

    async def work(edge: AsyncClient) -> None:
        listed = await edge.list_udfs()
        found = listed["udfs"]
        if as_json:
            print(json.dumps(listed))
            return
        for each in found:
            what = (
                f"{', '.join(each['inputs'])} → {each['table']} ({each['merge']})" if each.get("table") else _does(each)
            )
            print(f"{each['name']} {each['version']}  {each['kind']}  {what}")
            print_regions(each)
            print_versions(each)
        print_builtin(listed["builtin"])

    run(work, region, url, data)


@app.command()
def remove(
    name: Annotated[str, typer.Argument(help="The UDF.")],
    region: RegionOption = None,
    url: UrlOption = None,
    data: DataOption = None,
) -> None:
    """Stop a UDF in all regions. Its table is served no more; deployed again, it goes on from the rows that it had."""

    async def work(edge: AsyncClient) -> None:
        await edge.remove_udf(name)
        print(f"{name} is removed")

    run(work, region, url, data)


def _does(found: dict[str, Any]) -> str:
    if found["kind"] == "function":
        return f"answers at /v1/functions/{found['name']}"
    if found["kind"] == "machine":
        return f"executes {found['topic']}, at /v1/machines/{found['name']}"
    if found["table"] is None:
        return f"writes {', '.join(found['inputs'])} → {', '.join(found['output'])}"
    return f"makes table {found['table']}"


def _check(found: dict[str, Any]) -> None:
    for region, each in found["regions"].items():
        if each["state"] in ("refused", "failing"):
            raise StreamsError(f"{region} does not run it: {each['reason']}")


register(app)
register_machine(app)
