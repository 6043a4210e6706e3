"""`streams bench udf`: functions at the edge and folds, and what their limits cost."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path

import numpy as np

from streams.bench.delay_proxy import delayed
from streams.bench.http_client import Connection, client_overhead_ms
from streams.bench.own_system import OwnSystem, own_system, streams_command, wait_visible
from streams.bench.report import Result, at_least, at_most
from streams.bench.saturate import saturate
from streams.bench.statistics import median, percentile
from streams.kafka.batches import ProducerState, encode_batches
from streams.kafka.partitioner import slice_partitions
from streams.model.errors import Timeout
from streams.serde import FRAME, Columns, encode_frames, load_builtin
from streams.wasm import measure
from streams.wasm.avro_program import avro_program
from streams.wasm.batch import OP_PUT, Batch, Event, build
from streams.wasm.build import write_modules
from streams.wasm.builtin import builtin_module
from streams.wasm.decoder import DecoderConfig, RecordDecoder, SchemaProgram
from streams.wasm.engine import ModuleCache
from streams.wasm.function_abi import FunctionRequest
from streams.wasm.function_engine import FunctionModules
from streams.wasm.function_host import FunctionHost
from streams.wasm.manifest import read_manifest

Say = Callable[[str], None]
LOOKUP = """
name = "lookup"
version = "1.0.0"
abi = 1
kind = "function"
capabilities = ["tables.read"]
tables = ["score"]
idempotent = true
"""
FUEL = 1_000_000_000
INVOKE = "/v1/functions/lookup?player=bench"
PAGE = "/v1/functions/handle_request"
KEYS = 1_000
FOLD_ROUNDS = 8
ROUND_TRIP_S = 0.2


@dataclass(frozen=True, slots=True)
class UdfOptions:
    """How often each is measured. `batch`: events of a fold; `connections`: of the throughput's clients."""

    calls: int = 5_000
    cold_starts: int = 50
    requests: int = 3_000
    pages: int = 500
    far_requests: int = 30
    folds: int = 400
    batch: int = 10_000
    connections: int = 32
    seconds: float = 5.0
    warmup: int = 300
    settle_s: float = 60.0


def bench_udf(options: UdfOptions, say: Say) -> list[Result]:
    """In this process: instances, cold starts, folds, limits. Then over HTTP, in two regions of its own."""
    with lookup_directory() as directory, tempfile.TemporaryDirectory(prefix="streams-bench-") as scratch:
        say("measuring in this process")
        results = measure_functions(directory, Path(scratch), options)
        results += measure_folds(Path(scratch), options)
        say("starting two regions")
        with own_system(settle_s=options.settle_s) as system:
            deploy(system, directory)
            results += measure_invokes(system, options, say)
    return [*results, Result("the client's own share (constant answer over loopback), p50", client_overhead_ms(), "ms")]


@contextmanager
def lookup_directory() -> Iterator[Path]:
    """The small function, built."""
    with tempfile.TemporaryDirectory(prefix="streams-bench-") as place:
        directory = Path(place) / "lookup"
        directory.mkdir()
        (directory / "udf.toml").write_text(LOOKUP)
        (directory / "lookup.c").write_text(files("streams.bench").joinpath("lookup.c").read_text())
        write_modules(directory)
        yield directory


