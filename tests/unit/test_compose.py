"""The many-machine topology is a valid compose file, and its parts agree with each other."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import yaml

from streams.model.topology import Topology

COMPOSE = Path(__file__).resolve().parents[2] / "compose"


def test_compose_file_follows_the_specification() -> None:
    command = [
        sys.executable,
        "-m",
        "check_jsonschema",
        "--builtin-schema",
        "vendor.compose-spec",
        COMPOSE / "compose.yaml",
    ]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stdout + run.stderr


def test_topology_names_brokers_that_the_compose_file_starts() -> None:
    services = yaml.safe_load((COMPOSE / "compose.yaml").read_text())["services"]
    topology = Topology.load(COMPOSE)
    assert topology.names == ("us-east", "eu-west")
    for region in topology.regions:
        hosts = [server.rpartition(":")[0] for server in region.bootstrap_servers.split(",")]
        assert len(hosts) == 3 and set(hosts) <= set(services)
        assert f"{region.name}-gateway" in services and f"{region.name}-worker" in services


def test_mounted_files_exist() -> None:
    services = yaml.safe_load((COMPOSE / "compose.yaml").read_text())["services"]
    for service in services.values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert not source.startswith("./") or (COMPOSE / source).exists(), source
