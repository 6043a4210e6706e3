"""Keyspaces with `mirror: events`: the gateway says which, and the mirror is started again with them."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

from streams.gateway.supervised import tell_mirror
from streams.model.keyspace import Keyspace
from streams.region.mirror_maker import mirrored_topics
from streams.region.mirrored import MirroredEvents
from streams.region.supervisor import ProcessSpec, Supervisor
from tests.support.polling import eventually

REGIONS = ("us-east", "eu-west")
PLAIN, WHOLE = Keyspace("plain"), Keyspace("whole", mirror="events")


def test_only_the_events_that_are_asked_for_are_mirrored() -> None:
    topics = re.compile(mirrored_topics(["whole", "a-b_c"]))
    for name in ("table.plain", "definitions", "udfs", "gateways", "udf-states", "events.whole", "events.a-b_c"):
        assert topics.fullmatch(name), name
    for name in ("events.plain", "events.wholesale", "eventsxwhole", "us-east.events.whole", "dead-letter.whole"):
        assert not topics.fullmatch(name), name
    assert not re.fullmatch(mirrored_topics(), "events.whole")


async def test_the_mirror_is_started_again_when_what_it_mirrors_changes(tmp_path: Path) -> None:
    asked: list[tuple[str, ...]] = []
    mirrored = MirroredEvents(tmp_path, REGIONS)

    def command() -> list[str]:
        asked.append(mirrored.names())
        return [sys.executable, "-S", "-c", "import time; time.sleep(600)"]

    tell_mirror(tmp_path, "us-east", [PLAIN])
    supervisor = Supervisor(tmp_path, [ProcessSpec("mirror", command, tmp_path / "mirror.log")])
    said: list[str] = []
    await supervisor.start()
    following = asyncio.create_task(mirrored.run(supervisor, "mirror", said.append))
    try:
        for told, wanted in (
            ({"us-east": [PLAIN, WHOLE]}, ("whole",)),
            ({"eu-west": [WHOLE]}, ("whole",)),
            ({"us-east": [WHOLE, Keyspace("more", mirror="events")]}, ("more", "whole")),
            ({"us-east": [PLAIN], "eu-west": []}, ()),
        ):
            for region, keyspaces in told.items():
                tell_mirror(tmp_path, region, keyspaces)
            await eventually(lambda wanted=wanted: asked[-1] == wanted and supervisor.processes[0].state == "running")
    finally:
        following.cancel()
        await supervisor.stop()
    assert asked[0] == () and ("whole",) in asked and ("more", "whole") in asked
    assert len(said) >= 3 and len(asked) <= 6, "not for what it knows already"


def test_a_file_that_cannot_be_read_names_nothing(tmp_path: Path) -> None:
    place = tmp_path / "mirrored"
    place.mkdir()
    for text in ("", "{", "[]", '{"keyspaces": 7}', '{"keyspaces": ["UP", "a.*", "a|b"]}'):
        (place / "us-east.json").write_text(text)
        assert MirroredEvents(tmp_path, REGIONS).names() == ()
