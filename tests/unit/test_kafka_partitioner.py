"""The vectorised partitioner gives what Kafka's default partitioner gives."""

from __future__ import annotations

import numpy as np
from aiokafka.partitioner import murmur2 as reference
from hypothesis import given
from hypothesis import strategies as st

from streams.kafka.partitioner import murmur2_many, partitions_for
from streams.model.keys import partition_for


@given(st.lists(st.binary(max_size=70), max_size=60), st.integers(1, 2000))
def test_equal_to_the_scalar(keys: list[bytes], partitions: int) -> None:
    assert murmur2_many(keys).tolist() == [reference(key) for key in keys]
    assert partitions_for(keys, partitions).tolist() == [partition_for(key, partitions) for key in keys]


def test_known_values_of_the_java_client() -> None:
    known = {b"21": -973932308, b"foobar": -790332482, b"a-little-bit-long-string": -985981536, b"abc": 479470107}
    assert murmur2_many(list(known)).astype(np.int32).tolist() == list(known.values())


def test_none_and_one() -> None:
    assert partitions_for([], 4).tolist() == []
    assert partitions_for([b""], 4).tolist() == [partition_for(b"", 4)]
