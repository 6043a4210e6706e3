"""Two regions converge: through cut links, killed processes, replays, aborted transactions, deletes and expiries.

One real system for the file: two Kafkas, MirrorMaker 2 through proxies that can be cut, workers and gateways under
`streams up`'s supervisor; everything is put and read over HTTP. Each test has keys of its own.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Mapping

import pytest
from aiokafka import AIOKafkaProducer

from streams.client import AsyncClient, connect
from streams.kafka.admin import Admin
from streams.model.clock import NEVER_MS, pack
from streams.model.errors import Timeout
from streams.model.keys import partition_for
from streams.model.marker import MARKER_KEY, InputPosition, Marker
from streams.model.row import Cell, MergeType, Row, counter_payload, encode_row
from tests.support.hanging import hang
from tests.support.mirror import both_young, ended, replayed, rewind_mirror
from tests.support.polling import eventually
from tests.support.whole_system import (
    FAR,
    HOME,
    WATCH_PACE_S,
    CounterWatch,
    Ledger,
    Load,
    WholeSystem,
    converged,
    counters,
    equal_digests,
    hammering,
    lasts,
    log_truth,
    read_log,
    staleness_ms,
)

pytestmark = pytest.mark.kafka
WAIT_S = 5.0  # how long a gateway waits for a token at most

DELETE_GRACE_S = 1.0


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WholeSystem]:
    """The system of this file. Deletes are forgotten a second after both regions have passed them."""
    whole = WholeSystem(tmp_path_factory.mktemp("whole") / "data", env={"STREAMS_DELETE_GRACE_S": f"{DELETE_GRACE_S}"})
    try:
        whole.wait_ready()
        yield whole
    finally:
        whole.stop()


@pytest.fixture
def seeded() -> random.Random:
    """Random numbers whose seed is printed; STREAMS_TEST_SEED repeats them."""
    seed = int(os.environ.get("STREAMS_TEST_SEED") or random.SystemRandom().randrange(2**32))
    print(f"seed {seed}")
    return random.Random(seed)


# 1: a cut


@pytest.mark.parametrize("cut_s", [5.0, pytest.param(60.0, marks=pytest.mark.slow)])
async def test_a_cut_mirror_heals_to_equal_tables(system: WholeSystem, seeded: random.Random, cut_s: float) -> None:
    name = f"cut{cut_s:.0f}"
    keys = [f"score:{name}-{number}" for number in range(40)]
    ledger, best, kv = Ledger(), dict[str, float](), dict[str, str]()
    async with CounterWatch(system.gateways, keys[:10]) as watch:
        async with Load(system, ledger, keys, seeded):
            await eventually(lambda: watch.grew > 10, 30)
            system.cut()
            try:
                async with system.sessions() as sessions:
                    await puts_of_other_types(sessions, name, seeded, best, kv)
                    await lasts(cut_s)
                assert await staleness_ms(system.url(FAR)) > cut_s * 900, "the mirror was not cut"
                assert await counters_differ(system, f"score:{name}-")
            finally:
                system.heal()
            healed_s = time.monotonic()
        took_s = await converged(system, ledger.acked, f"score:{name}-")
    assert not ledger.failures
    print(
        f"{ledger.puts} puts, cut {cut_s:.0f} s; {time.monotonic() - healed_s:.1f} s ({took_s:.1f} s) to equal tables"
    )
    async with system.sessions() as sessions:
        for edge in sessions:
            await eventually(lambda at=edge: has_rows(at, "best", f"best:{name}-", best), 30, every_s=0.1)
            await eventually(lambda at=edge: has_rows(at, "kv", f"kv:{name}-", kv), 30, every_s=0.1)
    await equal_digests(system, ("best", "kv"))


async def puts_of_other_types(
    sessions: tuple[AsyncClient, AsyncClient],
    name: str,
    seeded: random.Random,
    best: dict[str, float],
    kv: dict[str, str],
) -> None:
    """Maxima, and last writes one after another in changing regions, into `best` and `kv`."""
    for number in range(30):
        key, score = f"best:{name}-{number % 5}", round(seeded.uniform(0, 1000), 3)
        await seeded.choice(sessions).put(key, score)
        best[key] = max(best.get(key, score), score)
        key = f"kv:{name}-{number % 5}"
        receipt = await seeded.choice(sessions).put(key, f"write {number}")
        kv[key] = f"write {number}"
        await eventually(lambda at=receipt.timestamp: time.time_ns() // 1_000_000 > at + 1, 1, every_s=0.001)


async def has_rows(edge: AsyncClient, table: str, prefix: str, rows: Mapping[str, object]) -> bool:
    """Whether this gateway has exactly these rows."""
    assert {row.key: row.value async for row in edge.scan(table, prefix=prefix)} == rows
    return True


async def counters_differ(system: WholeSystem, prefix: str) -> bool:
    async with system.sessions() as (home, far):
        return await counters(home, prefix) != await counters(far, prefix)


# 2 and 3: the mirror dies, the mirror steps back


async def test_a_killed_mirror_resumes_exactly(system: WholeSystem, seeded: random.Random) -> None:
    keys = [f"score:mirror-{number}" for number in range(40)]
    ledger = Ledger()
    async with CounterWatch(system.gateways, keys[:10]) as watch:
        async with Load(system, ledger, keys, seeded):
            await eventually(lambda: watch.grew > 10, 30)
            await lasts(seeded.uniform(0.2, 1.0))
            pid, killed_s = system.kill("mirror"), time.monotonic()
            await system.back("mirror", pid)
            await lasts(1.0)
        took_s = await converged(system, ledger.acked, "score:mirror-")
    assert not ledger.failures
    print(f"{ledger.puts} puts; SIGKILL to equal tables {time.monotonic() - killed_s:.1f} s, after load {took_s:.1f} s")


async def test_a_direction_outlives_transactions_that_hang(system: WholeSystem) -> None:
    """As a broker killed twice once left them: markers lost, in a copy and in the mirror's positions."""
    positions, copies = f"mm2-offsets.{HOME}.internal", f"{HOME}.table.score"
    async with Admin(system.kafka(FAR)) as admin:
        unit = [record for record in await read_log(system.kafka(FAR), copies) if record.partition == 0][-1:]
        await hang(admin, positions, 0, [(b"[]", b"{}", [])])
        await hang(admin, copies, 0, [(record.key, record.value, list(record.headers)) for record in unit])
        stuck = await admin.end_offsets([(positions, 0), (copies, 0)])
        assert all(stuck[tp] < end for tp, end in (await admin.end_offsets(stuck, committed=False)).items())
        pid, started_s = system.kill("mirror"), time.monotonic()
        await system.back("mirror", pid)
        ledger = Ledger()
        async with system.sessions() as (home, _):
            for number in range(20):  # of both partitions
                assert await ledger.put(home, f"score:hang-{number}", 1)
        await converged(system, ledger.acked, "score:hang-", 90)
        print(f"healed after {time.monotonic() - started_s:.1f} s")
        await eventually(lambda: both_young(system), 30)
        ends = await admin.end_offsets(stuck, committed=False)
        assert all(stuck[tp] < end for tp, end in (await admin.end_offsets(stuck)).items()), (stuck, ends)
    assert sum([await ended(system.url(region)) for region in (HOME, FAR)]) >= 2


