"""`streams udf resume`, `traps`, `replay`: what an operator does about a UDF that traps."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from streams.cli.errors import one_line_errors
from streams.cli.session import DataOption, RegionOption, UrlOption, run
from streams.model.errors import BadInput, NotFound, StreamsError

if TYPE_CHECKING:
    from streams.client import AsyncClient
    from streams.model.topology import Topology
    from streams.processing.black_box import BlackBox
    from streams.processing.replay import DeadLetter, Replayed

_PLACE = re.compile(r"(?P<topic>[A-Za-z0-9._-]+)/(?P<partition>\d{1,6})/(?P<offset>\d{1,18})\Z")
_LOOK_BACK = 1_000
_FILE_BYTES_MAX = 64 << 20
Servers = Annotated[
    str | None, typer.Option("--bootstrap-servers", help="host:port of the region's Kafka; default: the topology's.")
]


def register(app: typer.Typer) -> None:
    """Add the commands to `streams udf`."""
    for command in (resume, traps, replay):
        app.command()(one_line_errors(command))


def resume(
    name: Annotated[str, typer.Argument(help="The UDF.")],
    wait: Annotated[int, typer.Option(help="Seconds to wait for the regions, at most.", min=0, max=50)] = 10,
    region: RegionOption = None,
    url: UrlOption = None,
    data: DataOption = None,
) -> None:
    """Go on with a paused UDF, in all regions, exactly where it stopped.

    The event it stopped at is tried again; if it still traps, it becomes a dead letter and the next one follows.
    """

    async def work(edge: AsyncClient) -> None:
        found = await edge.resume_udf(name, wait_s=wait)
        print(f"{name} {found['version']} is resumed")
        print_regions(found)
        again = [where for where, each in found["regions"].items() if each["state"] == "paused"]
        if again:
            raise StreamsError(f"{', '.join(again)}: it is paused again: {found['regions'][again[0]]['reason']}")

    run(work, region, url, data)


def print_regions(found: dict[str, Any]) -> None:
    """A deployed UDF's state and use in each region, a line each."""
    for region, each in found["regions"].items():
        reason = f": {each['reason']}" if each["reason"] else ""
        print(f"  {region}  {each['state']}{reason}")
        if each.get("meter"):
            print(f"    {metered(each['meter'])}")


def metered(meter: dict[str, Any]) -> str:
    """What a UDF has used, in one line."""
    traps = ", ".join(f"{count} {kind}" for kind, count in meter["traps"].items()) or "none"
    fuel = f", {meter['fuel']:,} fuel" if meter["fuel"] else ""
    lag = "unknown" if meter["lag_events"] is None else f"{meter['lag_events']:,}"
    return (
        f"{meter['events']:,} events ({meter['events_per_s']:,.0f}/s), {meter['calls']:,} calls, "
        f"{meter['cpu_s']:.2f} s CPU{fuel}, {meter['memory_high_bytes'] / 2**20:.1f} MiB at most, "
        f"traps: {traps}, lag {lag}"
    )


def print_builtin(found: Iterable[dict[str, Any]]) -> None:
    """What the built-in UDFs use, a line for each table and region."""
    lines = [
        f"  {each['table']} ({each['name']})  {region}  {metered(there['meter'])}"
        for each in found
        for region, there in each["regions"].items()
        if there["meter"] and there["meter"]["events"]
    ]
    if lines:
        print("built in, those that have folded events:")
        print("\n".join(lines))


def traps(
    name: Annotated[str, typer.Argument(help="The UDF.")],
    count: Annotated[int, typer.Option("-n", "--count", help="How many, at most.", min=1, max=1000)] = 20,
    region: RegionOption = None,
    data: DataOption = None,
) -> None:
    """Show the latest events that stopped a UDF in a region, with the place that `replay` takes."""
    from streams.region.paths import data_dir

    topology = _topology(data_dir(data))
    where = topology.region(region) if region else topology.home
    found = asyncio.run(_latest(topology, where.name, name, count))
    for letter, box in found:
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(box.event.append_ms / 1000))
        held = " (held: the UDF pauses before it)" if box.held else ""
        key = (letter.key or b"").decode("utf-8", "replace")
        print(f"{letter.topic}/{letter.partition}/{letter.offset}  {at} UTC  {key}  {box.kind}: {box.reason}{held}")
    if not found:
        print(f"no trap of {name} is among the latest dead letters of {where.name}")


