"""What deployed machines must do in a whole two-region system; run by test_udf_deploy_system.py on its system."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from streams.client import AsyncClient
from streams.client.udf_template import files_of
from streams.model.errors import BadInput, Conflict, NotFound, StreamsError, Timeout, Unprocessable
from tests.support.polling import eventually
from tests.support.whole_system import FAR, HOME, WholeSystem

NAME = "seats"
V2 = {
    '"1.0.0"': '"2.0.0"',
    "  int mine =": '  if (streams_is(what, "who") && streams_is(seat, "boom")) __builtin_trap();\n  int mine =',
}


def seats(place: Path, changes: dict[str, str]) -> Path:
    """The scaffold of `streams udf new --kind machine`, with some of its text replaced."""
    place.mkdir()
    for file, text in files_of(NAME, kind="machine").items():
        for old, new in changes.items():
            text = text.replace(old, new)
        (place / file).write_text(text)
    return place


async def runs_everywhere(system: WholeSystem, version: str) -> None:
    """Every region reports this version active, and executes it."""

    async def active() -> bool:
        async with system.sessions() as sessions:
            for edge in sessions:
                found: dict[str, Any] = next(each for each in await edge.udfs() if each["name"] == NAME)
                states = {each["state"] for each in found["regions"].values()}
                assert (found["version"], states) == (version, {"active"}), found
                assert (await edge.machine(NAME).status())["version"] == version
        return True

    await eventually(active, 60, every_s=0.05)


async def equal_states(home: AsyncClient, far: AsyncClient) -> dict[str, Any]:
    """Both replicas once they stand at one offset: their hashes are equal."""

    async def equal() -> dict[str, Any]:
        one, other = [await edge.machine(NAME).status() for edge in (home, far)]
        assert one["offset"] == other["offset"]
        return {"home": one, "far": other}

    found = await eventually(equal, 30, every_s=0.02)
    own = ("region", "trouble")
    assert {name: value for name, value in found["home"].items() if name not in own} == {
        name: value for name, value in found["far"].items() if name not in own
    }
    return found["home"]  # type: ignore[no-any-return]


async def machines_execute_one_log_everywhere(system: WholeSystem, place: Path) -> None:
    """Deployed once, from afar; whoever commands it, the seat is given once; a new version swaps at one offset."""
    one_seat = seats(place / "one", {})
    async with system.sessions() as (home, far):

        async def deployed() -> bool:
            try:
                return bool(await far.deploy_globally(one_seat))
            except Timeout:  # written, but the mirror has only just started: the same again is no other deploy
                return False

        await eventually(deployed, 90)
        await runs_everywhere(system, "1.0.0")
        takers = [(edge, f"{name}-{n}") for name, edge in ((HOME, home), (FAR, far)) for n in range(8)]
        found = await asyncio.gather(*(edge.machine(NAME).send(f"take 1A {who}") for edge, who in takers))
        holders = {each.result["holder"] for each in found}
        assert len(holders) == 1 and sum(each.result["ok"] for each in found) == 1, found
        assert len({each.offset for each in found}) == len(found)
        first = min(found, key=lambda each: each.offset)
        assert first.result["ok"], "the first in the log has it"
        for edge in (home, far):
            assert (await edge.machine(NAME).query("who 1A"))["holder"] == holders.copy().pop()
        one = await home.machine(NAME).send("take 1B ann", idempotency_key="seat-of-ann")
        again = await far.machine(NAME).send("take 1B ann", idempotency_key="seat-of-ann")
        assert (again.offset, again.result) == (one.offset, one.result)
        with pytest.raises(Unprocessable):
            await far.machine(NAME).send("take 1C ann", idempotency_key="seat-of-ann")
        with pytest.raises(Conflict, match="changes nothing"):
            await far.machine(NAME).query("free 1B ann")
        await equal_states(home, far)
        assert (await far.machine(NAME).query("who 1B", consistency="eventual"))["holder"] == "ann"


async def a_machines_next_version_swaps_at_one_offset(system: WholeSystem, place: Path) -> None:
    """While commands come from both regions; its traps cost their command alone; rolled back, refused, removed."""
    done = asyncio.Event()
    told: list[tuple[int, str]] = []

    async def command(edge: AsyncClient, who: str) -> None:
        count = 0
        while not done.is_set():
            found = await edge.machine(NAME).send(f"take {who}-{count} {who}")
            assert found.result["ok"]
            told.append((found.offset, found.version))
            count += 1

    async with system.sessions() as (home, far):
        load = [asyncio.create_task(command(edge, who)) for edge, who in ((home, "h"), (far, "f"))]
        try:
            await far.deploy_globally(seats(place / "two", V2))
            await runs_everywhere(system, "2.0.0")
        finally:
            done.set()
            await asyncio.gather(*load)
        versions = [version for _, version in sorted(told)]
        assert versions == sorted(versions) and "1.0.0" in versions, "one offset, whoever tells"
        for edge in (home, far):
            with pytest.raises(StreamsError) as failed:
                await edge.machine(NAME).send("who boom")
            assert (failed.value.status, failed.value.extra["trap"]) == (502, "trap")
        assert (await far.machine(NAME).query("who 1B"))["holder"] == "ann"
        stands = await equal_states(home, far)
        assert stands["traps"] == 2 and stands["rows"] == 2 + len(told)

        with pytest.raises(Conflict) as refused:
            await home.deploy_globally(seats(place / "layout", {'"1.0.0"': '"3.0.0"', "layout = 1": "layout = 2"}))
        assert refused.value.field == "layout"
        bad = seats(place / "bad", {'"1.0.0"': '"3.0.0"'})
        (bad / f"{NAME}.c").unlink()
        (bad / f"{NAME}.wasm").write_bytes(b"MZ")
        with pytest.raises(BadInput) as not_wasm:
            await home.deploy_globally(bad)
        assert not_wasm.value.field == "module"
        await home.rollback_udf(NAME)
        await runs_everywhere(system, "1.0.0")
        assert (await far.machine(NAME).send("who boom")).result["holder"] is None
        await equal_states(home, far)

        await far.remove_udf(NAME)

        async def gone() -> bool:
            for edge in (home, far):
                try:
                    await edge.machine(NAME).status()
                except NotFound:
                    continue
                return False  # not heard of its removal yet
            return True

        await eventually(gone, 30)
        # Deployed again, its log is still there, and so is what was commanded.
        await home.deploy_globally(place / "two")
        await runs_everywhere(system, "2.0.0")
        assert (await far.machine(NAME).query("who 1B"))["holder"] == "ann"
        await home.remove_udf(NAME)
