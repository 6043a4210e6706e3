"""Traders on one gateway: their history is linearizable, and one with a planted bug is not. No Kafka; real machine."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from streams.client import AsyncClient, connect
from tests.support.certificate import ILLEGAL, OK, check_traded, verify
from tests.support.gateway import running_gateway
from tests.support.order_load import DoubledOrders, LostOrders, OrderLoad
from tests.support.strong_load import Tally, recorded


async def trade(tmp_path: Path, client: type[AsyncClient] | None, count: int) -> tuple[Path, Tally]:
    seed, history = random.SystemRandom().getrandbits(32), tmp_path / "orders.ndjson"
    print(f"seed {seed}")
    async with (
        running_gateway(tmp_path / "gateway", orders=True) as edge,
        recorded(
            history,
            lambda recorder: OrderLoad(
                [edge.url], recorder, seed, pause_s=0.001, replays=client is None, connect_to=client or connect
            ),
        ) as load,
    ):
        await load.more(count)
        while client is None and not (load.tally.unknown and load.tally.replayed):  # few give up, and not at once
            await load.more(50)
    return history, load.tally


async def test_what_traders_were_answered_is_linearizable(tmp_path: Path) -> None:
    history, tally = await trade(tmp_path, None, 400)
    check_traded(tally)
    assert tally.left and tally.unknown and tally.replayed
    status, report = await verify(history)
    assert status == OK, report
    assert report["operations"] >= tally.answered


@pytest.mark.parametrize("bug", [LostOrders, DoubledOrders])
async def test_a_planted_bug_is_caught(tmp_path: Path, bug: type[AsyncClient]) -> None:
    history, tally = await trade(tmp_path, bug, 200)
    status, report = await verify(history)
    print(tally, report["verdict"], report.get("culprit"))
    assert status == ILLEGAL
