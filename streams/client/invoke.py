"""Functions in the client: run one at an edge, and at the next one when that fails, as far as that is safe."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import quote

import aiohttp
import orjson

from streams.client.columns import dump
from streams.client.routing import RouteDecision, RouteNode
from streams.client.transport import CONNECT_S, Transport, problem
from streams.model.errors import BadInput, NotFound, StreamsError, Timeout, TooManyRequests, Unavailable

T = TypeVar("T")
DEADLINE_S = 10.0
ROUNDS = 2
"""How often each node is asked at most."""
PAUSE_S = 0.1
FACTS_S = 2.0
"""How long a node may take to say whether a function is idempotent."""
DECISIONS_MAX = 256
FUNCTION_HEADER = "Streams-Region"
"""In every answer of a function; a problem without it is the gateway's."""


@dataclass(frozen=True, slots=True)
class Invocation:
    """What a function answered. `headers` by lower-case name; `region`, `url`: who ran it; `tries`: requests sent."""

    status: int
    content_type: str
    headers: Mapping[str, str]
    body: bytes = field(repr=False)
    region: str
    url: str
    tries: int

    @property
    def text(self) -> str:
        """The body as UTF-8."""
        return self.body.decode(errors="replace")

    def __str__(self) -> str:
        """The body as UTF-8."""
        return self.text

    def json(self) -> Any:
        """The body as JSON; ValueError when it is none."""
        return orjson.loads(self.body)


@dataclass(frozen=True, slots=True)
class _Ask:
    """One invocation, wherever it goes."""

    name: str
    body: bytes
    headers: dict[str, str]
    query: dict[str, str]
    until_s: float
    keyed: bool

    @property
    def path(self) -> str:
        """Where a node takes it."""
        return f"/v1/functions/{quote(self.name, safe='')}"

    @property
    def left_s(self) -> float:
        """Seconds to its deadline; negative once that is over."""
        return self.until_s - time.monotonic()


