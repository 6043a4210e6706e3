"""What a UDF's worker reports: a pause stays visible until it is resumed, whatever else goes wrong meanwhile."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import cast

from streams.definitions.entries import Entry
from streams.definitions.udf_states import StateReader, StateWriter, UdfState
from streams.gateway.udf_words import word_of
from streams.model.topology import Region, Topology
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


def test_a_region_s_word_counts_until_the_mirror_brings_its_report() -> None:
    of = handle_request()
    states = StateReader(Topology((Region("us", "unused"), Region("eu", "unused"))), "us")
    body: dict[str, object] = {
        **of.to_json(),
        "regions": {"eu": {"state": "active", "version": of.manifest.version, "at": 7}},
    }
    word = word_of(json.loads(json.dumps(body)), of, "eu")
    assert word == UdfState(of.name, "eu", of.manifest.version, of.sha256, "active", "", 7, of.generation)
    states.hear(word)
    assert states.get("eu", of.name, of.generation) == word
    reported = [replace(word, state="starting", at_ms=6), replace(word, state="failing", at_ms=8), word]
    for each, shown in zip(reported, (word, reported[1], word), strict=True):
        states._take("eu", Entry(f"udf/{of.name}/{of.generation}", asdict(each)))
        assert states.get("eu", of.name, of.generation) == shown
    regions = {"eu": {"state": "starting", "version": None, "at": None}}
    for wrong in ({"sha256": "0" * 64}, {"version": "9"}, {"generation": 9}, {"regions": 3}, {"regions": regions}):
        assert word_of({**body, **wrong}, of, "eu") is None, wrong
    assert word_of(None, of, "eu") is None and word_of(body, of, "us") is None
