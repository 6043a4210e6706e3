"""Commands of a sequenced log and their results: the bytes that `wasm_udfs/strong_kv` reads and writes."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

ANY_VERSION = 2**64 - 1
"""A condition's version: the key must be there, whatever its version."""
ABSENT = 0
"""A condition's version: the key must not be there."""

NOTE_PREFIX = b"\x01i"
META_KEY = b"\x01m"

_HEAD = struct.Struct("<BBHHH16s16s")
_CONDITION = struct.Struct("<QI")
_OPERATION = struct.Struct("<IqII")
_RESULT = struct.Struct("<BBHIQQq")
_NOTE_EXPIRY = struct.Struct("<48xq")
_ROW_EXPIRY = struct.Struct("<48xq")
_META = struct.Struct("<qQQQ")
_TRANSACTION, _RESOLVE, _BARRIER = 1, 2, 3


class Code(IntEnum):
    """What became of a command. PASSED: a barrier."""

    APPLIED = 0
    FAILED = 1
    CANCELLED = 2
    MISMATCH = 3
    SPENT = 4
    MALFORMED = 5
    PASSED = 6


@dataclass(frozen=True, slots=True)
class Condition:
    """The key's version must be this one (`ABSENT`, `ANY_VERSION`)."""

    key: bytes
    version: int


@dataclass(frozen=True, slots=True)
class Change:
    """A put of `value`, living at least `ttl_ms` of the log's time (None: for ever); value None: a delete."""

    key: bytes
    value: bytes | None
    ttl_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """A command's result.

    `again`: this id had been executed before, and this is that result, with its offset and time. `condition`: which one
    failed, and `version` the version that the key has (0: absent); of an applied command `version` is the new one.
    """

    code: Code
    again: bool
    condition: int
    offset: int
    version: int
    time_ms: int

    @property
    def size_bytes(self) -> int:
        """About what it takes in memory."""
        return 256


@dataclass(frozen=True, slots=True)
class MachineState:
    """Where a machine stands. `chain`: a hash of everything it ever answered and changed, equal at equal `next`."""

    time_ms: int = 0
    commands: int = 0
    chain: int = 0
    next: int = 0


def command_id(principal: str, key: bytes) -> bytes:
    """The id of an idempotency key: keys of different principals never meet."""
    return hashlib.sha256(principal.encode() + b"\x00" + key).digest()[:16]


def transaction(identity: bytes, conditions: Sequence[Condition], changes: Sequence[Change]) -> bytes:
    """A command that makes all changes if all conditions hold, else none. `identity`: 16 bytes, `command_id`."""
    parts = []
    for condition in conditions:
        parts.append(_CONDITION.pack(condition.version, len(condition.key)) + condition.key)
    for change in changes:
        value = change.value
        size = 0 if value is None else len(value)
        parts.append(_OPERATION.pack(int(value is None), change.ttl_ms or 0, len(change.key), size) + change.key)
        if value is not None:
            parts.append(value)
    body = b"".join(parts)
    counts = struct.pack("<HH", len(conditions), len(changes))
    fingerprint = hashlib.sha256(counts + body).digest()[:16]
    return _HEAD.pack(1, _TRANSACTION, len(conditions), len(changes), 0, identity, fingerprint) + body


def resolve(identity: bytes) -> bytes:
    """A command that answers the result of `identity`, or cancels it for good."""
    return _HEAD.pack(1, _RESOLVE, 0, 0, 0, identity, bytes(16))


def barrier() -> bytes:
    """A command that changes nothing: whoever has applied it has applied everything before it."""
    return _HEAD.pack(1, _BARRIER, 0, 0, 0, bytes(16), bytes(16))


def decode_result(data: bytes) -> Result:
    """The machine's answer to one command."""
    code, again, index, _, offset, version, time_ms = _RESULT.unpack(data)
    return Result(Code(code), bool(again), index, offset, version, time_ms)


def decode_state(data: bytes | None) -> MachineState:
    """The machine's own row; before the first command there is none."""
    return MachineState() if data is None else MachineState(*_META.unpack(data))


def expiry_of(key: bytes, row: bytes) -> int:
    """From which time of the log on a row counts as absent, ms; 2**63-1: never."""
    if key == META_KEY:
        return 2**63 - 1
    kind = _NOTE_EXPIRY if key.startswith(NOTE_PREFIX) else _ROW_EXPIRY
    found: int = kind.unpack_from(row)[0]
    return found
