"""Causal tokens: what a session has written and read, as log positions that any region can wait for."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from streams.model.errors import BadInput

TOKEN_BYTES_MAX = 4096
CURSOR_BYTES_MAX = 64 << 10
"""The same of a subscription's position, which names every partition of its topic (at most 256)."""
_ALL = 2**63
_FIX = "send back the Causal-Token of an earlier answer, unchanged"


@dataclass(frozen=True, slots=True, order=True)
class Input:
    """One partition of one events topic, in the region where it was written."""

    origin: str
    topic: str
    partition: int

    def __str__(self) -> str:
        """Text form `origin/topic/partition`."""
        return f"{self.origin}/{self.topic}/{self.partition}"

    @classmethod
    def parse(cls, text: str) -> Input:
        """The inverse of `str`; ValueError when malformed."""
        origin, topic, partition = text.split("/")
        if not origin or not topic or not partition.isdecimal():
            raise ValueError(text)
        return cls(origin, topic, int(partition))


@dataclass(frozen=True, slots=True)
class Token:
    """For each input, the position *after* the latest event that the session depends on.

    Tokens merge by taking the larger position: commutative, associative, idempotent. `parts`, for those who follow
    events: of the last record before the position, a frame, only so many puts were seen (absent: all). Waiting for a
    token does not look at it: a frame is applied as a whole.
    """

    positions: Mapping[Input, int] = field(default_factory=dict)
    parts: Mapping[Input, int] = field(default_factory=dict)
    _text: str = field(default="", init=False, repr=False, compare=False)

    def merge(self, other: Token) -> Token:
        """The least token that covers both."""
        if not other.positions:
            return self
        if not self.positions:
            return other
        merged, parts = dict(self.positions), dict(self.parts)
        for key, position in other.positions.items():
            rank = (position, other.parts.get(key, _ALL))
            if rank > (merged.get(key, -1), parts.get(key, _ALL)):
                merged[key] = position
                parts.pop(key, None)
                if key in other.parts:
                    parts[key] = other.parts[key]
        return Token(merged, parts)

    def missing(self, applied: Token) -> list[Input]:
        """The inputs whose position `applied` has not reached yet."""
        have = applied.positions
        return [key for key, position in self.positions.items() if have.get(key, 0) < position]

    def restrict(self, topics: Iterable[str]) -> Token:
        """The part of the token that concerns `topics`."""
        wanted = set(topics)
        return Token(
            {key: position for key, position in self.positions.items() if key.topic in wanted},
            {key: part for key, part in self.parts.items() if key.topic in wanted},
        )

    def encode(self) -> str:
        """URL-safe text. Inputs are sorted, so equal tokens have equal text. Made once: a table gives all readers
        between two commits the same token."""
        if not self._text:
            object.__setattr__(self, "_text", self._encoded())
        return self._text

    def _encoded(self) -> str:
        body = {
            str(key): [self.positions[key], self.parts[key]] if key in self.parts else self.positions[key]
            for key in sorted(self.positions)
        }
        return base64.urlsafe_b64encode(json.dumps(body, separators=(",", ":")).encode()).decode().rstrip("=")

    @classmethod
    def decode(cls, text: str | None, bytes_max: int = TOKEN_BYTES_MAX) -> Token:
        """The token of a `Causal-Token` header; empty for None or ''. BadInput when malformed."""
        if not text:
            return cls()
        if len(text) > bytes_max:
            raise BadInput(f"the token has over {bytes_max} bytes", field="Causal-Token", fix=_FIX)
        try:
            body = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
            given = {Input.parse(key): value for key, value in body.items()}
            inside = {key: value for key, value in given.items() if type(value) is list}
            parts = {key: part for key, (_, part) in inside.items()}
            positions = {**given, **{key: position for key, (position, _) in inside.items()}}
        except (ValueError, AttributeError, binascii.Error, UnicodeError, RecursionError):
            raise BadInput("the token cannot be read", field="Causal-Token", fix=_FIX) from None
        offsets = [*positions.values(), *parts.values()]
        if not all(type(value) is int and 0 <= value < 2**63 for value in offsets):
            raise BadInput("the token holds a position that is no offset", field="Causal-Token", fix=_FIX)
        return cls(positions, parts)
