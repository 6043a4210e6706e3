"""`streams invoke`: run a function at the nearest edge, and at the next one when that fails."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from streams.cli.session import DataOption, RegionOption, UrlOption, gateway_url, run
from streams.model.errors import BadInput, Unavailable

if TYPE_CHECKING:
    from streams.client import AsyncClient, Invocation, RouteDecision

app = typer.Typer(help="Run a function.", no_args_is_help=True, pretty_exceptions_enable=False)
PROBE_S = 2.0


@app.command()
def invoke(
    function: Annotated[str, typer.Argument(help="The function's name.")],
    data_: Annotated[
        str | None, typer.Argument(metavar="[DATA]", help="The body: JSON or text; @FILE for a file, - for stdin.")
    ] = None,
    at: Annotated[str | None, typer.Option(help="Route for a user at LAT,LON instead of measuring from here.")] = None,
    ip: Annotated[str | None, typer.Option(help="Route for an IP address instead.")] = None,
    query: Annotated[list[str] | None, typer.Option(help="A query parameter NAME=VALUE; may be repeated.")] = None,
    user: Annotated[str | None, typer.Option(help="The user's attributes, a JSON object.")] = None,
    deadline: Annotated[float, typer.Option(help="Seconds for all of it, failover included.", min=0.01)] = 10.0,
    idempotency_key: Annotated[str | None, typer.Option(help="Lets a request be sent again.")] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say who answered, on standard error.")] = False,
    region: RegionOption = None,
    url: UrlOption = None,
    data: DataOption = None,
) -> None:
    """Run a function at the nearest edge and print what it answers. Exit status 1 when that is an error."""

    async def work(edge: AsyncClient) -> None:
        body, kind = _body(data_)
        options: dict[str, Any] = {
            "deadline_s": deadline,
            "content_type": kind,
            "query": _pairs(query or []),
            "user": _attributes(user),
            "idempotency_key": idempotency_key,
        }
        began_s = time.monotonic()
        if at is not None or ip is not None:
            decision = await edge.route(ip if at is None else _place(at))
            found = await edge.execute_at_edge(decision, function, body, **options)
        elif region is None and url is None:
            decision = await nearest(_urls(data))
            found = await edge.execute_at_edge(decision, function, body, **options)
        else:
            found = await edge.invoke(function, body, **options)
        if verbose:
            took_ms = (time.monotonic() - began_s) * 1e3
            print(f"{found.status} of {found.region} at {found.url}, {took_ms:.1f} ms", file=sys.stderr)
        _show(found)

    run(work, region, url, data)


def _show(found: Invocation) -> None:
    sys.stdout.buffer.write(found.body)
    if found.body and not found.body.endswith(b"\n") and sys.stdout.isatty():
        sys.stdout.buffer.write(b"\n")
    sys.stdout.flush()
    if found.status >= 400:
        print(f"error: the function answered {found.status}", file=sys.stderr)
        raise typer.Exit(1)


def _urls(data: Path | None) -> list[str]:
    from streams.model.topology import Topology
    from streams.region.paths import data_dir

    gateway_url(None, None, data)  # says what is wrong when there is none
    return [each.gateway_url for each in Topology.load(data_dir(data)).regions if each.gateway_url]


async def nearest(urls: list[str]) -> RouteDecision:
    """These gateways by the round trip from here, those that answer first. Unavailable when none does."""
    import aiohttp

    from streams.client import RouteDecision, RouteNode

    timeout = aiohttp.ClientTimeout(total=PROBE_S)

    async def probe(session: aiohttp.ClientSession, url: str) -> tuple[float, str] | None:
        try:
            for _ in range(2):  # the second time without connecting
                began_s = time.perf_counter()
                async with session.get(f"{url}/readyz") as answer:
                    await answer.read()
                    ready = answer.status == 200
            return ((time.perf_counter() - began_s) * 1e3, url) if ready else None
        except (aiohttp.ClientError, TimeoutError):
            return None

    async with aiohttp.ClientSession(timeout=timeout) as session:
        probed = await asyncio.gather(*(probe(session, url) for url in urls))
    found = [RouteNode(url, "", url, None, rtt_ms) for rtt_ms, url in sorted(each for each in probed if each)]
    if not found:
        raise Unavailable(f"none of {', '.join(urls)} is ready", fix="is the system up? see `streams status`")
    first = found[0]
    return RouteDecision(first.node, first.region, first.url, None, first.estimated_rtt_ms, tuple(found[1:]))


def _body(text: str | None) -> tuple[bytes, str]:
    if text is None:
        return b"", "application/octet-stream"
    if text == "-":
        raw = sys.stdin.buffer.read()
    elif text.startswith("@"):
        try:
            raw = Path(text[1:]).read_bytes()
        except OSError as error:
            raise BadInput(f"cannot read {text[1:]}: {error.strerror}", field="DATA", fix="name a file") from None
    else:
        raw = text.encode()
    try:
        json.loads(raw)
    except ValueError:
        return raw, "application/octet-stream" if text == "-" or text.startswith("@") else "text/plain; charset=utf-8"
    return raw, "application/json"


def _pairs(given: list[str]) -> dict[str, str]:
    found = {}
    for each in given:
        name, equals, value = each.partition("=")
        if not equals or not name:
            raise BadInput(f"{each[:40]!r} is not NAME=VALUE", field="--query", fix="as in --query user=alice")
        found[name] = value
    return found


def _attributes(text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise BadInput("is no JSON object", field="--user", fix="""as in --user '{"id": "alice"}'""")
    return found


def _place(text: str) -> tuple[float, float]:
    try:
        latitude, longitude = (float(part) for part in text.split(","))
    except ValueError:
        raise BadInput(f"{text[:40]!r} is no place", field="--at", fix="as in --at 48.9,2.4") from None
    return latitude, longitude
