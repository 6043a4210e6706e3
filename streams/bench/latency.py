"""Latencies over HTTP, one request at a time: puts, visibility, reads. Each measure takes gateways' base URLs."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from streams.bench.http_client import Connection, client_overhead_ms
from streams.bench.own_system import SETTLE_S, own_system, settle, wait_visible
from streams.bench.report import Result, at_most
from streams.bench.statistics import percentile
from streams.model.errors import StreamsError

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class LatencyOptions:
    """How often each latency is measured, pauses between puts whose visibility is timed, and the table's size.

    `warmups`: rounds of puts or reads before what is timed. `settle_s`: how long the regions may take over a load.
    """

    puts: int = 2000
    visibilities: int = 400
    pause_s: float = 0.02
    reads: int = 2000
    players: int = 1_000_000
    warmup: int = 200
    warmups: int = 3
    settle_s: float = SETTLE_S
    seed: int = 7


def bench_put(options: LatencyOptions, say: Say) -> list[Result]:
    """Durable put latency of one client on an otherwise idle two-region system of its own."""
    say("starting two regions")
    with own_system() as system:
        _warm(system.first, options)
        samples = {
            "one client": measure_put(system.first, options),
            f"one client, a pause of {options.pause_s * 1e3:.0f} ms after each": measure_put(
                system.first, replace(options, puts=options.visibilities), options.pause_s
            ),
        }
    results = []
    for how, seconds in samples.items():
        ms, goals = [each * 1e3 for each in seconds], (3, 5) if how == "one client" else (None, None)
        results.append(at_most(f"HTTP put, acks=all, {how}, p50", percentile(ms, 50), "ms", goals[0]))
        results.append(at_most(f"HTTP put, acks=all, {how}, p99", percentile(ms, 99), "ms", goals[1]))
    return [*results, _overhead()]


def measure_put(gateway: str, options: LatencyOptions, pause_s: float = 0.0) -> list[float]:
    """Seconds of each put of `{"add": 1}` to one of 10,000 players, after a warm-up."""
    choose = random.Random(options.seed)
    with Connection(gateway) as connection:
        answers = []
        for _ in range(options.warmup + options.puts):
            answer = connection.put(f"score:p{choose.randrange(10_000):04d}", {"add": 1})
            answer.json()
            answers.append(answer.seconds)
            if pause_s:
                time.sleep(pause_s)
    return answers[options.warmup :]


def _warm(gateway: str, options: LatencyOptions) -> None:
    """The JVMs compile what they will need."""
    for _ in range(options.warmups):
        measure_put(gateway, options)


def bench_visible(options: LatencyOptions, say: Say) -> list[Result]:
    """From sending a put until a read shows it: at the same region's gateway, and at the other region's."""
    say("starting two regions")
    with own_system() as system:
        _warm(system.first, options)
        samples = {
            "same region": measure_visible(system.first, system.first, options),
            "other region": measure_visible(system.first, system.second, options),
        }
    limits = {"same region": 50.0, "other region": 100.0}
    results = []
    for where, seconds in samples.items():
        ms = [each * 1e3 for each in seconds]
        results.append(at_most(f"put sent -> visible at the {where}'s gateway, p50", percentile(ms, 50), "ms"))
        what = f"put sent -> visible at the {where}'s gateway, p99"
        results.append(at_most(what, percentile(ms, 99), "ms", limits[where]))
    return [*results, _overhead()]


def measure_visible(put_gateway: str, read_gateway: str, options: LatencyOptions) -> list[float]:
    """Seconds from sending each put until a read with its token, on a second connection, has answered its value.

    The put itself is part of the time. StreamsError when the read answers another value: a token that lies.
    """
    samples = []
    with Connection(put_gateway) as writer, Connection(read_gateway) as reader:
        for number in range(options.warmup // 10 + options.visibilities):
            key = f"kv:visible-{number % 100}"
            start = time.perf_counter()
            token = writer.put(key, {"n": number}).json()["token"]
            found = reader.request("GET", f"/v1/kv/{key}", headers={"causal-token": token}).json()
            samples.append(time.perf_counter() - start)
            if found["value"] != {"n": number}:
                raise StreamsError(f"{read_gateway} answered {found['value']} to a token of {number}")
            time.sleep(options.pause_s)
    return samples[options.warmup // 10 :]


def bench_read(options: LatencyOptions, say: Say) -> list[Result]:
    """Point read, top 100 and rank in a table of 1,000,000 players, over HTTP from one connection."""
    say("starting two regions")
    with own_system() as system:
        say(f"loading {options.players:,} players")
        per_s = load_players(system.first, options)
        say(f"loaded {per_s:,.0f} puts/s until visible")
        settle(options.settle_s)  # the other region takes the players in, too
        for number in range(options.warmups):  # of other players: theirs are in no cache of rows afterwards
            measure_reads(system.first, replace(options, seed=options.seed + 1 + number))
        samples = measure_reads(system.first, options)
    results = []
    for what, seconds in samples.items():
        ms = [each * 1e3 for each in seconds]
        results.append(at_most(f"{what} of {options.players:,} players, p50", percentile(ms, 50), "ms"))
        results.append(at_most(f"{what} of {options.players:,} players, p99", percentile(ms, 99), "ms", 1))
    loaded = Result("bulk load over HTTP (NDJSON), first put to last visible", per_s, "puts/s")
    return [*results, loaded, _overhead()]


def player(number: int) -> str:
    """The key of a player."""
    return f"score:m{number:07d}"


def load_players(gateway: str, options: LatencyOptions, *, chunk: int = 50_000) -> float:
    """Put every player once, in bulk, and wait until the last is visible; puts a second."""
    choose = random.Random(options.seed)
    start = time.monotonic()
    headers = {"content-type": "application/x-ndjson"}
    with Connection(gateway, timeout_s=120) as connection:
        for first in range(0, options.players, chunk):
            numbers = range(first, min(first + chunk, options.players))
            body = "".join(
                json.dumps({"key": player(each), "value": {"add": choose.randrange(1, 1_000_000)}}) + "\n"
                for each in numbers
            )
            answer = connection.request("POST", "/v1/kv:batch", body.encode(), headers).json()
            if answer["accepted"] != len(numbers):
                raise StreamsError(f"{len(numbers) - answer['accepted']} puts were refused: {answer['rejected'][:1]}")
            token = answer["token"]
        last = f"/v1/kv/{player(options.players - 1)}"
        deadline = time.monotonic() + 120
        while connection.request("GET", last, headers={"causal-token": token}).status != 200:
            if time.monotonic() > deadline:
                raise StreamsError("the loaded players did not become visible in 120 s")
            time.sleep(0.05)
    wait_visible(gateway, player(0))
    return options.players / (time.monotonic() - start)


def measure_reads(gateway: str, options: LatencyOptions) -> dict[str, list[float]]:
    """Seconds of each read, by kind, after a warm-up."""
    choose = random.Random(options.seed)
    numbers = [choose.randrange(options.players) for _ in range(options.warmup + options.reads)]
    paths: dict[str, Sequence[str]] = {
        "point read": [f"/v1/tables/score/{player(each)}" for each in numbers],
        "top 100": ["/v1/tables/score:top?n=100"] * len(numbers),
        "rank of one": [f"/v1/tables/score:rank?key={player(each)}" for each in numbers],
    }
    samples: dict[str, list[float]] = {}
    with Connection(gateway) as connection:
        for what, each_path in paths.items():
            answers = [connection.request("GET", path) for path in each_path]
            for answer in answers:
                answer.json()
            samples[what] = [answer.seconds for answer in answers[options.warmup :]]
    return samples


def _overhead() -> Result:
    return Result("the client's own share (constant answer over loopback), p50", client_overhead_ms(), "ms")
