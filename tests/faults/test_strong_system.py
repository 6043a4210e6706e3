"""Strong writes in the whole system: two regions, real processes, kills and cuts in the middle of work."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from streams.client import AsyncClient, connect
from streams.model.errors import Conflict, PreconditionFailed, StreamsError, Timeout, Unavailable
from streams.verify.recorder import HistoryRecorder
from tests.support.certificate import ILLEGAL, OK, check_faults, check_not_empty, check_traded, verify
from tests.support.nemesis import PROGRESS, Nemesis
from tests.support.order_load import OrderLoad
from tests.support.polling import eventually
from tests.support.strong_load import Doubled, LostAcks, StaleReads, StrongLoad, recorded
from tests.support.trading_model import TradingModel, plain
from tests.support.whole_system import FAR, HOME, PACE_S, WholeSystem

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]

COUNTER, MIRROR = "strong:counter", "strong:copy"


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WholeSystem]:
    """The system of this file, for its kills and cuts."""
    whole = WholeSystem(tmp_path_factory.mktemp("strong") / "data")
    try:
        whole.wait_ready()
        yield whole
    finally:
        assert whole.stop() == 0


@asynccontextmanager
async def both(system: WholeSystem) -> AsyncIterator[tuple[AsyncClient, AsyncClient]]:
    async with connect(system.url(HOME)) as home, connect(system.url(FAR)) as far:
        yield home, far


@dataclass
class Count:
    """What the incrementers know: `done` increments, each under its idempotency key."""

    done: int = 0
    retried: int = 0
    failed: int = 0
    keys: list[tuple[str, int]] = field(default_factory=list)


async def surely(count: Count, edges: list[AsyncClient], work: object) -> object:
    """The answer of `work(edge)`, asked again at either gateway for as long as the outcome is not known."""
    while True:
        for edge in edges:
            try:
                return await work(edge)  # type: ignore[operator]
            except (Unavailable, Timeout):
                count.retried += 1
                await asyncio.sleep(PACE_S)


async def increment(count: Count, edges: list[AsyncClient], times: int, name: str) -> None:
    """Compare-and-set increments of a counter and its copy, in one transaction each, until `times` have succeeded."""
    successes = attempt = 0
    while successes < times:
        attempt += 1
        row = await surely(count, edges, lambda edge: edge.get(COUNTER))
        value, version = (row.value, row.version) if row is not None else (0, 0)  # type: ignore[attr-defined]
        key = f"{name}-{attempt}"
        then = [{"put": COUNTER, "value": value + 1}, {"put": MIRROR, "value": value + 1}]
        test = [{"key": COUNTER, "version": version}]
        try:
            receipt = await surely(
                count, edges, lambda edge, t=then, i=test, k=key: edge.transact(t, if_=i, idempotency_key=k)
            )
        except PreconditionFailed:
            count.failed += 1
            continue
        successes += 1
        count.done += 1
        count.keys.append((key, receipt.version))  # type: ignore[attr-defined]


async def state_of(url: str) -> dict[str, object]:
    async with aiohttp.ClientSession() as http, http.get(f"{url}/v1/tables/strong:digest") as answer:
        found: dict[str, object] = await answer.json()
        assert answer.status == 200, found
        return found


async def equal_states(system: WholeSystem) -> dict[str, object]:
    """Both replicas' state, once they stand at the same offset."""

    async def equal() -> object:
        here, there = [await state_of(system.url(region)) for region in (HOME, FAR)]
        assert here["offset"] == there["offset"]
        assert (here["state"], here["commands"]) == (there["state"], there["commands"])
        return here

    found: dict[str, object] = await eventually(equal, 30, every_s=0.1)
    return found


SYMBOL = {"symbol": "KILL", "tick": Decimal("0.01"), "lot": Decimal(1), "mode": "continuous", "base": "KILL"}
Placed = list[tuple[int, dict[str, Any], Any]]


def random_order(rng: random.Random, identity: str) -> dict[str, Any]:
    kind = rng.choices(("limit", "ioc", "fok", "market"), (7, 1, 1, 1))[0]
    asked = {"id": identity, "symbol": "KILL", "side": rng.choice(("buy", "sell")), "type": kind}
    asked["quantity"] = str(rng.randint(1, 9))
    return asked if kind == "market" else asked | {"price": plain(Decimal(rng.randint(995, 1005)) / 100)}


async def place(count: Count, edges: list[AsyncClient], asked: dict[str, Any], placed: Placed) -> None:
    answer = await surely(count, edges, lambda edge: edge.place_order(**asked))
    placed.append((answer["offset"], asked, answer))  # type: ignore[index]
    count.done += 1


async def books(system: WholeSystem) -> tuple[dict[str, Any], dict[str, Any]]:
    found = []
    async with aiohttp.ClientSession() as http:
        for region in (HOME, FAR):
            async with http.get(f"{system.url(region)}/v1/books:digest") as answer:
                found.append(await answer.json())
    return found[0], found[1]


