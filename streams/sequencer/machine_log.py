"""Records of a deployed machine's log: commands, barriers, and the modules that execute what comes after them.

u8 1, u8 kind, 6 bytes 0, id[16], fingerprint[16] (as `commands.py`, so barriers are the same), then the body: of a
command what the machine gets, of a module u32 length of a JSON object that says what it is, that object, the module
packed. So the log alone says what any replica holds: what to execute, and by which code.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Any

from streams.model.errors import BadInput
from streams.wasm.engine import Limits
from streams.wasm.packing import packed, unpacked

COMMAND_BYTES_MAX = 1 << 20
_HEAD = struct.Struct("<BB6x16s16s")
_SIZE = struct.Struct("<I")
_LIMITS = tuple(each.name for each in fields(Limits))


class Kind(IntEnum):
    """What a record is."""

    COMMAND = 1
    BARRIER = 3
    MODULE = 4


class Code(IntEnum):
    """What became of a record. DONE: executed. TRAPPED: it stopped the machine, changed nothing. MISMATCH: its id was
    another command's. SPENT: its id was used over a day ago. MALFORMED: no record. NO_MACHINE: before the first module.
    PASSED: a barrier. SWAPPED: the module takes over. KEPT: it does not, an older or an unfit one.
    """

    DONE = 0
    TRAPPED = 1
    MISMATCH = 2
    SPENT = 3
    MALFORMED = 4
    NO_MACHINE = 5
    PASSED = 6
    SWAPPED = 7
    KEPT = 8


@dataclass(frozen=True, slots=True)
class MachineResult:
    """A record's result. `again`: the command had been executed before, and this is that result, with its offset and
    time. `body`: the machine's answer, or why it trapped (`kind: reason`). `version`: of the module then."""

    code: Code
    again: bool
    offset: int
    time_ms: int
    version: str
    body: bytes

    @property
    def size_bytes(self) -> int:
        """About what it takes in memory."""
        return 256 + len(self.body)


@dataclass(frozen=True, slots=True)
class Installed:
    """A module in the log. `serial` orders them: of several that are under way the newest decision counts. `layout`: of
    the rows that it reads and writes; another one does not take over. `limits`: the same on all replicas, so they are
    here and not each host's own. `name`: of the machine; a log is one machine's."""

    name: str
    serial: int
    version: str
    sha256: str
    layout: int
    limits: Limits
    module: bytes

    def unfit(self, name: str, layout: int) -> str:
        """Why a module must not follow this one; empty: it may."""
        if name != self.name:
            return f"the log is that of machine {self.name}: name another group"
        if layout != self.layout:
            return f"the rows have layout {self.layout}, not {layout}: name another group"
        return ""

    def encode(self) -> bytes:
        """Its record."""
        facts: dict[str, Any] = {"name": self.name, "serial": self.serial, "version": self.version}
        facts |= {"sha256": self.sha256, "layout": self.layout, "limits": self.limits.numbers()}
        head = json.dumps(facts, sort_keys=True).encode()
        return _HEAD.pack(1, Kind.MODULE, bytes(16), bytes(16)) + _SIZE.pack(len(head)) + head + packed(self.module)

    @classmethod
    def decode(cls, record: bytes) -> Installed:
        """A record of kind MODULE, read back. BadInput when it is none."""
        try:
            (size,) = _SIZE.unpack_from(record, _HEAD.size)
            at = _HEAD.size + _SIZE.size
            facts: Mapping[str, Any] = json.loads(record[at : at + size])
            limits = Limits(**{name: value for name, value in facts["limits"].items() if name in _LIMITS})
            module = unpacked(record[at + size :])
            name, version, sha256 = (str(facts[each]) for each in ("name", "version", "sha256"))
            found = cls(name, int(facts["serial"]), version, sha256, int(facts["layout"]), limits, module)
        except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadInput(f"no module is in the record: {error!r:.200}", field="module") from None
        if hashlib.sha256(module).hexdigest() != found.sha256:
            raise BadInput("the module is not that of its hash", field="module")
        return found


@dataclass(frozen=True, slots=True)
class LoggedRecord:
    """A record of the log, taken apart; `kind` None: it is none."""

    kind: Kind | None
    identity: bytes = b""
    fingerprint: bytes = b""
    body: bytes = b""


def command_record(identity: bytes, body: bytes) -> bytes:
    """A command. `identity`: 16 bytes (`commands.command_id`)."""
    return _HEAD.pack(1, Kind.COMMAND, identity, hashlib.sha256(body).digest()[:16]) + body


def parse_record(value: bytes) -> LoggedRecord:
    """A record taken apart; whoever wrote it."""
    if len(value) < _HEAD.size:
        return LoggedRecord(None)
    one, kind, identity, fingerprint = _HEAD.unpack_from(value)
    if one != 1 or kind not in (Kind.COMMAND, Kind.BARRIER, Kind.MODULE):
        return LoggedRecord(None)
    body = value[_HEAD.size :]
    if kind == Kind.COMMAND and len(body) > COMMAND_BYTES_MAX:
        return LoggedRecord(None)
    return LoggedRecord(Kind(kind), identity, fingerprint, body)
