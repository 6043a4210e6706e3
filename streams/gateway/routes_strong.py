"""Strong keyspaces: conditional puts, linearizable reads, `/v1/transactions`, and `/v1/commands/{key}:resolve`."""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass
from typing import Protocol, TypeVar
from urllib.parse import quote, unquote_to_bytes

from streams.gateway.context import Gateway
from streams.gateway.endpoint import Operation
from streams.gateway.http import Call, Headers, Reply, reply
from streams.gateway.idempotency import KEY_CHARACTERS_MAX
from streams.gateway.params import CAUSAL_TOKEN, CONSISTENCY, Param
from streams.gateway.ports import Sequencer
from streams.model.clock import NEVER_MS, ms_of
from streams.model.errors import (
    BadInput,
    Conflict,
    NotFound,
    PreconditionFailed,
    Unavailable,
    Unprocessable,
)
from streams.model.keys import keyspace_of, validate_key
from streams.model.keyspace import Keyspace
from streams.model.row import decode_row
from streams.model.token import Input, Token
from streams.model.ttl import parse_ttl_ms
from streams.sequencer.commands import (
    ABSENT,
    ANY_VERSION,
    Change,
    Code,
    Condition,
    Result,
    command_id,
    resolve,
    transaction,
)
from streams.sequencer.replica import OutcomeUnknown
from streams.serde import parse_json

PARTS_MAX = 128
"""Conditions of a transaction, and changes likewise, at most."""
IDENTITY = Param("key", "path", "The `Idempotency-Key` of the command", {"type": "string"})
_VERSION = re.compile(r'(?:"(\d{1,20})"|(\d{1,20}))\Z')
_RESOLVE = ":resolve"
_EXAMPLE: dict[str, dict[str, object]] = {
    "application/json": {
        "type": "object",
        "properties": {
            "if": {"type": "array", "items": {"type": "object", "required": ["key", "version"]}},
            "then": {"type": "array", "items": {"type": "object"}},
        },
    }
}


@dataclass(frozen=True, slots=True)
class Asked:
    """A command to be sent: its idempotency key as text, and as the log has it."""

    text: str
    identity: bytes


class StrongKeys:
    """What `/v1/kv` does for keys of strong keyspaces."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def put(self, call: Call, key: bytes, keyspace: Keyspace) -> Reply:
        """Put the body's value, if the precondition holds."""
        text = call.query.get("ttl")
        ttl_ms = keyspace.ttl_ms if text is None else parse_ttl_ms(text)
        value = self._gateway.definitions.to_avro(keyspace, parse_json(await call.body()))
        return await self._change(call, Change(key, value, ttl_ms), keyspace)

    async def delete(self, call: Call, key: bytes, keyspace: Keyspace) -> Reply:
        """Delete the key, if the precondition holds; deleting what is not there changes nothing and succeeds."""
        return await self._change(call, Change(key, None), keyspace)

    async def _change(self, call: Call, change: Change, keyspace: Keyspace) -> Reply:
        gateway, group = self._gateway, _group(self._gateway)
        session, asked = gateway.token_of(call), asked_of(call)
        conditions = _precondition(call, change.key)
        result, offset = await execute_on(group, asked, transaction(asked.identity, conditions, [change]))
        headers = _told(result)
        if result.code is Code.FAILED:
            raise Moved(change.key, result.version, "If-Match" if conditions[0].version else "If-None-Match", headers)
        gateway.metrics.events.labels(keyspace.name).inc()
        version = result.version if change.value is not None else 0
        body = {"key": change.key.decode(), "version": version, **_receipt(group, result, session, offset)}
        return reply(body, headers=(*headers, (b"etag", b'"%d"' % version), _token_header(body)))

    async def get(self, call: Call, key: bytes) -> Reply:
        """The row: of the moment of asking, or, if the request says so, of this replica as it is."""
        gateway, group, wanted = self._gateway, _group(self._gateway), CONSISTENCY.text(call)
        if wanted not in (None, "strong", "causal", "eventual"):
            raise BadInput(
                f"{str(wanted)[:40]!r} is no consistency", field="consistency", fix="use strong, causal or eventual"
            )
        table, token = keyspace_of(key), gateway.token_of(call)
        strong = wanted in (None, "strong")
        if strong:
            await group.linearize()
        elif token.positions or "max_staleness" in call.query:
            token, _ = await gateway.settle(call, table)
        row = await self._alive(group, key) if strong else group.row(key)
        headers = gateway.read_headers(token, table)
        now_ms = group.time_ms if strong else gateway.tables.table(table).now_ms()
        if row is None or (found := decode_row(row)).cells[0].expires_ms <= now_ms:
            raise NoValue(key, headers)
        cell = found.cells[0]
        body = {
            "key": key.decode(),
            "value": gateway.definitions.from_avro(cell.payload),
            "expires_at": None if cell.expires_ms == NEVER_MS else cell.expires_ms,
            "timestamp": ms_of(cell.last_hlc),
            "region": group.home,
            "version": found.seq,
        }
        return reply(body, headers=(*headers, (b"etag", b'"%d"' % found.seq)))

    async def _alive(self, group: Sequencer, key: bytes) -> bytes | None:
        """The row; when this machine's clock says that it has expired, the log is asked for its time first.

        Only the log's time expires a row, or two gateways with unlike clocks would answer one after the other.
        """
        row = group.row(key)
        if row is None:
            return None
        expires_ms = decode_row(row).cells[0].expires_ms
        if group.time_ms < expires_ms <= self._gateway.tables.table(keyspace_of(key)).now_ms():
            await group.tick()
            return group.row(key)
        return row