async def test_orders_are_placed_once_and_matched_exactly_through_kills(system: WholeSystem) -> None:
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")
    rng, count, model, placed = random.Random(seed), Count(), TradingModel(), Placed()
    async with both(system) as (home, far):
        await home.put_symbol("KILL", tick="0.01", lot="1")
        model.symbol(SYMBOL | {"quote": "USD", "accounts": "optional", "self_trade": "cancel_newest"})
        for phase, victim in enumerate((f"gateway-{HOME}", f"gateway-{FAR}")):

            async def trader(number: int, phase: int = phase) -> None:
                edges = [home, far] if number % 2 else [far, home]
                for index in range(40):
                    await place(count, edges, random_order(rng, f"{phase}-{number}-{index}"), placed)

            began, retried = count.done, count.retried
            traders = [asyncio.create_task(trader(number)) for number in range(4)]
            await eventually(lambda t=began + 20: count.done >= t, 60, every_s=0.005)
            pid = system.kill(victim)
            await asyncio.gather(*traders)
            assert count.retried > retried, "the kill came too late"
            await system.back(victim, pid, 90)
        assert len({offset for offset, _, _ in placed}) == len(placed) == 320
        for offset, asked, answer in sorted(placed, key=lambda each: each[0]):
            model.offset = offset
            wanted = model.place(asked)
            assert (answer["order"]["status"], answer["order"]["filled"]) == (wanted.status, wanted.filled), asked
            assert answer["trades"] == wanted.trades, asked
        for edge in (home, far):
            book = await edge.get_order_book("KILL", 100)
            assert (book["bids"], book["asks"]) == model.book("KILL")
            made = [(each["maker"], each["taker"], each["quantity"]) async for each in edge.trades("KILL")]
            assert made == [(t["maker"], t["taker"], t["quantity"]) for _, _, t in model.trades] and made
            for _, asked, _ in rng.sample(placed, 20):
                row = await edge.get_order(asked["id"])
                assert row is not None and row["order"]["filled"] == plain(model.orders[asked["id"]].filled)

    await eventually(lambda: equal_books(system), 30, every_s=0.1)


async def equal_books(system: WholeSystem) -> bool:
    here, there = await books(system)
    assert here == there
    return True


async def test_resolve_cancels_for_good_at_every_gateway(system: WholeSystem) -> None:
    async with both(system) as (home, far):
        assert (await far.resolve("never-sent")).outcome == "cancelled"
        for edge in (home, far):
            with pytest.raises(Conflict, match="cancelled"):
                await edge.put_strong("strong:cancelled", 1, idempotency_key="never-sent")
            assert await edge.get("strong:cancelled") is None


async def test_what_is_acknowledged_anywhere_is_read_everywhere(system: WholeSystem) -> None:
    async with both(system) as (home, far):
        for number in range(30):
            writer, reader = (home, far) if number % 2 else (far, home)
            receipt = await writer.put_strong("strong:seen", number)
            row = await reader.get("strong:seen")
            assert row is not None and (row.value, row.version) == (number, receipt.version)


async def test_a_cut_off_region_refuses_strong_writes_and_goes_on_reading(system: WholeSystem) -> None:
    async with both(system) as (home, far):
        before = await home.put_strong("strong:cut", "before")
        assert await far.get("strong:cut") is not None
        await asyncio.to_thread(system.cut)
        try:
            unknown: list[str] = []
            deadline = time.monotonic() + 30
            while True:  # at first the outcome may be unknown; once the cut is noticed, it is known: not written
                assert time.monotonic() < deadline
                with pytest.raises(StreamsError) as refused:
                    await far.put_strong("strong:cut", "lost")
                assert refused.value.status == 503
                if "idempotency_key" not in refused.value.extra:
                    break
                unknown.append(str(refused.value.extra["idempotency_key"]))
            with pytest.raises(StreamsError) as unread:
                await far.get("strong:cut")
            assert unread.value.status in (503, 504)
            local = await far.get("strong:cut", consistency="eventual")
            assert local is not None and (local.value, local.version) == ("before", before.version)
            after = await home.put_strong("strong:cut", "after", if_version=before.version)
        finally:
            await asyncio.to_thread(system.heal)

        async def healed() -> bool:
            try:
                row = await far.get("strong:cut")
            except (Unavailable, Timeout):
                return False
            return row is not None and (row.value, row.version) == ("after", after.version)

        for key in unknown:
            assert (await home.resolve(key)).outcome in ("cancelled", "applied")
        print(f"{len(unknown)} outcomes were unknown")
        if not unknown:
            await eventually(healed, 60, every_s=0.2)
        await eventually(lambda: writes(far), 60, every_s=0.2)
    await equal_states(system)


async def writes(edge: AsyncClient) -> bool:
    try:
        return bool((await edge.put_strong("strong:cut", "again")).version)
    except (Unavailable, Timeout):
        return False


