"""Batches over HTTP in the `ingest` bench: `POST /v1/kv:batch` of prepared bodies, as Arrow and as NDJSON."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import orjson
import psutil

from streams.bench.http_client import Connection
from streams.bench.ingest_load import LoadOptions, Throttle, slices
from streams.bench.readings import Readings
from streams.model.errors import StreamsError
from streams.tabular.tables import encoded, stream_of

ARROW, NDJSON = "application/vnd.apache.arrow.stream", "application/x-ndjson"
CONNECTIONS = 2


@dataclass(frozen=True, slots=True)
class Posted:
    """Puts accepted, the seconds from the first request to the last answer, the gateway's CPU seconds meanwhile."""

    puts: int
    seconds: float
    cpu_s: float


def bodies(readings: Readings, first: int, count: int, kind: str) -> list[tuple[int, bytes]]:
    """The readings `first` … as request bodies, with how many are in each."""
    rows = 65_536 if kind == ARROW else 50_000
    throttle = Throttle(LoadOptions(first, count=count, slice_rows=rows, lag_max=1 << 62, coded=False))
    found = []
    for columns in slices(readings, throttle):
        if kind == ARROW:
            (batch,) = stream_of([columns])
            found.append((len(batch), encoded(batch)))
            continue
        keys, metrics = columns["key"].to_pylist(), columns["metric"].to_pylist()
        cells = zip(keys, metrics, columns["value"].tolist(), columns["time"].tolist(), strict=True)
        lines = [
            orjson.dumps({"key": key, "value": {"metric": metric, "value": value, "time": time_ms}})
            for key, metric, value, time_ms in cells
        ]
        found.append((len(lines), b"\n".join(lines) + b"\n"))
    return found


def post(gateway: str, gateway_pid: int, prepared: Sequence[tuple[int, bytes]], kind: str) -> Posted:
    """Send all bodies over some connections at once. StreamsError when one put is refused."""

    def send(part: Sequence[tuple[int, bytes]]) -> int:
        accepted = 0
        with Connection(gateway, timeout_s=120.0) as connection:
            for count, body in part:
                answer = connection.request("POST", "/v1/kv:batch", body, {"content-type": kind}).json()
                if answer["accepted"] != count:
                    raise StreamsError(f"{count - answer['accepted']} puts were refused: {answer['rejected'][:1]}")
                accepted += count
        return accepted

    process = psutil.Process(gateway_pid)
    before = process.cpu_times()
    start = time.perf_counter()
    with ThreadPoolExecutor(CONNECTIONS) as threads:
        accepted = sum(threads.map(send, [prepared[number::CONNECTIONS] for number in range(CONNECTIONS)]))
    seconds = time.perf_counter() - start
    after = process.cpu_times()
    return Posted(accepted, seconds, after.user + after.system - before.user - before.system)
