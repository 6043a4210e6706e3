"""`/v1/machines`: send a deployed machine a command, ask it, and see where its replica here stands."""

from __future__ import annotations

import base64
from typing import Any

from streams.gateway.auth import ANYONE, authorize
from streams.gateway.context import Gateway
from streams.gateway.endpoint import Operation
from streams.gateway.http import Call, Reply, reply
from streams.gateway.machines import Machine, MachineService
from streams.gateway.params import CONSISTENCY, STRING, Param
from streams.gateway.routes_strong import Asked, UnknownWrite, asked_of
from streams.model.errors import BadInput, Conflict, StreamsError, TooLarge, UdfFailed, Unavailable, Unprocessable
from streams.model.token import Input, Token
from streams.sequencer.machine_log import COMMAND_BYTES_MAX, Code, MachineResult, command_record
from streams.sequencer.replica import OutcomeUnknown
from streams.serde import parse_json
from streams.wasm.engine import UdfTrap

NAME = Param("name", "path", "The machine", STRING)
QUERY = Param("q", "query", "A command that changes nothing", STRING, required=True)
_FAILED = "The machine itself failed on this command, on every replica alike; it changed nothing"


class MachineRoutes:
    """Handlers of machines."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def operations(self) -> list[Operation]:
        """The routes."""
        one = "/v1/machines/{name}"
        return [
            Operation("GET", "/v1/machines", self.list_machines, "Deployed machines, as they are here", tag="machines"),
            Operation(
                "GET",
                one,
                self.get_machine,
                "Where this replica stands: equal offsets have equal state hashes",
                "read",
                (NAME,),
                answers={404: "Unknown"},
                tag="machines",
            ),
            Operation(
                "POST",
                one + "/commands",
                self.send,
                "Execute a command, once, in the order of the log, on every replica",
                "write",
                (NAME,),
                {"*/*": {"description": "Whatever the machine takes, at most 1 MiB"}},
                {
                    404: "Unknown",
                    409: "The key's command is over a day old",
                    422: "The key was used for another command",
                    502: _FAILED,
                    503: "Not written, or the outcome is unknown: send it again with its `Idempotency-Key`",
                },
                tag="machines",
                notes="`result` is the machine's answer: JSON where it is that, else text, else null beside "
                "`result_base64`. The same `Idempotency-Key` tells the first result again for a day.",
            ),
            Operation(
                "GET",
                one + "/query",
                self.ask,
                "What a command that changes nothing is answered: linearizable, or `consistency=eventual`",
                "read",
                (NAME, QUERY, CONSISTENCY),
                answers={404: "Unknown", 409: "It would change something", 502: _FAILED},
                tag="machines",
            ),
        ]

    @property
    def _service(self) -> MachineService:
        if self._gateway.machines is None:
            raise Unavailable("this gateway runs no machines", fix="start it with `streams gateway`")
        return self._gateway.machines

    async def _find(self, call: Call, action: str) -> Machine:
        machine = await self._service.find(call.part("name"))
        authorize(call.principal, machine.group, action)
        return machine

    async def list_machines(self, call: Call) -> Reply:
        """Those that the caller may read, by name."""
        who = call.principal
        found = [each for _, each in sorted(self._service.machines.items())]
        shown = [each.describe() for each in found if who is ANYONE or who.may(each.group, "read")]
        return reply({"machines": shown})

    async def get_machine(self, call: Call) -> Reply:
        """One of them."""
        return reply((await self._find(call, "read")).describe())

    async def send(self, call: Call) -> Reply:
        """Append it, wait until it is executed here, answer."""
        machine = await self._find(call, "write")
        body, asked, session = await call.body(), asked_of(call), self._gateway.token_of(call)
        if len(body) > COMMAND_BYTES_MAX:
            raise TooLarge(
                f"the command has {len(body)} bytes, over {COMMAND_BYTES_MAX}", field="body", fix="send less at once"
            )
        try:
            result, offset = await machine.replica.execute(command_record(asked.identity, body))
        except OutcomeUnknown as error:
            raise _unknown(error, asked) from error
        written = Token({Input(self._service.topology.home.name, machine.topic, 0): max(offset, result.offset) + 1})
        headers = ((b"idempotent-replayed", b"true"),) if result.again else ()
        if result.code is not Code.DONE:
            raise _failed(machine, result)
        facts = {
            **_shown(result.body),
            "offset": result.offset,
            "timestamp": result.time_ms,
            "version": result.version,
            "region": self._service.topology.home.name,
            "token": session.merge(written).encode(),
        }
        return reply(facts, headers=headers)

    async def ask(self, call: Call) -> Reply:
        """The answer of now, or of this replica as it is."""
        machine = await self._find(call, "read")
        wanted, text = CONSISTENCY.text(call), QUERY.text(call)
        if wanted not in (None, "strong", "eventual"):
            raise BadInput(f"{str(wanted)[:40]!r} is no consistency", field="consistency", fix="use strong or eventual")
        if text is None or len(text.encode()) > COMMAND_BYTES_MAX:
            raise BadInput("the query is missing, or too long", field="q", fix="?q=COMMAND")
        if wanted != "eventual":
            await machine.replica.linearize()
        try:
            body, offset, version = await machine.ask(text.encode())
        except UdfTrap as trap:
            raise _trapped(machine, version_of(machine), f"{trap.kind.value}: {trap.detail}") from None
        return reply({**_shown(body), "offset": offset, "version": version, "region": self._gateway.region.name})


def version_of(machine: Machine) -> str:
    """The version that executes here."""
    installed = machine.state.installed
    return "" if installed is None else installed.version


def _shown(body: bytes) -> dict[str, Any]:
    """A machine's answer, as JSON can say it."""
    try:
        return {"result": parse_json(body, field="result")}
    except StreamsError:
        pass
    try:
        return {"result": body.decode()}
    except UnicodeDecodeError:
        return {"result": None, "result_base64": base64.b64encode(body).decode()}


def _unknown(error: OutcomeUnknown, asked: Asked) -> UnknownWrite:
    found = UnknownWrite(error.detail, asked.text)
    found.fix = "send the same command with this Idempotency-Key: it is executed once, and answers what became of it"
    return found


def _failed(machine: Machine, result: MachineResult) -> StreamsError:
    if result.code is Code.TRAPPED:
        return _trapped(machine, result.version, result.body.decode(errors="replace"), result.offset)
    if result.code is Code.MISMATCH:
        return Unprocessable(
            "this key was used for another command", field="Idempotency-Key", fix="use a new key for each command"
        )
    if result.code is Code.SPENT:
        return Conflict(
            "this key's command was executed over a day ago: its result is not told any more",
            field="Idempotency-Key",
            fix="use a new key for a new command",
        )
    if result.code is Code.NO_MACHINE:
        return Unavailable(f"machine {machine.name} is not installed yet", fix="try again in a moment")
    return BadInput("the log cannot read this command", field="body")


def _trapped(machine: Machine, version: str, why: str, offset: int | None = None) -> UdfFailed:
    kind, _, detail = why.partition(": ")
    error = UdfFailed(
        f"machine {machine.name} {version} failed: {detail}",
        fix="it is the machine's own fault, and this command changed nothing: see its author",
    )
    error.extra = {"udf": machine.name, "version": version, "trap": kind}
    if offset is not None:
        error.extra["offset"] = offset
    return error
