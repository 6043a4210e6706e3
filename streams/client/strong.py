"""Strong keyspaces in the client: conditional writes, transactions, and commands whose outcome is unknown."""

from __future__ import annotations

import uuid
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar
from urllib.parse import quote

from streams.client.columns import dump
from streams.client.transport import Transport
from streams.client.types import Outcome, Receipt, TransactionReceipt
from streams.model.errors import BadInput
from streams.model.token import Token

T = TypeVar("T")


class StrongCalls:
    """The calls that only strong keyspaces answer; part of AsyncClient.

    All raise PreconditionFailed when a version has moved (`error.extra["version"]` is the present one, 0 for absent)
    and Unavailable when nothing was written or the outcome is not known: then `error.extra["idempotency_key"]` is what
    `resolve` takes. The same call with the same `idempotency_key` is executed once, through whichever gateway.
    """

    _transport: Transport

    async def put_strong(
        self,
        key: str,
        value: Any,
        *,
        if_version: int | None = None,
        ttl: float | str | None = None,
        idempotency_key: str | None = None,
    ) -> Receipt:
        """Put a value; `if_version`: only if the key has this version (0: only if it is absent).

        A key `order:ID` places the order that `value` is; the receipt has it, and its trades.
        """
        query = {} if ttl is None else {"ttl": str(ttl)}
        headers = {**_condition(if_version), **_identity(idempotency_key), "Content-Type": "application/json"}
        body = await self._transport.json("PUT", _kv(key), query, headers=headers, body=dump(value))
        return _receipt(body)

    async def delete_strong(
        self, key: str, *, if_version: int | None = None, idempotency_key: str | None = None
    ) -> Receipt:
        """Delete a key; `if_version`: only if it has this version."""
        headers = {**_condition(if_version), **_identity(idempotency_key)}
        body = await self._transport.json("DELETE", _kv(key), {}, headers=headers)
        return _receipt(body)

    async def transact(
        self,
        then: Sequence[dict[str, Any]],
        *,
        if_: Sequence[dict[str, Any]] = (),
        idempotency_key: str | None = None,
    ) -> TransactionReceipt:
        """All of `then` (`{"put": key, "value": v, "ttl"?}`, `{"delete": key}`) if all of `if_` hold
        (`{"key", "version"}`; version 0: absent), else nothing."""
        headers = {**_identity(idempotency_key), "Content-Type": "application/json"}
        body = dump({"if": list(if_), "then": list(then)})
        answer = await self._transport.json("POST", "/v1/transactions", {}, headers=headers, body=body)
        return TransactionReceipt(
            answer["version"], answer["versions"], answer["offset"], answer["timestamp"], Token.decode(answer["token"])
        )

    async def resolve(self, idempotency_key: str) -> Outcome:
        """What became of a command: applied, failed, or cancelled now, so that it never will be. Final."""
        path = f"/v1/commands/{quote(idempotency_key, safe='')}:resolve"
        answer = await self._transport.json("POST", path, {})
        return Outcome(answer["outcome"], answer.get("result", {}).get("version"))


class SyncStrongCalls:
    """The same, synchronous; part of Client."""

    _edge: StrongCalls

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        raise NotImplementedError

    def put_strong(
        self,
        key: str,
        value: Any,
        *,
        if_version: int | None = None,
        ttl: float | str | None = None,
        idempotency_key: str | None = None,
    ) -> Receipt:
        """See StrongCalls.put_strong."""
        work = self._edge.put_strong(key, value, if_version=if_version, ttl=ttl, idempotency_key=idempotency_key)
        return self._run(work)

    def delete_strong(self, key: str, *, if_version: int | None = None, idempotency_key: str | None = None) -> Receipt:
        """See StrongCalls.delete_strong."""
        return self._run(self._edge.delete_strong(key, if_version=if_version, idempotency_key=idempotency_key))

    def transact(
        self,
        then: Sequence[dict[str, Any]],
        *,
        if_: Sequence[dict[str, Any]] = (),
        idempotency_key: str | None = None,
    ) -> TransactionReceipt:
        """See StrongCalls.transact."""
        return self._run(self._edge.transact(then, if_=if_, idempotency_key=idempotency_key))

    def resolve(self, idempotency_key: str) -> Outcome:
        """See StrongCalls.resolve."""
        return self._run(self._edge.resolve(idempotency_key))


def _receipt(body: dict[str, Any]) -> Receipt:
    return Receipt(**{**body, "token": Token.decode(body["token"]), "trades": tuple(body.get("trades", ()))})


def _kv(key: str) -> str:
    if not isinstance(key, str):
        raise BadInput(f"{str(key)[:40]!r} is no text", field="key", fix="use keyspace:rest, as in strong:a")
    return "/v1/kv/" + quote(key, safe="")


def _condition(if_version: int | None) -> dict[str, str]:
    if if_version is None:
        return {}
    return {"If-Match": str(if_version)} if if_version else {"If-None-Match": "*"}


def _identity(given: str | None) -> dict[str, str]:
    return {"Idempotency-Key": given or uuid.uuid4().hex}
