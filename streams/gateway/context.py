"""`Gateway`: what handlers work with — the region, its tables, its log — and the waits that reads ask for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from streams.edge.edge_table import EdgeTable
from streams.gateway.auth import Authority, authorize
from streams.gateway.functions import FunctionService
from streams.gateway.http import Call, Headers
from streams.gateway.idempotency import IdempotencyOptions, IdempotencyStore
from streams.gateway.machines import MachineService
from streams.gateway.metrics import Metrics
from streams.gateway.params import CONSISTENCY, MAX_STALENESS
from streams.gateway.peers import Peers
from streams.gateway.ports import Catalogue, EventLog, Sequencer, Tables
from streams.gateway.probes import Probes
from streams.gateway.subscribers import StreamOptions, Subscribers
from streams.gateway.trading import Trading
from streams.gateway.udfs import UdfService
from streams.model.clock import NEVER_MS, HybridClock, ms_of
from streams.model.errors import BadInput, Conflict, Timeout
from streams.model.keyspace import RESERVED, Keyspace
from streams.model.merge import Merged
from streams.model.token import Token
from streams.model.topology import Region, Topology
from streams.use_cases.routing.geoip import GeoIp
from streams.use_cases.telemetry import TelemetryService

_STALENESS_POLL_S = 0.01


@dataclass(frozen=True, slots=True)
class GatewayOptions:
    """Limits. `wait_s` bounds the waits of reads; `rejects_max` the bad lines that a batch's answer lists."""

    body_limit_bytes: int = 16 << 20
    batch_limit_bytes: int = 1 << 30
    wait_s: float = 5.0
    rejects_max: int = 1_000
    streams: StreamOptions = StreamOptions()  # noqa: RUF009
    ready_staleness_ms: int = 5_000
    idempotency: IdempotencyOptions = field(default_factory=IdempotencyOptions)


async def _always_ready() -> str | None:
    return None


async def _no_logs() -> dict[str, int]:
    return {}


async def _no_topics(_keyspace: Keyspace) -> None:
    return