class InvokeCalls:
    """The calls that run functions; part of AsyncClient.

    Another node, or the same again, is asked only when that is safe: nothing of the request was sent, or the node says
    that it did not run it, or the function is idempotent by its manifest, or the call has an `idempotency_key`. (A node
    remembers keys by itself: under a key, a function that ran at a node which then died may run at the next one, too.)
    Otherwise Unavailable or Timeout say that it may have run. Errors of the function itself (UdfFailed; Timeout with
    `extra["udf"]`) are the same everywhere and not tried again; what the function answers, a 4xx too, is returned.
    """

    _transport: Transport
    _others: dict[str, Transport]
    _decisions: OrderedDict[str, tuple[RouteNode, ...]]
    _idempotent: dict[str, bool]

    def _begin_invoking(self) -> None:
        self._others, self._decisions, self._idempotent = {}, OrderedDict(), {}

    def _remember(self, decision: RouteDecision) -> RouteDecision:
        """Where else to go when this decision's node fails."""
        self._decisions[decision.primary_node] = decision.nodes
        self._decisions.move_to_end(decision.primary_node)
        while len(self._decisions) > DECISIONS_MAX:
            self._decisions.popitem(last=False)
        return decision

    async def _close_others(self) -> None:
        others, self._others = self._others, {}
        for each in others.values():
            await each.close()

    async def invoke(
        self,
        name: str,
        body: Any = None,
        *,
        deadline_s: float = DEADLINE_S,
        content_type: str | None = None,
        query: Mapping[str, str] | None = None,
        user: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> Invocation:
        """Run a function at this session's gateway. `body`: bytes, text, or what is sent as JSON; `user`: attributes.

        What the function has put is durable when this returns. NotFound: no such function. See also InvokeCalls.
        """
        ask = _ask(name, body, deadline_s, content_type, query, user, idempotency_key)
        return await self._run_at([self._transport.url], ask)

    async def execute_at_edge(
        self,
        node: str | RouteNode | RouteDecision,
        name: str,
        body: Any = None,
        *,
        deadline_s: float = DEADLINE_S,
        content_type: str | None = None,
        query: Mapping[str, str] | None = None,
        user: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> Invocation:
        """Run a function at a node: a decision, one of its nodes, or a node's name, as in `decision.primary_node`.

        When the node fails, at the fallbacks of the decision that `route` gave (else the other gateways, by round
        trip), all within `deadline_s`. NotFound: no such node, or no such function anywhere. See also InvokeCalls.
        """
        ask = _ask(name, body, deadline_s, content_type, query, user, idempotency_key)
        return await self._run_at([each.url for each in await self._nodes(node)], ask)

    async def _nodes(self, node: str | RouteNode | RouteDecision) -> Sequence[RouteNode]:
        if isinstance(node, RouteDecision):
            return node.nodes
        name = node.node if isinstance(node, RouteNode) else node
        if not isinstance(name, str):
            raise BadInput(f"{str(node)[:60]!r} is no node", field="node", fix="give decision.primary_node")
        known = self._decisions.get(name)
        if known is not None:
            return known
        rows = (await self._transport.json("GET", "/v1/gateways", {}))["gateways"]
        rows.sort(key=lambda row: (row["node"] != name, not row["healthy"], row["rtt_ms"] or 0.0))
        found = [RouteNode(row["node"], row["region"], row["url"], None, row["rtt_ms"]) for row in rows]
        if isinstance(node, RouteNode):
            return [node, *(each for each in found if each.url != node.url)]
        if not found or found[0].node != name:
            names = ", ".join(each.node for each in found)
            raise NotFound(f"there is no node {name[:60]!r}", field="node", fix=f"use one of {names}")
        return found

    async def _run_at(self, urls: Sequence[str], ask: _Ask) -> Invocation:
        tries, error = 0, StreamsError("no node was given")
        for round_ in range(ROUNDS):
            if round_ and ask.left_s > PAUSE_S:
                await asyncio.sleep(PAUSE_S)
            for place, url in enumerate(urls):
                if ask.left_s <= 0:
                    break
                tries += 1
                rest = [*urls[place + 1 :], *urls[:place]]
                try:
                    return await self._once(url, ask, tries, bool(rest))
                except _NotRun as failure:
                    error = failure.error
                except _MaybeRun as failure:
                    error = failure.error
                    if not await self._may_repeat(ask, [*rest, url]):
                        error.extra = {**error.extra, "executed": "unknown"}
                        error.fix = "look whether it ran; give an idempotency_key, or deploy it with idempotent = true"
                        raise error from failure
            if isinstance(error, NotFound):
                break
        if ask.left_s <= 0 and isinstance(error, Unavailable):
            raise Timeout(
                f"no node has answered within the deadline; the last: {error.detail}", fix=error.fix
            ) from error
        raise error

    async def _once(self, url: str, ask: _Ask, tries: int, others: bool) -> Invocation:
        """One request. _NotRun and _MaybeRun hold what may be tried elsewhere; other errors are final."""
        transport = self._at(url)
        repeatable = ask.keyed or self._idempotent.get(ask.name, False)
        # A node that hangs must leave time for the next one, where there may be a next one.
        total_s = ask.left_s / 2 if others and repeatable else ask.left_s
        timeout = aiohttp.ClientTimeout(total=total_s, sock_connect=min(CONNECT_S, ask.left_s / 2))
        try:
            status, headers, raw = await transport.exchange("POST", ask.path, ask.query, ask.headers, ask.body, timeout)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise _NotRun(Unavailable(f"{url} cannot be reached: {error or type(error).__name__}")) from error
        except TimeoutError as error:
            raise _MaybeRun(Timeout(f"{url} has not answered within {total_s:.3g} s; it may have run")) from error
        except aiohttp.ClientError as error:
            what = f"{url} broke off, and may have run it: {error or type(error).__name__}"
            raise _MaybeRun(Unavailable(what)) from error
        finally:
            self._transport.token = self._transport.token.merge(transport.token)
        given = {name.lower(): value for name, value in headers.items()}
        if FUNCTION_HEADER.lower() not in given:
            raise _judged(problem(status, headers, raw))
        if len(self._idempotent) > DECISIONS_MAX:
            self._idempotent.clear()
        self._idempotent[ask.name] = given.get("streams-idempotent") == "true"
        kind, region = given.get("content-type", ""), given[FUNCTION_HEADER.lower()]
        return Invocation(status, kind, given, raw, region, url, tries)

    async def _may_repeat(self, ask: _Ask, urls: Sequence[str]) -> bool:
        if ask.keyed or self._idempotent.get(ask.name, False):
            return True
        for url in urls:
            if ask.left_s <= 0:
                break
            timeout = aiohttp.ClientTimeout(total=min(FACTS_S, ask.left_s))
            try:
                status, _, raw = await self._at(url).exchange("GET", ask.path, {}, {}, None, timeout)
            except (aiohttp.ClientError, TimeoutError):
                continue
            if status == 200:
                return bool(orjson.loads(raw)["idempotent"])
        return False

    def _at(self, url: str) -> Transport:
        if url == self._transport.url:
            return self._transport
        found = self._others.get(url)
        if found is None:
            found = self._others[url] = self._transport.twin(url)
        found.token = found.token.merge(self._transport.token)
        return found


class _NotRun(Exception):
    """The function was not run: it may be asked for elsewhere."""

    def __init__(self, error: StreamsError) -> None:
        super().__init__(str(error))
        self.error = error


class _MaybeRun(Exception):
    """Nobody knows whether it was run."""

    def __init__(self, error: StreamsError) -> None:
        super().__init__(str(error))
        self.error = error


def _judged(error: StreamsError) -> Exception:
    if isinstance(error, Unavailable) and error.extra.get("executed"):
        return _MaybeRun(error)
    behind = isinstance(error, Timeout) and error.field == "Causal-Token"
    if behind or isinstance(error, Unavailable | TooManyRequests | NotFound):
        return _NotRun(error)
    if isinstance(error, Timeout) and error.extra.get("executed"):
        return _MaybeRun(error)
    return error


def _ask(
    name: str,
    body: Any,
    deadline_s: float,
    content_type: str | None,
    query: Mapping[str, str] | None,
    user: Mapping[str, Any] | None,
    idempotency_key: str | None,
) -> _Ask:
    if not isinstance(name, str) or not name:
        raise BadInput(f"{str(name)[:40]!r} names no function", field="name", fix="as in handle_request")
    if not 0 < deadline_s <= 3600:
        raise BadInput(f"{deadline_s!r} is not from 0 to 3600 seconds", field="deadline_s", fix="as in 10.0")
    if isinstance(body, bytes | bytearray | memoryview):
        raw, kind = bytes(body), "application/octet-stream"
    elif isinstance(body, str):
        raw, kind = body.encode(), "text/plain; charset=utf-8"
    else:
        raw, kind = (b"", "application/octet-stream") if body is None else (dump(body), "application/json")
    headers = {"Content-Type": content_type or kind}
    if user is not None:
        headers["Streams-User"] = orjson.dumps(dict(user)).decode()
    if idempotency_key is not None:
        headers["Idempotency-Key"] = idempotency_key
    until_s = time.monotonic() + deadline_s
    return _Ask(name, raw, headers, dict(query or {}), until_s, idempotency_key is not None)


class SyncInvokeCalls:
    """The same, synchronous; part of Client."""

    _edge: InvokeCalls

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        raise NotImplementedError

    def invoke(self, name: str, body: Any = None, **options: Any) -> Invocation:
        """See InvokeCalls.invoke, whose options it takes."""
        return self._run(self._edge.invoke(name, body, **options))

    def execute_at_edge(
        self, node: str | RouteNode | RouteDecision, name: str, body: Any = None, **options: Any
    ) -> Invocation:
        """See InvokeCalls.execute_at_edge, whose options it takes."""
        return self._run(self._edge.execute_at_edge(node, name, body, **options))
