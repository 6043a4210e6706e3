"""The broker is killed and comes back: everything says so within its timeout, and goes on afterwards."""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from streams.kafka.admin import Admin, TopicSpec, wait_for_broker
from streams.kafka.changelog_reader import ChangelogReader
from streams.kafka.changelog_writer import TransactionalWriter, WriterOptions
from streams.kafka.errors import UnknownOutcome
from streams.kafka.link import Link
from streams.kafka.producer import EventProducer, ProducerOptions
from streams.model.errors import StreamsError, Timeout
from streams.model.marker import MARKER_KEY, Marker
from streams.region.kafka_server import KafkaServer

pytestmark = pytest.mark.kafka


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[KafkaServer]:
    with KafkaServer.on_free_ports("us-east", tmp_path) as server:
        yield server


async def test_killed_and_restarted(broker: KafkaServer) -> None:
    servers = broker.bootstrap_servers
    async with Admin(servers) as admin:
        await admin.ensure_topics([TopicSpec("events.k", 2), TopicSpec("table.k", 1, {"cleanup.policy": "compact"})])
    producer = EventProducer(servers, ProducerOptions(timeout_s=3.0))
    await producer.start()
    link = Link(servers, request_timeout_s=3.0)
    writer = TransactionalWriter(link, "table.k/0", WriterOptions(timeout_s=3.0))
    await writer.start()
    reader = ChangelogReader(servers)
    await reader.start({("table.k", 0): 0})
    await producer.put("events.k", b"k:a", b"1")
    await writer.commit("table.k", 0, unit(1))

    broker.kill()
    began = time.monotonic()
    with pytest.raises(Timeout):
        await producer.put("events.k", b"k:a", b"2")
    with pytest.raises(UnknownOutcome):
        await writer.commit("table.k", 0, unit(2))
    assert time.monotonic() - began < 12

    broker.start()
    await wait_for_broker(servers, 60)
    meta = await retried(lambda: producer.put("events.k", b"k:a", b"3"))
    assert meta.offset in (1, 2), "the put whose outcome was unknown may be there, but once"
    await retried(writer.start)
    end = await writer.commit("table.k", 0, unit(3))
    seqs: list[int] = []
    deadline = time.monotonic() + 30
    while 3 not in seqs:
        assert time.monotonic() < deadline, (seqs, end)
        seqs += [unit.marker.seq for unit in await reader.units(1) if unit.marker]
    assert seqs == [1, 3], "what was not acknowledged was fenced off by start()"
    for thing in (producer, reader, link):
        await thing.stop()


def unit(seq: int) -> list[tuple[bytes, bytes, list[tuple[str, bytes | None]]]]:
    row = b"\1\2\0\0\0\0\0\0" + struct.pack("<Q", seq) + b"x" * 20
    return [(b"a", row, []), (MARKER_KEY, Marker("commit", seq, 1, {}).encode(), [])]


async def retried(action, timeout_s: float = 40.0):  # type: ignore[no-untyped-def]
    """The action's result; what can be retried is retried until the deadline."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return await action()
        except StreamsError as error:
            if not error.retriable or time.monotonic() > deadline:
                raise
