"""Files as rows in chunks that are the same each time they are read, and rows as files."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import IO, Any, NamedTuple, Protocol

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from streams.model.errors import BadInput
from streams.tabular.judge import Rejection, with_keyspace
from streams.tabular.rows import ArrowRows, Rows
from streams.tabular.shape import Shape
from streams.tabular.text import BlockCutter, CsvBlocks, NdjsonRows

FORMATS = {
    ".csv": "csv", ".ndjson": "ndjson", ".jsonl": "ndjson", ".json": "ndjson",
    ".parquet": "parquet", ".arrow": "arrow", ".feather": "arrow", ".arrows": "arrow",
}  # fmt: skip
"""Format by suffix."""

CHUNK_ROWS = 16_384
_READ_BYTES = 1 << 20


class Chunk(NamedTuple):
    """Some rows, those that are none, and how far into the file (bytes or rows, of `total`) they reach."""

    rows: Rows | None
    rejections: list[Rejection]
    position: int


def chunks_of(source: IO[bytes], kind: str, keyspace: str, shape: Shape) -> Iterator[Chunk]:
    """The file's rows, keys whole. The same file, options and version give the same chunks. BadInput."""
    found = _text_chunks(source, kind, shape) if kind in ("csv", "ndjson") else _arrow_chunks(source, kind, shape)
    for chunk in found:
        if chunk.rows is not None:
            chunk.rows.keys = with_keyspace(chunk.rows.keys, keyspace)
        yield chunk


def total_of(source: IO[bytes], kind: str, size_bytes: int) -> int:
    """What the last chunk's position will be."""
    try:
        return int(pq.ParquetFile(source).metadata.num_rows) if kind == "parquet" else size_bytes
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(kind, error) from None


def lines_of(rows: Rows, ttl_ms: int | None = None) -> bytes:
    """Rows as the gateway's NDJSON, one line each. `ttl_ms`: for rows that give none."""
    ttls, wrong = rows.ttls_ms()
    lines = []
    bodies = rows.bodies(np.arange(len(rows.numbers)))
    for index, (key, body) in enumerate(zip(rows.keys.to_pylist(), bodies, strict=True)):
        put: dict[str, object] = {"key": key, "value": body}
        given_ms = 0 if ttls is None else int(ttls[index])
        if index in wrong:
            put["ttl"] = 0
        elif given_ms or ttl_ms is not None:
            put["ttl"] = (given_ms or ttl_ms or 0) / 1000
        try:
            lines.append(orjson.dumps(put))
        except TypeError:
            lines.append(orjson.dumps(f"not JSON: {body}"))
    return b"\n".join(lines) + b"\n"


def _text_chunks(source: IO[bytes], kind: str, shape: Shape) -> Iterator[Chunk]:
    parser: NdjsonRows | CsvBlocks = CsvBlocks(shape) if kind == "csv" else NdjsonRows(shape)
    cutter, position = BlockCutter(), 0
    while data := source.read(_READ_BYTES):
        position += len(data)
        for block in cutter.feed(data):
            yield Chunk(*parser.parse(block), position)
    for block in cutter.finish():
        yield Chunk(*parser.parse(block), position)
    yield Chunk(*parser.finish(), position)


def _arrow_chunks(source: IO[bytes], kind: str, shape: Shape) -> Iterator[Chunk]:
    first = 1
    try:
        for batch in _batches(source, kind):
            shape.check(batch.schema.names)
            for at in range(0, batch.num_rows, CHUNK_ROWS):
                part = batch.slice(at, CHUNK_ROWS)
                columns = shape.columns(dict(zip(part.schema.names, part.columns, strict=True)))
                rows = ArrowRows(pa.RecordBatch.from_pydict(columns), first)
                first += len(part)
                yield Chunk(rows, [], first - 1 if kind == "parquet" else source.tell())
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(kind, error) from None


