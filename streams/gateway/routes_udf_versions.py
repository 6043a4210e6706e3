"""`/v1/udfs/{name}:shadow`, `:promote`, `:rollback`: versions of a UDF beside each other."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

from streams.definitions import releases
from streams.edge.edge_table import EdgeTable
from streams.gateway.auth import authorize_deploy
from streams.gateway.context import Gateway
from streams.gateway.endpoint import Operation
from streams.gateway.http import Call, Reply, reply
from streams.gateway.multipart import parse_multipart
from streams.gateway.params import STRING, IntParam, Param
from streams.gateway.shadow import Comparison, compare
from streams.gateway.udfs import Order, UdfService, touched
from streams.model.clock import wall_ms
from streams.model.errors import BadInput, NotFound, Unavailable
from streams.model.merge import Merged
from streams.model.ttl import parse_ttl_ms
from streams.wasm.admission import admit_manifest
from streams.wasm.manifest import Manifest
from streams.wasm.packing import unpacked

NAME = Param("name", "path", "The UDF", {"type": "string"}, True)
WAIT = IntParam("wait", "How many seconds to wait, at most, for all regions that are heard from", 0, 50, 10)
FROM = Param(
    "from",
    "query",
    "What a table that is built anew is built from: `beginning` (default: all that was ever put; refused where the log "
    "has lost its beginning), `earliest` (what the log still holds), or a time (ISO 8601 or epoch milliseconds)",
    STRING,
)
IN_PLACE = Param("in_place", "query", "`true`: replace the module and keep the rows that are there", STRING)
KEEP = Param("keep", "query", "How long the version that is replaced is kept for a rollback, as in 30m", STRING)
FORCE = Param("force", "query", "`true`: at once, caught up or not", STRING)
LIMIT = IntParam("limit", "How many differing rows to show", 0, 1_000, 20)
FORM: dict[str, object] = {
    "type": "object",
    "required": ["manifest", "module"],
    "properties": {
        "manifest": {"type": "string", "description": "udf.toml"},
        "module": {"type": "string", "format": "binary", "description": "The WebAssembly module"},
    },
}
_REPORT = """`rows`, `equal`, `differ`, `only_active`, `only_candidate` count keys; `differences` are the first rows
that differ. Each was compared as of one position of the log: that a table is a moment behind makes no difference.
`unsettled` keys changed whenever they were looked at; `unchecked` ones differed, beyond the 10,000 that are looked at
again. `settled` is false when a table did not pass the other in time: nothing is confirmed then."""


def service_of(gateway: Gateway) -> UdfService:
    """The gateway's UDFs; Unavailable when it serves none."""
    if gateway.udfs is None:
        raise Unavailable("this gateway serves no UDFs", fix="start it with `streams gateway`")
    return gateway.udfs


async def read_form(call: Call, service: UdfService) -> tuple[Manifest, str, bytes]:
    """The manifest, its text and the module of a deploy that the caller may make. BadInput, Forbidden."""
    parts = parse_multipart(call.header(b"content-type") or "", await call.body())
    for name in ("manifest", "module"):
        if name not in parts:
            raise BadInput("the part is missing", field=name, fix="send the parts manifest and module")
    try:
        text = parts["manifest"].decode()
    except UnicodeDecodeError:
        raise BadInput("udf.toml is not UTF-8", field="manifest", fix="save it as UTF-8") from None
    manifest = admit_manifest(text, service.caps)
    authorize_deploy(call.principal, touched(manifest))
    return manifest, text, await asyncio.to_thread(unpacked, parts["module"])


def order_of(call: Call, how: str = releases.AUTO) -> Order:
    """What the query asks for. BadInput names the parameter."""
    start, keep = FROM.text(call), KEEP.text(call)
    in_place = _flag(call, IN_PLACE)
    if in_place and (start or how != releases.AUTO):
        raise BadInput("what is replaced in place is not built from the log", field="from", fix="leave one of them out")
    keep_ms = None if keep is None else 0 if keep == "0" else parse_ttl_ms(keep, field="keep")
    if start in (None, "", "beginning", "earliest"):
        # `from` says that a table is to be built anew, also where only the limits differ.
        asked = releases.BESIDE if start and how == releases.AUTO else how
        return Order(releases.IN_PLACE if in_place else asked, 0, start != "earliest", keep_ms)
    return Order(releases.BESIDE if how == releases.AUTO else how, _time_ms(str(start)), False, keep_ms)


def _flag(call: Call, param: Param) -> bool:
    text = (param.text(call) or "").lower()
    if text not in ("", "true", "false", "1", "0"):
        raise BadInput(f"{text[:40]!r} is neither true nor false", field=param.name, fix="use true, or leave it out")
    return text in ("true", "1")


def _time_ms(text: str) -> int:
    try:
        if text.isascii() and text.isdecimal():
            at_ms = int(text) if len(text) < 16 else -1
        else:
            at = datetime.fromisoformat(text)
            at_ms = int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1000)
    except (ValueError, OverflowError):
        at_ms = -1
    if not 0 < at_ms <= wall_ms():
        raise BadInput(
            f"{text[:40]!r} is no time in the past",
            field="from",
            fix="use beginning, earliest, ISO 8601 (2026-01-31T12:00:00Z) or epoch milliseconds",
        )
    return at_ms