class StrongRoutes:
    """Handlers of transactions and of commands whose outcome is unknown."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def operations(self) -> list[Operation]:
        """The routes."""
        return [
            Operation(
                "POST",
                "/v1/transactions",
                self.transact,
                "Change several keys of strong keyspaces, if all conditions hold: all or nothing",
                "write",
                (CAUSAL_TOKEN,),
                _EXAMPLE,
                {
                    409: "A key is not of a strong keyspace",
                    412: "A version has moved",
                    503: "Not written, or the outcome is unknown: then `idempotency_key` resolves it",
                },
                tag="keys",
            ),
            Operation(
                "POST",
                f"/v1/commands/{{key:any}}{_RESOLVE}",
                self.resolve_command,
                "The result of a strong write, or its cancellation: final either way",
                "write",
                (IDENTITY,),
                answers={409: "Its result is not kept any more", 503: "Not known yet: ask again"},
                tag="keys",
            ),
        ]

    async def transact(self, call: Call) -> Reply:
        """Conditions (`if`) and changes (`then`); version 0 means absent."""
        gateway = self._gateway
        body = parse_json(await call.body())
        if type(body) is not dict:
            raise BadInput("the transaction is no object", field="body", fix='send {"if": […], "then": […]}')
        if unknown := body.keys() - {"if", "then"}:
            raise BadInput("there is no such field", field=min(unknown)[:80], fix="use if and then")
        tests, steps = _list(body, "if"), _list(body, "then")
        if not tests and not steps:
            raise BadInput("the transaction is empty", field="then", fix='give [{"put": key, "value": v}]')
        conditions = [self._condition(call, each, f"if[{index}]") for index, each in enumerate(tests)]
        changes = [self._step(call, each, f"then[{index}]") for index, each in enumerate(steps)]
        for name, keys in (("if", [each.key for each in conditions]), ("then", [each.key for each in changes])):
            if twice := next((index for index, key in enumerate(keys) if key in keys[:index]), None):
                raise BadInput("the key is named twice", field=f"{name}[{twice}]", fix="name each key once")
        group, session, asked = _group(gateway), gateway.token_of(call), asked_of(call)
        result, offset = await execute_on(group, asked, transaction(asked.identity, conditions, changes))
        headers = _told(result)
        if result.code is Code.FAILED:
            raise Moved(conditions[result.condition].key, result.version, f"if[{result.condition}]", headers)
        for change in changes:
            gateway.metrics.events.labels(keyspace_of(change.key)).inc()
        answer = {"version": result.version, **_receipt(group, result, session, offset)}
        answer["versions"] = {c.key.decode(): result.version if c.value is not None else 0 for c in changes}
        return reply(answer, headers=(*headers, _token_header(answer)))

    async def resolve_command(self, call: Call) -> Reply:
        """What became of the command; if nothing did, nothing will."""
        raw: bytes = call.scope.get("raw_path") or str(call.scope["path"]).encode()
        key = unquote_to_bytes(raw.split(b"/", 3)[3])[: -len(_RESOLVE)]
        if not 1 <= len(key) <= KEY_CHARACTERS_MAX:
            raise BadInput("the key has no or too many characters", field="key", fix="give the command's key")
        text = key.decode("latin-1")
        group = _group(self._gateway)
        asked = Asked(text, command_id(call.principal.name, key))
        if (traded := await resolved_order(self._gateway, asked)) is not None:
            return traded
        result, offset = await execute_on(group, asked, resolve(asked.identity), resolving=True)
        outcomes = {Code.APPLIED: "applied", Code.FAILED: "failed", Code.CANCELLED: "cancelled"}
        found: dict[str, object] = {"idempotency_key": text, "outcome": outcomes[result.code]}
        if result.code is not Code.CANCELLED:
            found["status"] = 200 if result.code is Code.APPLIED else 412
            found["result"] = {"version": result.version, **_receipt(group, result, Token(), offset)}
        return reply(found)

    def _condition(self, call: Call, body: object, field: str) -> Condition:
        if type(body) is not dict or body.keys() != {"key", "version"}:
            raise BadInput("a condition is key and version", field=field, fix='use {"key": "strong:a", "version": 0}')
        version = body["version"]
        if type(version) is not int or not 0 <= version < ANY_VERSION:
            raise BadInput("the version is no whole number", field=f"{field}.version", fix="0 means absent")
        key, _ = self._strong_key(call, body["key"], "read", f"{field}.key")
        return Condition(key, version)

    def _step(self, call: Call, body: object, field: str) -> Change:
        if type(body) is dict and body.keys() == {"delete"}:
            return Change(self._strong_key(call, body["delete"], "write", f"{field}.delete")[0], None)
        if type(body) is not dict or not {"put", "value"} <= body.keys() <= {"put", "value", "ttl"}:
            raise BadInput(
                "a change is put and value, or delete", field=field, fix='use {"put": "strong:a", "value": 1}'
            )
        key, keyspace = self._strong_key(call, body["put"], "write", f"{field}.put")
        ttl = body.get("ttl")
        ttl_ms = keyspace.ttl_ms if ttl is None else parse_ttl_ms(ttl, field=f"{field}.ttl")
        try:
            value = self._gateway.definitions.to_avro(keyspace, body["value"])
        except BadInput as error:
            raise BadInput(error.detail, field=f"{field}.{error.field or 'value'}", fix=error.fix) from None
        return Change(key, value, ttl_ms)

    def _strong_key(self, call: Call, text: object, action: str, field: str) -> tuple[bytes, Keyspace]:
        if type(text) is not str:
            raise BadInput("the key is no text", field=field, fix="use keyspace:rest, as in strong:a")
        try:
            key = validate_key(text)
            keyspace = self._gateway.keyspace(call, keyspace_of(key), action)
        except (BadInput, NotFound) as error:
            raise type(error)(error.detail, field=field, fix=error.fix) from None
        if not keyspace.is_strong:
            raise Conflict(
                f"keyspace {keyspace.name} is {keyspace.consistency}: its writes are not sequenced",
                field=field,
                fix="a transaction takes keys of strong keyspaces only",
            )
        return key, keyspace


async def resolved_order(gateway: Gateway, asked: Asked) -> Reply | None:
    """The result of an order under this key; None when there is none, and then there never will be.

    A key is of one of two logs: it is cancelled in the orders' before the other one is asked. The order placed again,
    under whatever key, gets its whole first answer.
    """
    if gateway.trading is None:
        return None
    result, _ = await execute_on(gateway.trading, asked, resolve(asked.identity), resolving=True)
    if result.code is Code.CANCELLED:
        return None
    applied = result.code is Code.APPLIED
    found: dict[str, object] = {"offset": result.offset, "timestamp": result.time_ms}
    if len(result):
        outcome = result.outcome(0)
        told = {
            "price": outcome.price,
            "quantity": outcome.quantity,
            "status": outcome.status,
            "filled": outcome.filled,
        }
        found |= {"reason": None if applied else outcome.why.name.lower(), "order": told if outcome.status else None}
    body = {"idempotency_key": asked.text, "outcome": "applied" if applied else "failed", "result": found}
    return reply(body | {"status": 200 if applied else 409})


class NoValue(NotFound):
    """The key was absent, or had expired, at the moment of the read."""

    title = "no value"

    def __init__(self, key: bytes, headers: Headers) -> None:
        super().__init__(
            f"{key.decode()[:200]} has no value", field="key", fix="it was never put, was deleted, or has expired"
        )
        self.headers = headers
        self.extra = {"version": 0}


def _group(gateway: Gateway) -> Sequencer:
    if gateway.strong is None:
        raise Conflict("this gateway has no sequencer", field="consistency", fix="use an eventual or causal keyspace")
    return gateway.strong


def asked_of(call: Call) -> Asked:
    """The request's idempotency key, or a new one."""
    text = call.header(b"idempotency-key")
    if text is None:
        text = uuid.uuid4().hex
    elif not 1 <= len(text) <= KEY_CHARACTERS_MAX:
        raise BadInput(
            "the key has no or too many characters",
            field="Idempotency-Key",
            fix=f"use 1 to {KEY_CHARACTERS_MAX} characters, such as a UUID",
        )
    return Asked(text, command_id(call.principal.name, text.encode("latin-1")))


