"""`POST /v1/kv:batch`: many puts in one request, parsed in threads as they arrive, produced in slices."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Protocol

from streams.gateway.batch_sender import Batch, LoadChunk, Slice, in_pool
from streams.gateway.context import Gateway
from streams.gateway.endpoint import Operation
from streams.gateway.http import Call, Reply
from streams.gateway.params import CAUSAL_TOKEN, Param
from streams.kafka.loads import check_load_id, parse_place
from streams.model.errors import BadInput, StreamsError
from streams.model.keys import check_name
from streams.serde import parse_json
from streams.tabular.ipc import ArrowStream, decode
from streams.tabular.judge import Rejection, with_keyspace
from streams.tabular.rows import ArrowRows, Rows
from streams.tabular.text import BlockCutter, CsvBlocks, NdjsonRows

NDJSON, CSV, ARROW = "application/x-ndjson", "text/csv", "application/vnd.apache.arrow.stream"
SLICE_ROWS = 32_768
FEED_BYTES = 256 << 10
TEXT: dict[str, object] = {"type": "string"}
LOAD_ID = Param("Load-Id", "header", "The bulk load that this is a chunk of", TEXT)
LOAD_CHUNK = Param("Load-Chunk", "header", "Which chunk: 0, 1, 2, …", TEXT)
LOAD_DONE = Param("Load-Done", "header", 'What is durable: `durable` of GET /v1/loads/{id}, as {"0": "12.1"}', TEXT)
KEYSPACE = Param("keyspace", "query", "Put before keys that do not begin with it", {"type": "string"})

Found = Iterator[tuple[Rows | None, list[Rejection]]]


class _Parser(Protocol):
    """Rows out of chunks of a body."""

    def feed(self, chunk: bytes) -> Found:
        """The rows that the chunk completes."""
        ...

    def finish(self) -> Found:
        """The rows that the body's end completes."""
        ...


class _TextParser:
    def __init__(self, source: NdjsonRows | CsvBlocks) -> None:
        self._cutter, self._source = BlockCutter(), source

    def feed(self, chunk: bytes) -> Found:
        """The rows that a chunk of text completes."""
        return map(self._source.parse, self._cutter.feed(chunk))

    def finish(self) -> Found:
        """The rows of the last line, which may have no end."""
        yield from map(self._source.parse, self._cutter.finish())
        yield self._source.finish()


class _ArrowParser:
    def __init__(self) -> None:
        self._stream = ArrowStream()
        self._next = 1

    def feed(self, chunk: bytes) -> Found:
        """The rows of the record batches that a chunk completes, in slices."""
        for piece in self._stream.feed(chunk):
            for batch in decode(piece, SLICE_ROWS):
                rows = ArrowRows(batch, self._next)
                self._next += len(batch)
                yield rows, []

    def finish(self) -> Found:
        """None; BadInput when the stream is cut off."""
        self._stream.finish()
        return iter(())


_PARSERS: dict[str, Callable[[], _Parser]] = {
    NDJSON: lambda: _TextParser(NdjsonRows()),
    "application/ndjson": lambda: _TextParser(NdjsonRows()),
    "application/jsonl": lambda: _TextParser(NdjsonRows()),
    CSV: lambda: _TextParser(CsvBlocks()),
    ARROW: _ArrowParser,
}


class BatchRoutes:
    """Handler of batches."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def operations(self) -> list[Operation]:
        """The route."""
        bodies: dict[str, dict[str, object]] = {
            NDJSON: {"description": 'Lines of {"key", "value", "ttl"?}'},
            CSV: {"description": "A header with key and value (or the value's fields), optionally ttl"},
            ARROW: {"description": "An Arrow IPC stream, uncompressed; columns as in CSV; `line` counts rows from 1"},
        }
        return [
            Operation(
                "POST",
                "/v1/kv:batch",
                self.put_batch,
                "Put many: good lines are accepted, bad ones listed",
                "write",
                (CAUSAL_TOKEN, KEYSPACE, LOAD_ID, LOAD_CHUNK, LOAD_DONE),
                bodies,
                {400: "The format is unknown, or the CSV has no usable header", 413: "Body over the limit"},
                tag="keys",
            )
        ]

    async def put_batch(self, call: Call) -> Reply:
        """Parse, produce and answer; memory stays bounded by the slices in flight."""
        make = _PARSERS.get(call.content_type)
        if make is None:
            raise BadInput(
                f"{call.content_type[:80]!r} is no batch format",
                field="Content-Type",
                fix=f"send {NDJSON}, {CSV} or {ARROW}",
            )
        session = self._gateway.token_of(call)
        prefix = KEYSPACE.text(call)
        if prefix is not None:
            check_name(prefix, field="keyspace")
        parser, batch = make(), Batch(self._gateway, call, _load_of(call))
        try:
            async for piece in _pieces(call.chunks(self._gateway.options.batch_limit_bytes)):
                await _drive(batch, parser.feed(piece), prefix)
            await _drive(batch, parser.finish(), prefix)
            await batch.settled()
        except StreamsError as error:
            await _quiet(batch)
            raise batch.interrupted(error) from None
        return batch.answer(session)


def _load_of(call: Call) -> LoadChunk | None:
    ident, chunk = LOAD_ID.text(call), LOAD_CHUNK.text(call)
    if ident is None:
        return None
    check_load_id(ident, "Load-Id")
    if chunk is None or not chunk.isdecimal() or len(chunk) > 15:
        raise BadInput("the chunk's number is missing", field="Load-Chunk", fix="send 0, 1, 2, …")
    done = parse_json(LOAD_DONE.text(call) or "{}", field="Load-Done")
    if type(done) is not dict or not all(type(place) is str and number.isdecimal() for number, place in done.items()):
        raise BadInput("not places by partition", field="Load-Done", fix="send `durable` of GET /v1/loads/{id}")
    durable = {int(number): parse_place(place, "Load-Done") for number, place in done.items()}
    return LoadChunk(ident, int(chunk), durable)


async def _pieces(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The chunks in pieces of about `FEED_BYTES`: each costs a turn of the pool."""
    held: list[bytes] = []
    size = 0
    async for chunk in chunks:
        if len(chunk) >= FEED_BYTES and not held:
            for first in range(0, len(chunk), FEED_BYTES):
                yield chunk[first : first + FEED_BYTES]
            continue
        held.append(chunk)
        size += len(chunk)
        if size >= FEED_BYTES:
            yield b"".join(held)
            held, size = [], 0
    if held:
        yield b"".join(held)


async def _drive(batch: Batch, found: Found, prefix: str | None) -> None:
    """Judge in the pool what the parser finds, there too, and send it."""

    def step() -> tuple[list[Slice], list[Rejection]] | None:
        for rows, bad in found:
            if rows is None or not len(rows.numbers):
                return [], bad
            if prefix is not None:
                rows.keys = with_keyspace(rows.keys, prefix)
            slices, refused = batch.prepare(rows)
            return slices, bad + refused
        return None

    while (made := await in_pool(step)) is not None:
        await batch.take(*made)


async def _quiet(batch: Batch) -> None:
    """Let what is in flight end before answering; its own error is already being answered."""
    try:
        await batch.settled()
    except StreamsError:
        return