def _batches(source: IO[bytes], kind: str) -> Iterator[Any]:
    if kind == "parquet":
        yield from pq.ParquetFile(source).iter_batches(batch_size=CHUNK_ROWS)
        return
    magic = source.read(6)
    source.seek(0)
    if magic == b"ARROW1":
        with pa.ipc.open_file(source) as file:
            for index in range(file.num_record_batches):
                yield file.get_batch(index)
    else:
        with pa.ipc.open_stream(source) as stream:
            yield from stream


def _unreadable(kind: str, error: Exception) -> BadInput:
    return BadInput(f"not {kind}: {str(error)[:160]}", field="FILE", fix="name its format with --format")


class Writer(Protocol):
    """Writes rows of a table to a file."""

    def write(self, keys: list[str], values: list[Any]) -> None:
        """Append rows."""
        ...

    def close(self) -> None:
        """Write what is left."""
        ...


def writer_of(target: IO[bytes], kind: str) -> Writer:
    """A writer of one format."""
    if kind == "ndjson":
        return NdjsonWriter(target)
    return CsvWriter(target) if kind == "csv" else ArrowWriter(target, kind)


class NdjsonWriter:
    """`{"key", "value"}` per line."""

    def __init__(self, target: IO[bytes]) -> None:
        self._target = target

    def write(self, keys: list[str], values: list[Any]) -> None:
        """Append rows."""
        puts = zip(keys, values, strict=True)
        self._target.write(b"".join(orjson.dumps({"key": key, "value": value}) + b"\n" for key, value in puts))

    def close(self) -> None:
        """Nothing is left."""


class CsvWriter:
    """Columns `key,value`, the value as JSON, which any value survives."""

    def __init__(self, target: IO[bytes]) -> None:
        self._target = target
        target.write(b"key,value\n")

    def write(self, keys: list[str], values: list[Any]) -> None:
        """Append rows."""
        rows = zip(keys, values, strict=True)
        cells = (f"{_quoted(key)},{_quoted(orjson.dumps(value).decode())}\n" for key, value in rows)
        self._target.write("".join(cells).encode())

    def close(self) -> None:
        """Nothing is left."""


def _quoted(text: str) -> str:
    if any(character in text for character in '",\r\n') or text != text.strip():
        return '"' + text.replace('"', '""') + '"'
    return text


class ArrowWriter:
    """Parquet or Arrow: a column per field when all values of the first page are flat objects of one shape, else a
    column `value`. A later page that does not fit the columns is BadInput."""

    def __init__(self, target: IO[bytes], kind: str) -> None:
        self._target, self._kind = target, kind
        self._sink: Any = None
        self._schema: Any = None

    def write(self, keys: list[str], values: list[Any]) -> None:
        """Append rows."""
        columns: dict[str, list[Any]] = {"key": keys}
        if self._schema is None:
            names = list(values[0]) if values and type(values[0]) is dict else []
            fields = bool(names) and all(type(value) is dict and list(value) == names for value in values)
            self._fields = fields and not {"key", "ttl"} & set(names) and names != ["value"]
        if self._fields:
            names = [name for name in self._schema.names if name != "key"] if self._schema else list(values[0])
            if any(type(value) is not dict or value.keys() != set(names) for value in values):
                raise _mixed(self._kind)
            columns |= {name: [value[name] for value in values] for name in names}
        else:
            columns["value"] = values
        try:
            batch = pa.RecordBatch.from_pydict(columns, self._schema)
        except (pa.ArrowException, TypeError, OverflowError):
            raise _mixed(self._kind) from None
        if self._sink is None:
            self._schema = batch.schema
            if self._kind == "parquet":
                self._sink = pq.ParquetWriter(self._target, batch.schema)
            else:
                self._sink = pa.ipc.new_file(self._target, batch.schema)
        self._sink.write_batch(batch)

    def close(self) -> None:
        """Write the footer."""
        if self._sink is None:
            self.write([], [])
        with contextlib.suppress(AttributeError):
            self._sink.close()


def _mixed(kind: str) -> BadInput:
    return BadInput(f"the values differ in shape, which {kind} cannot hold", field="FILE", fix="export to .ndjson")
