"""The settings that Kafka and MirrorMaker 2 are started with, and what is shown of their logs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from streams.model.topology import Region
from streams.region.java import last_errors
from streams.region.kafka_server import KafkaOptions, server_properties
from streams.region.mirror_maker import MirrorOptions, mirror_properties
from streams.region.up import process_env


def test_a_mirror_listener_advertises_the_proxy() -> None:
    options = KafkaOptions(
        "a", Path("d"), Path("l"), 1001, 1002, mirror_port=1003, mirror_advertised_port=1004, settings={"x": "y"}
    )
    properties = server_properties(options)
    assert properties["listeners"] == "CLIENT://127.0.0.1:1001,CONTROLLER://127.0.0.1:1002,MIRROR://127.0.0.1:1003"
    assert properties["advertised.listeners"] == "CLIENT://127.0.0.1:1001,MIRROR://127.0.0.1:1004"
    assert options.mirror_bootstrap_servers == "127.0.0.1:1004"
    assert properties["x"] == "y"


def test_every_directed_pair_is_exactly_once() -> None:
    regions = tuple(
        Region(name, f"127.0.0.1:{port}", mirror_bootstrap_servers=proxy)
        for name, port, proxy in [("a", 1, "127.0.0.1:9"), ("b", 2, ""), ("c", 3, "")]
    )
    properties = mirror_properties(MirrorOptions(Path("d"), Path("l"), 5, regions))
    assert properties["clusters"] == "a,b,c"
    pairs = [f"{x}->{y}" for x in "abc" for y in "abc" if x != y]
    for pair in pairs:
        assert properties[f"{pair}.enabled"] == "true"
        assert properties[f"{pair}.consumer.isolation.level"] == "read_committed"
    assert all(properties[f"{name}.exactly.once.source.support"] == "enabled" for name in "abc")
    assert properties["a->b.source.consumer.bootstrap.servers"] == "127.0.0.1:9"
    assert properties["b->a.source.consumer.bootstrap.servers"] == "127.0.0.1:2"
    assert not any(name.startswith(("consumer.", "offset.flush")) for name in properties)


def test_the_errors_of_a_log_are_found(tmp_path: Path) -> None:
    log = tmp_path / "k.log"
    log.write_text("old ERROR gone\n")
    start = log.stat().st_size
    with log.open("a") as file:
        file.write("INFO fine\n2026 ERROR Fatal error during broker startup (x)\njava.lang.Boom\n\tat x.y(z)\n")
        file.write("Caused by: java.io.IOException: no space\n\tat q\n")
    assert last_errors(log, since_byte=start) == [
        "2026 ERROR Fatal error during broker startup (x)",
        "Caused by: java.io.IOException: no space",
    ]
    assert last_errors(tmp_path / "none.log") == []


def test_three_brokers_replicate_and_outlive_one() -> None:
    properties = [
        server_properties(
            KafkaOptions("a", Path("d"), Path("l"), 1000 + each, 2000 + each, node_id=each, voters=voters)
        )
        for voters in [(2001, 2002, 2003)]
        for each in (1, 2, 3)
    ]
    assert [each["node.id"] for each in properties] == ["1", "2", "3"]
    voters = "1@127.0.0.1:2001,2@127.0.0.1:2002,3@127.0.0.1:2003"
    for each in properties:
        assert each["controller.quorum.voters"] == voters
        assert (each["default.replication.factor"], each["min.insync.replicas"]) == ("3", "2")
        assert (each["transaction.state.log.replication.factor"], each["transaction.state.log.min.isr"]) == ("3", "2")
    alone = server_properties(KafkaOptions("a", Path("d"), Path("l"), 1001, 1002))
    assert (alone["default.replication.factor"], alone["min.insync.replicas"]) == ("1", "1")
    three = "127.0.0.1:1,127.0.0.1:2,127.0.0.1:3"
    mirror = mirror_properties(MirrorOptions(Path("d"), Path("l"), 5, (Region("a", three), Region("b", "127.0.0.1:4"))))
    assert (mirror["b->a.replication.factor"], mirror["a->b.replication.factor"]) == ("3", "1")
    assert (mirror["a.offset.storage.replication.factor"], mirror["b.offset.storage.replication.factor"]) == ("3", "1")


def test_children_keep_bytecode_in_the_cache_where_it_may_not_lie_beside_the_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STREAMS_CACHE", str(tmp_path))
    monkeypatch.setattr(sys, "pycache_prefix", None)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    script = "import sys; print(sys.dont_write_bytecode, sys.pycache_prefix)"
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **process_env()}
    child = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True)
    assert child.stdout.split() == ["False", str(tmp_path / "bytecode")]

    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    assert "PYTHONPYCACHEPREFIX" not in process_env()


def test_a_gateway_does_not_import_the_supervisor() -> None:
    script = (
        "import sys, streams.cli.gateway\n"
        "print([name for name in ('requests', 'rich', 'psutil', 'streams.region.up') if name in sys.modules])"
    )
    child = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert child.stdout.strip() == "[]"
