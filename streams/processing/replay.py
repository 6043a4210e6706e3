"""Runs the event of a black box again, on the real host, alone and with the same rows and limits."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from streams.model.errors import BadInput
from streams.processing.black_box import FOLD, HEADER, BlackBox, decode_box
from streams.serde import parse_json
from streams.wasm.batch import build
from streams.wasm.engine import ModuleCache, module_hash
from streams.wasm.fold_host import FoldHost, FoldOptions, TrapReport
from streams.wasm.map_host import MapHost


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A record of a dead-letter topic. `module`: its UDF's, where it was saved with it."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Mapping[str, bytes]
    module: bytes | None = field(default=None, repr=False)

    def box(self) -> BlackBox:
        """Its black box. BadInput when it has none: the event was refused, it stopped nothing."""
        raw = self.headers.get(HEADER)
        if raw is None:
            reason = self.headers.get("dead_letter_reason", b"no reason is given").decode(errors="replace")
            raise BadInput(
                f"the record has no {HEADER}: the event stopped no UDF ({reason})",
                field="RECORD",
                fix="name a record of a trap; `streams udf traps NAME` lists them",
            )
        return decode_box(raw, self.key, self.value)

    def to_json(self) -> str:
        """As saved in a file: key, value, headers and module in base64."""
        body = {
            "topic": self.topic,
            "partition": self.partition,
            "offset": self.offset,
            "key": _text(self.key),
            "value": _text(self.value),
            "headers": [[name, _text(value)] for name, value in self.headers.items()],
            "module": _text(self.module),
        }
        return json.dumps(body, indent=1) + "\n"

    @classmethod
    def of_json(cls, raw: bytes) -> DeadLetter:
        """The record in a file. BadInput when it is none."""
        body = parse_json(raw, field="RECORD")
        try:
            headers = {str(name): _bytes(value) or b"" for name, value in body["headers"]}
            key, value, module = (_bytes(body.get(name)) for name in ("key", "value", "module"))
            place = str(body.get("topic", "")), int(body.get("partition", 0)), int(body.get("offset", -1))
            return cls(*place, key, value, headers, module)
        except (KeyError, TypeError, ValueError, AttributeError, binascii.Error) as error:
            raise BadInput(
                f"the file is no saved dead letter: {error!r:.120}",
                field="RECORD",
                fix="save one with `streams udf replay TOPIC/PARTITION/OFFSET --save FILE`",
            ) from None


@dataclass(frozen=True, slots=True)
class Replayed:
    """What running it again did: the trap, None when the event went through. `rows`: how many rows it then changed;
    of a map, filter or flat_map: how many puts it then made."""

    trap: TrapReport | None
    reason: str
    rows: int

    def same_as(self, box: BlackBox) -> bool:
        """Whether it stopped in the same call, of the same kind, for the same reason."""
        trap = self.trap
        return trap is not None and (trap.kind.value, trap.call, trap.detail[:500]) == (box.kind, box.call, box.reason)


def replay(box: BlackBox, wasm: bytes, cache: ModuleCache) -> Replayed:
    """Run it. BadInput when the module is another one than the box's."""
    if module_hash(wasm) != box.info.sha256:
        raise BadInput(
            f"the module has the hash {module_hash(wasm)[:12]}, the record is of {box.info.sha256[:12]}",
            field="--module",
            fix="give the module of that version",
        )
    return _fold(box, wasm, cache) if box.info.kind == FOLD else _map(box, wasm, cache)


def _map(box: BlackBox, wasm: bytes, cache: ModuleCache) -> Replayed:
    info = box.info
    host = MapHost(wasm, cache, info.kind, info.outputs, info.limits)
    try:
        emitted, rejects = host.map(build([box.event]).raw)
    finally:
        host.close()
    if not rejects:
        return Replayed(None, "", len(emitted))
    return Replayed(rejects[0].report, rejects[0].reason, len(emitted))


def _fold(box: BlackBox, wasm: bytes, cache: ModuleCache) -> Replayed:
    info = box.info
    options = FoldOptions(limits=info.limits, merge=info.merge, outputs=info.outputs)
    host = FoldHost(wasm, cache, options)
    known = dict(box.rows)

    def rows_of(keys: list[bytes]) -> Sequence[bytes | None]:
        return [known.get(key) for key in keys]

    try:
        rejects = host.fold(build([box.event]).raw, rows_of)
        changed = host.take()
        rejects += [late.reject for late in host.late_rejects]
    finally:
        host.close()
    if not rejects:
        return Replayed(None, "", len(changed))
    return Replayed(rejects[0].report, rejects[0].reason, len(changed))


def _text(value: bytes | None) -> str | None:
    return None if value is None else base64.b64encode(value).decode()


def _bytes(value: object) -> bytes | None:
    return None if value is None else base64.b64decode(str(value), validate=True)
