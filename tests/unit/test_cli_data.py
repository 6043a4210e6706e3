"""The client and the data commands, against a gateway over real HTTP."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from streams import connect, connect_sync
from streams.gateway.context import GatewayOptions
from streams.model.errors import BadInput, Conflict, NotFound, Timeout, Unavailable
from streams.model.topology import Topology
from tests.support.gateway import TestGateway, running_gateway

ROOT = Path(__file__).resolve().parents[2]


@pytest_asyncio.fixture
async def edge(tmp_path: Path) -> AsyncIterator[TestGateway]:
    async with running_gateway(tmp_path, GatewayOptions(wait_s=0.3)) as found:
        Topology(found.gateway.topology.regions).save(tmp_path)
        yield found


async def streams(*arguments: str, data: Path | None = None) -> tuple[int, str, str]:
    """Run the command line in a process of its own: exit status, output, errors."""
    env = {**os.environ, "STREAMS_DATA": str(data or "/nonexistent"), "PYTHONPATH": str(ROOT)}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "streams.cli.main", *arguments),
        env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    out, errors = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode or 0, out.decode(), errors.decode()


async def test_a_session_reads_its_writes_and_types_its_errors(edge: TestGateway) -> None:
    async with connect(edge.url, catch_up_s=0) as client:
        receipt = await client.put("score:a", {"add": 5}, ttl=3600)
        assert client.token == receipt.token
        row = await client.get("score:a")
        assert row is not None and (row.value, row.expires_at) == (5, receipt.timestamp + 3_600_000)
        assert await client.get("score:none") is None
        with pytest.raises(NotFound, match="no keyspace"):
            await client.get("none:a")
        with pytest.raises(BadInput, match="not an integer") as bad:
            await client.put("score:a", {"add": "x"})
        assert bad.value.field == "add" and bad.value.fix
        with pytest.raises(BadInput, match="nan"):
            await client.put("kv:a", {"deep": [float("nan")]})
        with pytest.raises(NotFound, match="no table"):
            await client.top("none")
        with pytest.raises(Conflict):
            await client.put_keyspace("score", merge="max")
        assert await client.rank("score", "score:none") is None
        edge.log.hold = True
        await client.put("score:a", {"add": 1})
        with pytest.raises(Timeout) as late:
            await client.get("score:a")
        assert late.value.retry_after_s >= 1 and "events.score/" in late.value.detail, "which input is behind"
        async with connect(edge.url, token=client.token, catch_up_s=0.5) as asking:
            with pytest.raises(Timeout, match=r"asked \d+ times in \d+ s"):
                await asking.get("score:a")
        async with connect(edge.url, token=client.token) as patient, asyncio.timeout(20):
            with pytest.raises(Timeout):
                await patient.wait_for(timeout_s=0.1)  # not for as long as its reads would wait
        edge.log.publish()
        await client.wait_for(timeout_s=5)
    async with connect("http://127.0.0.1:1") as nobody:
        with pytest.raises(Unavailable, match="does not answer"):
            await nobody.get("kv:a")


async def test_put_many_takes_tables_of_many_shapes(edge: TestGateway) -> None:
    async with connect(edge.url) as client:
        columns = {"key": ["a", "b"], "add": np.array([1, 2])}
        assert (await client.put_many("score", columns)).accepted == 2
        assert (await client.put_many("score", [{"key": "score:a", "value": {"add": 3}}])).accepted == 1
        frame = __import__("pandas").DataFrame({"key": ["c"], "add": [4], "ttl": ["1h"]})
        assert (await client.put_many("score", frame)).accepted == 1
        assert {row.key: row.value async for row in client.scan("score")} == {"score:a": 4, "score:b": 2, "score:c": 4}
        with pytest.raises(BadInput, match="length"):
            await client.put_many("score", {"key": ["a"], "add": []})
        receipt = await client.put_batch([{"key": "kv:a", "value": 1}, {"key": "bad", "value": 1}])
        assert (receipt.accepted, receipt.rejected[0].line) == (1, 2)
        readings = {"key": ["1"], "metric": ["t"], "value": [1.5], "time": [1_700_000_000_000]}
        assert (await client.put_many("device", readings)).accepted == 1, "a column named value may be one of several"
        row = await client.get("device:1")
        assert row is not None and row.value == {"metric": "t", "value": 1.5, "time": 1_700_000_000_000}


async def test_a_client_says_what_it_is_misused_for(edge: TestGateway) -> None:
    async with connect(edge.url) as client:
        with pytest.raises(BadInput, match="is no text"):
            await client.put(5, 1)  # type: ignore[arg-type]
    with pytest.raises(Unavailable, match="closed"):
        await client.get("kv:a")


async def test_the_synchronous_twin(edge: TestGateway) -> None:
    def script() -> list[str]:
        with connect_sync(edge.url) as client:
            client.put("score:a", {"add": 1})
            client.put_many("score", {"key": ["b"], "add": [2]})
            assert client.get("score:b").value == 2  # type: ignore[union-attr]
            return [row.key for row in client.top("score", 2)] + [row.key for row in client.scan("score")]

    assert await asyncio.to_thread(script) == ["score:b", "score:a", "score:a", "score:b"]


async def test_commands_answer_json_and_find_the_gateway(edge: TestGateway, tmp_path: Path) -> None:
    status, out, _ = await streams("put", "score:a", '{"add": 5}', "--ttl", "1h", data=tmp_path)
    assert status == 0 and json.loads(out)["offset"] == 0
    status, out, _ = await streams("get", "score:a", "--data", str(tmp_path), "--region", "us-east")
    assert status == 0 and json.loads(out)["value"] == 5
    status, out, _ = await streams("top", "score", "-n", "3", "--url", edge.url)
    assert (status, out) == (0, "1\tscore:a\t5\n")
    status, out, _ = await streams("table", "score", "--prefix", "score:", "--json", data=tmp_path)
    assert status == 0 and json.loads(out)["key"] == "score:a"
    status, out, _ = await streams("delete", "score:a", data=tmp_path)
    assert status == 0 and json.loads(out)["offset"] == 1


async def test_failures_take_one_line_and_a_status(edge: TestGateway, tmp_path: Path) -> None:
    for arguments, status, what in (
        (("get", "score:none"), 1, "no value"),
        (("put", "score:a", "{oops"), 1, "not JSON"),
        (("put", "score:a", "NaN"), 1, "NaN"),
        (("put", "score:a", '{"add": 1}', "--ttl", "0"), 1, "ttl"),
        (("top", "none"), 1, "no table"),
        (("top", "score", "-n", "0"), 1, "10000"),
        (("get", "score:a", "--region", "mars"), 1, "mars"),
        (("get", "score:a", "--url", "http://127.0.0.1:1"), 1, "streams status"),
        (("get", "score:a", "--data", "/nonexistent"), 1, "streams up"),
        (("get",), 2, "KEY"),
        (("nope",), 2, "nope"),
    ):
        found, out, errors = await streams(*arguments, data=tmp_path)
        assert found == status, (arguments, errors)
        assert out == "" and errors.count("\n") == 1 and "Traceback" not in errors, errors
        assert what.lower() in errors.lower(), errors


async def test_load_reports_bad_rows_and_goes_on(edge: TestGateway, tmp_path: Path) -> None:
    table = tmp_path / "flights.csv"
    table.write_text("key,add\nn1,5\nscore:n2,7\nn3,x\n\nn1,1\nn4\n")
    status, out, errors = await streams("load", "score", str(table), data=tmp_path)
    assert status == 1 and out.startswith("3 puts accepted, 2 rejected, ") and "puts/s" in out
    assert "flights.csv:4:" in errors and "flights.csv:7:" in errors
    lines = tmp_path / "more.ndjson"
    lines.write_text('{"key": "n1", "value": {"add": 1}}\n{"key": "score:n2", "value": {"add": 1}}\n')
    status, out, _ = await streams("load", "score", str(lines), data=tmp_path)
    assert status == 0 and out.startswith("2 puts accepted, 0 rejected, ")
    async with connect(edge.url) as client:
        assert {row.key: row.value async for row in client.scan("score")} == {"score:n1": 7, "score:n2": 8}
    status, _, errors = await streams("load", "score", str(tmp_path / "none.csv"), data=tmp_path)
    assert status == 1 and "no file" in errors


async def test_help_names_every_command_and_imports_little() -> None:
    status, out, _ = await streams("--help")
    assert status == 0
    for command in ("up", "down", "status", "logs", "put", "get", "delete", "tail", "top", "table", "load", "bench"):
        assert command in out
    heavy = "('faust', 'wasmtime', 'aiohttp', 'rocksdict', 'fastavro')"
    code = f"import sys, streams.cli.main; print([name for name in {heavy} if name in sys.modules])"
    found = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT
    )
    assert found.stdout.strip() == "[]"


async def test_negative_numbers_are_values_and_output_keeps_to_its_lines(edge: TestGateway) -> None:
    status, _, errors = await streams("put", "best:below", "-5", "--url", edge.url)
    assert status == 0, errors
    await edge.http.put("/v1/kv/kv:two%0Alines", data='"a\\nb"')
    status, out, _ = await streams("table", "kv", "--url", edge.url)
    assert (status, out) == (0, '"kv:two\\nlines"\t"a\\nb"\n')


async def test_load_takes_long_fields_and_columns_beside_value(edge: TestGateway, tmp_path: Path) -> None:
    file = tmp_path / "in.csv"
    file.write_text("key,metric,value,time\ndevice:1,temp,1.5,1700000000000\n" + f"2,{'x' * 200_000},1,\n")
    status, out, errors = await streams("load", "device", str(file), "--url", edge.url)
    assert status == 1 and out.startswith("1 puts accepted, 1 rejected") and "in.csv:3: metric" in errors
    file.write_text('key,value\na,1\nb,"' + "y" * (17 << 20))
    status, _, errors = await streams("load", "kv", str(file), "--url", edge.url)
    assert status == 1 and errors.startswith("error: FILE: in.csv:3: not CSV") and errors.count("\n") == 1


async def test_a_place_that_cannot_be_used_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    status, _, errors = await streams("up", "--data", str(file))
    assert status == 1 and errors.startswith(f"error: {file}") and errors.count("\n") == 1


async def test_put_many_takes_frames_of_every_library_and_says_what_is_durable(edge: TestGateway) -> None:
    import pandas
    import polars
    import pyarrow

    columns = {"key": [f"r{i}" for i in range(200)], "metric": ["t"] * 200, "value": [float(i) for i in range(200)]}
    async with connect(edge.url) as client:
        arrow = pyarrow.table(columns)
        numeric = {**columns, "value": np.arange(200.0), "time": np.datetime64("2024-01-01", "ms") + np.arange(200)}
        for table in (
            columns,
            numeric,
            arrow,
            arrow.to_batches(),
            pandas.DataFrame(columns),
            polars.DataFrame(columns),
        ):
            receipt = await client.put_many("device", table, ttl=60)
            assert (receipt.accepted, receipt.rejected_count) == (200, 0)
        row = await client.get("device:r7")
        assert row is not None and row.value["value"] == 7 and row.expires_at is not None

        def batches() -> list[pyarrow.RecordBatch]:
            return arrow.slice(0, 150).to_batches() + arrow.slice(150).to_batches()

        assert (await client.put_many("device", batches())).accepted == 200
        edge.log.refuse = Unavailable("the broker is away")
        with pytest.raises(Unavailable, match="hold 0 puts, which are durable"):
            await client.put_many("device", arrow)
        receipt = await client.put_many("kv", {"key": ["a", "b"], "value": [{"deep": [1]}, None]})
        assert receipt.accepted == 2, "nested values go as lines"


@pytest.mark.parametrize("suffix", ["csv", "ndjson", "parquet", "arrow"])
async def test_an_export_loads_as_the_same_table(edge: TestGateway, tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"out.{suffix}"
    async with connect(edge.url) as client:
        await client.put_many("score", {"key": [f"k{i:03}" for i in range(100)], "add": range(100)})
        status, _, errors = await streams("export", "score", str(file), "--url", edge.url)
        assert status == 0 and errors.startswith("100 rows written"), errors
        status, out, errors = await streams("load", "score", str(file), data=tmp_path)
        assert status == 0 and out.startswith("100 puts accepted, 0 rejected"), errors
        found = {row.key: row.value async for row in client.scan("score")}
        assert found == {f"score:k{i:03}": 2 * i for i in range(100)}
    status, _, errors = await streams("export", "none", str(file), "--url", edge.url)
    assert status == 1 and "no table" in errors and errors.count("\n") == 1
