"""A part of a fetched run, so that a UDF with a rate need not fold all of it at once."""

from __future__ import annotations

from dataclasses import dataclass

from streams.processing.ports import RunPort

_BASE, _LAST = slice(0, 8), slice(23, 27)
"""Of a record batch v2: its base offset, and the last record's offset less that."""


@dataclass(frozen=True, slots=True)
class RunPart:
    """The offsets [base, next) of a run (a RunPort); `batches` are those that hold some of them."""

    topic: str
    partition: int
    batches: tuple[bytes, ...]
    base: int
    next: int
    high_watermark: int
    size_bytes: int


def part_of(run: RunPort, position: int, offsets: int) -> RunPort:
    """At most `offsets` offsets of `run` from `position` on; the run itself when that is all of it."""
    end = position + offsets
    if run.base >= position and end >= run.next:
        return run
    end = min(end, run.next)
    found = tuple(
        each
        for each in run.batches
        if int.from_bytes(each[_BASE], "big") < end
        and int.from_bytes(each[_BASE], "big") + int.from_bytes(each[_LAST], "big") >= position
    )
    return RunPart(
        run.topic, run.partition, found, max(run.base, position), end, run.high_watermark, sum(map(len, found))
    )
