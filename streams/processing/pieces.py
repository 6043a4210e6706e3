"""Cutting fetched runs into pieces, so that what is decoded and folded at a time stays small."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from streams.kafka.run import Run, batch_header

PIECE_BYTES = 4 << 20
FRAME_BYTES_FROM = 4 << 10
FRAME_EXPANSION, COMPACT_EXPANSION = 10, 4
"""How many times a frame's bytes its puts take, in a batch v1 or in a compact one (24 bytes a reading for 12 or 34)."""


def pieces(run: Run, limit_bytes: int = PIECE_BYTES, expansion: int = FRAME_EXPANSION) -> list[Run]:
    """The run as runs that follow on one another, cut between record batches.

    Each is expected to take at most about `limit_bytes` once decoded: records of FRAME_BYTES_FROM bytes on average may
    be frames, whose puts take some `expansion` times as much in columns. A batch alone may be larger.
    """
    if len(run.batches) < 2:
        return [run]
    found: list[Run] = []
    held: list[bytes] = []
    weight, base, at = 0, run.base, run.base
    for batch in run.batches:
        header = batch_header(batch)
        size = len(batch) * (expansion if len(batch) >= FRAME_BYTES_FROM * header.records else 1)
        if held and weight + size > limit_bytes:
            found.append(replace(run, base=base, next=at, batches=tuple(held)))
            held, weight, base = [], 0, at
        held.append(batch)
        weight += size
        at = max(at, header.next_offset)
    found.append(replace(run, base=base, next=run.next, batches=tuple(held)))
    return found


def offer_pieces(
    run: Run,
    offer: Callable[[Run, Callable[[], object]], object],
    done: Callable[[], object],
    expansion: int = FRAME_EXPANSION,
) -> None:
    """`offer` the pieces of a run; `done` is called once, when each of them is done."""
    parts = pieces(run, expansion=expansion)
    left = len(parts)

    def one_done() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            done()

    for part in parts:
        offer(part, one_done)
