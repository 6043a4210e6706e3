"""Transactions that hang: open in a partition though their coordinator holds them ended. Found and ended.

A coordinator that lost a marker on the way (seen: a broker killed twice within a minute) never sends it again, and no
timeout ends what it does not hold open: the partition's last stable offset stands still, so whoever reads committed
data waits for ever, MirrorMaker's start among them. Found as KIP-664 has it (`kafka-transactions.sh find-hanging`), but
by the coordinator's word alone and in three looks, since no clock says how long an honest transaction takes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from aiokafka.errors import KafkaError, for_code

from streams.kafka.admin import Admin
from streams.kafka.errors import mapped
from streams.kafka.link import Deadline
from streams.kafka.metadata import TopicIdsRequest
from streams.kafka.run import TP
from streams.kafka.transaction_requests import (
    ListedRequest,
    MarkerRequest,
    ProducersRequest,
    TransactionsRequest,
)
from streams.model.errors import StreamsError, Unavailable

log = logging.getLogger(__name__)

_COORDINATORS = "__transaction_state"
"""The topic of what coordinators know: who leads a partition of it coordinates a part of the transactional ids."""
_ENDED = {"Empty", "CompleteCommit", "CompleteAbort", "Dead"}
_COMMITTED, _ABORTED = "CompleteCommit", "CompleteAbort"


@dataclass(frozen=True, slots=True, order=True)
class OpenTransaction:
    """What a partition's leader holds open: since which offset, by which producer."""

    tp: TP
    start_offset: int
    producer_id: int
    producer_epoch: int
    coordinator_epoch: int


@dataclass(frozen=True, slots=True, order=True)
class Hanging:
    """An open transaction that its coordinator holds ended, and how: None where that cannot be told."""

    open: OpenTransaction
    commit: bool | None

    def __str__(self) -> str:
        at = self.open
        return (
            f"{at.tp.topic}/{at.tp.partition} from offset {at.start_offset} on, "
            f"producer {at.producer_id} of epoch {at.producer_epoch}"
        )


@dataclass(frozen=True, slots=True)
class _Known:
    """What a coordinator says of a producer id's transaction."""

    state: str
    producer_epoch: int
    partitions: frozenset[TP]


