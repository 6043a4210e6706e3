"""`streams route`: which gateway would serve a user there."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from streams.cli.session import DataOption, RegionOption, UrlOption, run
from streams.model.errors import BadInput

if TYPE_CHECKING:
    from streams.client import AsyncClient, RouteDecision

app = typer.Typer(help="Show the router's decision.", no_args_is_help=True, pretty_exceptions_enable=False)


@app.command(context_settings={"ignore_unknown_options": True})  # -74.0 is a longitude, not an option
def route(
    lat: Annotated[str | None, typer.Argument(help="Latitude, degrees north.")] = None,
    lon: Annotated[str | None, typer.Argument(help="Longitude, degrees east.")] = None,
    ip: Annotated[str | None, typer.Option(help="An IP address instead, for the gateways' GeoIP database.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The decision as JSON.")] = False,
    region: RegionOption = None,
    url: UrlOption = None,
    data: DataOption = None,
) -> None:
    """Show the nearest healthy gateway for a place, and the fallbacks."""

    async def work(edge: AsyncClient) -> None:
        if ip is not None:
            found = await edge.route(ip)
        else:
            found = await edge.route((_degrees(lat, "LAT"), _degrees(lon, "LON")))
        print(json.dumps(_plain(found)) if as_json else _shown(found))

    run(work, region, url, data)


def _degrees(text: str | None, field: str) -> float:
    try:
        return float(text or "")
    except ValueError:
        raise BadInput(f"{(text or '')[:40]!r} is no number of degrees", field=field, fix="as in 40.7 -74.0") from None


def _plain(found: RouteDecision) -> dict[str, object]:
    from dataclasses import asdict

    return asdict(found)


def _shown(found: RouteDecision) -> str:
    lines = []
    for place, node in enumerate(found.nodes):
        far = "distance unknown" if node.distance_km is None else f"{node.distance_km:,.0f} km"
        rtt = "" if node.estimated_rtt_ms is None else f", about {node.estimated_rtt_ms:.0f} ms"
        lines.append(f"{'->' if place == 0 else '  '} {node.node}  {node.region}  {node.url}  {far}{rtt}")
    return "\n".join(lines)