@dataclass(slots=True)
class Gateway:
    """One region's gateway.

    `unready` says why the region cannot serve yet, None when it can; `create_topics` makes a new keyspace's topics
    here. `copied_ms` tells how old the copy of each other region's tables is, None where there is none yet.
    `log_bytes` tells the topics' sizes on the brokers' disks, `purges` how many were emitted. `strong`: the
    sequencer, if there is one; `trading`: the order books. `udfs`: those deployed; `functions`: those that run
    here. `started`: until then only open routes are served. `closing` is set when the gateway stops: streams end
    then.
    """

    topology: Topology
    region: Region
    tables: Tables
    events: EventLog
    definitions: Catalogue
    options: GatewayOptions = GatewayOptions()
    authority: Authority = field(default_factory=Authority)
    unready: Callable[[], Awaitable[str | None]] = _always_ready
    create_topics: Callable[[Keyspace], Awaitable[None]] = _no_topics
    log_bytes: Callable[[], Awaitable[dict[str, int]]] = _no_logs
    copied_ms: Callable[[], dict[str, int | None]] = dict
    purges: Callable[[], int] = int
    strong: Sequencer | None = None
    trading: Trading | None = None
    machines: MachineService | None = None
    started: bool = True
    udfs: UdfService | None = None
    functions: FunctionService | None = None
    clock: HybridClock = field(default_factory=HybridClock)
    metrics: Metrics = field(default_factory=Metrics)
    closing: asyncio.Event = field(default_factory=asyncio.Event)
    telemetry: TelemetryService = field(default_factory=TelemetryService)
    idempotency: IdempotencyStore = field(init=False)
    subscribers: Subscribers = field(init=False)
    peers: Peers = field(init=False)
    probes: Probes = field(init=False)
    geoip: GeoIp | None = None

    def __post_init__(self) -> None:
        self.idempotency = IdempotencyStore(self.options.idempotency)
        self.subscribers = Subscribers(self.options.streams, self.metrics)
        self.peers = Peers(self.topology)
        self.probes = Probes(self.peers, self.topology, self.region.name, lambda: self.unready())

    @property
    def body_limit_bytes(self) -> int:
        """Largest body that is read into memory."""
        return self.options.body_limit_bytes

    def keyspace(self, call: Call, name: str, action: str) -> Keyspace:
        """A keyspace that the caller may use; NotFound, Forbidden, Conflict for a reserved name."""
        authorize(call.principal, name, action)
        if name in RESERVED and name not in self.definitions.keyspaces:
            raise Conflict(f"keyspace {name} is reserved: {RESERVED[name]}", field="key", fix="use another keyspace")
        return self.definitions.keyspace(name)

    def table(self, call: Call, name: str) -> EdgeTable:
        """A table that the caller may read; NotFound, Forbidden."""
        table = self.tables.table(name)
        for keyspace in table.spec.keyspaces:
            authorize(call.principal, keyspace, "read")
        return table

    async def settle(self, call: Call, table: str) -> tuple[Token, Headers]:
        """Wait for what the request asks for (token, staleness); its token and the headers of the answer.

        Timeout after `wait_s`, so that the client may go to another region.
        """
        token = self.token_of(call)
        await self.await_token(token, table)
        limit_ms = MAX_STALENESS.read(call)
        if limit_ms is not None:
            await self._await_freshness(table, limit_ms)
        return token, self.read_headers(token, table)

    def read_headers(self, token: Token, table: str) -> Headers:
        """The token after a read of `table` — what came with the request and what was applied — and its age."""
        merged = token.merge(self.tables.applied_by(table))
        stale = self.tables.staleness_ms(table)
        return (
            (b"causal-token", merged.encode().encode()),
            (b"staleness-ms", b"%d" % stale),
        )

    def token_of(self, call: Call) -> Token:
        """The request's token; BadInput when it is malformed or names a region that is not of this system."""
        token = Token.decode(call.header(b"causal-token"))
        names = self.topology.names
        for position in token.positions:
            if position.origin not in names:
                raise BadInput(
                    f"the token names the region {position.origin[:40]!r}, which is not of this system",
                    field="Causal-Token",
                    fix="send back the Causal-Token of an earlier answer of this system",
                )
        return token

    async def await_token(self, token: Token, table: str | None = None) -> None:
        """Return once `token` is visible here; Timeout after `wait_s`.

        Visible in `table`, as far as it takes the events named, else in their keyspaces' own tables: a further table
        that is behind holds up only those who read it.
        """
        if not token.positions:
            return
        await self._know(token)
        try:
            await asyncio.gather(
                *(self.tables.wait_for(part, self.options.wait_s, name) for name, part in self._split(token, table))
            )
        except Timeout as error:
            raise Timeout(
                f"this region has not caught up with the token: {error.detail}",
                field="Causal-Token",
                fix="try again, or read in the region where the write was made",
                retry_after_s=error.retry_after_s,
            ) from None

    def _split(self, token: Token, table: str | None) -> list[tuple[str | None, Token]]:
        """The token's parts, and the table that each must be visible in; None: in all, for topics of no keyspace."""
        inputs = () if table is None else self.tables.table(table).spec.inputs
        parts: dict[str | None, list[str]] = {}
        for topic in {position.topic for position in token.positions}:
            own = topic.removeprefix("events.")
            where = table if topic in inputs else own if own in self.tables.tables else None
            parts.setdefault(where, []).append(topic)
        return [(where, token.restrict(topics)) for where, topics in parts.items()]

    async def learn(self, call: Call, name: str) -> None:
        """Wait, at most `wait_s`, for the keyspaces in the request's token when `name` is none of the known ones:
        another region may have defined it a moment ago, and its definition may be later here than its client."""
        if name not in self.tables.tables:
            await self._know(self.token_of(call))

    async def _know(self, token: Token) -> None:
        topics = {position.topic for position in token.positions}
        wanted = {topic.removeprefix("events.") for topic in topics if topic.startswith("events.")}
        deadline = time.monotonic() + self.options.wait_s
        while not wanted <= self.tables.tables.keys():
            if time.monotonic() >= deadline:
                return
            await asyncio.sleep(_STALENESS_POLL_S)

    async def _await_freshness(self, table: str, limit_ms: int) -> None:
        deadline = time.monotonic() + self.options.wait_s
        while (stale := self.tables.staleness_ms(table)) > limit_ms:
            if time.monotonic() >= deadline:
                raise Timeout(
                    f"the table is {stale} ms old, over the {limit_ms} ms asked for",
                    field="max_staleness",
                    fix="try again, allow more, or read in another region",
                )
            await asyncio.sleep(_STALENESS_POLL_S)

    def value_of(self, merged: Merged) -> object:
        """A row's value as JSON."""
        value = merged.value
        return self.definitions.from_avro(value) if isinstance(value, bytes) else value

    def row_of(self, key: bytes, merged: Merged) -> dict[str, object]:
        """A row as reads answer it. Times are epoch milliseconds; `expires_at` null: never."""
        return {
            "key": key.decode(),
            "value": self.value_of(merged),
            "expires_at": None if merged.expires_ms == NEVER_MS else merged.expires_ms,
            "timestamp": ms_of(merged.last_hlc),
            "region": merged.origin,
        }


def refuse_strong(call: Call, keyspace: Keyspace) -> None:
    """Conflict, with the reason, for what only strong keyspaces can do."""
    wanted = CONSISTENCY.text(call)
    if wanted not in (None, "eventual", "causal", "strong"):
        raise BadInput(
            f"{str(wanted)[:40]!r} is no consistency", field="consistency", fix="use eventual, causal or strong"
        )
    if wanted == "strong":
        raise Conflict(
            f"keyspace {keyspace.name} is {keyspace.consistency}: its writes are not sequenced, so no read is strong",
            field="consistency",
            fix="leave it out, or keep the data in a strong keyspace",
        )
    if call.header(b"if-match") is not None or call.header(b"if-none-match") is not None:
        raise Conflict(
            f"keyspace {keyspace.name} is {keyspace.consistency}: its keys have no version to compare",
            field="If-Match",
            fix="leave it out, or keep the data in a strong keyspace",
        )


def refuse_sequenced(keyspace: Keyspace) -> None:
    """Conflict for what is done with events, which a strong keyspace does not have."""
    if keyspace.is_strong:
        raise Conflict(
            f"keyspace {keyspace.name} is strong: its writes are commands in one sequence, not events",
            field="keyspace",
            fix=f"put key by key or in /v1/transactions; follow /v1/tables/{keyspace.name}:watch",
        )