async def test_replayed_changelogs_change_nothing(system: WholeSystem, seeded: random.Random) -> None:
    keys = [f"score:replay-{number}" for number in range(40)]
    ledger = Ledger()
    mirrored = f"{HOME}.table.score"
    async with CounterWatch(system.gateways, keys[:10]) as watch:
        async with Load(system, ledger, keys, seeded):
            await eventually(lambda: watch.grew > 10, 30)
            await lasts(1.0)
            with system.unsupervised():
                pid = system.kill("mirror")
                before = sum(record.key == MARKER_KEY for record in await read_log(system.kafka(FAR), mirrored))
                rewound = await rewind_mirror(system, "table.score")
            await system.back("mirror", pid)
            await eventually(lambda: replayed(system, mirrored), 60, every_s=0.5)
            await lasts(1.0)
        await converged(system, ledger.acked, "score:replay-")
        repeated = await replayed(system, mirrored)
        assert repeated >= before / 2, (repeated, before, rewound)
        await restart_gateway_empty(system, FAR)
        await converged(system, ledger.acked, "score:replay-")
    print(f"{ledger.puts} puts; positions {rewound} set back to the start; {repeated} of {before} units came twice")


async def restart_gateway_empty(system: WholeSystem, region: str) -> None:
    """Kill a region's gateway, remove its directory, let it come back."""
    with system.unsupervised():
        pid = system.kill(f"gateway-{region}")
        await eventually(lambda: gone(system.data / "gateway" / region), 10)
    await system.back(f"gateway-{region}", pid)