def _precondition(call: Call, key: bytes) -> list[Condition]:
    match, none_match = call.header(b"if-match"), call.header(b"if-none-match")
    if match is not None and none_match is not None:
        raise BadInput("two conditions on one key", field="If-None-Match", fix="send If-Match or If-None-Match")
    if none_match is not None:
        if none_match.strip() != "*":
            raise BadInput("only * is read", field="If-None-Match", fix="send If-None-Match: * to create")
        return [Condition(key, ABSENT)]
    if match is None:
        return []
    if match.strip() == "*":
        return [Condition(key, ANY_VERSION)]
    found = _VERSION.match(match.strip())
    version = int(found[1] or found[2]) if found else ANY_VERSION
    if version >= ANY_VERSION:
        raise BadInput(
            f"{match[:40]!r} is no version", field="If-Match", fix="send the version that a read or put answered, or *"
        )
    return [Condition(key, version)]


class _Result(Protocol):
    @property
    def code(self) -> Code:
        """What became of the command."""
        ...


R = TypeVar("R", bound=_Result, covariant=True)


class _Group(Protocol[R]):
    async def execute(self, command: bytes) -> tuple[R, int]:
        """The result and the offset of a command of this group; OutcomeUnknown."""
        ...


async def execute_on(group: _Group[R], asked: Asked, command: bytes, *, resolving: bool = False) -> tuple[R, int]:
    """The command's result and offset; errors for what was not executed."""
    try:
        result, offset = await group.execute(command)
    except OutcomeUnknown as error:
        raise UnknownWrite(error.detail, asked.text) from error
    if result.code is Code.MISMATCH:
        raise Unprocessable(
            "this key was used for another request", field="Idempotency-Key", fix="use a new key for each request"
        )
    if result.code is Code.SPENT:
        raise Conflict(
            "this key's command was executed too long ago: its result is not kept any more",
            field="Idempotency-Key",
            fix="read what you wrote; use a new key for a new command",
        )
    if result.code is Code.CANCELLED and not resolving:
        raise Conflict("this command was cancelled by :resolve", field="Idempotency-Key", fix="send it with a new key")
    if result.code is Code.MALFORMED:
        raise BadInput("the sequencer cannot read this command", field="body")
    return result, offset


