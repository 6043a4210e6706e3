"""The Schema Registry's REST subset, so that unmodified Avro serializers work with a gateway as their registry.

Served at the root, where serializers look, and under `/v1/registry`. Schemas are Avro, without references. Deleting is
refused: logs carry the ids. Once tokens are configured: reading takes any of them, registering `write` on the subject's
keyspace (on `*` for other subjects), compatibility levels `admin`. Serializers send theirs as a static bearer token.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from streams.definitions import Definitions, Incompatible, Version
from streams.gateway.auth import Authority, authorize
from streams.model.errors import BadInput, NotFound, StreamsError, TooLarge, Unauthorized
from streams.serde import AvroSchema, check_level, compatibility, dump_json, parse_json, parse_schema

PREFIXES = ("", "/v1/registry")
CONTENT_TYPE = "application/vnd.schemaregistry.v1+json"
BODY_BYTES_MAX = 1 << 20

_NO_SUBJECT, _NO_VERSION, _NO_SCHEMA, _NO_LEVEL = 40401, 40402, 40403, 40408
_BAD_SCHEMA, _BAD_VERSION, _BAD_LEVEL, _REFUSED, _BAD_SUBJECT = 42201, 42202, 42203, 42205, 42208
_BAD_FIELDS = {"schema": _BAD_SCHEMA, "version": _BAD_VERSION, "compatibility": _BAD_LEVEL, "subject": _BAD_SUBJECT}

Endpoint = Callable[[Request], Awaitable[Any]]


class RegistryError(StreamsError):
    """An error with the registry's own code; its status is the code's first three digits."""

    def __init__(self, code: int, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.status = code if code < 1000 else code // 100


def schema_routes(definitions: Definitions, authority: Callable[[], Authority] = Authority) -> list[Route]:
    """The registry's routes over these definitions, under each of `PREFIXES`. `authority`: who knows the tokens now."""
    registry = _Registry(definitions)
    table: list[tuple[str, str, Endpoint]] = [
        ("GET", "/subjects", registry.subjects),
        ("POST", "/subjects/{subject}", registry.lookup),
        ("GET", "/subjects/{subject}/versions", registry.versions),
        ("POST", "/subjects/{subject}/versions", registry.register),
        ("GET", "/subjects/{subject}/versions/{version}", registry.version),
        ("GET", "/subjects/{subject}/versions/{version}/schema", registry.version_schema),
        ("GET", "/subjects/{subject}/versions/{version}/referencedby", registry.nothing),
        ("DELETE", "/subjects/{subject}", registry.refuse_delete),
        ("DELETE", "/subjects/{subject}/versions/{version}", registry.refuse_delete),
        ("GET", "/schemas/types", registry.types),
        ("GET", "/schemas/ids/{id}", registry.schema),
        ("GET", "/schemas/ids/{id}/schema", registry.schema_text),
        ("GET", "/schemas/ids/{id}/versions", registry.schema_versions),
        ("GET", "/schemas/ids/{id}/subjects", registry.schema_subjects),
        ("POST", "/compatibility/subjects/{subject}/versions", registry.compatible),
        ("POST", "/compatibility/subjects/{subject}/versions/{version}", registry.compatible),
        ("GET", "/config", registry.config),
        ("PUT", "/config", registry.set_config),
        ("DELETE", "/config", registry.delete_config),
        ("GET", "/config/{subject}", registry.config),
        ("PUT", "/config/{subject}", registry.set_config),
        ("DELETE", "/config/{subject}", registry.delete_config),
        ("GET", "/mode", registry.mode),
        ("GET", "/mode/{subject}", registry.mode),
        ("GET", "/contexts", registry.contexts),
        ("GET", "/associations/resources/{namespace}/{name}", registry.nothing),
    ]

    def judged(endpoint: Endpoint, action: str) -> Endpoint:
        async def answer(request: Request) -> Any:
            who = authority().authenticate(request.headers.get("authorization"))
            if action != "read":
                authorize(who, _keyspace_of(request.path_params.get("subject", "")), action)
            return await endpoint(request)

        answer.__name__, answer.__doc__ = endpoint.__name__, endpoint.__doc__
        return answer

    actions: dict[Endpoint, str] = {
        registry.register: "write",
        registry.set_config: "admin",
        registry.delete_config: "admin",
    }
    return [
        _Route(prefix + path, _answering(judged(endpoint, actions.get(endpoint, "read"))), methods=[method])
        for prefix in PREFIXES
        for method, path, endpoint in table
    ]


