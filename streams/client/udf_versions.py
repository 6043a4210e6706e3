"""Versions of a deployed UDF: shadow, promote, rollback. What the client adds to a session, in both twins."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import quote

from streams.client.transport import Transport
from streams.client.udfs import udf_form

T = TypeVar("T")


class UdfVersionCalls:
    """A session's calls about versions of UDFs. All but the report answer the UDF as `GET /v1/udfs/NAME` does."""

    _transport: Transport

    async def udf(self, name: str) -> dict[str, Any]:
        """A deployed UDF: its versions, who deployed them when, and how it does in each region. NotFound."""
        found: dict[str, Any] = await self._transport.json("GET", _path(name), {})
        return found

    async def shadow_udf(
        self, name: str, directory: str | Path, *, wait_s: int = 10, from_: str | int | None = None
    ) -> dict[str, Any]:
        """Run the UDF directory's version beside the active one of `name`; it takes over only when it is promoted.

        Waits up to `wait_s` until it has caught up. `from_`: as of `deploy_globally`. Idempotent. Conflict.
        """
        return await send_udf(self._transport, f"{_path(name)}:shadow", directory, {"wait": str(wait_s), "from": from_})

    async def shadow_report(self, name: str, limit: int = 20) -> dict[str, Any]:
        """Which rows the version beside the active one makes otherwise: counts, and up to `limit` of them. NotFound."""
        found: dict[str, Any] = await self._transport.json("GET", f"{_path(name)}:shadow", {"limit": str(limit)})
        return found

    async def promote_udf(self, name: str, *, force: bool = False, wait_s: int = 10) -> dict[str, Any]:
        """Serve the version that was built beside the active one, in all regions.

        Waits up to `wait_s` until it has caught up; Conflict when it has not. `force`: at once. A retry after a lost
        answer is Conflict too: look at `udf`.
        """
        return await self._move(name, "promote", {"wait": str(wait_s), **({"force": "true"} if force else {})})

    async def rollback_udf(self, name: str, *, wait_s: int = 10) -> dict[str, Any]:
        """Undo the last deploy, at once: drop what is built beside, else serve the previous version again. Conflict."""
        return await self._move(name, "rollback", {"wait": str(wait_s)})

    async def _move(self, name: str, what: str, query: dict[str, str]) -> dict[str, Any]:
        headers = {"Idempotency-Key": uuid.uuid4().hex, "Content-Type": "application/json"}
        path = f"{_path(name)}:{what}"
        found: dict[str, Any] = await self._transport.json("POST", path, query, headers=headers, body=b"{}")
        return found


async def send_udf(
    transport: Transport, path: str, directory: str | Path, query: dict[str, str | int | None]
) -> dict[str, Any]:
    """Post a UDF directory; parameters that are None are left out."""
    body, kind = await asyncio.to_thread(udf_form, directory)
    headers = {"Content-Type": kind, "Idempotency-Key": uuid.uuid4().hex}
    given = {name: str(value) for name, value in query.items() if value is not None}
    found: dict[str, Any] = await transport.json("POST", path, given, headers=headers, body=body)
    return found


def _path(name: str) -> str:
    return f"/v1/udfs/{quote(name, safe='')}"


class _Runs(Protocol):
    _edge: Any

    def _run(self, work: Coroutine[Any, Any, T]) -> T: ...


class SyncUdfVersionCalls:
    """The synchronous twin."""

    def udf(self: _Runs, name: str) -> dict[str, Any]:
        """See AsyncClient.udf."""
        found: dict[str, Any] = self._run(self._edge.udf(name))
        return found

    def shadow_udf(
        self: _Runs, name: str, directory: str | Path, *, wait_s: int = 10, from_: str | int | None = None
    ) -> dict[str, Any]:
        """See AsyncClient.shadow_udf."""
        found: dict[str, Any] = self._run(self._edge.shadow_udf(name, directory, wait_s=wait_s, from_=from_))
        return found

    def shadow_report(self: _Runs, name: str, limit: int = 20) -> dict[str, Any]:
        """See AsyncClient.shadow_report."""
        found: dict[str, Any] = self._run(self._edge.shadow_report(name, limit))
        return found

    def promote_udf(self: _Runs, name: str, *, force: bool = False, wait_s: int = 10) -> dict[str, Any]:
        """See AsyncClient.promote_udf."""
        found: dict[str, Any] = self._run(self._edge.promote_udf(name, force=force, wait_s=wait_s))
        return found

    def rollback_udf(self: _Runs, name: str, *, wait_s: int = 10) -> dict[str, Any]:
        """See AsyncClient.rollback_udf."""
        found: dict[str, Any] = self._run(self._edge.rollback_udf(name, wait_s=wait_s))
        return found