class UdfVersionRoutes:
    """Handlers of UDFs' versions."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def operations(self) -> list[Operation]:
        """The routes; they come before `/v1/udfs/{name}`."""
        refused = {404: "Unknown", 409: "It does not fit what is deployed"}
        one = "/v1/udfs/{name}:"
        return [
            Operation(
                "GET",
                one + "shadow",
                self.shadow_report,
                "Which rows the candidate makes otherwise than the active version",
                "read",
                (NAME, LIMIT),
                answers={404: "Unknown, or no version is built beside it"},
                tag="udfs",
                notes=_REPORT,
            ),
            Operation(
                "POST",
                one + "shadow",
                self.shadow_udf,
                "Run another version beside the active one; it takes over only when it is promoted",
                "deploy",
                (NAME, FROM, KEEP, WAIT),
                {"multipart/form-data": FORM},
                {400: "The manifest or the module is refused", **refused},
                tag="udfs",
                notes="Without a body, a version that is being built is held back.",
            ),
            Operation(
                "POST",
                one + "promote",
                self.promote_udf,
                "Serve the version that was built beside the active one, in all regions",
                "deploy",
                (NAME, FORCE, WAIT),
                answers=refused,
                tag="udfs",
            ),
            Operation(
                "POST",
                one + "rollback",
                self.roll_back_udf,
                "Undo the last deploy: drop a candidate, else serve the previous version again, at once",
                "deploy",
                (NAME, WAIT),
                answers=refused,
                tag="udfs",
            ),
        ]

    def _deployed(self, call: Call) -> tuple[UdfService, str]:
        service, name = service_of(self._gateway), call.part("name")
        authorize_deploy(call.principal, service.touched(name))
        return service, name

    async def shadow_udf(self, call: Call) -> Reply:
        """Deploy it beside, or hold back what is being built."""
        service, name = self._deployed(call)
        wait_s = WAIT.read(call) or 0
        if not await call.body():
            held = await service.udfs.hold(name, wall_ms(), call.principal.name)
            return reply(await service.settled(name, held.candidate, wait_s))
        manifest, text, module = await read_form(call, service)
        if manifest.name != name:
            raise BadInput(f"the manifest is of {manifest.name}", field="name", fix=f"deploy it as {manifest.name}")
        order = order_of(call, releases.SHADOW)
        found = await service.deploy(manifest, text, module, call.principal.name, order)
        return reply(await service.settled(name, found.number, wait_s))

    async def promote_udf(self, call: Call) -> Reply:
        """Answers when it is decided, and so here."""
        service, name = self._deployed(call)
        wait_s, force = WAIT.read(call) or 0, _flag(call, FORCE)
        number = await service.promote(name, call.principal.name, force=force, wait_s=wait_s)
        return reply(await service.settled(name, number, wait_s))

    async def roll_back_udf(self, call: Call) -> Reply:
        """Answers when it is decided, and so here."""
        service, name = self._deployed(call)
        wait_s = WAIT.read(call) or 0
        release = await service.udfs.rollback(name, wall_ms(), call.principal.name)
        return reply(await service.settled(name, release.active, wait_s))

    async def shadow_report(self, call: Call) -> Reply:
        """Compare both tables as they are here."""
        service, name = service_of(self._gateway), call.part("name")
        active = service.udfs.get(name)
        for keyspace in active.manifest.inputs:
            self._gateway.keyspace(call, keyspace, "read")
        candidate = service.udfs.version(name, service.udfs.release(name).candidate)
        if candidate is None:
            raise NotFound(
                f"no version is built beside {name}'s {active.manifest.version}",
                field="name",
                fix="shadow one: POST manifest and module here, or `streams udf shadow DIR`",
            )
        limit = LIMIT.read(call)
        tables = (self._gateway.table(call, active.table), self._gateway.table(call, candidate.table))
        found = await compare(*tables, lambda: self._pass(*tables), 20 if limit is None else limit)
        return reply(
            {
                "name": name,
                "active": active.to_json(),
                "candidate": candidate.to_json(),
                "caught_up": service.caught_up(name, candidate.number),
                **self._shown(found),
            }
        )

    async def _pass(self, one: EdgeTable, other: EdgeTable) -> None:
        """Return once each has applied what the other had, of the inputs that both take; Timeout."""
        tables, wait_s = self._gateway.tables, self._gateway.options.wait_s
        names = (one.spec.name, other.spec.name)
        seen = tables.applied_by(names[0]).merge(tables.applied_by(names[1]))
        for name in names:
            await tables.wait_for(seen, wait_s, name)

    def _shown(self, found: Comparison) -> dict[str, Any]:
        return {
            "rows": {"active": found.rows[0], "candidate": found.rows[1]},
            "equal": found.equal,
            "differ": found.differ,
            "only_active": found.only[0],
            "only_candidate": found.only[1],
            "unsettled": found.unsettled,
            "unchecked": found.unchecked,
            "complete": found.complete,
            "settled": found.settled,
            "differences": [
                {"key": key.decode(), "active": self._value(pair[0]), "candidate": self._value(pair[1])}
                for key, pair in found.differences
            ],
        }

    def _value(self, merged: Merged | None) -> object:
        return None if merged is None else self._gateway.value_of(merged)
