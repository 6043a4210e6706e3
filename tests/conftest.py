"""Fixtures that every test may use, and which tests may run side by side."""

import pytest
from xdist.scheduler import LoadScopeScheduling

from tests.support.kafka import kafka, two_regions

__all__ = ["kafka", "two_regions"]

SYSTEMS = ("tests/bench/", "tests/faults/", "tests/integration/")


class SystemsInTurn(LoadScopeScheduling):
    """Under `-n 2` one process has all tests that start systems, in their order; the other has the rest, file by file.

    Two systems beside each other would each get one core, and their tests are about time.
    """

    def _split_scope(self, nodeid: str) -> str:
        return "systems" if nodeid.startswith(SYSTEMS) else nodeid.partition("::")[0]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Modules that share the session's two regions go last: from its start on, it takes a quarter of a core."""
    shared = {item.path for item in items if "two_regions" in getattr(item, "fixturenames", ())}
    items.sort(key=lambda item: item.path in shared)


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> SystemsInTurn:
    """A hook of pytest-xdist."""
    return SystemsInTurn(config, log)