def measure_functions(directory: Path, scratch: Path, options: UdfOptions) -> list[Result]:
    """A function's instances and cold starts, and what epochs and fuel cost a request."""
    wasm, manifest = (directory / "lookup.wasm").read_bytes(), read_manifest(directory)
    page = Path(str(files("wasm_udfs"))) / "handle_request"
    of_page, page_wasm = read_manifest(page), (page / "handle_request.wasm").read_bytes()
    assert manifest.function is not None and of_page.function is not None
    modules = FunctionModules(scratch)
    host = FunctionHost(wasm, modules, manifest.function, manifest.limits)
    request = FunctionRequest({"region": b"us-east", "body": b""}).encode()
    instances = [each * 1e6 for each in measure.function_instances(host, options.calls)]
    cold = measure.function_cold_starts(
        page_wasm, of_page.function, of_page.limits, request, scratch, options.cold_starts
    )
    plain = FunctionHost(page_wasm, modules, of_page.function, of_page.limits)
    fuelled = FunctionHost(page_wasm, modules, replace(of_page.function, fuel=FUEL), of_page.limits)
    without = median(measure.function_calls(plain, request, options.calls)) * 1e6
    with_fuel = median(measure.function_calls(fuelled, request, options.calls)) * 1e6
    return [
        at_most("function: instantiate from the compiled module, p50", percentile(instances, 50), "us", 100),
        at_most("function: instantiate from the compiled module, p99", percentile(instances, 99), "us"),
        at_most("function: cold start, load from disk included, p50", median(cold) * 1e3, "ms", 5),
        at_most("function: a request in the host (no HTTP, no tables), epochs, p50", without, "us"),
        at_most("function: the same with fuel, p50", with_fuel, "us"),
    ]


def counter_batch(events: int) -> Batch:
    """Puts of 1 to 1,000 players."""
    value = b"\0\0\0\0\1\2"
    return build(
        [
            Event(
                1_000 + i, (1_000 + i) << 16, 2**63 - 1, 0, 0, f"score:p{i * 7919 % KEYS:04d}".encode(), value, offset=i
            )
            for i in range(events)
        ]
    )


def frame_batch(events: int) -> Batch:
    """The same puts as a worker gets them of `put_many`: in a frame, whose dictionary tells their keys apart."""
    schema, cache = load_builtin()["streams.CounterAdd"], ModuleCache()
    keys = [f"score:p{i * 7919 % KEYS:04d}" for i in range(events)]
    columns = Columns(keys, {"add": np.ones(events, np.int64)})
    (frame,) = encode_frames(columns, schema, slice_partitions(1), max_puts=events)
    headers = [("hlc", b"%d" % (1_000 << 16))]
    (record,) = encode_batches([(None, frame.value, headers)], ProducerState(-1, -1, False), 0, 1 << 20)
    programs = {schema.id: SchemaProgram(OP_PUT, avro_program(schema.document))}
    decoder = RecordDecoder(cache)
    try:
        config = DecoderConfig("score", programs, frame_schema_id=load_builtin()[FRAME].id)
        return Batch.parse(bytes(decoder.decode([record.data], 0, 1, config).batch))
    finally:
        decoder.close()
        cache.host.close()


