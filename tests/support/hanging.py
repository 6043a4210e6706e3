"""A transaction that hangs, made on purpose: records of a transactional producer unknown to its coordinator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aiokafka.errors import KafkaError
from aiokafka.protocol.admin import DescribeConfigsRequest
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.protocol.transaction import InitProducerIdRequest

from streams.kafka.admin import Admin
from streams.kafka.batches import ProducerState, Record, encode_batches
from streams.kafka.link import Deadline
from streams.kafka.log_requests import AlterRequest
from streams.kafka.metadata import TopicIdsRequest

_BROKER = 4
_VERIFICATION = "transaction.partition.verification.enable"


async def verified(admin: Admin) -> bool:
    """Whether the broker asks the coordinator before it takes transactional records in."""
    (node, *_) = (await admin.link.any_node(TopicIdsRequest([]))).brokers[0]
    answer = await admin.link.send(node, DescribeConfigsRequest([(_BROKER, str(node), [_VERIFICATION])], False))
    (resource,) = answer.resources
    return {entry[0]: entry[1] for entry in resource[4]}[_VERIFICATION] == "true"


async def hang(admin: Admin, topic: str, partition: int, records: Sequence[Record]) -> None:
    """Append `records` to a partition in a transaction that no coordinator will ever end.

    As a lost marker leaves it: open for the partition, not for the coordinator. The broker's own check of that is
    switched off meanwhile.
    """
    node = await admin.link.leader(topic, partition, Deadline(10.0))
    await _verify(admin, node, on=False)
    try:
        identity = f"hanging-{topic}-{partition}"
        deadline = Deadline(10.0)
        answer = await _producer(admin, identity)
        while answer is None or answer.error_code:
            await deadline.pause(answer)
            answer = await _producer(admin, identity)
        state = ProducerState(answer.producer_id, answer.producer_epoch, True)
        (batch,) = encode_batches(records, state, 0, 1 << 20)
        while True:
            request = ProduceRequest(identity, -1, 10_000, [(topic, [(partition, batch.data)])])
            codes = [part[1] for _, parts in (await admin.link.send(node, request)).topics for part in parts]
            if codes == [0]:
                break
            await deadline.pause(codes)  # the setting takes a moment to reach the broker
    finally:
        await _verify(admin, node, on=True)


async def _producer(admin: Admin, identity: str) -> Any:
    try:
        coordinator = await admin.link.transaction_coordinator(identity)
    except KafkaError:  # the topic of transactions is only being made
        return None
    return await admin.link.send(coordinator, InitProducerIdRequest(identity, 60_000))


async def _verify(admin: Admin, node: int, *, on: bool) -> None:
    request = AlterRequest({str(node): {_VERIFICATION: "true" if on else "false"}}, kind=_BROKER)
    answer = await admin.link.any_node(request)
    assert [code for code, *_ in answer.responses] == [0], answer
    deadline = Deadline(10.0)
    while await verified(admin) != on:
        await deadline.pause("the broker's setting")
