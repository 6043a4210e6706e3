"""Rows of takes, packed: found by key and merged as a dictionary would, whatever their keys are."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest

from streams.wasm import key_index
from streams.wasm.key_index import KeyIndex, hashes_of, repeated
from streams.wasm.packed_rows import PackedRows, PendingRows, Row, pack


def some_rows(rng: random.Random, count: int, removed: float = 0.1) -> list[Row]:
    alphabet = [b"a", b"b", b"device:", b"\x1f", b"\xff\x00", b"x" * 30]
    keys = {b"".join(rng.choices(alphabet, k=rng.randint(1, 6))) for _ in range(count)}
    return [(key, None if rng.random() < removed else rng.randbytes(rng.randint(0, 50))) for key in keys]


def joined(parts: list[PackedRows]) -> PackedRows:
    return PackedRows([chunk for part in parts for chunk in part.chunks])


def all_equal(data: bytes, ends: np.ndarray, at: int = 0) -> key_index.Hashes:
    return np.zeros(len(ends), np.uint64)


def few(data: bytes, ends: np.ndarray, at: int = 0) -> key_index.Hashes:
    return hashes_of(data, ends, at) % np.uint64(200)


@pytest.mark.parametrize("hashes", [hashes_of, few, all_equal])
def test_takes_are_found_and_merged_as_in_a_dictionary(
    hashes: Callable[..., key_index.Hashes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when many keys have the same hash, or all: what is found never rests on hashes."""
    monkeypatch.setattr("streams.wasm.packed_rows.INDEXED_FROM", 100)
    for module in ("streams.wasm.packed_rows", "streams.wasm.key_index"):
        monkeypatch.setattr(f"{module}.hashes_of", hashes)
    for seed in range(60):
        rng = random.Random(seed)
        takes = [some_rows(rng, rng.choice([0, 1, 7, 300])) for _ in range(rng.randint(1, 4))]
        wanted: dict[bytes, bytes | None] = {}
        pending = PendingRows()
        for take in takes:
            wanted.update(take)
            pending.add(pack(take))
        asked = list({*rng.sample(sorted(wanted), len(wanted) // 2), *(key for key, _ in some_rows(rng, 50))})
        known = {key: wanted[key] for key in asked if key in wanted}
        found: dict[bytes, bytes | None] = {}
        pending.find(asked, found)
        assert found == known, seed
        found = {}
        joined([pack(take) for take in takes]).find(asked, found)  # chunks of one take: the later one counts
        assert found == known, seed
        merged = pending.merged()
        assert len(merged) == len(wanted) == len(list(merged)), seed
        assert dict(merged) == wanted, seed
        found = {}
        merged.find(asked, found)
        assert found == known, seed


def test_hashes_are_of_the_parts_alone() -> None:
    rng = random.Random(7)
    parts = [rng.randbytes(rng.randint(0, 40)) for _ in range(500)] + [b"", b"a", b"a\0", b"\0", b"a" * 8, b"a" * 16]
    ends = np.cumsum([len(part) for part in parts])
    before, after = hashes_of(b"".join(parts), ends), hashes_of(b"xyz" + b"".join(parts) + b"more", ends, 3)
    assert (before == after).all()
    alone = [int(hashes_of(part, np.array([len(part)]))[0]) for part in parts]
    assert before.tolist() == alone
    assert len(set(alone)) == len(set(parts))
    assert not len(hashes_of(b"", np.array([], np.int64)))


def test_places_of_equal_hashes() -> None:
    assert repeated(np.array([5, 3, 5, 9, 3, 3], np.uint64)).tolist() == [0, 1, 2, 4, 5]
    assert repeated(np.array([], np.uint64)).tolist() == []
    assert KeyIndex(np.zeros(key_index.SAME_MAX, np.uint64)).is_even
    assert not KeyIndex(np.zeros(key_index.SAME_MAX + 1, np.uint64)).is_even
