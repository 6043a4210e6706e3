"""The anomaly fold in a real worker: its table and its alerts are exact over kills, and a gateway shows them."""

from __future__ import annotations

import random
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from streams.kafka.producer import EventProducer, ProducerOptions
from streams.region.kafka_server import KafkaServer
from streams.serde import encode
from streams.wasm.batch import Event
from tests.integration.test_gateway_kafka import gateway
from tests.support.anomaly import BASE_MS, NEVER, SCHEMAS, folded, state_of
from tests.support.gateway import free_port
from tests.support.polling import eventually
from tests.support.records import records_of
from tests.support.worker_process import TableState, WorkerProcess, fresh_topics, read_table

pytestmark = pytest.mark.kafka
DEVICES, ROUNDS, PARTS = 20, 500, 5
By = dict[bytes, list[bytes]]


async def alerts_of(broker: str) -> By:
    """What a read_committed consumer of alerts.device has: values by key, in order."""
    found: By = defaultdict(list)
    for partition in range(2):
        for record in await records_of(broker, "alerts.device", partition):
            found[record.key].append(record.value)
    return found


async def expected(broker: str) -> tuple[dict[bytes, dict[str, Any]], By]:
    """The states by row key and the alerts by event key, from the events in the log folded in one piece."""
    states: dict[bytes, dict[str, Any]] = {}
    alerts: By = defaultdict(list)
    for partition in range(2):
        records = await records_of(broker, "events.device", partition)
        events = []
        for record in records:
            append_ms = record.timestamp
            events.append(Event(append_ms, append_ms << 16, NEVER, 0, 0, record.key, record.value))
        table = folded(events)
        assert table.rejects == []
        states |= {key: state_of(row) for key, row in table.rows.items()}
        for _, key, value in table.outputs:
            alerts[key].append(value)
    return states, alerts


def readings(seed: int) -> list[tuple[bytes, bytes, list[Any]]]:
    """Noise around each device's level; now and then a spike, and for one device another level from the middle on."""
    rng = random.Random(seed)
    found = []
    for i in range(ROUNDS):
        for device in range(DEVICES):
            value = 20 + device + rng.gauss(0, 1) + (1000 if rng.random() < 0.01 and i > 30 else 0)
            value += 300 if device == 7 and i > ROUNDS // 2 else 0
            body = {"metric": "temperature", "value": value, "time": BASE_MS + 1000 * i}
            found.append((b"device:%d:telemetry" % device, encode(SCHEMAS["streams.Reading"], body), []))
    return found


async def committed(broker: str) -> TableState | None:
    """The anomaly table, once its markers have reached the events' ends."""
    state = await read_table(broker, "anomaly")
    for partition in range(2):
        records = await records_of(broker, "events.device", partition)
        if records and state.next_of(partition, f"events.device/{partition}") <= records[-1].offset:
            return None
    return state


async def test_rows_and_alerts_are_exact_over_kills_and_a_gateway_shows_them(
    kafka: KafkaServer, tmp_path: Path
) -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    broker = kafka.bootstrap_servers
    await fresh_topics(broker)
    worker = WorkerProcess(tmp_path, broker)
    worker._command.remove("--only-builtin")
    producer = EventProducer(broker, ProducerOptions(timeout_s=60.0))
    await producer.start()
    records = readings(seed)
    size, kills = len(records) // PARTS, 0
    try:
        worker.start()
        async with gateway(tmp_path / "gateway", broker, free_port()) as edge:
            for part in range(PARTS):
                seen = sum(map(len, (await alerts_of(broker)).values()))
                for at in range(part * size, (part + 1) * size, 100):
                    await producer.put_batch("events.device", records[at : at + 100])
                if part < PARTS - 1:  # while it is folding: some of this part's alerts are out, or all of them
                    await eventually(partial(more_than, broker, seen), 60)
                    worker.kill()
                    kills += 1
                    worker.start()
            table = await eventually(lambda: committed(broker), 90)
            states, alerts = await expected(broker)
            assert {key: state_of(row) for rows in table.rows.values() for key, row in rows.items()} == states
            assert await alerts_of(broker) == alerts
            assert sum(map(len, alerts.values())) > 50 and kills == PARTS - 1
            assert states[b"device:7:temperature"]["shifts"] == 1
            await eventually(lambda: shown(edge, states[b"device:7:temperature"]), 30)
    finally:
        await producer.stop()
        status = worker.stop()
    assert status == 0, worker.log


async def more_than(broker: str, count: int) -> bool:
    return sum(map(len, (await alerts_of(broker)).values())) > count


async def shown(edge: Any, state: dict[str, Any]) -> bool:
    """`GET /v1/tables/anomaly?prefix=device:7` is that state as JSON."""
    page = await edge._transport.json("GET", "/v1/tables/anomaly?prefix=device:7:", {})
    (row,) = page["rows"]
    assert row["key"] == "device:7:temperature"
    value = row["value"]
    for name in ("metric", "value", "expected", "score", "anomalous", "anomalies", "readings", "level"):
        assert value[name] == state[name], name
    assert len(value["alerts"]) == len(state["alerts"]) == 8
    assert value["alerts"][-1]["score"] == state["alerts"][-1]["score"]
    return True
