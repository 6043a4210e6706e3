"""`invoke` and `execute_at_edge`: the node asked, failover within the deadline, retries only where they are safe."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from streams.cli.invoke import nearest
from streams.client import RouteDecision, RouteNode, connect, connect_sync
from streams.model.errors import BadInput, NotFound, StreamsError, Timeout, UdfFailed, Unavailable
from tests.support.function_gateway import FunctionGateway
from tests.support.functions import ROOT, handle_request, hostile, serve
from tests.support.gateway import TestGateway, free_port, running_gateway
from tests.support.tcp_proxy import TcpProxy


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("modules")


@pytest.fixture(scope="module")
async def at(tmp_path_factory: pytest.TempPathFactory, modules: Path) -> AsyncIterator[TestGateway]:
    """The gateway that is well."""
    async with running_gateway(tmp_path_factory.mktemp("gateway")) as found:
        service = await serve(found.gateway, modules, handle_request(), hostile())
        yield found
        await service.close()


def decision(*urls: str) -> RouteDecision:
    nodes = [RouteNode(f"node-{n}", "anywhere", url, None, None) for n, url in enumerate(urls)]
    return RouteDecision(nodes[0].node, nodes[0].region, nodes[0].url, None, None, tuple(nodes[1:]))


@asynccontextmanager
async def broken(answer: bytes | None) -> AsyncIterator[tuple[str, list[bytes]]]:
    """An edge that takes a request whole, answers so (None: nothing, for ever) and hangs up; what it has been sent."""
    taken: list[bytes] = []

    async def serve_(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        taken.append(head)
        if answer is None:
            await reader.read()
        else:
            writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve_, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", taken
    finally:
        server.close()


async def test_answers_errors_and_who_answered(at: TestGateway) -> None:
    async with connect(at.url) as edge:
        found = await edge.invoke("hostile", b"\x00raw", query={"do": "echo"})
        assert (found.status, found.body, found.region, found.url, found.tries) == (
            200,
            b"\x00raw",
            "us-east",
            at.url,
            1,
        )
        page = await edge.invoke("handle_request", {"user": "eve", "city": "Oslo"})
        assert "Hello, eve" in str(page) and page.content_type.startswith("text/html")
        row = await edge.get("kv:visit:eve")
        assert row is not None and row.value["city"] == "Oslo", "the session reads what its function has put"
        assert (
            await edge.invoke("hostile", query={"do": "user"}, user={"id": "é", "tags": [1]})
        ).body == "é[1]".encode()
        with pytest.raises(UdfFailed) as failed:
            await edge.invoke("hostile", query={"do": "trap"})
        assert failed.value.extra["trap"] == "trap"
        with pytest.raises(Timeout) as late:
            await edge.invoke("hostile", query={"do": "loop"})
        assert late.value.extra["udf"] == "hostile"
        with pytest.raises(NotFound):
            await edge.invoke("nothing")
        for bad in (0, -1, float("nan")):
            with pytest.raises(BadInput):
                await edge.invoke("hostile", deadline_s=bad)
        with pytest.raises(NotFound) as unknown:
            await edge.execute_at_edge("gateway-nowhere", "hostile")
        assert unknown.value.field == "node"


async def test_the_nearest_of_several_is_one_that_answers(at: TestGateway) -> None:
    async with TcpProxy(int(at.url.rpartition(":")[2]), delay_s=0.1) as proxy:
        far, nobody = f"http://127.0.0.1:{proxy.port}", f"http://127.0.0.1:{free_port()}"
        found = await nearest([far, nobody, at.url])
        assert [each.url for each in found.nodes] == [at.url, far]
        with pytest.raises(Unavailable):
            await nearest([nobody])


async def test_a_node_that_cannot_be_reached_is_passed_over(at: TestGateway) -> None:
    nobody = f"http://127.0.0.1:{free_port()}"
    async with connect(nobody) as edge:
        found = await edge.execute_at_edge(decision(nobody, nobody, at.url), "hostile")
        assert (found.url, found.tries, found.text) == (at.url, 3, "fine")
        edge._remember(decision(nobody, at.url))
        assert (await edge.execute_at_edge("node-0", "hostile")).url == at.url, "a name is of the last decision"
        with pytest.raises(Unavailable):
            await edge.execute_at_edge(decision(nobody, nobody), "hostile", deadline_s=2)
        before = len(edge._others)
        await edge.close()
        assert before and not edge._others


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\nStreams-Region: x\r\n\r\nhalf"])
async def test_a_broken_answer_is_retried_only_where_safe(at: TestGateway, answer: bytes) -> None:
    async with broken(answer) as (url, taken), connect(at.url) as edge:
        with pytest.raises(Unavailable) as unknown:
            await edge.execute_at_edge(decision(url, at.url), "hostile")
        assert unknown.value.extra["executed"] == "unknown" and "idempoten" in str(unknown.value.fix)
        assert len(taken) == 1
        found = await edge.execute_at_edge(decision(url, at.url), "hostile", idempotency_key="k1")
        assert (found.url, found.tries) == (at.url, 2)
        found = await edge.execute_at_edge(decision(url, at.url), "handle_request")
        assert (found.url, found.tries) == (at.url, 2), "its manifest says idempotent = true, which the fallback told"
        assert len(taken) == 3


async def test_what_a_node_did_not_run_goes_to_the_next(at: TestGateway) -> None:
    head = b"HTTP/1.1 %d X\r\nContent-Type: application/problem+json\r\nContent-Length: %d\r\n\r\n%s"
    for status, body, retried in [
        (503, b'{"detail": "the gateway is starting", "field": null}', True),
        (429, b'{"detail": "busy", "field": "concurrency"}', True),
        (404, b'{"detail": "not here yet", "field": "name"}', True),
        (504, b'{"detail": "behind", "field": "Causal-Token"}', True),
        (503, b'{"detail": "no broker", "field": null, "executed": true}', False),
        (504, b'{"detail": "no ack", "field": null, "executed": true}', False),
        (504, b'{"detail": "too long", "field": null, "udf": "hostile"}', False),
        (502, b'{"detail": "trapped", "field": null, "udf": "hostile"}', False),
        (400, b'{"detail": "bad", "field": "x"}', False),
    ]:
        async with broken(head % (status, len(body), body)) as (url, taken), connect(at.url) as edge:
            if retried:
                assert (await edge.execute_at_edge(decision(url, at.url), "hostile")).url == at.url
            else:
                with pytest.raises(StreamsError) as error:
                    await edge.execute_at_edge(decision(url, at.url), "hostile")
                assert error.value.status == status
            assert len(taken) == 1, status


async def test_the_deadline_holds_and_a_hanging_node_leaves_time_for_the_next(at: TestGateway) -> None:
    async with broken(None) as (url, taken), connect(at.url) as edge:
        began_s = time.monotonic()
        with pytest.raises(Timeout):
            await edge.execute_at_edge(decision(url, at.url), "hostile", deadline_s=0.5)
        assert len(taken) == 1, "nobody knows whether it ran"
        found = await edge.execute_at_edge(decision(url, at.url), "hostile", deadline_s=4, idempotency_key="k2")
        assert found.url == at.url
        assert time.monotonic() - began_s < 20
        with pytest.raises(Timeout):
            await edge.execute_at_edge(decision(url, url), "hostile", deadline_s=0.5, idempotency_key="k3")


async def test_a_link_that_is_cut_midway(at: TestGateway) -> None:
    async with TcpProxy(int(at.url.rpartition(":")[2]), delay_s=0.2) as proxy, connect(at.url) as edge:
        far = f"http://127.0.0.1:{proxy.port}"
        assert (await edge.execute_at_edge(decision(far, at.url), "handle_request")).url == far
        asking = asyncio.create_task(edge.execute_at_edge(decision(far, at.url), "handle_request"))
        done, _ = await asyncio.wait([asking], timeout=0.1)
        assert not done
        proxy.cut()
        assert (await asking).url == at.url


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory, modules: Path) -> Iterator[tuple[FunctionGateway, ...]]:
    """Two edges as processes; a test may kill the first."""
    place = tmp_path_factory.mktemp("processes")
    found = (FunctionGateway(place / "first", modules), FunctionGateway(place / "second", modules))
    yield found
    for each in found:
        each.kill()


def test_the_command_and_the_synchronous_client(processes: tuple[FunctionGateway, ...]) -> None:
    second = processes[1]
    with connect_sync(second.url) as edge:
        assert "Hello, sync" in edge.invoke("handle_request", {"user": "sync"}).text
        assert edge.execute_at_edge(decision(second.url), "hostile", deadline_s=5).text == "fine"

    def cli(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "streams.cli.main", "invoke", *arguments, "--url", second.url]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT, check=False)

    done = cli("handle_request", '{"user": "cli", "city": "Paris"}', "-v")
    assert done.returncode == 0 and "Hello, cli" in done.stdout and "200 of us-east" in done.stderr, done
    done = cli("hostile", "some text", "--query", "do=echo")
    assert (done.returncode, done.stdout) == (0, "some text")
    done = cli("nothing")
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "nothing" in done.stderr, done


def test_an_edge_is_killed_in_the_midst_of_requests(processes: tuple[FunctionGateway, ...]) -> None:
    """Real processes: one is killed with SIGKILL while 8 clients invoke. Nothing idempotent fails, and of what is not
    nothing is retried by itself after it may have run."""
    first, second = processes
    answers, errors = asyncio.run(_under_fire(first, second))
    urls = [each for each, _ in answers]
    assert {first.url, second.url} <= set(urls)
    assert all(name == "hostile" for name, _ in errors), errors
    assert all(error.extra.get("executed") == "unknown" for _, error in errors), errors


async def _under_fire(
    first: FunctionGateway, second: FunctionGateway
) -> tuple[list[tuple[str, str]], list[tuple[str, StreamsError]]]:
    answers: list[tuple[str, str]] = []
    errors: list[tuple[str, StreamsError]] = []
    nodes, killed = decision(first.url, second.url), asyncio.Event()

    async def client(name: str) -> None:
        after = 0
        while after < 10:
            try:
                async with connect(first.url) as edge:  # a session each: these two have no mirror for its token
                    found = await edge.execute_at_edge(nodes, name, {"user": "u"})
                answers.append((found.url, name))
                assert found.status == 200
            except StreamsError as error:
                errors.append((name, error))
            after += killed.is_set()

    clients = [asyncio.create_task(client(name)) for name in ["handle_request", "hostile"] * 4]
    while len(answers) < 50:
        await asyncio.wait(clients, timeout=0.01)
    os.kill(first.process.pid, signal.SIGKILL)
    killed.set()
    await asyncio.gather(*clients)
    return answers, errors
