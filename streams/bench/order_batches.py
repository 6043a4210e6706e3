"""Orders by the thousand: `orders:batch` over HTTP, sequenced, matched and committed before they are answered."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from streams.bench.http_client import Connection
from streams.bench.orders import Asked, OrdersBench, random_orders
from streams.bench.own_system import OwnSystem, cpu_s
from streams.bench.report import Result, at_least
from streams.model.errors import StreamsError
from streams.tabular.orders import order_stream

ARROW = "application/vnd.apache.arrow.stream"
GOAL_ORDERS_PER_S = 300_000
SYMBOL = "BATCH"
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class OrderBatches:
    """So many `requests` of `rows` orders, over `connections` at once, after `warmup` such requests on each."""

    requests: int = 60
    rows: int = 20_000
    connections: int = 3
    warmup: int = 3
    levels: int = 200
    seed: int = 1


def measure_batches(system: OwnSystem, options: OrderBatches, say: Say, where: str = "") -> list[Result]:
    """Limit orders around a price that wanders, of which about half trade; each region's replica applies them
    meanwhile, on the same machine. `where`: said of the results beside that.

    StreamsError when an order was refused, or when nothing traded.
    """
    put = {"content-type": "application/json"}
    with Connection(system.first) as connection:
        terms = json.dumps({"tick": "0.01", "lot": "1", "mode": "continuous"}).encode()
        connection.request("PUT", f"/v1/symbols/{SYMBOL}", terms, put).json()
    warm = bodies(options, options.warmup * options.connections, "w")
    _send(system.first, warm, options.connections)
    asked = bodies(options, options.requests, "o")
    say(f"placing {options.requests * options.rows:,} orders, {options.rows:,} a request")
    before = {name: cpu_s(pid) for name, pid in system.pids.items()}
    started = time.perf_counter()
    traded = _send(system.first, asked, options.connections)
    wall_s = time.perf_counter() - started
    orders = options.requests * options.rows
    used = {name: (cpu_s(pid) - before[name]) / orders * 1e6 for name, pid in system.pids.items()}
    if not traded:
        raise StreamsError("no order traded", fix="this is a defect: report it")
    say(f"{orders / wall_s:,.0f} orders/s")
    how = f"{where}orders:batch, Arrow, {options.rows:,} orders a request"
    return [
        at_least(f"orders sequenced, matched and committed, {how}", orders / wall_s, "orders/s", GOAL_ORDERS_PER_S),
        *(Result(f"CPU an order, {how}, {name}", each, "µs") for name, each in used.items() if each >= 0.05),
    ]


def bodies(options: OrderBatches, count: int, run: str) -> list[bytes]:
    """Requests' bodies, made beforehand; ids begin with `run`."""
    asked = random_orders(OrdersBench(count * options.rows, levels=options.levels, cancels=0.0, seed=options.seed))
    return [_body(asked[at : at + options.rows], run) for at in range(0, len(asked), options.rows)]


def _body(asked: Sequence[Asked], run: str) -> bytes:
    _, ids, sides, cents, quantities = zip(*asked, strict=True)
    return order_stream(
        {
            "id": [f"{run}{each}" for each in ids],
            "symbol": [SYMBOL] * len(asked),
            "side": ["sell" if side else "buy" for side in sides],
            "price": [f"{each / 100:.2f}" for each in cents],
            "quantity": [str(each) for each in quantities],
        }
    )


def _send(gateway: str, asked: list[bytes], connections: int) -> bool:
    """Send all, each connection its share in turn; whether anything traded."""

    def share(first: int) -> bool:
        with Connection(gateway, timeout_s=120) as connection:
            path, headers = "/v1/orders:batch?answer=summary", {"content-type": ARROW}
            for body in asked[first::connections]:
                said = connection.request("POST", path, body, headers).json()
                if said.get("rejected_count"):
                    raise StreamsError(f"{said['rejected_count']} orders were refused: {said['rejected'][:1]}")
            return bool(connection.request("GET", f"/v1/trades/{SYMBOL}?limit=1").json()["trades"])

    with ThreadPoolExecutor(connections) as pool:
        return any(list(pool.map(share, range(connections))))
