"""Markers and claims: the records that make a changelog exact.

A marker closes each atomic unit of a changelog and says up to where the inputs are in. A claim is what a new owner of a
table partition commits, after fencing its predecessor, before it reads the changelog's end.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

MARKER_KEY = b"\x00marker"
CLAIM_KEY = b"\x00claim"


@dataclass(frozen=True, slots=True)
class InputPosition:
    """Where an input stands: `next` is the position after the last event that is in, `topic_id` is Kafka's.

    A position, not an offset: transaction markers and compaction leave gaps, which a last offset could never pass.
    """

    next: int
    topic_id: str


@dataclass(frozen=True, slots=True)
class Marker:
    """End of an atomic unit.

    `kind`: `commit` or `heartbeat`. `seq`: grows with each marker of the partition. `time_ms`: everything accepted
    before it on these inputs is in. `inputs`: by `topic/partition` of the origin region. `udf`: the module's hash.
    """

    kind: str
    seq: int
    time_ms: int
    inputs: Mapping[str, InputPosition]
    udf: str = ""
    owner: str = ""

    def encode(self) -> bytes:
        """The record's value."""
        inputs = {key: {"next": at.next, "topic_id": at.topic_id} for key, at in self.inputs.items()}
        body = {
            "v": 1,
            "kind": self.kind,
            "seq": self.seq,
            "time_ms": self.time_ms,
            "inputs": inputs,
            "udf": self.udf,
            "owner": self.owner,
        }
        return json.dumps(body, separators=(",", ":")).encode()

    @classmethod
    def decode(cls, value: bytes) -> Marker:
        """The inverse of `encode`; ValueError when it is not a marker of a known version."""
        try:
            body = json.loads(value)
            if body["v"] != 1:
                raise ValueError(f"marker version {body['v']} is unknown")
            inputs = {key: InputPosition(int(at["next"]), str(at["topic_id"])) for key, at in body["inputs"].items()}
            return cls(
                str(body["kind"]), int(body["seq"]), int(body["time_ms"]), inputs, str(body["udf"]), str(body["owner"])
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a marker: {error!r}") from None


@dataclass(frozen=True, slots=True)
class Claim:
    """A new owner's first record, in a transaction of its own."""

    owner: str
    time_ms: int

    def encode(self) -> bytes:
        """The record's value."""
        return json.dumps({"v": 1, "owner": self.owner, "time_ms": self.time_ms}, separators=(",", ":")).encode()

    @classmethod
    def decode(cls, value: bytes) -> Claim:
        """The inverse of `encode`; ValueError when malformed."""
        try:
            body = json.loads(value)
            return cls(str(body["owner"]), int(body["time_ms"]))
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a claim: {error!r}") from None
