"""RecordDecoder: raw Kafka record batches of one run -> a batch and rejects, in one call into a trusted module."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from streams.model.errors import StreamsError
from streams.model.ttl import TTL_MS_MAX, TTL_MS_MIN
from streams.wasm.batch import Buffer
from streams.wasm.buffers import Buffers, Make
from streams.wasm.builtin import builtin_module
from streams.wasm.engine import Limits, ModuleCache, UdfTrap
from streams.wasm.guest import Guest

CLOCK_AHEAD_MS = 1_000
_CONFIG = struct.Struct("<qqqqIIII")
_SCHEMA = struct.Struct("<IIII")
_OUT = struct.Struct("<IIIIiIq")
_PIECE = struct.Struct("<II")
_REJECT = struct.Struct("<qqIIIiIiiI")
_LIMITS = Limits(memory_bytes=2 << 30, deadline_s=30.0, output_bytes=1 << 30)


class Reason(IntEnum):
    """Why a record never reaches a UDF."""

    MALFORMED_RECORD = 1
    NULL_KEY = 2
    EMPTY_KEY = 3
    KEY_TOO_LONG = 4
    KEY_NOT_UTF8 = 5
    WRONG_KEYSPACE = 6
    NULL_VALUE = 7
    WRONG_MAGIC_BYTE = 8
    VALUE_TOO_SHORT = 9
    UNPARSABLE_HEADER = 10
    TTL_OUT_OF_RANGE = 11
    CLOCK_AHEAD = 12
    UNKNOWN_SCHEMA = 13
    BODY_TRUNCATED = 14
    BODY_TRAILING_BYTES = 15
    BODY_INVALID = 16
    NON_FINITE_NUMBER = 17
    BODY_TOO_DEEP = 18
    BODY_TOO_LONG = 19
    MALFORMED_FRAME = 20


_TEXT = {
    Reason.MALFORMED_RECORD: "malformed record",
    Reason.NULL_KEY: "null key",
    Reason.EMPTY_KEY: "empty key",
    Reason.KEY_TOO_LONG: "key longer than 1024 bytes",
    Reason.KEY_NOT_UTF8: "key is not UTF-8",
    Reason.WRONG_KEYSPACE: "key is not of this keyspace",
    Reason.NULL_VALUE: "null value",
    Reason.WRONG_MAGIC_BYTE: "wrong magic byte",
    Reason.VALUE_TOO_SHORT: "value shorter than its schema id",
    Reason.UNPARSABLE_HEADER: "unparsable header",
    Reason.TTL_OUT_OF_RANGE: "ttl_ms out of range",
    Reason.CLOCK_AHEAD: "clock more than 1000 ms ahead of the append time",
    Reason.UNKNOWN_SCHEMA: "unknown schema id",
    Reason.BODY_TRUNCATED: "truncated body",
    Reason.BODY_TRAILING_BYTES: "trailing bytes after the body",
    Reason.BODY_INVALID: "invalid Avro body",
    Reason.NON_FINITE_NUMBER: "non-finite number",
    Reason.BODY_TOO_DEEP: "body nested too deeply",
    Reason.BODY_TOO_LONG: "array of too many empty items",
    Reason.MALFORMED_FRAME: "malformed frame",
}


@dataclass(frozen=True, slots=True)
class SchemaProgram:
    """What the decoder knows of a schema id: the event operation and the program of `avro_program`."""

    op: int
    program: bytes


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """One keyspace's rules. `default_ttl_ms` None: events without a TTL never expire. `frame_schema_id`: records with
    this schema are frames (0: none are). `compact`: runs of nothing but frames come as compact batches where they can.
    """

    keyspace: str
    schemas: Mapping[int, SchemaProgram]
    default_ttl_ms: int | None = None
    ttl_ms_min: int = TTL_MS_MIN
    ttl_ms_max: int = TTL_MS_MAX
    frame_schema_id: int = 0
    compact: bool = False

    def encode(self) -> bytes:
        """The module's form of this config (wasm_udfs/ABI.md)."""
        prefix = f"{self.keyspace}:".encode()
        at = _CONFIG.size + _SCHEMA.size * len(self.schemas) + len(prefix)
        table, programs = [], []
        for ident, schema in self.schemas.items():
            table.append(_SCHEMA.pack(ident, schema.op, at, len(schema.program)))
            programs.append(schema.program)
            at += len(schema.program)
        default = self.default_ttl_ms or 0
        sizes = (len(prefix), len(self.schemas), self.frame_schema_id, int(self.compact))
        head = _CONFIG.pack(default, self.ttl_ms_min, self.ttl_ms_max, CLOCK_AHEAD_MS, *sizes)
        return b"".join((head, *table, prefix, *programs))


