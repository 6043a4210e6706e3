"""Pins the shape of aiokafka and Faust that the raw fetch path stands on: an upgrade must fail here, not in a log."""

from __future__ import annotations

import asyncio
import hashlib
import inspect

import aiokafka
import pytest
from aiokafka.consumer import consumer as consumer_module
from aiokafka.consumer import fetcher as fetcher_module
from aiokafka.producer import message_accumulator

from streams.kafka import raw_fetch
from streams.kafka.run import TP

PINNED = {
    fetcher_module.Fetcher._proc_fetch_request: "59bf948fff47eed5",
    fetcher_module.Fetcher.fetched_records: "be4348896b9b66af",
    fetcher_module.Fetcher._get_actions_per_node: "1dab2cf937d165d0",
    fetcher_module.Fetcher.seek_to: "f0ba6aba6c22ef83",
    fetcher_module.FetchResult: "d7db13f06de8248c",
    consumer_module.AIOKafkaConsumer.start: "2f1ba70443327538",
    message_accumulator.MessageAccumulator.add_message: "56ff7e6c19185f83",
    message_accumulator.BatchBuilder: "8050802ca7514186",
}


def test_the_version_is_the_pinned_one() -> None:
    assert aiokafka.__version__ == "0.14.0"


@pytest.mark.parametrize(("thing", "digest"), PINNED.items(), ids=lambda value: getattr(value, "__qualname__", ""))
def test_the_source_is_the_one_we_read(thing: object, digest: str) -> None:
    source = inspect.getsource(thing)  # type: ignore[arg-type]
    assert hashlib.sha256(source.encode()).hexdigest()[:16] == digest, "read the new source before changing this"


def test_other_consumers_of_the_process_stay_as_they_are() -> None:
    assert fetcher_module.MemoryRecords is not raw_fetch._RawRecords
    assert fetcher_module.FetchResult is not raw_fetch._RawResult
    assert consumer_module.Fetcher is fetcher_module.Fetcher
    assert raw_fetch.RawKafkaConsumer is not aiokafka.AIOKafkaConsumer


def test_no_position_is_taken_from_the_group() -> None:
    settings = raw_fetch.FetchOptions().consumer_settings()
    assert settings["auto_offset_reset"] == "none"
    assert settings["enable_auto_commit"] is False
    assert settings["isolation_level"] == "read_committed"


async def test_only_an_answer_that_held_something_delays_the_next_fetch(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([False, True, False])

    async def answered(*_: object) -> bool:
        return next(answers)

    monkeypatch.setattr(raw_fetch._fetcher.Fetcher, "_proc_fetch_request", answered)
    fetcher = raw_fetch.RawFetcher.__new__(raw_fetch.RawFetcher)
    fetcher.pace, fetcher._records = raw_fetch.Pace(60.0, 60.0), {}
    async with asyncio.timeout(10):
        assert not await fetcher._proc_fetch_request(None, 1, None)
        assert await fetcher._proc_fetch_request(None, 1, None)
    paced = asyncio.ensure_future(fetcher._proc_fetch_request(None, 1, None))
    done, _ = await asyncio.wait([paced], timeout=0.05)
    assert not done
    paced.cancel()
    assert await paced is False, "aiokafka's close awaits what it cancels: what is cancelled must not raise"
    assert next(answers) is False, "the third fetch was sent at once"


@pytest.mark.parametrize(("size_bytes", "delayed"), [(100, False), (2_000, True)])
async def test_many_events_at_a_time_are_paced_more_slowly_than_few(
    monkeypatch: pytest.MonkeyPatch, size_bytes: int, delayed: bool
) -> None:
    fetcher = raw_fetch.RawFetcher.__new__(raw_fetch.RawFetcher)
    fetcher.pace, fetcher._records = raw_fetch.Pace(0.0, 60.0), {}

    async def answered(*_: object) -> bool:
        records = raw_fetch._RawRecords(b"x" * size_bytes)
        part = raw_fetch._RawPartition(TP("t", 0), records, None, 0, None, None, False, 1)  # type: ignore[arg-type]
        result = raw_fetch._RawResult.__new__(raw_fetch._RawResult)
        result._partition_records = part
        fetcher._records[TP("t", 0)] = result
        return True

    monkeypatch.setattr(raw_fetch._fetcher.Fetcher, "_proc_fetch_request", answered)
    assert await fetcher._proc_fetch_request(None, 1, None)
    sent = asyncio.ensure_future(fetcher._proc_fetch_request(None, 1, None))
    done, _ = await asyncio.wait([sent], timeout=0.2)
    assert (not done) is delayed
    sent.cancel()
    await sent