def _keyspace_of(subject: str) -> str:
    """The keyspace whose values a subject describes; empty for a subject of none."""
    topic, dash, kind = subject.rpartition("-")
    return topic.removeprefix("events.") if dash and kind == "value" and topic.startswith("events.") else ""


class _Route(Route):
    """A route whose 405 has the registry's form too."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the request, or say which methods there are."""
        if scope["method"] in (self.methods or ()):
            await super().handle(scope, receive, send)
            return
        refused = _json(405, {"error_code": 405, "message": f"{scope['method']} is not served here"})
        refused.headers["allow"] = ", ".join(sorted(self.methods or ()))
        await refused(scope, receive, send)


def _answering(endpoint: Endpoint) -> Callable[[Request], Awaitable[Response]]:
    """The endpoint with its answer, or its error, in the registry's form."""

    async def answer(request: Request) -> Response:
        try:
            return _json(200, await endpoint(request))
        except StreamsError as error:
            code = _error_code(error)
            status = code if code < 1000 else code // 100
            refused = _json(status, {"error_code": code, "message": str(error)})
            if isinstance(error, Unauthorized):
                refused.headers["www-authenticate"] = "Bearer"
            return refused
        except ClientDisconnect:
            return _json(400, {"error_code": 400, "message": "the client went away"})

    answer.__name__ = getattr(endpoint, "__name__", "answer")
    answer.__doc__ = endpoint.__doc__
    return answer


def _json(status: int, body: Any) -> Response:
    return Response(dump_json(body), status, media_type=CONTENT_TYPE)


def _error_code(error: StreamsError) -> int:
    if isinstance(error, RegistryError):
        return error.code
    if isinstance(error, BadInput):
        return _BAD_FIELDS.get(error.field or "", 422)
    return error.status


