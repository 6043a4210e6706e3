"""Strong keys from the synchronous client and the command line, over real HTTP and through the real machine."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from typer.testing import CliRunner

from streams import connect_sync
from streams.cli.data import app
from streams.gateway.context import GatewayOptions
from streams.model.errors import BadInput, Conflict, PreconditionFailed, Unavailable
from streams.sequencer.replica import OutcomeUnknown
from tests.support.gateway import TestGateway, running_gateway


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def edge(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[TestGateway]:
    async with running_gateway(tmp_path_factory.mktemp("edge"), GatewayOptions(wait_s=0.3)) as found:
        yield found


async def streams(edge: TestGateway, *arguments: str) -> tuple[int, Any, str]:
    """`streams put`, `get`, `delete`: exit status, the JSON it printed, its errors."""
    result = await asyncio.to_thread(CliRunner().invoke, app, [*arguments, "--url", edge.url])
    return result.exit_code, json.loads(result.stdout) if result.stdout.strip() else None, result.stderr


async def test_the_command_line_puts_reads_and_deletes_under_conditions(edge: TestGateway) -> None:
    status, created, _ = await streams(edge, "put", "strong:cli", '{"n": 1}', "--if-match", "0")
    assert status == 0 and created["version"] > 0
    status, _, error = await streams(edge, "put", "strong:cli", "2", "--if-match", "0")
    assert status == 1 and f"has version {created['version']}" in error and "Traceback" not in error
    status, row, _ = await streams(edge, "get", "strong:cli")
    assert (status, row["value"], row["version"]) == (0, {"n": 1}, created["version"])
    status, put, _ = await streams(edge, "put", "strong:cli", "3", "--if-version", str(created["version"]))
    assert status == 0 and put["version"] > created["version"]
    assert (await streams(edge, "get", "strong:cli", "--consistency", "eventual"))[1]["value"] == 3
    status, _, error = await streams(edge, "delete", "strong:cli", "--if-match", str(created["version"]))
    assert status == 1 and str(put["version"]) in error
    status, gone, _ = await streams(edge, "delete", "strong:cli", "--if-match", str(put["version"]))
    assert (status, gone["version"]) == (0, 0)
    status, _, error = await streams(edge, "get", "strong:cli")
    assert status == 1 and "has no value" in error
    assert (await streams(edge, "put", "strong:cli", "4"))[0] == 0, "and without a condition"
    assert (await streams(edge, "delete", "strong:cli"))[1]["version"] == 0
    for command in (["put", "strong:cli", "1"], ["delete", "strong:cli"]):
        assert (await streams(edge, *command, "--if-match", "-1"))[0] != 0
    status, _, error = await streams(edge, "put", "kv:a", "1", "--if-match", "0")
    assert status == 1 and "kv" in error, "other keyspaces have no versions"


async def test_the_command_line_executes_once_by_key(edge: TestGateway) -> None:
    first = await streams(edge, "put", "strong:once", "1", "--idempotency-key", "cli-1")
    await streams(edge, "put", "strong:once", "2")
    edge.gateway.idempotency._entries.clear()  # what a restarted gateway does not have
    again = await streams(edge, "put", "strong:once", "1", "--idempotency-key", "cli-1")
    assert first[0] == again[0] == 0 and first[1]["version"] == again[1]["version"]
    assert (await streams(edge, "get", "strong:once"))[1]["value"] == 2
    edge.sequencer.refuse = OutcomeUnknown("no acknowledgement")
    try:
        status, _, error = await streams(edge, "put", "strong:once", "3", "--idempotency-key", "cli/2")
    finally:
        edge.sequencer.refuse = None
    assert status == 1 and "outcome is not known" in error and "/v1/commands/cli%2F2:resolve" in error


async def test_the_synchronous_client(edge: TestGateway) -> None:
    def work() -> None:
        with connect_sync(edge.url) as client:
            first = client.put_strong("strong:sync", 1, if_version=0)
            assert first.version
            with pytest.raises(PreconditionFailed) as moved:
                client.put_strong("strong:sync", 2, if_version=0)
            assert moved.value.extra["version"] == first.version
            row = client.get("strong:sync")
            assert row is not None and (row.value, row.version) == (1, first.version)
            then = [{"put": "strong:sync", "value": 2}, {"put": "strong:twin", "value": 2}]
            test = [{"key": "strong:sync", "version": first.version}]
            both = client.transact(then, if_=test, idempotency_key="sync-1")
            assert both.versions == {"strong:sync": both.version, "strong:twin": both.version}
            assert client.transact(then, if_=test, idempotency_key="sync-1").version == both.version
            with pytest.raises(PreconditionFailed):
                client.transact(then, if_=test)
            assert client.resolve("sync-1").outcome == "applied"
            assert client.resolve("sync-never").outcome == "cancelled"
            with pytest.raises(Conflict, match="cancelled"):
                client.put_strong("strong:sync", 9, idempotency_key="sync-never")
            with pytest.raises(PreconditionFailed):
                client.delete_strong("strong:sync", if_version=first.version)
            assert client.delete_strong("strong:sync", if_version=both.version).version == 0
            assert client.delete("strong:twin").version == 0
            assert client.get("strong:sync") is None and client.get("strong:twin", consistency="eventual") is None
            with pytest.raises(BadInput, match="ttl"):
                client.put_strong("strong:sync", 1, ttl="soon")
            with pytest.raises(Conflict):
                client.put_strong("kv:a", 1, if_version=0)

    await asyncio.to_thread(work)


async def test_the_synchronous_client_is_told_when_an_outcome_is_unknown(edge: TestGateway) -> None:
    def work() -> None:
        with connect_sync(edge.url) as client, pytest.raises(Unavailable) as unknown:
            client.put_strong("strong:unknown", 1, idempotency_key="sync-2")
        assert unknown.value.extra["idempotency_key"] == "sync-2"

    edge.sequencer.refuse = OutcomeUnknown("no acknowledgement")
    try:
        await asyncio.to_thread(work)
    finally:
        edge.sequencer.refuse = None
