"""Runs cut into pieces that cover them without a gap; buffers that come back when nobody looks at them any more."""

from __future__ import annotations

import gc
import threading

import numpy as np
import pytest

from streams.kafka.batches import ProducerState, encode_batches
from streams.kafka.run import Run, batch_header
from streams.processing.pieces import COMPACT_EXPANSION, FRAME_BYTES_FROM, offer_pieces, pieces
from streams.wasm.buffers import Buffers


def run_of(*sizes: list[int], base: int = 10, skip: int = 0, end_gap: int = 0) -> Run:
    """A run with a batch for each list of value sizes; its position is `skip` records inside the first."""
    batches, at = [], base
    for values in sizes:
        (batch,) = encode_batches(
            [(None, b"x" * size, ()) for size in values], ProducerState(-1, -1, False), 0, 1 << 30
        )
        batches.append(at.to_bytes(8, "big") + batch.data[8:])
        at += len(values)
    return Run("events.score", 1, base + skip, at + end_gap, tuple(batches), at + 100, 7)


@pytest.mark.parametrize("limit_bytes", [1, 3_000, 100_000, 1 << 30])
def test_pieces_follow_on_one_another_and_hold_every_batch(limit_bytes: int) -> None:
    run = run_of([10] * 5, [1_000], [FRAME_BYTES_FROM] * 2, [20] * 300, [5], skip=2, end_gap=3)
    found = pieces(run, limit_bytes)
    assert [found[0].base, found[-1].next] == [run.base, run.next] == [12, 322]
    assert [each.next for each in found[:-1]] == [each.base for each in found[1:]]
    assert sum((each.batches for each in found), ()) == run.batches
    for each in found:
        assert each.batches and (each.topic, each.partition, each.high_watermark) == ("events.score", 1, 419)
        assert all(each.base < batch_header(batch).next_offset <= each.next for batch in each.batches)
    assert len(found) == {1: 5, 3_000: 4, 100_000: 1, 1 << 30: 1}[limit_bytes]


def test_what_may_be_frames_weighs_more() -> None:
    plain = run_of(*[[100] * 100] * 8)
    frames = run_of(*[[10_000]] * 8)
    assert len(pieces(plain, 100_000)) == 1
    assert len(pieces(frames, 100_000)) == 8
    assert len(pieces(frames, 100_000, COMPACT_EXPANSION)) == 4


def test_a_run_without_batches_still_moves_the_position() -> None:
    run = Run("t", 0, 5, 9, (), 9, 0)
    assert pieces(run) == [run]


def test_a_run_is_done_when_its_pieces_are() -> None:
    waiting: list[tuple[Run, object]] = []
    done: list[int] = []
    offer_pieces(run_of(*[[400_000]] * 3), lambda run, one: waiting.append((run, one)), lambda: done.append(1))
    assert [run.next - run.base for run, _ in waiting] == [1, 1, 1]
    for _, one in waiting[::-1]:
        assert not done
        one()  # type: ignore[operator]
    assert done == [1]


def test_a_buffer_is_used_again_only_when_no_array_looks_at_it() -> None:
    buffers = Buffers(8 << 20)
    first = buffers.take(3_000_000)
    where, view = first.ctypes.data, np.frombuffer(first, "<u4", 10, 1_000)
    assert len(first) == 3_000_000 and first.flags.writeable
    del first
    gc.collect()
    assert buffers.idle_bytes == 0, "a column still refers to it"
    second = buffers.take(3_000_000)
    assert second.ctypes.data != where
    part = view[2:5]
    del view
    gc.collect()
    assert buffers.idle_bytes == 0, "a slice of the column still does"
    del part
    gc.collect()
    assert buffers.idle_bytes == 3 << 20
    assert buffers.take(500_000).ctypes.data != where, "too large for so little"
    assert buffers.take(2_000_000).ctypes.data == where


def test_idle_buffers_are_bounded_and_threads_never_share_one() -> None:
    buffers = Buffers(4 << 20)
    wrong: list[int] = []

    def use(number: int) -> None:
        for size in range(300_000, 2_000_000, 100_000):
            mine = buffers.take(size)
            mine[:] = number
            if int(mine.min()) != number or int(mine.max()) != number:
                wrong.append(number)

    threads = [threading.Thread(target=use, args=(number,)) for number in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    gc.collect()
    assert not wrong
    assert 0 < buffers.idle_bytes <= 4 << 20
