"""`POST /v1/kv:batch`: many puts in one request, parsed as they arrive, produced in slices."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from streams.gateway.auth import authorize
from streams.gateway.batch_lines import Bad, CsvParser, NdjsonParser, Put, lines_of
from streams.gateway.context import Gateway
from streams.gateway.endpoint import Operation
from streams.gateway.http import Call, Reply, reply
from streams.gateway.params import CAUSAL_TOKEN
from streams.gateway.routes_kv import event_headers
from streams.kafka.batches import Record
from streams.model.errors import BadInput, Conflict, Forbidden, NotFound, StreamsError, TooLarge
from streams.model.keys import keyspace_of, validate_key
from streams.model.keyspace import Keyspace
from streams.model.token import Input, Token

NDJSON, CSV = "application/x-ndjson", "text/csv"
SLICE_LINES = 64
"""Lines handled between two turns of the event loop, so that reads are not held up."""
FLUSH_RECORDS = 4_096
FLUSH_BYTES = 4 << 20
_PARSERS: dict[str, Callable[[], NdjsonParser | CsvParser]] = {
    NDJSON: NdjsonParser,
    "application/ndjson": NdjsonParser,
    "application/jsonl": NdjsonParser,
    CSV: CsvParser,
}


class _Batch:
    """One request in progress: what waits to be produced, what was accepted, what was refused."""

    def __init__(self, gateway: Gateway, call: Call) -> None:
        self._gateway, self._call = gateway, call
        self._waiting: dict[str, list[tuple[int, Record]]] = {}
        self._waiting_records = self._waiting_bytes = 0
        self._known: dict[str, Keyspace] = {}
        self._positions: dict[Input, int] = {}
        self._sending: set[asyncio.Task[None]] = set()
        self._rejected: list[Bad] = []
        self._rejected_count = 0
        self._accepted = 0

    async def take(self, items: Iterable[Put | Bad]) -> None:
        """Queue puts; note bad lines."""
        for item in items:
            if isinstance(item, Bad):
                self._reject(item)
                continue
            try:
                self._queue(item)
            except (BadInput, NotFound, Conflict, Forbidden) as error:
                self._reject(Bad(item.line, str(error)[:300]))
        if self._waiting_records >= FLUSH_RECORDS or self._waiting_bytes >= FLUSH_BYTES:
            await self.flush()

    def _queue(self, put: Put) -> None:
        gateway = self._gateway
        key = validate_key(put.key)
        name = keyspace_of(put.key)
        if name not in self._known:
            authorize(self._call.principal, name, "write")
            keyspace = gateway.definitions.keyspace(name)
            if keyspace.consistency == "strong":
                raise Conflict(f"keyspace {name} is strong, and batches are not sequenced", field="key")
            self._known[name] = keyspace
        keyspace = self._known[name]
        value = gateway.definitions.to_avro(keyspace, put.value)
        if len(value) > gateway.options.body_limit_bytes:
            raise BadInput(f"the value has {len(value)} bytes", field="value", fix="put less in one key")
        headers = event_headers(gateway, keyspace, key, put.ttl_ms)
        self._waiting.setdefault(name, []).append((put.line, (key, value, headers)))
        self._waiting_records += 1
        self._waiting_bytes += len(key) + len(value) + 64

    async def flush(self) -> None:
        """Produce what waits, one slice while the next is being parsed."""
        waiting, self._waiting = self._waiting, {}
        self._waiting_records = self._waiting_bytes = 0
        for name, puts in waiting.items():
            # One slice of a keyspace follows the other: two puts of a key must keep their order in the log.
            if self._sending:
                await self.settled()
            self._sending.add(asyncio.create_task(self._produce(self._known[name], puts)))

    async def settled(self) -> None:
        """Wait for what is in flight; its error, if any, ends the batch."""
        sending, self._sending = self._sending, set()
        if sending:
            await asyncio.gather(*sending)

    async def _produce(self, keyspace: Keyspace, puts: list[tuple[int, Record]]) -> None:
        gateway = self._gateway
        try:
            meta = await gateway.events.put_batch(keyspace.events_topic, [record for _, record in puts])
        except TooLarge as error:
            if len(puts) == 1:
                self._reject(Bad(puts[0][0], str(error)[:300]))
                return
            for single in puts:
                await self._produce(keyspace, [single])
            return
        for partition, position in meta.next_offsets().items():
            where = Input(gateway.region.name, meta.topic, partition)
            self._positions[where] = max(position, self._positions.get(where, 0))
        self._accepted += len(puts)
        gateway.metrics.events.labels(keyspace.name).inc(len(puts))

    def _reject(self, bad: Bad) -> None:
        self._rejected_count += 1
        if len(self._rejected) < self._gateway.options.rejects_max:
            self._rejected.append(bad)

    def answer(self, session: Token) -> Reply:
        """What was accepted and what not."""
        self._gateway.metrics.rejected.labels("").inc(self._rejected_count)
        token = session.merge(Token(self._positions)).encode()
        self._rejected.sort(key=lambda bad: bad.line)
        body = {
            "accepted": self._accepted,
            "rejected": [{"line": bad.line, "reason": bad.reason} for bad in self._rejected],
            "rejected_count": self._rejected_count,
            "token": token,
        }
        return reply(body, headers=((b"causal-token", token.encode()),))

    def interrupted(self, error: StreamsError) -> StreamsError:
        """The error, saying how much was accepted before it."""
        error.detail = f"{error.detail}; {self._accepted} puts had been accepted"
        return error


class BatchRoutes:
    """Handler of batches."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def operations(self) -> list[Operation]:
        """The route."""
        bodies: dict[str, dict[str, object]] = {
            NDJSON: {"description": 'Lines of {"key", "value", "ttl"?}'},
            CSV: {"description": "A header with key and value (or the value's fields), optionally ttl"},
        }
        return [
            Operation(
                "POST",
                "/v1/kv:batch",
                self.put_batch,
                "Put many: good lines are accepted, bad ones listed",
                "write",
                (CAUSAL_TOKEN,),
                bodies,
                {400: "The format is unknown, or the CSV has no usable header", 413: "Body over the limit"},
                tag="keys",
            )
        ]

    async def put_batch(self, call: Call) -> Reply:
        """Parse, produce and answer; memory stays bounded by the slices in flight."""
        parser_class = _PARSERS.get(call.content_type)
        if parser_class is None:
            raise BadInput(
                f"{call.content_type[:80]!r} is no batch format", field="Content-Type", fix=f"send {NDJSON} or {CSV}"
            )
        session = self._gateway.token_of(call)
        parser = parser_class()
        batch = _Batch(self._gateway, call)
        try:
            async for lines in lines_of(call.chunks(self._gateway.options.batch_limit_bytes)):
                for start in range(0, len(lines), SLICE_LINES):
                    await batch.take(parser.feed(lines[start : start + SLICE_LINES]))
                    await asyncio.sleep(0)
            await batch.take(parser.finish())
            await batch.flush()
            await batch.settled()
        except StreamsError as error:
            await _quiet(batch)
            raise batch.interrupted(error) from None
        return batch.answer(session)


async def _quiet(batch: _Batch) -> None:
    """Let what is in flight end before answering; its own error is already being answered."""
    try:
        await batch.settled()
    except StreamsError:
        return
