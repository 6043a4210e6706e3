"""An Arrow IPC stream cut into its messages as bytes arrive, so that memory is bounded by one message."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from streams.model.errors import BadInput, TooLarge
from streams.tabular.texts import coded_text, flat, is_text

MESSAGE_BYTES_MAX = 64 << 20
DICTIONARIES_BYTES_MAX = 64 << 20
_METADATA_BYTES_MAX = 4 << 20
_CONTINUATION = b"\xff\xff\xff\xff"
_SCHEMA, _DICTIONARY, _BATCH = 1, 2, 3
_FIX = "send an Arrow IPC stream: a schema, then record batches, uncompressed"


DECODED_BYTES_MAX = 256 << 20


def check_batch(batch: Any) -> list[str]:
    """The names of a record batch's columns, if it may be looked into: what comes from outside may be corrupt, and a
    dictionary may say one long value very often. BadInput."""
    names = _names(batch)
    try:
        batch.validate(full=True)
        for name in names:
            _check_dictionary(batch.column(name))
    except pa.ArrowException as error:
        raise BadInput(f"not Arrow: {str(error)[:160]}", field="body", fix="send a valid Arrow stream") from None
    return names


def checked_columns(batch: Any) -> dict[str, Any]:
    """What `check_batch` checks, and the columns by name, texts coded where they repeat and dictionaries of anything
    else decoded. Of coded texts only the words are looked at: most of what checking costs is to find UTF-8 in rows.
    """
    names = _names(batch)
    try:
        batch.validate()
        return {name: _checked(batch.column(name)) for name in names}
    except pa.ArrowException as error:
        check_batch(batch)  # the reason, as of all rows
        raise BadInput(f"not Arrow: {str(error)[:160]}", field="body", fix="send a valid Arrow stream") from None


def _names(batch: Any) -> list[str]:
    try:
        names: list[str] = batch.schema.names
    except UnicodeError:
        raise BadInput("a column's name is not UTF-8", field="body", fix="send a valid Arrow stream") from None
    if len(set(names)) != len(names):
        raise BadInput("a column's name occurs twice", field="body", fix="name columns once")
    return names


def _checked(column: Any) -> Any:
    kind = column.type
    if (pa.types.is_string(kind) or pa.types.is_large_string(kind)) and not column.null_count:
        wide = pa.types.is_large_string(kind)
        column.view(pa.large_binary() if wide else pa.binary()).validate(full=True)  # so that it may be looked into
        coded = coded_text(flat(column))
        if coded is not None:
            coded.dictionary.validate(full=True)
            return coded
    column.validate(full=True)
    if not pa.types.is_dictionary(kind):
        return flat(column) if pa.types.is_string_view(kind) else column  # of views, Arrow takes no rows
    _check_dictionary(column)
    words = column.dictionary
    if is_text(words.type) and len(words) <= len(column) and not column.null_count and not words.null_count:
        return pa.DictionaryArray.from_arrays(column.indices, flat(words), safe=False)
    return pc.cast(column, kind.value_type)


def _check_dictionary(column: Any) -> None:
    if not pa.types.is_dictionary(column.type):
        return
    values = column.dictionary
    kind = values.type
    if values.nbytes * len(column) <= DECODED_BYTES_MAX:
        return
    if (
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
        or (pa.types.is_binary(kind) or pa.types.is_large_binary(kind))
    ):
        size = pc.sum(pc.cast(pc.binary_length(values), pa.int64()).take(column.indices)).as_py() or 0
        if size > DECODED_BYTES_MAX:
            raise BadInput(f"a dictionary column of {size} bytes", field="body", fix="send smaller record batches")


class _Header(NamedTuple):
    kind: int
    body_bytes: int
    dictionary: tuple[int, bool] | None


class ArrowStream:
    """Record batches out of chunks. Dictionaries are kept while they are in force."""

    def __init__(self) -> None:
        self._held = bytearray()
        self._schema: bytes | None = None
        self._dictionaries: dict[int, list[bytes]] = {}
        self._ended = False

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """What `decode` takes, for each record batch that is complete. BadInput, TooLarge."""
        self._held += chunk
        while not self._ended and len(self._held) >= 8:
            if self._held[:4] != _CONTINUATION:
                raise BadInput("this is no Arrow IPC stream", field="body", fix=_FIX)
            metadata_bytes = int.from_bytes(self._held[4:8], "little", signed=True)
            if metadata_bytes == 0:
                self._ended = True
                return
            if not 0 < metadata_bytes <= _METADATA_BYTES_MAX:
                raise BadInput("a message's metadata has an absurd length", field="body", fix=_FIX)
            if len(self._held) < 8 + metadata_bytes:
                return
            header = _header(bytes(self._held[8 : 8 + metadata_bytes]))
            if not 0 <= header.body_bytes <= MESSAGE_BYTES_MAX:
                raise TooLarge(
                    f"a record batch of {header.body_bytes} bytes is over {MESSAGE_BYTES_MAX}",
                    field="body",
                    fix="send smaller record batches",
                )
            size = 8 + metadata_bytes + header.body_bytes
            if len(self._held) < size:
                return
            message = bytes(self._held[:size])
            del self._held[:size]
            yield from self._take(header, message)

    def finish(self) -> None:
        """BadInput when the stream ends inside a message, or before its schema."""
        if self._schema is None or (self._held and not self._ended):
            raise BadInput("the Arrow stream breaks off", field="body", fix=_FIX)

    def _take(self, header: _Header, message: bytes) -> Iterator[bytes]:
        if header.kind == _SCHEMA:
            if self._schema is not None:
                raise BadInput("a second schema in one stream", field="body", fix=_FIX)
            self._schema = message
            return
        if self._schema is None:
            raise BadInput("a batch before the schema", field="body", fix=_FIX)
        if header.dictionary is not None:
            ident, delta = header.dictionary
            self._dictionaries[ident] = [*(self._dictionaries.get(ident, ()) if delta else ()), message]
            if sum(len(each) for held in self._dictionaries.values() for each in held) > DICTIONARIES_BYTES_MAX:
                raise TooLarge(f"dictionaries over {DICTIONARIES_BYTES_MAX} bytes", field="body", fix="send plain text")
            return
        if header.kind == _BATCH:
            yield b"".join([self._schema, *(each for held in self._dictionaries.values() for each in held), message])


def decode(stream: bytes, rows_max: int) -> Iterator[Any]:
    """The record batch of one piece of `ArrowStream.feed`, in slices of at most `rows_max` rows. BadInput."""
    try:
        with pa.ipc.open_stream(stream) as reader:
            batch = reader.read_next_batch()
    except (pa.ArrowException, StopIteration, OSError, ValueError) as error:
        raise BadInput(f"not Arrow: {str(error)[:160]}", field="body", fix=_FIX) from None
    if batch.num_rows > len(stream):
        raise BadInput(f"{batch.num_rows} rows in {len(stream)} bytes", field="body", fix=_FIX)
    for first in range(0, batch.num_rows, rows_max):
        yield batch.slice(first, rows_max)


def _header(metadata: bytes) -> _Header:
    """What a message is, read from its flatbuffer (Arrow's Message.fbs). BadInput."""
    try:
        root = _u32(metadata, 0)
        kind = metadata[_field(metadata, root, 1)]
        at = _field(metadata, root, 3)
        body_bytes = struct.unpack_from("<q", metadata, at)[0] if at else 0
        dictionary = None
        if kind in (_DICTIONARY, _BATCH):
            table = _reference(metadata, _field(metadata, root, 2))
            if kind == _DICTIONARY:
                ident, delta = _field(metadata, table, 0), _field(metadata, table, 2)
                number = struct.unpack_from("<q", metadata, ident)[0] if ident else 0
                dictionary = (number, bool(delta and metadata[delta]))
                table = _reference(metadata, _field(metadata, table, 1))
            if _field(metadata, table, 3):
                raise BadInput("the record batches are compressed", field="body", fix=_FIX)
    except (struct.error, IndexError):
        raise BadInput("a message's metadata cannot be read", field="body", fix=_FIX) from None
    return _Header(kind, body_bytes, dictionary)


def _u32(data: bytes, at: int) -> int:
    return int(struct.unpack_from("<I", data, at)[0])


def _reference(data: bytes, at: int) -> int:
    return at + _u32(data, at)


def _field(data: bytes, table: int, slot: int) -> int:
    """Where a table's field is; 0 when it is not there."""
    vtable = table - int(struct.unpack_from("<i", data, table)[0])
    if vtable < 0 or 4 + 2 * slot + 2 > struct.unpack_from("<H", data, vtable)[0]:
        return 0
    offset = struct.unpack_from("<H", data, vtable + 4 + 2 * slot)[0]
    return table + offset if offset else 0