@dataclass(frozen=True, slots=True)
class RecordReject:
    """A record for the dead-letter topic: where it was, why, and its bytes (None: null). `schema_id` if unknown.

    `part`: the put's position in a frame, with its own key and value; -1 for a record (or a frame) as a whole.
    """

    offset: int
    append_ms: int
    reason: Reason
    schema_id: int
    key: bytes | None
    value: bytes | None
    part: int = -1

    @property
    def text(self) -> str:
        """The reason in words."""
        words = _TEXT[self.reason]
        return f"{words} {self.schema_id}" if self.reason is Reason.UNKNOWN_SCHEMA else words


@dataclass(frozen=True, slots=True)
class Decoded:
    """A decoded run. `batch` is batch v1 with offsets (section 10), or compact if the config takes it; `n` its events.

    `next_position` is the position after what was decoded: the caller's `next_position`, or less when `truncated` (the
    last record batch was cut off: fetch again from there; nothing of it is in `batch`).
    """

    batch: Buffer
    n: int
    rejects: list[RecordReject]
    next_position: int
    truncated: bool

    @property
    def unknown_schema_ids(self) -> frozenset[int]:
        """Ids of rejects that decoding again with a larger schema table may cure."""
        return frozenset(r.schema_id for r in self.rejects if r.reason is Reason.UNKNOWN_SCHEMA)


class DecodeError(StreamsError):
    """The bytes are no record batches of version 2: the log or the transport is broken, not a record."""

    title = "cannot decode the log"


class RecordDecoder:
    """Decodes runs with one instance of the module, kept between calls. Not thread-safe."""

    def __init__(
        self, cache: ModuleCache, memory_budget_bytes: int = 256 << 20, buffers: Buffers | None = None
    ) -> None:
        """`memory_budget_bytes`: the instance is renewed when a run has grown its memory beyond this. `buffers`: where
        large batches are put (None: each in memory of its own)."""
        self._make: Make = buffers.take if buffers else lambda size: np.empty(size, np.uint8)
        self._cache = cache
        self._budget = memory_budget_bytes
        self._compiled = cache.load(builtin_module("record_decoder"))
        self._guest: Guest | None = None
        self._config: bytes | None = None

    def decode(self, batches: Sequence[bytes], position: int, next_position: int, config: DecoderConfig) -> Decoded:
        """Events with offsets in [position, next_position). DecodeError if the bytes are not record batches v2."""
        encoded = config.encode()
        try:
            return self._decode(batches, position, next_position, encoded)
        except UdfTrap as trap:
            self.close()
            raise DecodeError(f"record decoder stopped: {trap.detail}") from trap

    def _decode(self, batches: Sequence[bytes], position: int, next_position: int, config: bytes) -> Decoded:
        guest = self._guest
        if guest is None:
            guest = self._guest = Guest(self._compiled, _LIMITS, self._cache.host)
            self._config = None
        if config != self._config:
            guest.call("streams_configure", *guest.put(config))
            self._config = config
        head = struct.pack(f"<{len(batches) + 1}I", len(batches), *map(len, batches))
        ptr, size = guest.put(head, *batches)
        out = guest.call("streams_decode", ptr, size, position, next_position)
        pieces, n_pieces, rejects_at, n_rejects, status, n, decoded_to = _OUT.unpack(guest.read(out, _OUT.size))
        if status not in (0, 1):
            raise DecodeError("record batch of a magic other than 2" if status == 2 else "malformed decoder input")
        batch = guest.read_pieces(list(_PIECE.iter_unpack(guest.read(pieces, n_pieces * _PIECE.size))), self._make)
        rejects = self._rejects(guest, guest.read(rejects_at, n_rejects * _REJECT.size)) if n_rejects else []
        if guest.memory_bytes > self._budget:
            self.close()
        return Decoded(batch, n, rejects, min(decoded_to, next_position), truncated=status == 1)

    @staticmethod
    def _rejects(guest: Guest, entries: bytes) -> list[RecordReject]:
        def piece(at: int, size: int) -> bytes | None:
            return None if size < 0 else guest.read(at, size)

        return [
            RecordReject(offset, append_ms, Reason(code), detail, piece(key, key_len), piece(value, value_len), part)
            for offset, append_ms, code, detail, key, key_len, value, value_len, part, _ in _REJECT.iter_unpack(entries)
        ]

    def close(self) -> None:
        """Frees the instance; the next decode makes another."""
        if self._guest is not None:
            self._guest.close()
            self._guest = None