async def test_a_lost_state_is_made_anew_from_the_log(system: WholeSystem, tmp_path: Path) -> None:
    before = await equal_states(system)
    name = f"gateway-{FAR}"
    state = system.data / "gateway" / FAR / "sequenced.strong"
    with system.unsupervised():
        pid = system.kill(name)
        await eventually(
            lambda: not Path(f"/proc/{pid}/fd").exists() or not list(Path(f"/proc/{pid}/fd").iterdir()), 10
        )
        state.rename(tmp_path / "lost")
    await system.back(name, pid, 90)
    after = await equal_states(system)
    assert after["offset"] >= before["offset"]  # type: ignore[operator]
    async with both(system) as (home, far):
        for key in ("strong:seen", COUNTER):
            assert await far.get(key) == await home.get(key)


# ---- the certificate: what concurrent clients were answered through every kind of fault is linearizable


def _nemesis(system: WholeSystem, rng: random.Random) -> Nemesis:
    victims = [f"gateway-{HOME}", f"gateway-{FAR}", f"kafka-{HOME}", rng.choice([f"worker-{HOME}", f"worker-{FAR}"])]
    return Nemesis(system.kill, victims, system.link)


async def certify(system: WholeSystem, history: Path, seed: int, *, rounds: int, clients: int) -> None:
    """Clients and traders at both gateways while everything fails; what they were told must be linearizable.

    Beside them others increment a counter and its copy in transactions: none may be lost, none counted twice.
    """
    rng, count = random.Random(seed), Count()
    print(f"seed {seed}")
    orders_history = history.with_name(f"orders-{history.name}")
    urls = [system.url(HOME), system.url(FAR)]
    nemesis = _nemesis(system, rng)
    async with both(system) as (home, far):
        before = await home.get(COUNTER)
        orders = [[home, far], [far, home]]
        workers = [
            asyncio.create_task(increment(count, edges, 20 * rounds, f"{seed}-{number}"))
            for number, edges in enumerate(orders)
        ]
        async with (
            recorded(history, lambda recorder: StrongLoad(urls, recorder, seed, clients=clients)) as load,
            recorded(orders_history, lambda recorder: OrderLoad(urls, recorder, seed, clients=clients // 2)) as traders,
        ):
            for _ in range(rounds):
                await nemesis.torment(load, rng)
                await nemesis.recovered(lambda name, pid: system.back(name, pid, 90))
            await load.more(PROGRESS)
            await traders.more(PROGRESS // 2)
        await asyncio.gather(*workers)
        print(f"{count.done} increments, {count.failed} conflicts, {count.retried} retries")
        for edge in (home, far):
            for key in (COUNTER, MIRROR):
                row = await edge.get(key)
                assert row is not None and row.value - (before.value if before else 0) == count.done == 40 * rounds
        for key, version in rng.sample(count.keys, 10):
            outcome = await rng.choice((home, far)).resolve(key)
            assert (outcome.outcome, outcome.version) == ("applied", version), key
    check_not_empty(load.tally, rounds)
    assert load.tally.by["there"] >= 40 * rounds
    check_faults(nemesis.evidence, {"gateway", "worker", "kafka"}, link=True)
    status, report = await verify(history)
    assert status == OK, report
    assert report["operations"] >= load.tally.answered
    await equal_states(system)
    check_traded(traders.tally, rounds)
    status, report = await verify(orders_history)
    assert status == OK, report
    assert report["operations"] >= traders.tally.answered
    await eventually(lambda: equal_books(system), 30, every_s=0.1)


@pytest.mark.timeout(600)
async def test_certificate(system: WholeSystem, tmp_path: Path) -> None:
    await certify(system, tmp_path / "history.ndjson", random.SystemRandom().getrandbits(32), rounds=1, clients=8)


@pytest.mark.parametrize("bug", [StaleReads, LostAcks, Doubled])
async def test_a_planted_bug_is_caught(system: WholeSystem, tmp_path: Path, bug: type[AsyncClient]) -> None:
    """The same clients, system and checker; only something between them lies."""
    seed, history = random.SystemRandom().getrandbits(32), tmp_path / "history.ndjson"
    print(f"seed {seed}")
    urls = [system.url(HOME), system.url(FAR)]

    def load_of(recorder: HistoryRecorder) -> StrongLoad:
        return StrongLoad(urls, recorder, seed, pause_s=0.002, replays=False, connect_to=bug)

    for proxy in system.links:
        proxy.delay_s = 0.1  # so that a copy is not always fresh by luck
    try:
        async with recorded(history, load_of) as load:
            await load.more(300)
            while load.tally.by["there"] < 100:  # those who wait for the delay are few; only they read old copies
                await load.more(20)
    finally:
        for proxy in system.links:
            proxy.delay_s = 0.0
    status, report = await verify(history)
    print(load.tally, report["verdict"], report.get("culprit"))
    assert status == ILLEGAL


@pytest.mark.slow
@pytest.mark.timeout(7200)
async def test_soak(system: WholeSystem, tmp_path: Path) -> None:
    """Minutes of it: STREAMS_SOAK_S seconds (default 600), a history, a seed and a verdict for each round of faults."""
    ends_s = time.monotonic() + float(os.environ.get("STREAMS_SOAK_S", "600"))
    number = 0
    while time.monotonic() < ends_s:
        number += 1
        seed = random.SystemRandom().getrandbits(32)
        await certify(system, tmp_path / f"history-{number}.ndjson", seed, rounds=1, clients=16)
