"""Deployed machines in the client: commands that are executed once, in one order, and questions."""

from __future__ import annotations

import uuid
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import quote

from streams.client.columns import dump
from streams.client.transport import Transport
from streams.model.token import Token

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class CommandReceipt:
    """What a machine answered: JSON where it is that, else text (bytes that are neither: None). `offset`: where the
    command is in the machine's log; `version`: of the machine, then."""

    result: Any
    offset: int
    version: str
    token: Token


class Machine:
    """A machine by name, as `AsyncClient.machine` gives it."""

    def __init__(self, transport: Transport, name: str) -> None:
        self._transport, self.name = transport, name
        self._path = f"/v1/machines/{quote(name, safe='')}"

    async def send(self, command: Any, *, idempotency_key: str | None = None) -> CommandReceipt:
        """Execute a command (bytes, text, or what becomes JSON), once; returns when it is executed.

        UdfFailed: it trapped, which changed nothing, and is final. Unavailable with `extra["idempotency_key"]`: whether
        it is or will be executed is not known; the same call with that `idempotency_key` tells, through any gateway.
        """
        headers = {"Idempotency-Key": idempotency_key or str(uuid.uuid4()), "Content-Type": "application/octet-stream"}
        answer = await self._transport.json("POST", f"{self._path}/commands", {}, headers=headers, body=_bytes(command))
        return CommandReceipt(answer["result"], answer["offset"], answer["version"], Token.decode(answer["token"]))

    async def query(self, command: Any, *, consistency: str = "strong") -> Any:
        """What a command that changes nothing is answered. `strong`: linearizable; `eventual`: this region's copy.

        Conflict when it would change something.
        """
        query = {"q": _bytes(command).decode(), "consistency": consistency}
        return (await self._transport.json("GET", f"{self._path}/query", query))["result"]

    async def status(self) -> dict[str, Any]:
        """Where this region's replica stands; `state` is equal wherever `offset` is."""
        found: dict[str, Any] = await self._transport.json("GET", self._path, {})
        return found


def _bytes(command: Any) -> bytes:
    if isinstance(command, bytes):
        return command
    return command.encode() if isinstance(command, str) else dump(command)


class MachineCalls:
    """Machines; part of AsyncClient."""

    _transport: Transport

    def machine(self, name: str) -> Machine:
        """A deployed machine. Whether there is one shows when it is used."""
        return Machine(self._transport, name)


class SyncMachine:
    """The same, synchronous."""

    def __init__(self, client: SyncMachineCalls, name: str) -> None:
        self._client, self._machine = client, Machine(client._edge._transport, name)

    def send(self, command: Any, *, idempotency_key: str | None = None) -> CommandReceipt:
        """See Machine.send."""
        return self._client._run(self._machine.send(command, idempotency_key=idempotency_key))

    def query(self, command: Any, *, consistency: str = "strong") -> Any:
        """See Machine.query."""
        return self._client._run(self._machine.query(command, consistency=consistency))

    def status(self) -> dict[str, Any]:
        """See Machine.status."""
        return self._client._run(self._machine.status())


class SyncMachineCalls:
    """The same, synchronous; part of Client."""

    _edge: Any

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        raise NotImplementedError

    def machine(self, name: str) -> SyncMachine:
        """See AsyncClient.machine."""
        return SyncMachine(self, name)
