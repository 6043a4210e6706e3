"""`streams udf shadow promote rollback`: versions of a UDF beside each other."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from streams.cli.session import DataOption, RegionOption, UrlOption, run
from streams.model.errors import Conflict, StreamsError

if TYPE_CHECKING:
    from streams.client import AsyncClient

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The UDF.")]
FromOption = Annotated[
    str | None,
    typer.Option(
        "--from",
        help="Build the table from: beginning (all that was ever put), earliest (what the log still holds), or a time.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="As the gateway answers.")]


def shadow(
    name: Annotated[str, typer.Argument(metavar="NAME|DIR", help="A UDF, or the directory of another version of one.")],
    from_: FromOption = None,
    limit: Annotated[int, typer.Option(help="How many differing rows to show.", min=0, max=1000)] = 20,
    wait: Annotated[int, typer.Option(help="Seconds to wait until it has caught up, at most.", min=0, max=50)] = 30,
    as_json: JsonOption = False,
    region: RegionOption = None,
    url: UrlOption = None,
    data: DataOption = None,
) -> None:
    """Run another version on live traffic beside the active one (DIR), and show the rows that differ (NAME or DIR)."""

    async def work(edge: AsyncClient) -> None:
        udf = name
        if (Path(name) / "udf.toml").is_file():
            udf = await _start(edge, Path(name), from_, wait)
        report = await edge.shadow_report(udf, limit)
        if as_json:
            print(json.dumps(report))
            return
        _print_report(report)

    run(work, region, url, data)


async def _start(edge: AsyncClient, directory: Path, from_: str | None, wait: int) -> str:
    """Shadow the directory's version, unless it is what is served and another one is beside it; the UDF's name."""
    from streams.wasm.manifest import read_manifest

    manifest = read_manifest(directory)
    try:
        await edge.shadow_udf(manifest.name, directory, wait_s=wait, from_=from_)
    except Conflict:
        found = await edge.udf(manifest.name)
        if found["version"] != manifest.version or found["candidate"] is None:
            raise
    return manifest.name


def _print_report(report: dict[str, Any]) -> None:
    active, candidate, rows = report["active"], report["candidate"], report["rows"]
    print(f"{report['name']} {candidate['version']} ({candidate['sha256'][:12]}) beside {active['version']}")
    for where, done in report["caught_up"].items():
        print(f"  {where}  {'caught up' if done else 'not caught up yet'}")
    print(
        f"{rows['active']} rows, {rows['candidate']} beside them: {report['equal']} equal, {report['differ']} differ "
        f"({report['only_active']} only in {active['version']}, {report['only_candidate']} only in "
        f"{candidate['version']})"
    )
    if report["unsettled"] or report["unchecked"] or not report["settled"]:
        print(f"{report['unsettled']} rows never stood still, {report['unchecked']} were not looked at again")
    for each in report["differences"]:
        print(f"  {each['key']}  {json.dumps(each['active'])} → {json.dumps(each['candidate'])}")


def promote(
    name: NameArgument,
    force: Annotated[bool, typer.Option("--force", help="At once, caught up or not.")] = False,
    wait: Annotated[int, typer.Option(help="Seconds to wait until it has caught up, at most.", min=0, max=50)] = 30,
    region: RegionOption = None,
    url: UrlOption = None,
    data: DataOption = None,
) -> None:
    """Serve the version that was built beside the active one, in all regions."""

    async def work(edge: AsyncClient) -> None:
        found = await edge.promote_udf(name, force=force, wait_s=wait)
        print(f"{found['name']} {found['version']} ({found['sha256'][:12]}) is served; {_kept(found)}")

    run(work, region, url, data)


def rollback(name: NameArgument, region: RegionOption = None, url: UrlOption = None, data: DataOption = None) -> None:
    """Undo the last deploy, at once: drop what is built beside, else serve the previous version again."""

    async def work(edge: AsyncClient) -> None:
        found = await edge.rollback_udf(name)
        print(f"{found['name']} {found['version']} ({found['sha256'][:12]}) is served; {_kept(found)}")

    run(work, region, url, data)


def _kept(found: dict[str, Any]) -> str:
    previous = found["previous"]
    if previous is None:
        return "no other version is kept"
    return f"{previous['version']} is kept until {stamp(previous['kept_until'])}"


def stamp(at_ms: int) -> str:
    """A time as people read it."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(at_ms / 1000))


def print_versions(found: dict[str, Any]) -> None:
    """Every version of a UDF, the newest first, and what is built beside it."""
    for each in found["versions"]:
        who = f" by {each['deployed_by']}" if each["deployed_by"] else ""
        when = f"{stamp(each['deployed_at'])}{who} in {each['region']}"
        print(f"  {each['version']}  {each['sha256']}  {each['state']}, {when}")
    candidate = found["candidate"]
    for where, each in (candidate["regions"] if candidate is not None else {}).items():
        done = "caught up" if each["caught_up"] else each["reason"] or "catching up"
        print(f"  {candidate['version']} in {where}: {done}")


def check_candidate(found: dict[str, Any], version: str) -> None:
    """What became of a deployed version: printed; StreamsError where a region cannot run it."""
    candidate = found["candidate"]
    if candidate is None or candidate["version"] != version:
        return
    print(f"{version} is built beside {found['version']} and takes over {candidate['takes_over']}")
    for where, log in candidate["began"].items():
        if log.get("cut"):
            print(f"  {where}: the log reaches back to {stamp(log['first_at']) if log['first_at'] else 'nothing'} only")
    for where, each in candidate["regions"].items():
        if each["state"] in ("refused", "failing"):
            raise StreamsError(f"{where} does not run it: {each['reason']}")