def measure_folds(scratch: Path, options: UdfOptions) -> list[Result]:
    """Folds of a C counter: within the module, host included, and under each kind of limit."""
    wasm, batch, framed = builtin_module("counter"), counter_batch(options.batch), frame_batch(options.batch)
    kinds = {"no limits": (False, False), "epochs": (True, False), "epochs and fuel": (True, True)}
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    of_frames: list[float] = []
    for _ in range(FOLD_ROUNDS):  # in turn, so that a moment in which the machine is busy is everybody's
        for name, (epochs, fuel) in kinds.items():
            count = max(1, options.folds // FOLD_ROUNDS)
            seconds[name] += measure.fold_inside(wasm, batch, count, scratch, epochs=epochs, fuel=fuel)
        of_frames += measure.fold_inside(wasm, framed, count, scratch, epochs=True, fuel=False)
    rates = {name: options.batch / median(each) for name, each in seconds.items()}
    hosted = options.batch / median(measure.fold_hosted(wasm, batch, options.folds, ModuleCache(scratch)))
    what = f"fold of {options.batch:,}-event batches, C counter"
    costs = {name: (rates["no limits"] / rates[name] - 1) * 100 for name in ("epochs", "epochs and fuel")}
    return [
        at_least(f"{what}, of single records, inside the UDF", rates["epochs"], "events/s", 50_000_000),
        at_least(f"{what}, of a frame, inside the UDF", options.batch / median(of_frames), "events/s", 50_000_000),
        at_least(f"{what}, host included", hosted, "events/s", 20_000_000),
        Result(f"{what}, inside the UDF, no limits", rates["no limits"], "events/s"),
        Result(f"{what}, inside the UDF, epochs and fuel", rates["epochs and fuel"], "events/s"),
        Result("time that epochs (the default) add to a fold", costs["epochs"], "%"),
        Result("time that epochs and fuel add to a fold", costs["epochs and fuel"], "%"),
    ]


def deploy(system: OwnSystem, directory: Path) -> None:
    """Both functions in both regions, and a row to look up."""
    example = Path(str(files("wasm_udfs"))) / "handle_request"
    for each in (directory, example):
        streams_command("udf", "deploy", str(each), "--wait", "50", data=system.data, timeout_s=120)
    with Connection(system.first) as connection:
        connection.put("score:bench", {"add": 42}).json()
        connection.put("prefs:bench", {"name": "Bench", "theme": "dark"}).json()
    for gateway in (system.first, system.second):
        wait_visible(gateway, "score:bench")
        wait_visible(gateway, "prefs:bench")
        _wait_function(gateway)


def _wait_function(gateway: str, timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    with Connection(gateway) as connection:
        while connection.request("POST", INVOKE).status != 200:
            if time.monotonic() > deadline:
                raise Timeout(f"the function did not come to {gateway} in {timeout_s:.0f} s")
            time.sleep(0.05)


def measure_invokes(system: OwnSystem, options: UdfOptions, say: Say) -> list[Result]:
    """Over HTTP: one connection, many, and from the other side of a long link."""
    say("invoking")
    near = _requests(system.first, INVOKE, b"", options.requests, options.warmup)
    pages = _requests(system.first, PAGE, b'{"user": "bench", "city": "Oslo"}', options.pages, options.warmup)
    say(f"invoking over {options.connections} connections")
    saturate(system.first, INVOKE, b"", connections=options.connections, seconds=options.seconds / 4)
    rate, loaded = saturate(system.first, INVOKE, b"", connections=options.connections, seconds=options.seconds)
    say(f"invoking in the other region, {ROUND_TRIP_S * 1e3:.0f} ms away")
    with delayed(system.second, ROUND_TRIP_S) as far_url:
        far = _requests(far_url, INVOKE, b"", options.far_requests, 2)
    near_ms, far_ms = percentile(near, 50) * 1e3, percentile(far, 50) * 1e3
    return [
        at_most("HTTP invoke of a function that reads a row, local edge, p50", near_ms, "ms", 1),
        at_most("HTTP invoke of a function that reads a row, local edge, p99", percentile(near, 99) * 1e3, "ms", 3),
        at_most("HTTP invoke, 3 rows read and a put durable (acks=all), p50", percentile(pages, 50) * 1e3, "ms"),
        at_most("HTTP invoke, 3 rows read and a put durable (acks=all), p99", percentile(pages, 99) * 1e3, "ms"),
        at_least(f"HTTP invoke, {options.connections} connections, one gateway", rate, "requests/s", 5_000),
        at_most(f"HTTP invoke, {options.connections} connections, p99", percentile(loaded, 99) * 1e3, "ms"),
        at_most("the same request to the region 200 ms away, p50", far_ms, "ms"),
        at_least("local edge against the region 200 ms away", far_ms / near_ms, "x", 20),
    ]


def _requests(gateway: str, path: str, body: bytes, count: int, warmup: int) -> Sequence[float]:
    samples = []
    with Connection(gateway) as connection:
        for _ in range(warmup + count):
            answer = connection.request("POST", path, body, {"content-type": "application/json"})
            if answer.status != 200:
                answer.json()
            samples.append(answer.seconds)
    return samples[warmup:]
