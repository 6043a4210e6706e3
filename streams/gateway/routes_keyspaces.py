"""`/v1/keyspaces`: settings by the first part of keys."""

from __future__ import annotations

from streams.gateway.auth import authorize
from streams.gateway.context import Gateway
from streams.gateway.endpoint import Operation
from streams.gateway.http import Call, Reply, reply
from streams.gateway.params import NAME
from streams.model.errors import BadInput, Conflict, NotFound
from streams.model.keys import check_name
from streams.model.keyspace import RESERVED, Keyspace
from streams.model.row import MergeType
from streams.model.ttl import parse_ttl_ms
from streams.serde import AvroSchema, parse_json, parse_schema

_FIELDS = {"name", "merge", "schema", "partitions", "ttl", "ttl_ms", "consistency", "mirror"}
_MERGES = ("lww", "counter", "max", "min")
_EXAMPLE: dict[str, object] = {
    "type": "object",
    "properties": {
        "merge": {"enum": list(_MERGES)},
        "schema": {"description": "Name of a known schema, or an Avro schema"},
        "partitions": {"type": "integer", "minimum": 1, "maximum": 256},
        "ttl": {"description": "Default time to live, as in ?ttl="},
        "consistency": {"enum": ["eventual", "causal", "strong"]},
        "mirror": {"enum": ["rows", "events"]},
    },
}


class KeyspaceRoutes:
    """Handlers of keyspaces."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def operations(self) -> list[Operation]:
        """The routes."""
        one = "/v1/keyspaces/{name}"
        return [
            Operation("GET", "/v1/keyspaces", self.list_keyspaces, "All keyspaces", tag="keyspaces"),
            Operation(
                "GET",
                one,
                self.get_keyspace,
                "One keyspace",
                "read",
                (NAME,),
                answers={404: "Unknown"},
                tag="keyspaces",
            ),
            Operation(
                "PUT",
                one,
                self.put_keyspace,
                "Define a keyspace, in all regions",
                "admin",
                (NAME,),
                {"application/json": _EXAMPLE},
                {400: "A setting is wrong", 409: "It exists with other settings"},
                tag="keyspaces",
            ),
        ]

    async def list_keyspaces(self, call: Call) -> Reply:
        """All that the caller may read."""
        found = sorted(self._gateway.definitions.keyspaces.items())
        return reply({"keyspaces": [known.to_json() for name, known in found if call.principal.may(name, "read")]})

    async def get_keyspace(self, call: Call) -> Reply:
        """Its settings."""
        return reply(_known(self._gateway, call.part("name"), call).to_json())

    async def put_keyspace(self, call: Call) -> Reply:
        """Define it; answers once it can be written and read here."""
        name = check_name(call.part("name"), field="name")
        wanted, schema = _settings(name, parse_json(await call.body()))
        if name in RESERVED:
            raise Conflict(f"the name is reserved: {RESERVED[name]}", field="name", fix="use another name")
        if wanted.is_strong and wanted.merge is not MergeType.LWW:
            raise BadInput(
                "a strong keyspace holds whole values, in one sequence: there is nothing to merge",
                field="merge",
                fix="leave it out, or use lww",
            )
        if wanted.is_strong and wanted.mirror != "rows":
            raise BadInput(
                "a strong keyspace has no events of a region to mirror: its one log is in the home region",
                field="mirror",
                fix="leave it out, or use rows",
            )
        if self._gateway.udfs is not None:
            self._gateway.udfs.check_free(name)
        stored = await self._gateway.definitions.put_keyspace(wanted, schema)
        await self._gateway.create_topics(stored)
        return reply(stored.to_json())


def _known(gateway: Gateway, name: str, call: Call) -> Keyspace:
    authorize(call.principal, name, "read")
    try:
        return gateway.definitions.keyspace(name)
    except NotFound as error:
        raise NotFound(error.detail, field="name", fix=error.fix) from None


def _settings(name: str, body: object) -> tuple[Keyspace, AvroSchema | None]:
    if type(body) is not dict:
        raise BadInput("the settings are no object", field="body", fix='send {"merge": "counter"}, for example')
    if unknown := body.keys() - _FIELDS:
        raise BadInput("there is no such setting", field=min(unknown)[:80], fix=f"use {', '.join(sorted(_FIELDS))}")
    if body.get("name", name) != name:
        raise BadInput("the name differs from the path's", field="name", fix="leave it out of the body")
    settings = {key: value for key, value in body.items() if key != "ttl"}
    settings["name"] = name
    if body.get("ttl") is not None:
        settings["ttl_ms"] = parse_ttl_ms(body["ttl"])
    schema: AvroSchema | None = None
    given = settings.get("schema")
    if isinstance(given, dict | list) or (isinstance(given, str) and given.lstrip().startswith("{")):
        schema = parse_schema(given)
        settings["schema"] = schema.name
    elif given is not None and type(given) is not str:
        raise BadInput("the schema is neither a name nor a schema", field="schema", fix="use streams.Json, for example")
    wanted = Keyspace.from_json(settings)
    if wanted.merge.label not in _MERGES:
        raise BadInput(
            f"no built-in UDF folds merge type {wanted.merge.label}", field="merge", fix=f"use {', '.join(_MERGES)}"
        )
    return wanted, schema
