"""`streams bench udf`'s parts, small: they measure what they say, and stop at what is wrong."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from streams.bench.delay_proxy import delayed
from streams.bench.http_client import Connection
from streams.bench.saturate import saturate
from streams.bench.udf import INVOKE, LOOKUP, UdfOptions, lookup_directory, measure_folds, measure_functions
from streams.model.errors import StreamsError
from tests.support.functions import deployment, serve
from tests.support.gateway import running_gateway

SMALL = UdfOptions(calls=20, cold_starts=2, folds=16, batch=500)


def test_what_is_measured_in_this_process(tmp_path: Path) -> None:
    with lookup_directory() as directory:
        results = [*measure_functions(directory, tmp_path, SMALL), *measure_folds(tmp_path, SMALL)]
    values = {each.what: each.value for each in results}
    assert all(value is not None for value in values.values())
    assert {each.unit for each in results} == {"us", "ms", "events/s", "%"}
    assert all(each.value is not None and each.value > 0 for each in results if each.unit != "%")
    goals = [each.goal for each in results if each.goal is not None]
    assert goals == ["< 100 us", "< 5 ms", ">= 50,000,000 events/s", ">= 50,000,000 events/s", ">= 20,000,000 events/s"]


async def test_saturation_counts_answers_and_a_link_takes_its_round_trip(tmp_path: Path) -> None:
    with lookup_directory() as directory:
        module = (directory / "lookup.wasm").read_bytes()
    async with running_gateway(tmp_path / "gateway") as at:
        service = await serve(at.gateway, tmp_path / "modules", deployment(LOOKUP, module))
        async with at.http.put("/v1/kv/score:bench", json={"add": 42}) as answer:
            assert answer.status == 200
        before = sum(service.loaded["lookup"].counts.values())
        rate, samples = await asyncio.to_thread(saturate, at.url, INVOKE, b"", connections=4, seconds=0.3)
        done = sum(service.loaded["lookup"].counts.values()) - before
        assert 0 < len(samples) <= done <= len(samples) + 4 and rate > 0
        with pytest.raises(StreamsError, match="404"):
            await asyncio.to_thread(saturate, at.url, "/v1/functions/nothing", b"", connections=1, seconds=1.0)

        def far() -> tuple[bytes, float]:
            with delayed(at.url, 0.2) as url, Connection(url) as connection:
                answer = connection.request("POST", INVOKE)
                return answer.body, answer.seconds

        body, seconds = await asyncio.to_thread(far)
        assert body == b'{"points": 42}' and seconds >= 0.2
        await service.close()
