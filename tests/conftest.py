"""Fixtures that every test may use, and which tests may run side by side."""

import os
from pathlib import Path

import pytest
from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

from streams.region.up import bytecode_env
from tests.support.kafka import kafka, two_regions
from tests.support.whole_system import whole_system

__all__ = ["kafka", "two_regions", "whole_system"]

SYSTEMS = ("tests/bench/", "tests/faults/", "tests/integration/")
SHARING = ("whole_system", "two_regions")  # fixtures of the session whose processes stay: users of one are run together
SHARERS = (
    "tests/faults/test_regions_converge.py",
    "tests/faults/test_strong_system.py",
    "tests/integration/test_definitions.py",
    "tests/integration/test_partitions_kafka.py",
    "tests/integration/test_region_kafka.py",
    "tests/integration/test_telemetry_kafka.py",
    "tests/integration/test_udf_deploy_system.py",
)
LANES = ("systems that are shared", "systems of their own")

os.environ.update(bytecode_env())  # hundreds of processes are started: none should compile the package again


class Lanes(LoadScopeScheduling):
    """Tests that start systems run in two processes, in their order; all others in those that are left, file by file.

    Systems wait more than they work, so two beside each other take less time than one after the other; three would
    each get too little of two cores.
    """

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.partition("::")[0]
        return LANES[path not in SHARERS] if path.startswith(SYSTEMS) else path

    def _assign_work_unit(self, node: WorkerController) -> None:
        for lane in reversed(LANES):
            if lane in self.workqueue:
                self.workqueue.move_to_end(lane, last=False)
        super()._assign_work_unit(node)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Modules that share what takes a quarter of a core from its start on go last, and together.

    The last user of `whole_system` (test_udf_deploy_system) stops it; `two_regions` ends with the session.
    """
    places: dict[Path, int] = {}
    for item in items:
        used = [1 + SHARING.index(name) for name in getattr(item, "fixturenames", ()) if name in SHARING]
        places[item.path] = max([places.get(item.path, 0), *used])
    items.sort(key=lambda item: places[item.path])
    root = Path(__file__).parents[1]
    wrong = {str(path.relative_to(root)) for path, place in places.items() if place} - set(SHARERS)
    assert not wrong, f"of fixtures that are shared, and not in SHARERS: {wrong}"


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> Lanes:
    """A hook of pytest-xdist."""
    return Lanes(config, log)