class _Registry:
    """The endpoints."""

    def __init__(self, definitions: Definitions) -> None:
        self._definitions = definitions

    async def subjects(self, request: Request) -> list[str]:
        """All subjects, or those that begin with `subjectPrefix`."""
        prefix = request.query_params.get("subjectPrefix", "").removeprefix(":*:")
        return _page(request, [name for name in self._definitions.subjects() if name.startswith(prefix)])

    async def versions(self, request: Request) -> list[int]:
        """A subject's version numbers."""
        return _page(request, [found.version for found in self._versions(request)])

    async def version(self, request: Request) -> dict[str, Any]:
        """One version of a subject: a number, or `latest`."""
        return _described(self._version(request))

    async def version_schema(self, request: Request) -> Any:
        """The schema itself of one version."""
        return self._version(request).schema.document

    async def register(self, request: Request) -> dict[str, int]:
        """Register a schema as the subject's next version; answers its id. The same schema is registered once."""
        schema = await _schema_of(request)
        try:
            schema_id, _ = await self._definitions.register_schema(request.path_params["subject"], schema)
        except Incompatible as error:
            raise RegistryError(409, str(error)) from error
        return {"id": schema_id}

    async def lookup(self, request: Request) -> dict[str, Any]:
        """Which version of the subject is exactly this schema."""
        self._versions(request)
        found = self._definitions.lookup(request.path_params["subject"], await _schema_of(request))
        if found is None:
            raise RegistryError(_NO_SCHEMA, "the subject has no such schema")
        return _described(found)

    async def schema(self, request: Request) -> dict[str, str]:
        """The schema of an id."""
        return {"schema": self._schema(request).text}

    async def schema_text(self, request: Request) -> Any:
        """The schema of an id, itself."""
        return self._schema(request).document

    async def schema_versions(self, request: Request) -> list[dict[str, Any]]:
        """Where a schema is registered: subjects and versions."""
        return _page(request, [{"subject": use.subject, "version": use.version} for use in self._uses(request)])

    async def schema_subjects(self, request: Request) -> list[str]:
        """The subjects that a schema is registered for."""
        return _page(request, [use.subject for use in self._uses(request)])

    async def types(self, request: Request) -> list[str]:
        """The kinds of schemas that are taken."""
        return ["AVRO"]

    async def compatible(self, request: Request) -> dict[str, Any]:
        """Whether a schema may follow a version, or (without one) may be the next; with `verbose`, why not."""
        schema = await _schema_of(request)
        subject = request.path_params["subject"]
        if "version" in request.path_params:
            other = self._version(request)
            reasons = compatibility(schema, [other.schema], self._definitions.level(subject))
        else:
            reasons = self._definitions.incompatibilities(subject, schema)
        verbose = request.query_params.get("verbose", "").lower() == "true"
        return {"is_compatible": not reasons} | ({"messages": reasons} if verbose else {})

    async def config(self, request: Request) -> dict[str, str]:
        """A subject's compatibility level, or everybody's."""
        subject = request.path_params.get("subject", "")
        own = self._definitions.own_level(subject)
        inherits = not subject or request.query_params.get("defaultToGlobal", "").lower() == "true"
        if own is None and not inherits:
            raise RegistryError(_NO_LEVEL, f"subject {subject} has no compatibility level of its own")
        return {"compatibilityLevel": own or self._definitions.level()}

    async def set_config(self, request: Request) -> dict[str, str]:
        """Set a subject's compatibility level, or everybody's."""
        body = await _body_of(request)
        level = check_level(body.get("compatibility"))
        await self._definitions.set_level(level, request.path_params.get("subject", ""))
        return {"compatibility": level}

    async def delete_config(self, request: Request) -> dict[str, str]:
        """Take a compatibility level back; answers what it was."""
        before = await self.config(request)
        await self._definitions.set_level(None, request.path_params.get("subject", ""))
        return before

    async def mode(self, request: Request) -> dict[str, str]:
        """Always open for reading and writing."""
        return {"mode": "READWRITE"}

    async def contexts(self, request: Request) -> list[str]:
        """Only the default context."""
        return ["."]

    async def nothing(self, request: Request) -> list[Any]:
        """There are no references between schemas and no associations of topics."""
        return []

    async def refuse_delete(self, request: Request) -> None:
        """Schemas stay: logs carry their ids."""
        raise RegistryError(_REFUSED, "schemas are never deleted: records in the logs carry their ids")

    def _versions(self, request: Request) -> list[Version]:
        subject = request.path_params["subject"]
        versions = self._definitions.versions(subject)
        if not versions:
            raise RegistryError(_NO_SUBJECT, f"there is no subject {subject[:120]!r}")
        return versions

    def _version(self, request: Request) -> Version:
        versions, wanted = self._versions(request), request.path_params["version"]
        if wanted in ("latest", "-1"):
            return versions[-1]
        if not (wanted.isascii() and wanted.isdigit() and 0 < len(wanted) < 10 and int(wanted) > 0):
            raise RegistryError(_BAD_VERSION, f"{wanted[:40]!r} is no version: give a number from 1, or latest")
        for found in versions:
            if found.version == int(wanted):
                return found
        raise RegistryError(_NO_VERSION, f"subject {versions[0].subject} has no version {wanted}")

    def _schema(self, request: Request) -> AvroSchema:
        wanted = request.path_params["id"]
        if wanted.isascii() and wanted.isdigit() and len(wanted) < 11:
            try:
                return self._definitions.schema(int(wanted))
            except NotFound:
                pass
        raise RegistryError(_NO_SCHEMA, f"there is no schema {wanted[:40]!r}")

    def _uses(self, request: Request) -> list[Version]:
        schema, wanted = self._schema(request), request.query_params.get("subject")
        found = (self._definitions.lookup(name, schema) for name in self._definitions.subjects())
        return [use for use in found if use is not None and wanted in (None, use.subject)]


def _described(found: Version) -> dict[str, Any]:
    return {"subject": found.subject, "version": found.version, "id": found.schema.id, "schema": found.schema.text}


def _page(request: Request, rows: list[Any]) -> list[Any]:
    numbers = {}
    for name, default in (("offset", 0), ("limit", -1)):
        text = request.query_params.get(name, str(default))
        if not text.lstrip("-").isdecimal() or len(text) > 10:
            raise RegistryError(422, f"{name} is not a number")
        numbers[name] = int(text)
    rows = rows[max(numbers["offset"], 0) :]
    return rows if numbers["limit"] < 0 else rows[: numbers["limit"]]


async def _body_of(request: Request) -> dict[str, Any]:
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > BODY_BYTES_MAX:
            raise TooLarge(f"the body is over {BODY_BYTES_MAX} bytes", field="body")
        chunks.append(chunk)
    body = parse_json(b"".join(chunks))
    if not isinstance(body, dict):
        raise RegistryError(422, "the body is not a JSON object")
    return body


async def _schema_of(request: Request) -> AvroSchema:
    body = await _body_of(request)
    kind = body.get("schemaType") or "AVRO"
    if kind != "AVRO":
        raise RegistryError(_BAD_SCHEMA, f"schemas of type {str(kind)[:40]!r} are not taken: send Avro")
    if body.get("references"):
        raise RegistryError(_BAD_SCHEMA, "references are not taken: send the schema with all its types in it")
    text = body.get("schema")
    if not isinstance(text, str):
        raise RegistryError(_BAD_SCHEMA, "the body has no 'schema' text")
    return parse_schema(text)
