"""`/openapi.json`, made from the declarations that the routes are made from, so that it cannot drift."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from typing import Any

from starlette.routing import Route

from streams.gateway.endpoint import Operation, described_params, openapi_path

_PROBLEM = {
    "description": "What was wrong, where, and what to do about it",
    "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
}
_SCHEMAS: dict[str, object] = {
    "Problem": {
        "type": "object",
        "required": ["type", "title", "status", "detail"],
        "properties": {
            "type": {"type": "string"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string"},
            "field": {"type": ["string", "null"]},
            "fix": {"type": ["string", "null"]},
        },
    }
}


def document(operations: Sequence[Operation], foreign: Sequence[Route] = (), *, url: str = "/") -> dict[str, Any]:
    """The OpenAPI 3.1 document of `operations` and of plain Starlette routes of other rooms."""
    paths: dict[str, dict[str, object]] = {}
    for operation in operations:
        paths.setdefault(openapi_path(operation.path), {})[operation.method.lower()] = _describe(operation)
    for route in foreign:
        path = openapi_path(route.path)
        for method in sorted((route.methods or set()) - {"HEAD"}):
            paths.setdefault(path, {})[method.lower()] = _describe_foreign(path, route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "streams gateway",
            "version": "1",
            "description": "Put events, query the tables they make, follow them. Errors are RFC 9457 problems.",
        },
        "servers": [{"url": url}],
        "paths": paths,
        "components": {
            "schemas": _SCHEMAS,
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"bearer": []}],
    }


def _describe(operation: Operation) -> dict[str, object]:
    described: dict[str, object] = {
        "summary": operation.summary,
        "operationId": operation.handler.__name__,
        "tags": [operation.tag],
        "parameters": described_params(operation),
        "responses": {
            "200": {
                "description": "OK",
                "content": {operation.answer_type: {"schema": operation.answer} if operation.answer else {}},
            },
            **{str(status): {**_PROBLEM, "description": text} for status, text in operation.answers.items()},
            "default": _PROBLEM,
        },
    }
    if operation.notes:
        described["description"] = " ".join(operation.notes.split())
    if operation.action == "open":
        described["security"] = []
    if operation.bodies:
        content = {media: {"schema": schema} for media, schema in operation.bodies.items()}
        described["requestBody"] = {"required": True, "content": content}
    return described


def _describe_foreign(path: str, route: Route) -> dict[str, object]:
    summary = (inspect.getdoc(route.endpoint) or route.name).partition("\n")[0]
    names = re.findall(r"\{(\w+)\}", path)
    return {
        "summary": summary,
        "tags": ["schema registry"],
        "parameters": [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names],
        "responses": {"200": {"description": "OK"}, "default": {"description": "An error"}},
    }