class UnknownWrite(Unavailable):
    """Whether the write was or will be executed is not known; `idempotency_key` is what to resolve it by."""

    title = "outcome unknown"

    def __init__(self, why: str, key: str) -> None:
        super().__init__(
            f"the outcome is not known: {why}",
            fix=f"POST /v1/commands/{quote(key, safe='')}:resolve, or send the same request with this Idempotency-Key",
        )
        self.extra = {"idempotency_key": key}


class Moved(PreconditionFailed):
    """A condition did not hold: the key's present version is in the problem, 0 when it is absent."""

    def __init__(self, key: bytes, version: int, field: str, headers: Headers) -> None:
        has = f"has version {version}" if version else "has no value"
        super().__init__(f"{key.decode()[:200]} {has}", field=field, fix="read it, and decide again")
        self.extra = {"key": key.decode(), "version": version}
        self.headers = headers


def _told(result: Result) -> Headers:
    return ((b"idempotent-replayed", b"true"),) if result.again else ()


def _receipt(group: Sequencer, result: Result, session: Token, offset: int) -> dict[str, object]:
    """Where the command is in the log. The token also covers what told the result again."""
    written = Token({Input(group.home, group.topic, 0): max(offset, result.offset) + 1})
    return {
        "topic": group.topic,
        "partition": 0,
        "offset": result.offset,
        "region": group.home,
        "timestamp": result.time_ms,
        "token": session.merge(written).encode(),
    }


def _token_header(body: dict[str, object]) -> tuple[bytes, bytes]:
    return b"causal-token", str(body["token"]).encode()


def _list(body: dict[str, object], name: str) -> list[object]:
    found = body.get(name, [])
    if type(found) is not list:
        raise BadInput("is no list", field=name, fix="give a list")
    if len(found) > PARTS_MAX:
        raise BadInput(f"has {len(found)} entries, over {PARTS_MAX}", field=name, fix="use several transactions")
    return found