def gone(path: os.PathLike[str]) -> bool:
    shutil.rmtree(path, ignore_errors=True)
    return not os.path.exists(path)  # noqa: PTH110


# 4: an aborted transaction


async def test_an_aborted_transaction_is_never_seen(system: WholeSystem, seeded: random.Random) -> None:
    ghost = f"score:ghost-{seeded.randrange(10**6)}"
    number = partition_for(ghost.encode(), 2)
    async with system.sessions() as (home, far):
        beside = ghost.replace("ghost", "beside")
        await home.put(beside, {"add": 1})
        far.observe(home.token)
        for edge in (home, far):  # an open transaction holds up what is committed after it began
            await eventually(lambda at=edge: sees(at, beside, 1), 30)
        row = Row(MergeType.COUNTER, 1, 0, pack(time.time_ns() // 1_000_000), (ghost_cell(),))
        input_at = {f"events.score/{number}": InputPosition(10**6, "none")}
        marker = Marker("commit", 10**9, time.time_ns() // 1_000_000 + 10**6, input_at)
        async with AIOKafkaProducer(
            bootstrap_servers=system.kafka(HOME), transactional_id=f"stranger-{ghost}"
        ) as producer:
            await producer.begin_transaction()
            sent = await producer.send_and_wait("table.score", encode_row(row), ghost.encode(), partition=number)
            await producer.send_and_wait("table.score", marker.encode(), MARKER_KEY, partition=number)
            try:
                assert await home.get(ghost) is None and await far.get(ghost) is None, "seen while open"
            finally:
                await producer.abort_transaction()
        receipts = [await home.put(f"score:after-{each}-{ghost[6:]}", {"add": each}) for each in range(1, 6)]
        far.observe(receipts[-1].token.merge(home.token))
        for edge in (home, far):
            await eventually(lambda at=edge: sees(at, f"score:after-5-{ghost[6:]}", 5), 30)
            assert await edge.get(ghost) is None
            assert ghost not in await counters(edge, "score:ghost-")
    raw = await read_log(system.kafka(HOME), "table.score", committed=False)
    assert any(record.key == ghost.encode() and record.offset == sent.offset for record in raw), "it was in the log"
    mirror = await read_log(system.kafka(FAR), f"{HOME}.table.score", committed=False)
    assert mirror and not any(record.key == ghost.encode() for record in mirror)
    assert not any(b'"seq":1000000000,' in (record.value or b"") for record in mirror)
    print(f"aborted at {number}/{sent.offset}; {len(mirror)} mirrored records, read uncommitted, none of them it")


def ghost_cell() -> Cell:
    now = pack(time.time_ns() // 1_000_000)
    return Cell(now, now, NEVER_MS, counter_payload(666, 0))


async def sees(edge: AsyncClient, key: str, value: object) -> bool:
    """Whether a read with the session's token answers this value; a token that is not there yet is not yet."""
    try:
        row = await edge.get(key)
    except Timeout:
        return False
    return row is not None and row.value == value


# 5: deletes


async def test_deletes_do_not_resurrect(system: WholeSystem, seeded: random.Random) -> None:
    name = f"del-{seeded.randrange(10**6)}"
    counter, written, quiet = f"score:{name}", f"kv:{name}", f"score:{name}-quiet"
    async with system.sessions() as (home, far):
        await home.put(counter, {"add": 100})
        await far.put(counter, {"add": 23})
        await far.put(quiet, {"add": 9})
        await far.put(written, "older")
        far.observe(home.token)
        home.observe(far.token)
        assert await sees(home, counter, 123) and await sees(far, counter, 123) and await sees(home, written, "older")
        system.cut()
        try:
            for key in (counter, written, quiet):
                await home.delete(key)
                assert await home.get(key) is None
            async with connect(system.url(FAR)) as apart:
                assert await sees(apart, counter, 123) and await sees(apart, written, "older"), "the cut did not cut"
        finally:
            system.heal()
        far.observe(home.token)
        await eventually(lambda: passed(far), 30)
        for edge in (home, far):
            for key in (counter, written, quiet):
                assert await edge.get(key) is None, key
        await far.put(counter, {"add": 7})
        await far.put(written, "newer")
        home.observe(far.token)
        await nothing_but(home, far, counter, written, quiet)
        purged_s = await purged(system, quiet)
        await nothing_but(home, far, counter, written, quiet)
    for region in (FAR, HOME):
        await restart_gateway_empty(system, region)
    async with system.sessions() as (home, far):
        await nothing_but(home, far, counter, written, quiet)
        await home.put(quiet, {"add": 2})
        far.observe(home.token)
        assert await sees(home, quiet, 2) and await sees(far, quiet, 2)
        await far.put(counter, {"add": 1})
        home.observe(far.token)
        assert await sees(home, counter, 8) and await sees(far, counter, 8)
    await equal_digests(system, ("score", "kv"))
    print(f"deletes held; the deleted key's row was gone from both changelogs after {purged_s:.1f} s")


async def nothing_but(home: AsyncClient, far: AsyncClient, counter: str, written: str, quiet: str) -> None:
    """The new values, and nothing of what was deleted, in both regions."""
    for edge in (home, far):
        assert await sees(edge, counter, 7) and await sees(edge, written, "newer")
        assert await edge.get(quiet) is None


async def passed(edge: AsyncClient) -> bool:
    """Whether this gateway has its session's token."""
    try:
        await edge.tables()
    except Timeout:
        return False
    return True


async def purged(system: WholeSystem, key: str) -> float:
    """Seconds until the key's row has been removed (a tombstone is the last of it) in both regions' changelogs."""
    started_s = time.monotonic()

    async def removed() -> bool:
        for region in (HOME, FAR):
            records = await read_log(system.kafka(region), "table.score")
            last = [record.value for record in records if record.key == key.encode()][-1:]
            assert last == [None], f"{region} still has a row of {key}"
        return True

    await eventually(removed, 60, every_s=0.5)
    return time.monotonic() - started_s


# 6: expiry


async def test_expiry_is_at_once_and_everywhere(system: WholeSystem, seeded: random.Random) -> None:
    key = f"score:ttl-{seeded.randrange(10**6)}"
    async with system.sessions() as (home, far):
        await home.put(key, {"add": 5}, ttl=2)
        receipt = await far.put(key, {"add": 7}, ttl=2)
        home.observe(far.token)
        far.observe(home.token)
        late_ms = await asyncio.gather(
            *(read_to_death(edge, key, 12, receipt.timestamp + 2000) for edge in (home, far))
        )
        await far.put(key, {"add": 3}, ttl=60)
        home.observe(far.token)
        assert await sees(far, key, 3) and await sees(home, key, 3), "a new life starts at 0"
    await a_put_elsewhere_extends_a_life(system, f"{key}-long")
    await equal_digests(system, ("score",))
    print(f"the first 404 came {late_ms} ms after the expiry at the latest")


async def read_to_death(edge: AsyncClient, key: str, value: int, dies_ms: int) -> float:
    """Read to the key's end: its value before `dies_ms`, nothing after, by the millisecond; the first 404's lag."""
    while True:
        asked_ms = time.time_ns() / 1e6
        row = await edge.get(key)
        answered_ms = time.time_ns() / 1e6
        if row is None:
            assert answered_ms >= dies_ms, f"gone {dies_ms - answered_ms} ms too early"
            return round(answered_ms - dies_ms, 1)
        assert asked_ms < dies_ms, f"alive {asked_ms - dies_ms} ms after its expiry"
        assert row.value == value and row.expires_at == dies_ms
        await asyncio.sleep(WATCH_PACE_S)


async def a_put_elsewhere_extends_a_life(system: WholeSystem, name: str) -> None:
    """Put for 2 s at home and, before that ends, for longer in the other region: one life, counted together."""
    async with system.sessions() as (home, far):
        for turn in range(5):
            key = f"{name}{turn}"
            first = await home.put(key, {"add": 1}, ttl=2)
            second = await far.put(key, {"add": 2}, ttl=4)
            if second.timestamp < first.timestamp + 2000:
                break
        else:
            pytest.fail("two puts never came within 2 s")
        home.observe(far.token)
        far.observe(home.token)
        await asyncio.gather(*(read_to_death(edge, key, 3, second.timestamp + 4000) for edge in (home, far)))


# 7: tokens and staleness


async def test_a_token_is_honoured_in_the_other_region(system: WholeSystem, seeded: random.Random) -> None:
    key = f"score:token-{seeded.randrange(10**6)}"
    waits_ms = []
    async with system.sessions() as (home, far):
        for turn in range(1, 51):
            receipt = await home.put(key, {"add": 1})
            started_s = time.perf_counter()
            far.observe(receipt.token)
            row = await far.get(key)
            waits_ms.append((time.perf_counter() - started_s) * 1000)
            assert row is not None and row.value == turn
        system.cut()
        try:
            await home.put(key, {"add": 1})
            assert await sees(home, key, 51)
            async with connect(system.url(FAR)) as apart:
                row = await apart.get(key)
                assert row is not None and row.value == 50, "without a token the older value is answered at once"
            far.observe(home.token)
            async with connect(system.url(FAR), token=home.token, catch_up_s=0) as impatient:
                await refused_in_time(impatient.get(key))
            await staleness_grows(system.url(FAR))
            async with connect(system.url(FAR)) as apart:
                await refused_in_time(apart.get(key, max_staleness_ms=500))
                assert await apart.get(key, max_staleness_ms=3_600_000) is not None
        finally:
            system.heal()
        healed_s = time.monotonic()
        await eventually(lambda: sees(far, key, 51), 30)
        took_s = time.monotonic() - healed_s
        async with connect(system.url(FAR)) as apart:
            await eventually(lambda: fresh(apart, key), 30)
    waits_ms.sort()
    print(
        f"put there, read here: p50 {statistics.median(waits_ms):.0f} ms, worst {waits_ms[-1]:.0f}; healed {took_s:.1f}"
    )


async def refused_in_time(read: object) -> None:
    """A read that cannot be answered is a 504 with Retry-After within the bound."""
    started_s = time.monotonic()
    with pytest.raises(Timeout) as caught:
        await read  # type: ignore[misc]
    assert caught.value.retry_after_s >= 1
    assert WAIT_S - 0.5 < time.monotonic() - started_s < WAIT_S + 3


async def staleness_grows(url: str) -> None:
    """The staleness that a gateway reports grows with the time that passes."""
    before_ms, started_s = await staleness_ms(url), time.monotonic()
    await lasts(1.0)
    grown_ms, passed_ms = await staleness_ms(url) - before_ms, (time.monotonic() - started_s) * 1000
    assert before_ms > 1000 and abs(grown_ms - passed_ms) < 500, (before_ms, grown_ms, passed_ms)


async def fresh(edge: AsyncClient, key: str) -> bool:
    try:
        row = await edge.get(key, max_staleness_ms=2_000)
    except Timeout:
        return False
    return row is not None and row.value == 51


# 8: kill -9


@pytest.mark.parametrize("victim", ["worker", "gateway", "kafka"])
async def test_a_killed_process_loses_and_doubles_nothing(
    system: WholeSystem, seeded: random.Random, victim: str
) -> None:
    keys = [f"score:kill-{victim}-{number}" for number in range(20)]
    ledger, name, urls = Ledger(), f"{victim}-{HOME}", system.gateways
    async with CounterWatch(urls, keys[:5]) as watch:
        async with hammering(urls[HOME], ledger, keys, seeded):
            await eventually(lambda: watch.grew > 10 and ledger.puts > 50, 30)
            await lasts(seeded.uniform(0.1, 1.0))
            pid, killed_s = system.kill(name), time.monotonic()
            await system.back(name, pid)
            back_s, puts = time.monotonic() - killed_s, ledger.puts
            await eventually(lambda: ledger.puts > puts + 50, 60)
        truth = await log_truth(system.kafka(HOME), f"score:kill-{victim}-")
        await converged(system, truth, f"score:kill-{victim}-")
    assert system.gateways == urls
    for key in keys:
        assert ledger.acked[key] <= truth[key] <= ledger.acked[key] + ledger.unknown[key], key
    kept = sum((truth - Counter(ledger.acked)).values())
    print(f"{ledger.puts} acknowledged, {ledger.failures} unknown of which {kept} count; {name} back in {back_s:.1f} s")