def replay(
    record: Annotated[str, typer.Argument(metavar="RECORD", help="A saved record, or TOPIC/PARTITION/OFFSET.")],
    module: Annotated[
        Path | None, typer.Option(help="The module, or the UDF's directory; default: the record's or the deployed one.")
    ] = None,
    save: Annotated[Path | None, typer.Option(help="Write record and module to this file, for later.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
    region: RegionOption = None,
    data: DataOption = None,
    bootstrap_servers: Servers = None,
) -> None:
    """Run the event of a dead letter again, here, on the real host with its rows and limits. Exit status 1 when it does
    not stop as it did.
    """
    from dataclasses import replace

    from streams.processing.replay import replay as run_again
    from streams.wasm.engine import ModuleCache

    letter = _saved(record) or asyncio.run(_letter(record, region, data, bootstrap_servers))
    box = letter.box()
    wasm = _module_in(module, box) if module is not None else letter.module or _builtin(box)
    if wasm is None:
        wasm = asyncio.run(_deployed(box, region, data))
    if save is not None:
        save.write_text(replace(letter, module=wasm).to_json())
    done = run_again(box, wasm, ModuleCache())
    if as_json:
        print(json.dumps(_summary(box, done)))
    else:
        _show(box, done)
        if save is not None:
            print(f"saved to {save}")
    if not done.same_as(box):
        raise typer.Exit(1)


def _saved(record: str) -> DeadLetter | None:
    from streams.processing.replay import DeadLetter

    file = Path(record)
    if not file.is_file():
        return None
    if file.stat().st_size > _FILE_BYTES_MAX:
        raise BadInput(f"{record} is over {_FILE_BYTES_MAX >> 20} MiB", field="RECORD")
    return DeadLetter.of_json(file.read_bytes())


async def _letter(record: str, region: str | None, data: Path | None, servers: str | None) -> DeadLetter:
    from streams.kafka.read_records import bounds_of, read_records
    from streams.region.paths import data_dir

    place = _PLACE.match(record)
    if place is None:
        raise NotFound(
            f"{record[:120]!r} is neither a file nor a place in a log",
            field="RECORD",
            fix="name a saved record, or TOPIC/PARTITION/OFFSET as `streams udf traps NAME` shows it",
        )
    topic, partition, offset = place["topic"], int(place["partition"]), int(place["offset"])
    if servers is None:
        topology = _topology(data_dir(data))
        servers = (topology.region(region) if region else topology.home).bootstrap_servers
    start, end = (await bounds_of(servers, topic)).get(partition, (0, 0))
    if not start <= offset < end:
        held = f"offsets {start} to {end - 1}" if end > start else "nothing"
        fix = "`streams udf traps NAME` shows what there is"
        raise NotFound(f"{topic}/{partition} holds {held}, not {offset}", field="RECORD", fix=fix)
    for found in await read_records(servers, topic, partition, offset, offset + 1):
        return _dead_letter(found)
    raise NotFound(f"there is no committed record at {record}", field="RECORD")


def _dead_letter(found: Any) -> DeadLetter:
    from streams.processing.replay import DeadLetter

    headers = {name: value or b"" for name, value in found.headers}
    return DeadLetter(found.topic, found.partition, found.offset, found.key, found.value, headers)


async def _latest(topology: Topology, region: str, name: str, count: int) -> list[tuple[DeadLetter, BlackBox]]:
    from streams.definitions.deployment import Deployment
    from streams.kafka.read_records import bounds_of, read_records
    from streams.processing.black_box import HEADER

    servers = topology.region(region).bootstrap_servers
    entries = [each for each in await _deployments(topology, region) if each.name.rpartition("/")[0] == name]
    if not entries:
        raise NotFound(f"no UDF {name[:80]!r} was deployed", field="NAME", fix="see `streams udf list`")
    found: list[tuple[DeadLetter, BlackBox]] = []
    inputs = dict.fromkeys(name for each in entries for name in Deployment.of(each).manifest.inputs)
    for keyspace in inputs:
        topic = f"dead-letter.{keyspace}"
        for partition, (start, end) in (await bounds_of(servers, topic)).items():
            first = max(start, end - max(_LOOK_BACK, count))
            letters = map(_dead_letter, await read_records(servers, topic, partition, first, end))
            boxes = [(each, each.box()) for each in letters if HEADER in each.headers]
            found += [(letter, box) for letter, box in boxes if box.info.udf == name]
    return sorted(found, key=lambda each: each[1].event.append_ms)[-count:]


async def _deployments(topology: Topology, region: str) -> list[Any]:
    """The records of the `udfs` topic that are still there, older versions too."""
    from streams.definitions.deployment import KIND
    from streams.definitions.kafka_log import TopicReader
    from streams.definitions.udfs import KAFKA, TOPIC

    topic = TOPIC if region == topology.home.name else f"{topology.home.name}.{TOPIC}"
    reader = TopicReader(topology.region(region).bootstrap_servers, topic, KAFKA)
    try:
        return [each for each in await reader.read_to_end(20.0) if each.kind == KIND and each.value is not None]
    finally:
        await reader.stop()


async def _deployed(box: BlackBox, region: str | None, data: Path | None) -> bytes:
    from streams.definitions.deployment import Deployment
    from streams.region.paths import data_dir

    fix = "give the module with --module"
    try:
        topology = _topology(data_dir(data))
        entries = await _deployments(topology, region or topology.home.name)
    except StreamsError as error:
        raise NotFound(f"the module is not at hand, and no system to ask: {error.detail}", fix=fix) from None
    for entry in reversed(entries):
        if str((entry.value or {}).get("sha256")) == box.info.sha256 and (entry.value or {}).get("module"):
            return Deployment.of(entry).module
    raise NotFound(
        f"{box.info.udf} {box.info.version} with the hash {box.info.sha256[:12]} is not deployed any more", fix=fix
    )


def _topology(data: Path) -> Topology:
    from streams.model.topology import Topology

    return Topology.load(data)


def _builtin(box: BlackBox) -> bytes | None:
    from streams.wasm.builtin import builtin_module
    from streams.wasm.engine import module_hash

    try:
        wasm = builtin_module(box.info.udf)
    except (StreamsError, OSError):
        return None
    return wasm if module_hash(wasm) == box.info.sha256 else None


def _module_in(place: Path, box: BlackBox) -> bytes:
    if place.is_dir():
        named = place / f"{box.info.udf}.wasm"
        files = [named] if named.is_file() else sorted(place.glob("*.wasm"))
    else:
        files = [place]
    if not files:
        raise NotFound(f"there is no module in {place}", field="--module", fix="build it with `streams udf build`")
    return files[0].read_bytes()


def _summary(box: BlackBox, done: Replayed) -> dict[str, Any]:
    trap = done.trap
    return {
        "udf": box.info.udf,
        "version": box.info.version,
        "sha256": box.info.sha256,
        "key": box.event.key.decode("utf-8", "replace"),
        "recorded": {"kind": box.kind, "call": box.call, "reason": box.reason, "backtrace": list(box.backtrace)},
        "replayed": None
        if trap is None
        else {"kind": trap.kind.value, "call": trap.call, "reason": trap.detail, "backtrace": list(trap.frames)},
        "refused": done.reason if trap is None else "",
        "same": done.same_as(box),
    }


def _show(box: BlackBox, done: Replayed) -> None:
    from streams.processing.black_box import FOLD

    info, event = box.info, box.event
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(event.append_ms / 1000))
    made = "rows changed" if info.kind == FOLD else "puts made"
    print(f"{info.udf} {info.version}  {info.kind}  module {info.sha256[:12]}  table {info.table}")
    key, op = event.key.decode("utf-8", "replace"), ("put", "delete", "purge")[event.op]
    print(f"event     {op} {key}, {len(event.value)} bytes, offset {event.offset}, {at} UTC")
    whole = "" if box.rows_whole else " (not all were kept: what follows may differ)"
    if info.kind == FOLD:
        print(f"state     {sum(row is not None for _, row in box.rows)} of {len(box.rows)} rows were there{whole}")
    print("limits    " + ", ".join(f"{name} {value:g}" for name, value in info.limits.numbers().items()))
    print(f"recorded  {box.kind} in {box.call}: {box.reason}")
    if done.trap is None:
        print(f"replayed  no trap: {f'refused, {done.reason}' if done.reason else f'{done.rows} {made}'}")
        return
    print(f"replayed  {done.trap.kind.value} in {done.trap.call}: {done.trap.detail}")
    print("same trap" if done.same_as(box) else "another trap than the one recorded")
    for number, frame in enumerate(done.trap.frames):
        print(f"  {number}: {frame}")
    if done.trap.frames and all(frame.startswith(("?", "…")) for frame in done.trap.frames):
        print("  the module has no names: `streams udf build` keeps them, --no-names strips them")
