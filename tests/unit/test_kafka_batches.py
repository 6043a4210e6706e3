"""Encoding rows into batches."""

from __future__ import annotations

import pytest
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.record.default_records import DefaultRecordBatch

from streams.kafka.batches import ProducerState, encode_batches
from streams.kafka.produce_request import JoinedProduceRequest
from streams.model.errors import TooLarge

STATE = ProducerState(5, 2, True)


def test_rows_are_cut_into_batches_with_running_sequences() -> None:
    rows = [(b"k%d" % i, b"x" * 100 if i % 3 else None, [("seq", b"12345678")]) for i in range(100)]
    batches = encode_batches(rows, STATE, 10, 1000)
    assert len(batches) > 5
    sequence, read = 10, []
    for batch in batches:
        data = DefaultRecordBatch(batch.data)
        assert (data.base_sequence, data.producer_id, data.producer_epoch) == (sequence, 5, 2)
        assert data.is_transactional and data.validate_crc() and len(batch.data) <= 1000
        sequence += batch.count
        read += [(record.key, record.value, record.headers) for record in data]
    assert read == rows
    assert sequence == 110


def test_sequences_wrap_as_in_kafka() -> None:
    rows = [(b"k", b"x" * 100, ())] * 20
    first, second, *_ = encode_batches(rows, STATE, 2**31 - 1, 300)
    assert DefaultRecordBatch(first.data).base_sequence == 2**31 - 1
    assert DefaultRecordBatch(second.data).base_sequence == first.count - 1


def test_nothing_gives_nothing_and_too_much_is_refused() -> None:
    assert encode_batches([], STATE, 0, 1000) == []
    with pytest.raises(TooLarge):
        encode_batches([(b"k", b"x", ()), (b"k", b"x" * 2000, ())], STATE, 0, 1000)


@pytest.mark.parametrize("newest", [5, 11])
@pytest.mark.parametrize("transactional_id", [None, "table/é"])
def test_a_joined_request_is_the_same_on_the_wire(transactional_id: str | None, newest: int) -> None:
    given = transactional_id, -1, 30_000, [("a", [(0, b"abc" * 50), (3, b"")]), ("ü", [(1, b"x")]), ("none", [])]
    ours, theirs = (made(*given).prepare({0: (3, newest)}) for made in (JoinedProduceRequest, ProduceRequest))
    assert ours.encode() == theirs.encode()
    assert ours.build_request_header(7, "me").encode() == theirs.build_request_header(7, "me").encode()
    assert ours.RESPONSE_TYPE is theirs.RESPONSE_TYPE
