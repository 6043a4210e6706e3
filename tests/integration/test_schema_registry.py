"""confluent-kafka's own registry client and serializers, unmodified, against the gateway's routes and real Kafka."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.schema_registry import (
    ConfigCompatibilityLevel,
    Schema,
    SchemaRegistryClient,
    SchemaRegistryError,
    ServerConfig,
)
from confluent_kafka.schema_registry.avro import AvroDeserializer, AvroSerializer
from confluent_kafka.serialization import MessageField, SerializationContext

from streams.kafka.admin import Admin, TopicSpec
from streams.model.keyspace import BUILTIN
from streams.region.kafka_server import KafkaServer
from streams.region.processes import die_with_parent, free_ports
from streams.serde import SchemaSet, delete_value, from_avro, load_builtin, to_avro
from tests.support.polling import eventually_sync

pytestmark = pytest.mark.kafka
ROOT = Path(__file__).resolve().parents[2]
SCORE = {keyspace.name: keyspace for keyspace in BUILTIN}["score"]
JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Registry:
    """A running registry: its URL, and the Kafka it is on."""

    url: str
    bootstrap_servers: str

    def client(self, prefix: str = "") -> SchemaRegistryClient:
        """An unmodified client; retries off, so that a 5xx would show."""
        return SchemaRegistryClient({"url": self.url + prefix, "max.retries": 0, "timeout": 20})

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, str, Any]:
        """Status, content type and JSON of a raw request."""
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, JSON, method=method)
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return answer.status, answer.headers["content-type"], json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers["content-type"], json.load(error)


@pytest.fixture(scope="module")
def registry(kafka: KafkaServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """The routes on a granian of their own process, definitions on a topic of their own."""
    (port,) = free_ports(1)
    url, topic = f"http://127.0.0.1:{port}", f"definitions-{uuid.uuid4().hex[:8]}"
    command = [sys.executable, "-m", "tests.support.schema_server", kafka.bootstrap_servers, topic, str(port)]
    log = tmp_path_factory.mktemp("registry") / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=out, preexec_fn=die_with_parent())
    try:

        def up() -> bool:
            assert process.poll() is None, log.read_text()
            try:
                with urllib.request.urlopen(f"{url}/subjects", timeout=2) as answer:
                    return bool(answer.status == 200)
            except OSError:
                return False

        eventually_sync(up, 60)
        yield Registry(url, kafka.bootstrap_servers)
    finally:
        process.kill()
        process.wait(10)


def record(*extra: dict[str, Any], name: str = "R") -> str:
    return json.dumps({"type": "record", "name": name, "fields": [{"name": "v", "type": "long"}, *extra]})


def test_an_unmodified_serializer_makes_what_the_gateway_makes(registry: Registry) -> None:
    client = registry.client()
    context = SerializationContext(SCORE.events_topic, MessageField.VALUE)
    text = load_builtin()["streams.CounterAdd"].text
    for conf in ({}, {"auto.register.schemas": False}, {"auto.register.schemas": False, "use.latest.version": True}):
        value = AvroSerializer(client, text, conf=conf)({"add": 5}, context)
        assert value == to_avro(SCORE, {"add": 5})
    assert AvroDeserializer(client)(to_avro(SCORE, {"add": -7}), context) == {"add": -7}


def test_an_unmodified_deserializer_reads_deletes(registry: Registry) -> None:
    context = SerializationContext(SCORE.events_topic, MessageField.VALUE)
    assert AvroDeserializer(registry.client())(delete_value(), context) is not None


async def test_a_plain_client_produces_valid_puts_and_consumes_the_gateways(registry: Registry) -> None:
    topic = f"events.score{uuid.uuid4().hex[:8]}"
    settings = {"message.timestamp.type": "LogAppendTime"}
    async with Admin(registry.bootstrap_servers) as admin:
        await admin.ensure_topics([TopicSpec(topic, 2, settings)])
    client, context = registry.client(), SerializationContext(topic, MessageField.VALUE)
    spaced = json.dumps(load_builtin()["streams.CounterAdd"].document, indent=4)
    serializer = AvroSerializer(client, spaced)
    producer = Producer({"bootstrap.servers": registry.bootstrap_servers, "enable.idempotence": True})
    for number in range(10):
        producer.produce(topic, serializer({"add": number}, context), key=f"score:{number}", partition=number % 2)
        producer.produce(topic, to_avro(SCORE, {"add": 100 + number}), key=f"score:{number}", partition=number % 2)
    assert producer.flush(30) == 0
    consumer = Consumer(
        {"bootstrap.servers": registry.bootstrap_servers, "group.id": "none", "enable.auto.commit": False}
    )
    consumer.assign([TopicPartition(topic, 0, 0), TopicPartition(topic, 1, 0)])
    try:
        values: list[bytes] = []
        for _ in range(20):
            message = consumer.poll(20)
            assert message is not None and message.error() is None
            values.append(message.value())
    finally:
        consumer.close()
    ours = SchemaSet(load_builtin().values())
    wanted = [*range(10), *range(100, 110)]
    assert sorted(from_avro(value, ours)["add"] for value in values) == wanted
    deserializer = AvroDeserializer(client)
    assert sorted(deserializer(value, context)["add"] for value in values) == wanted


def test_a_reader_with_a_newer_schema_reads_old_values(registry: Registry) -> None:
    client, topic = registry.client(), f"t{uuid.uuid4().hex[:8]}"
    context = SerializationContext(topic, MessageField.VALUE)
    old = AvroSerializer(client, record())({"v": 1}, context)
    newer = record({"name": "u", "type": "string", "default": "?"})
    new = AvroSerializer(client, newer)({"v": 2, "u": "x"}, context)
    assert client.get_versions(f"{topic}-value") == [1, 2]
    reader = AvroDeserializer(client, newer)
    assert [reader(value, context) for value in (old, new)] == [{"v": 1, "u": "?"}, {"v": 2, "u": "x"}]


@pytest.mark.parametrize("prefix", ["", "/v1/registry"])
def test_what_the_client_can_ask(registry: Registry, prefix: str) -> None:
    client, subject = registry.client(prefix), f"s{uuid.uuid4().hex[:8]}"
    one, two = Schema(record()), Schema(record({"name": "u", "type": "string", "default": ""}))
    first = client.register_schema(subject, one)
    assert client.register_schema(subject, Schema(json.dumps(json.loads(record()), indent=2))) == first
    second = client.register_schema(subject, two)
    fresh = registry.client(prefix)
    assert fresh.register_schema(subject, one) == first
    assert json.loads(fresh.get_schema(first).schema_str) == json.loads(record())
    found = fresh.lookup_schema(subject, two)
    assert (found.schema_id, found.version, found.subject) == (second, 2, subject)
    assert fresh.get_versions(subject) == [1, 2]
    assert fresh.get_latest_version(subject).schema_id == second
    assert fresh.get_version(subject, 1).schema_id == first
    assert subject in fresh.get_subjects()
    assert fresh.get_subjects(subject_prefix=subject, limit=1) == [subject]
    assert subject in fresh.get_subjects_by_schema_id(second)
    assert (subject, 2) in [(use.subject, use.version) for use in fresh.get_schema_versions(second)]
    assert fresh.get_schema_types() == ["AVRO"]
    assert fresh.get_referenced_by(subject, 1) == [] and fresh.get_contexts() == ["."]
    assert fresh.get_global_mode() == fresh.get_mode(subject) == "READWRITE"
    assert fresh.test_compatibility(subject, one) and fresh.test_compatibility_all_versions(subject, one)
    assert not fresh.test_compatibility(subject, Schema('"string"'), verbose=True)
    assert fresh.get_compatibility() == "BACKWARD"
    fresh.set_compatibility(subject, "full")
    assert fresh.get_compatibility(subject) == "FULL"
    fresh.set_config(subject, ServerConfig(compatibility=ConfigCompatibilityLevel.NONE))
    fresh.register_schema(subject, Schema('"string"'))
    fresh.delete_config(subject)
    with pytest.raises(SchemaRegistryError) as caught:
        fresh.get_config(subject)
    assert caught.value.error_code == 40408


def test_a_schema_that_does_not_evolve_is_refused_with_the_reason(registry: Registry) -> None:
    client, subject = registry.client(), f"s{uuid.uuid4().hex[:8]}"
    client.register_schema(subject, Schema(record()))
    with pytest.raises(SchemaRegistryError) as caught:
        client.register_schema(subject, Schema(record({"name": "u", "type": "string"})))
    assert caught.value.http_status_code == caught.value.error_code == 409
    assert "u: this field is new and has no default" in caught.value.error_message
    assert client.get_versions(subject) == [1]


@pytest.mark.parametrize(
    ("method", "path", "body", "code"),
    [
        ("GET", "/subjects/nix/versions", None, 40401),
        ("GET", "/subjects/nix/versions/latest", None, 40401),
        ("GET", "/subjects/events.kv-value/versions/9", None, 40402),
        ("GET", "/subjects/events.kv-value/versions/0", None, 42202),
        ("GET", "/subjects/events.kv-value/versions/new", None, 42202),
        ("POST", "/subjects/nix", {"schema": '"string"'}, 40401),
        ("POST", "/subjects/events.kv-value", {"schema": '"string"'}, 40403),
        ("GET", "/schemas/ids/1", None, 40403),
        ("GET", "/schemas/ids/-1", None, 40403),
        ("GET", "/schemas/ids/99999999999999999999", None, 40403),
        ("GET", "/subjects?limit=x", None, 422),
        ("POST", "/subjects/s/versions", {"schema": '"strin"'}, 42201),
        ("POST", "/subjects/s/versions", {"schema": "{"}, 42201),
        ("POST", "/subjects/s/versions", {"schema": 5}, 42201),
        ("POST", "/subjects/s/versions", {}, 42201),
        ("POST", "/subjects/s/versions", {"schema": "x", "schemaType": "PROTOBUF"}, 42201),
        ("POST", "/subjects/s/versions", {"schema": '"int"', "references": [{"name": "a"}]}, 42201),
        ("POST", f"/subjects/{'x' * 250}/versions", {"schema": '"int"'}, 42208),
        ("POST", "/subjects/s/versions", b"{", 422),
        ("POST", "/subjects/s/versions", b"[]", 422),
        ("POST", "/subjects/s/versions", b'{"schema":"' + b"x" * (2 << 20) + b'"}', 413),
        ("POST", "/compatibility/subjects/nix/versions/latest", {"schema": '"int"'}, 40401),
        ("PUT", "/config/s", {"compatibility": "SIDEWAYS"}, 42203),
        ("PUT", "/config/s", {}, 42203),
        ("GET", "/config/nix", None, 40408),
        ("DELETE", "/subjects/events.kv-value", None, 42205),
    ],
)
def test_errors_are_the_registrys(registry: Registry, method: str, path: str, body: Any, code: int) -> None:
    status, kind, answer = registry.ask(method, path, body)
    assert kind == "application/vnd.schemaregistry.v1+json"
    assert (status, answer["error_code"]) == (int(str(code)[:3]), code), answer
    assert answer["message"]
