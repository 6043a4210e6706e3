"""Concurrent traders whose orders, cancels, replaces and looks at books are recorded; they are held to the answers."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Self

from streams.client import AsyncClient, connect
from streams.model.errors import Conflict, NotFound, Timeout, Unavailable
from streams.verify.recorder import HistoryRecorder, RecordingClient
from tests.support.strong_load import AGAIN_S, RESOLVE_S, ClientLoad, Connect, WrongAnswer, sent_nothing

SYMBOLS, DEPTH = 4, 100
Answer = dict[str, Any]
Send = Callable[[AsyncClient, str], Awaitable[Answer]]


class OrderLoad(ClientLoad):
    """`clients` traders place, cancel, replace and look at a few books at `urls` until told to stop.

    A command without an answer is sent again under its idempotency key, at the other gateways too, or resolved, or left
    (`info`). Some do not wait for the answer; some ask again what was answered, and must hear the same.
    """

    def __init__(
        self,
        urls: Sequence[str],
        recorder: HistoryRecorder,
        seed: int,
        *,
        clients: int = 4,
        pause_s: float = 0.02,
        replays: bool = True,
        connect_to: Connect = connect,
    ) -> None:
        super().__init__(urls, clients, connect_to)
        self._recorder, self._seed, self._pause_s, self.replays = recorder, seed, pause_s, replays
        self.symbols = [f"H{seed:08X}{number}" for number in range(SYMBOLS)]
        self.placed: dict[str, list[str]] = {symbol: [] for symbol in self.symbols}

    async def __aenter__(self) -> Self:
        async with self._connect(self._urls[0]) as edge:
            for symbol in self.symbols:
                await edge.put_symbol(symbol, tick="0.01", lot="1")
        return await super().__aenter__()

    async def _run(self, number: int, edges: list[AsyncClient], where: str) -> None:
        rng = random.Random(f"{self._seed}/orders/{number}")
        one = _Trader(self, rng, self._recorder.client(), edges, f"{self._seed}-o{number}")
        while not self._stop.is_set():
            await one.step()
            await asyncio.sleep(rng.uniform(0, 2 * self._pause_s))


class _Trader:
    """One logical process: one operation at a time, as its own random numbers say."""

    def __init__(
        self, load: OrderLoad, rng: random.Random, recording: RecordingClient, edges: list[AsyncClient], name: str
    ) -> None:
        self._load, self._rng, self._recording, self._edges = load, rng, recording, edges
        self._name, self._numbers = name, itertools.count()

    async def step(self) -> None:
        """One operation."""
        symbol = self._rng.choice(self._load.symbols)
        kind = self._rng.choices(("place", "cancel", "replace", "book"), (9, 3, 3, 4))[0]
        if kind in ("cancel", "replace") and not self._load.placed[symbol]:
            kind = "place"
        await getattr(self, f"_{kind}")(symbol)

    def _price(self) -> str:
        return f"{self._rng.randint(995, 1005) / 100:.2f}"

    async def _place(self, symbol: str) -> None:
        rng = self._rng
        kind = rng.choices(("limit", "ioc", "fok", "market"), (8, 1, 1, 1))[0]
        asked = {"id": f"{self._name}-{next(self._numbers)}", "side": rng.choice(("buy", "sell")), "type": kind}
        asked["quantity"] = str(rng.randint(1, 9))
        if kind != "market":
            asked["price"] = self._price()
        self._load.placed[symbol].append(asked["id"])

        def send(edge: AsyncClient, name: str) -> Awaitable[Answer]:
            return edge.place_order(symbol=symbol, idempotency_key=name, **asked)  # type: ignore[arg-type]

        await self._write("place", symbol, asked, send)

    async def _cancel(self, symbol: str) -> None:
        asked = {"id": self._rng.choice(self._load.placed[symbol][-12:])}
        await self._write(
            "cancel", symbol, asked, lambda edge, name: edge.cancel_order(asked["id"], idempotency_key=name)
        )

    async def _replace(self, symbol: str) -> None:
        asked = {"id": self._rng.choice(self._load.placed[symbol][-12:])}
        changes = self._rng.choice((("price",), ("quantity",), ("price", "quantity")))
        given = {"price": self._price(), "quantity": str(self._rng.randint(1, 9))}
        asked |= {name: given[name] for name in changes}

        def send(edge: AsyncClient, name: str) -> Awaitable[Answer]:
            return edge.replace_order(**asked, idempotency_key=name)  # type: ignore[arg-type]

        await self._write("replace", symbol, asked, send)

    async def _book(self, symbol: str) -> None:
        operation = self._recording.invoke("book", symbol, {"depth": DEPTH})
        try:
            book = await self._rng.choice(self._edges).get_order_book(symbol, DEPTH)
        except (Unavailable, Timeout):
            operation.fail()
            self._load.tally.refused += 1
            return
        operation.ok({"bids": book["bids"], "asks": book["asks"]})
        self._count("book")

    async def _write(self, kind: str, symbol: str, asked: Any, send: Send) -> None:
        name = f"{self._name}-{next(self._numbers)}.id"
        operation = self._recording.invoke(kind, symbol, asked)
        told, unknown = None, False
        for number, edge in enumerate(itertools.islice(itertools.cycle(self._edges), self._rng.choice((1, 1, 2, 3)))):
            try:
                told = await self._told(kind, self._sent(send(edge, name)), again=bool(number))
            except (Unavailable, Timeout) as error:
                unknown = unknown or not sent_nothing(error)
                await asyncio.sleep(AGAIN_S)
                continue
            operation.ok(told)
            self._count(kind)
            if self._load.replays and kind == "place" and self._rng.random() < 0.1:
                await self._hears_the_same(send, name, told)
            return
        if not unknown:
            operation.fail()
            self._load.tally.refused += 1
            return
        self._load.tally.unknown += 1
        outcome, told = await self._settled(kind, send, name)
        if outcome == "":
            self._load.tally.given_up += 1
            operation.info()
            return
        self._load.tally.resolved[outcome] += 1
        if told is None:
            operation.fail()
        else:
            operation.ok(told)
            self._count(kind)

    async def _told(self, kind: str, work: Awaitable[Answer], *, again: bool) -> Answer:
        """What an answer means for the history. A change told again shows the order as it is by then: only that it
        was made is judged.
        """
        try:
            answer = await work
        except (Conflict, NotFound) as error:
            order = error.extra.get("order")
            return {"applied": False} | ({"filled": order["filled"]} if isinstance(order, dict) else {})
        if again and kind != "place":
            return {"applied": True}
        return {"applied": True, "order": answer["order"]} | ({} if kind == "cancel" else {"trades": answer["trades"]})

    async def _sent(self, work: Awaitable[Answer]) -> Answer:
        """The answer; a few traders do not wait for it."""
        if self._rng.random() > 0.06:
            return await work
        try:
            return await asyncio.wait_for(work, self._rng.uniform(0, 0.02))
        except TimeoutError:
            self._load.tally.left += 1
            raise Timeout("the trader did not wait") from None

    async def _settled(self, kind: str, send: Send, name: str) -> tuple[str, Answer | None]:
        """What became of a command: its outcome ("": unknown for good), and what was told (None: it was cancelled)."""
        if self._rng.random() < 0.15:
            return "", None
        deadline_s = asyncio.get_running_loop().time() + RESOLVE_S
        for edge in itertools.cycle(self._edges):
            if asyncio.get_running_loop().time() > deadline_s:
                break
            try:
                found = await edge.resolve(name)
                if found.outcome == "cancelled":
                    return found.outcome, None
                return found.outcome, await self._told(kind, send(edge, name), again=True)
            except (Unavailable, Timeout):
                await asyncio.sleep(AGAIN_S)
        return "", None

    async def _hears_the_same(self, send: Send, name: str, told: Answer) -> None:
        try:
            again = await self._told("place", send(self._rng.choice(self._edges), name), again=True)
        except (Unavailable, Timeout):
            return
        if again != told:
            raise WrongAnswer(f"{name} was answered {told}, then {again}")
        self._load.tally.replayed += 1

    def _count(self, kind: str) -> None:
        self._load.tally.answered += 1
        self._load.tally.by[kind] += 1


# ---- planted bugs: what stands between these traders and the gateways lies


class LostOrders(AsyncClient):
    """Now and then an order is acknowledged as resting and thrown away."""

    _orders = itertools.count(1)

    async def place_order(self, **order: Any) -> Answer:
        if order["type"] == "limit" and next(self._orders) % 7 == 0:
            return {"order": {"status": "open", "filled": "0"}, "trades": []}
        return await super().place_order(**order)


class DoubledOrders(AsyncClient):
    """Now and then an order is executed again under a name of its own, as by a retry that nobody recognised."""

    _orders = itertools.count(1)

    async def place_order(self, **order: Any) -> Answer:
        answer = await super().place_order(**order)
        if next(self._orders) % 5 == 0:
            await super().place_order(**(order | {"id": order["id"] + "-2", "idempotency_key": None}))
        return answer
