"""Orders in columns become the same bytes as one by one, and what cannot be judged in columns is judged one by one."""

from __future__ import annotations

import random
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest

from streams.gateway import order_batches
from streams.gateway.order_batches import ARROW, parse_batch
from streams.gateway.order_bodies import batch_operation
from streams.sequencer.order_commands import decode_operation


def body_of(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=700)
    return bytes(sink.getvalue().to_pybytes())


def random_columns(rng: random.Random, count: int) -> dict[str, list[Any]]:
    prices = [f"{rng.randint(1, 9999)}.{rng.randint(0, 99):02d}" for _ in range(30)]
    return {
        "id": [f"o{number}-{rng.randrange(10 ** rng.randrange(1, 12))}" for number in range(count)],
        "symbol": rng.choices(["AAPL", "MSFT.X"], k=count),
        "side": rng.choices(["buy", "sell"], k=count),
        "type": rng.choices(["limit", "ioc", "fok", None], k=count),
        "price": rng.choices(prices, k=count),
        "quantity": rng.choices(["1", "2.50", "1000000"], k=count),
        "account": rng.choices(["ann", None, "bob:1"], k=count),
    }


@pytest.mark.parametrize("whole", [False, True], ids=["texts", "numbers"])
def test_columns_become_the_bytes_that_lines_become(whole: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    columns = random_columns(rng, 2_000)
    table = pa.table(columns)
    if whole:
        quantities = pa.array(rng.choices([1, 7, 300], k=2_000))
        prices = pa.array(rng.choices([Decimal("1.50"), Decimal("12345.25")], k=2_000), pa.decimal128(20, 4))
        table = table.set_column(4, "price", prices).set_column(5, "quantity", quantities)
    wanted = [batch_operation(row).encode() for row in table.to_pylist()]
    assert [decode_operation(part) for part in wanted] == [batch_operation(row) for row in table.to_pylist()]
    seen: list[object] = []
    encode = order_batches.encode_columns
    monkeypatch.setattr(order_batches, "encode_columns", lambda each: seen.append(each) or encode(each))
    found = parse_batch(ARROW, body_of(table))
    assert seen, "the columns were not taken as columns"
    assert (list(found.parts), list(found.numbers), found.refused) == (wanted, list(range(1, 2_001)), []), seed


@pytest.mark.parametrize(
    ("name", "value", "refused"),
    [
        ("price", "x", True),
        ("price", None, True),
        ("id", "", True),
        ("id", "a b", True),
        ("id", ":replace", True),
        ("id", "x:replace", True),
        ("id", "replace", False),
        ("id", "\N{LATIN SMALL LETTER E WITH ACUTE}", True),
        ("side", "hold", True),
        ("quantity", "0", True),
        ("account", "a/b", True),
        ("type", "market", True),
        ("type", "limit", False),
    ],
)
def test_one_wrong_value_refuses_its_line_alone(name: str, value: Any, refused: bool) -> None:
    columns = random_columns(random.Random(5), 100)
    columns[name][41] = value
    found = parse_batch(ARROW, body_of(pa.table(columns)))
    assert [number for number, _ in found.refused] == ([42] if refused else [])
    assert len(found.parts) == 100 - len(found.refused)
    assert list(found.numbers) == [number for number in range(1, 101) if number != 42 or not refused]
