"""A worker whose next events retention has removed: it goes on where they have expired, and stands still where not."""

from __future__ import annotations

import signal
import urllib.request
from pathlib import Path

import pytest
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete

from streams.kafka.admin import Admin
from streams.kafka.producer import EventProducer
from streams.region.kafka_server import KafkaServer
from streams.serde import encode, load_builtin
from tests.support.gateway import free_port
from tests.support.polling import eventually
from tests.support.worker_process import WorkerProcess, add_value, fresh_topics, read_table

pytestmark = pytest.mark.kafka
READING = load_builtin()["streams.Reading"]
DEVICE, SCORE = ("events.device", 0), ("events.score", 0)


class Log:
    """Appends events of both keyspaces to partition 0, and cuts them off as retention does."""

    def __init__(self, broker: str, producer: EventProducer) -> None:
        self.broker, self.producer, self.values = broker, producer, 0

    async def device(self) -> None:
        self.values += 1
        value = encode(READING, {"metric": "t", "value": float(self.values), "time": 1_000 * self.values})
        await self.producer.put(DEVICE[0], b"device:a:telemetry", value, (), DEVICE[1])

    async def score(self) -> None:
        await self.producer.put(SCORE[0], b"score:a", add_value(1), (), SCORE[1])

    async def cut(self, *tps: tuple[str, int]) -> None:
        async with Admin(self.broker) as admin:
            ends = await admin.end_offsets(list(tps))
        client = AIOKafkaAdminClient(bootstrap_servers=self.broker)
        await client.start()
        try:
            await client.delete_records(
                {TopicPartition(tp.topic, tp.partition): RecordsToDelete(end) for tp, end in ends.items()}
            )
        finally:
            await client.close()


def metric(port: int, name: str) -> float:
    """The sum of a metric over what its labels say besides `name`."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


async def has_committed(broker: str, table: str, source: tuple[str, int]) -> bool:
    async with Admin(broker) as admin:
        (end,) = (await admin.end_offsets([source])).values()
    state = await read_table(broker, table)
    return state.next_of(source[1], f"{source[0]}/{source[1]}") >= end


async def test_what_has_expired_is_passed_over_and_what_has_not_is_an_error(kafka: KafkaServer, tmp_path: Path) -> None:
    broker, port = kafka.bootstrap_servers, free_port()
    await fresh_topics(broker)
    worker = WorkerProcess(tmp_path, broker, arguments=("--metrics-port", str(port)))
    producer = EventProducer(broker)
    await producer.start()
    log = Log(broker, producer)
    worker.start()
    try:
        for put in (log.device, log.score):
            await put()
        for table, source in (("device", DEVICE), ("telemetry", DEVICE), ("score", SCORE)):
            await eventually(lambda table=table, source=source: has_committed(broker, table, source), 60)

        # While it runs: the fetch that waits at the broker takes the next event, and what follows is cut.
        worker.send(signal.SIGSTOP)
        for _ in range(4):
            await log.device()
        await log.cut(DEVICE)
        worker.send(signal.SIGCONT)
        await log.device()
        for table in ("device", "telemetry", "anomaly"):
            await eventually(lambda table=table: has_committed(broker, table, DEVICE), 60)
        assert worker.process is not None and worker.process.poll() is None, worker.log
        assert metric(port, 'streams_worker_skipped_total{partition="0",table="device"}') >= 3
        assert "retention has removed what was to be read next" in worker.log

        # While it is down.
        worker.kill()
        for _ in range(3):
            await log.device()
            await log.score()
        await log.cut(DEVICE, SCORE)
        await log.device()
        worker.start()
        await eventually(lambda: "score/0: dropped" in worker.log, 60)
        await eventually(lambda: has_committed(broker, "device", DEVICE), 60)
        assert metric(port, 'streams_worker_skipped_total{partition="0",table="device"}') == 3
        assert metric(port, 'streams_worker_skipped_total{partition="0",table="score"}') == 0
        assert metric(port, 'streams_worker_state{partition="0",state="error",table="score"}') == 1
        assert metric(port, 'streams_worker_state{partition="1",state="running",table="score"}') == 1
        assert "remove the table's changelog" in worker.log and "have expired" in worker.log
    finally:
        worker.kill()
        await producer.stop()
    row = (await read_table(broker, "device")).rows[0][b"device:a:telemetry"]
    assert encode(READING, {"metric": "t", "value": float(log.values), "time": 1_000 * log.values}) in row