class HangingTransactions:
    """Looks at all partitions of a cluster from time to time. One per process; several may look at one cluster."""

    def __init__(self, admin: Admin, unknown: Callable[[str], bool | None] = lambda _: None) -> None:
        """`unknown`: what is safe in a topic where nobody can tell how the transaction ended: to commit it, to abort
        it (False), or neither (None)."""
        self._admin, self._unknown = admin, unknown
        self._topics: set[str] = set()
        self._stable: dict[TP, int] = {}
        self._suspects: frozenset[Hanging] = frozenset()
        self._said: frozenset[Hanging] = frozenset()

    async def run(self, interval_s: float, ended: Callable[[Hanging], None] = lambda _: None) -> None:
        """Look every `interval_s` and end what hangs, until cancelled; `ended` is told of each."""
        while True:
            await asyncio.sleep(interval_s)
            try:
                found = await self.look()
                for each in found:
                    if each in self._said:  # it is the operator's, who has read it
                        continue
                    await self.end(each)
                    if each.commit is not None:
                        ended(each)
                self._said = frozenset(each for each in found if each.commit is None)
            except StreamsError as error:
                log.info("looking for hanging transactions: %s", error)

    async def look(self) -> list[Hanging]:
        """What hangs: the same in this look and the last, in partitions that stood still since the one before.

        A honest transaction may stand as long as it likes: its coordinator holds it open. One that ends while it is
        being looked at is not there the next time. Unavailable or Timeout when the brokers do not all answer.
        """
        topics = await self._admin.topics()
        if topics.keys() != self._topics:
            await self._admin.link.refresh(topics)
            self._topics = set(topics)
        partitions = [TP(each.name, number) for each in topics.values() for number in range(each.partitions)]
        stable = await self._admin.end_offsets(partitions)
        ends = await self._admin.end_offsets(partitions, committed=False)
        before, self._stable = self._stable, {tp: at for tp, at in stable.items() if at < ends[tp]}
        still = [tp for tp, at in self._stable.items() if before.get(tp) == at]
        found = await self._hanging(still) if still else frozenset()
        sure, self._suspects = found & self._suspects, found
        return sorted(sure, key=lambda each: each.open)

    async def end(self, hanging: Hanging) -> None:
        """Write the marker that is missing. Where the outcome cannot be told, only say so: a guess could lose data."""
        at = hanging.open
        if hanging.commit is None:
            log.error(
                "a transaction hangs in %s and may have been committed: look at it, then end it with Kafka's "
                "kafka-transactions.sh abort",
                hanging,
            )
            return
        node = await self._admin.link.leader(at.tp.topic, at.tp.partition, Deadline(5.0))
        producer = (at.producer_id, at.producer_epoch, at.coordinator_epoch)
        answer = await self._ask(node, MarkerRequest(at.tp.topic, at.tp.partition, producer, commit=hanging.commit))
        codes = [code for _, named, *_ in answer.markers for _, parts, *_ in named for _, code, *_ in parts]
        if codes != [0]:
            raise Unavailable(f"ending the transaction in {hanging}: {[for_code(code).__name__ for code in codes]}")
        log.warning(
            "ended a transaction that hung (%s) in %s: its coordinator held it ended, and its marker was lost",
            "commit" if hanging.commit else "abort",
            hanging,
        )

    async def _hanging(self, partitions: Iterable[TP]) -> frozenset[Hanging]:
        opened = await self._open(partitions)
        known = await self._known({each.producer_id for each in opened}) if opened else {}
        found = set()
        for each in opened:
            of = known.get(each.producer_id)
            if of is None or of.state in _ENDED or each.tp not in of.partitions:
                outcome = _outcome(each, of)
                found.add(Hanging(each, self._unknown(each.tp.topic) if outcome is None else outcome))
        return frozenset(found)

    async def _open(self, partitions: Iterable[TP]) -> list[OpenTransaction]:
        by_node: dict[int, dict[str, list[int]]] = {}
        for tp in partitions:
            node = await self._admin.link.leader(tp.topic, tp.partition, Deadline(5.0))
            by_node.setdefault(node, {}).setdefault(tp.topic, []).append(tp.partition)
        found = []
        for node, wanted in by_node.items():
            for topic, answers, *_ in (await self._ask(node, ProducersRequest(wanted))).topics:
                for partition, code, message, producers, *_ in answers:
                    _check(code, f"the producers of {topic}/{partition}", message)
                    found += [
                        OpenTransaction(TP(topic, partition), start, producer, epoch, coordinator_epoch)
                        for producer, epoch, _sequence, _time, coordinator_epoch, start, *_ in producers
                        if start >= 0
                    ]
        return found

    async def _known(self, producer_ids: set[int]) -> dict[int, _Known]:
        """By producer id. All coordinators must be there and answer: what none of them knows has ended."""
        found: dict[int, _Known] = {}
        cluster = await self._admin.link.any_node(TopicIdsRequest([_COORDINATORS]))
        if any(leader < 0 for each in cluster.topics for _, _, leader, *_ in each[4]):
            raise Unavailable("some transactions have no coordinator at the moment")
        for node, *_ in cluster.brokers:
            listed = await self._ask(node, ListedRequest(producer_ids))
            _check(listed.error_code, f"the transactions of broker {node}")
            if not listed.transactions:
                continue
            described = await self._ask(node, TransactionsRequest([each[0] for each in listed.transactions]))
            for code, name, state, _timeout, _started, producer, epoch, topics, *_ in described.transactions:
                _check(code, f"the transaction of {name}")
                partitions = frozenset(TP(topic, number) for topic, numbers, *_ in topics for number in numbers)
                found[producer] = _Known(state, epoch, partitions)
        return found

    async def _ask(self, node: int, request: Any) -> Any:
        try:
            return await self._admin.link.send(node, request)
        except KafkaError as error:
            raise mapped(error, type(request).__name__) from error
        except NotImplementedError as error:  # aiokafka's, of a broker older than Kafka 3.0
            raise Unavailable(f"the broker is too old: {error}") from error


def _outcome(at: OpenTransaction, known: _Known | None) -> bool | None:
    """Whether a transaction that has ended was committed; None: that cannot be told.

    Since Kafka 4 a transaction's end takes its producer to the next epoch, so a coordinator in that epoch speaks of
    this very transaction. Later it speaks of later ones, and older clients' transactions share an epoch.
    """
    if known is None or known.producer_epoch != at.producer_epoch + 1:
        return None
    return {_COMMITTED: True, _ABORTED: False}.get(known.state)


def _check(code: int, what: str, message: str | None = None) -> None:
    if code:
        raise Unavailable(f"{what}: {for_code(code).__name__} {message or ''}".rstrip())
