"""The many-machine topology is a valid compose file, and its parts agree with each other."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import jsonschema
import yaml

from streams.model.topology import Topology

COMPOSE = Path(__file__).resolve().parents[2] / "compose"


def test_compose_file_follows_the_specification() -> None:
    # The package carries the specification's schema; its own code is not imported (it wants a newer click than Faust).
    package = importlib.util.find_spec("check_jsonschema")
    assert package is not None and package.submodule_search_locations
    schema = Path(package.submodule_search_locations[0]) / "builtin_schemas" / "vendor" / "compose-spec.json"
    validator = jsonschema.validators.validator_for(json.loads(schema.read_text()))(json.loads(schema.read_text()))
    errors = [
        f"{error.json_path}: {error.message}"
        for error in validator.iter_errors(yaml.safe_load((COMPOSE / "compose.yaml").read_text()))
    ]
    assert not errors, errors
    assert list(validator.iter_errors({"services": {"a": {"no-such-key": 1}}})), "the schema refuses nothing"


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
