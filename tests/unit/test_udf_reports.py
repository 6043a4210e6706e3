"""What a UDF's worker reports: a pause stays visible until it is resumed, whatever else goes wrong meanwhile."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

from streams.definitions.udf_states import StateWriter, UdfState
from streams.processing.deployed import Reporter
from tests.support.functions import handle_request


class Told:
    """Keeps what was reported."""

    def __init__(self) -> None:
        self.states: list[UdfState] = []

    async def report(self, state: UdfState) -> None:
        self.states.append(state)

    @property
    def last(self) -> tuple[str, str, int]:
        return self.states[-1].state, self.states[-1].reason, self.states[-1].resumes


async def test_a_pause_is_the_last_word_until_it_is_resumed() -> None:
    told, resumes, of = Told(), 2, handle_request()
    reporter = Reporter(cast(StateWriter, told), "us-east", lambda: resumes)
    await reporter.tell(of, "active")
    await reporter.tell(of, "paused", "10 traps", 2)
    for state in ("failing", "refused", "starting"):
        await reporter.tell(of, state, "no Kafka")
    assert told.last == ("paused", "10 traps", 2) and len(told.states) == 2
    resumes = 3
    await reporter.tell(of, "failing", "no Kafka")
    assert told.last == ("failing", "no Kafka", 0)


async def test_the_next_process_keeps_the_pause_of_the_same_module_only() -> None:
    of = handle_request()
    last = UdfState(of.name, "us-east", of.manifest.version, of.sha256, "paused", "10 traps", 1, 1, 4)
    for sha256, state in ((of.sha256, "paused"), ("0" * 64, "refused")):
        told = Told()
        reporter = Reporter(cast(StateWriter, told), "us-east", lambda: 4)
        reporter.begin(replace(last, sha256=sha256))
        await reporter.tell(of, "refused", "over the operator's caps")
        assert told.last[0] == state
