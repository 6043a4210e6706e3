"""The obvious model of `wasm_udfs/strong_kv`: a dict of keys, a dict of ids, one command at a time."""

from __future__ import annotations

from dataclasses import dataclass, field

from streams.model.clock import NEVER_MS
from streams.sequencer.commands import ANY_VERSION, Change, Code, Condition, Result


@dataclass
class Told:
    """An id's first result and what was asked for under it."""

    result: Result
    asked: object


@dataclass
class StrongModel:
    """Keys with (value, version, expiry); ids with their results."""

    keep_ms: int
    spent_ms: int
    now_ms: int = 0
    keys: dict[bytes, tuple[bytes, int, int]] = field(default_factory=dict)
    told: dict[bytes, Told] = field(default_factory=dict)

    def live(self) -> dict[bytes, tuple[bytes, int, int]]:
        """What is there at this time of the log."""
        return {key: row for key, row in self.keys.items() if row[2] > self.now_ms}

    def _version(self, key: bytes) -> int:
        return self.live().get(key, (b"", 0, 0))[1]

    def at(self, append_ms: int) -> None:
        """The log's time never goes back."""
        self.now_ms = max(self.now_ms, append_ms)

    def _again(self, identity: bytes, asked: object, offset: int) -> Result | None:
        known = self.told.get(identity)
        if known is None or known.result.time_ms + self.spent_ms <= self.now_ms:
            return None
        first = known.result
        if first.code is not Code.CANCELLED and asked is not None and asked != known.asked:
            return Result(Code.MISMATCH, False, 0, offset, 0, self.now_ms)
        if self.now_ms - first.time_ms > self.keep_ms:
            return Result(Code.SPENT, False, 0, offset, 0, self.now_ms)
        return Result(first.code, True, first.condition, first.offset, first.version, first.time_ms)

    def transact(self, offset: int, identity: bytes, conditions: list[Condition], changes: list[Change]) -> Result:
        """All or nothing, once."""
        asked = (tuple(conditions), tuple(changes))
        again = self._again(identity, asked, offset)
        if again is not None:
            return again
        result = Result(Code.APPLIED, False, 0, offset, offset + 1, self.now_ms)
        for index, condition in enumerate(conditions):
            version = self._version(condition.key)
            good = version > 0 if condition.version == ANY_VERSION else version == condition.version
            if not good:
                result = Result(Code.FAILED, False, index, offset, version, self.now_ms)
                break
        if result.code is Code.APPLIED:
            for change in changes:
                self._change(change, offset + 1)
        self.told[identity] = Told(result, asked)
        return result

    def _change(self, change: Change, version: int) -> None:
        if change.value is None:
            self.keys.pop(change.key, None)
            return
        expires_ms = NEVER_MS if change.ttl_ms is None else self.now_ms + change.ttl_ms
        before = self.live().get(change.key)
        if before is not None:
            expires_ms = max(expires_ms, before[2])
        self.keys[change.key] = (change.value, version, expires_ms)

    def resolve(self, offset: int, identity: bytes) -> Result:
        """What became of it, or nothing ever will."""
        again = self._again(identity, None, offset)
        if again is not None:
            return again
        result = Result(Code.CANCELLED, False, 0, offset, 0, self.now_ms)
        self.told[identity] = Told(result, None)
        return result
