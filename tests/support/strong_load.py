"""Concurrent clients of strong keys whose every operation is recorded, and who are held to the answers they got."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar

from streams.client import AsyncClient, connect
from streams.client.types import Outcome
from streams.model.errors import Conflict, PreconditionFailed, StreamsError, Timeout, Unavailable
from streams.verify.recorder import HistoryRecorder, Recorded, RecordingClient
from tests.support.polling import eventually

RESOLVE_S = 60.0
"""How long an outcome may stay unknown before the client gives up (info)."""
AGAIN_S = 0.05
LATER_S = 0.1
REGISTERS, GROUPS = 4, 2
Connect = Callable[[str], AsyncClient]


class WrongAnswer(RuntimeError):
    """An answer that no history is needed to call wrong."""


@dataclass
class Tally:
    """What the clients met. `by`: operations answered, by kind and by the gateway asked first."""

    by: Counter[str] = field(default_factory=Counter)
    refused: int = 0
    unknown: int = 0
    given_up: int = 0
    replayed: int = 0
    left: int = 0
    resolved: Counter[str] = field(default_factory=Counter)
    answered: int = 0


@dataclass
class _Write:
    """A write: how to send it, and what an answer means for the history."""

    send: Callable[[AsyncClient, str], Awaitable[Any]]
    told: Callable[[int | None], dict[str, Any]]
    """The history's value for an applied write of this version."""
    key: str | None


class ClientLoad:
    """Logical processes that work at `urls` until the context ends; each failure of one is the context's own."""

    def __init__(self, urls: Sequence[str], clients: int, connect_to: Connect) -> None:
        self._urls, self._clients, self._connect = list(urls), clients, connect_to
        self.tally = Tally()
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._client(number)) for number in range(self._clients)]
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._stop.set()
        if kind is not None:
            for task in self._tasks:
                task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=kind is not None)

    async def more(self, count: int, timeout_s: float = 180.0) -> None:
        """Wait until so many more operations have been answered; a client's own failure at once."""
        target = self.tally.answered + count

        def done() -> bool:
            for task in self._tasks:
                if task.done():
                    task.result()
            return self.tally.answered >= target

        await eventually(done, timeout_s, every_s=0.01)

    async def _client(self, number: int) -> None:
        first = number % len(self._urls)
        async with contextlib.AsyncExitStack() as stack:
            order = self._urls[first:] + self._urls[:first]
            edges = [await stack.enter_async_context(self._connect(url)) for url in order]
            await self._run(number, edges, "here" if first == 0 else "there")

    async def _run(self, number: int, edges: list[AsyncClient], where: str) -> None:
        """One logical process, whose own gateway is the first of `edges`."""
        raise NotImplementedError


class StrongLoad(ClientLoad):
    """`clients` logical processes put, compare-and-set, delete, transact and read at `urls` until told to stop.

    A write without an answer is sent again under its idempotency key, at the other gateways too, or resolved, or left
    (`info`). Some clients give up before the answer; some (with `replays`) ask again what was answered, and must hear
    the same. `generation` says which keys are used: few at a time, so that clients meet, and new ones now and then.
    """

    def __init__(
        self,
        urls: Sequence[str],
        recorder: HistoryRecorder,
        seed: int,
        *,
        clients: int = 8,
        pause_s: float = 0.01,
        replays: bool = True,
        connect_to: Connect = connect,
    ) -> None:
        super().__init__(urls, clients, connect_to)
        self._recorder, self._seed, self._pause_s = recorder, seed, pause_s
        self.replays = replays
        self.generation = 0
        self._versions: dict[str, int] = {}

    async def _run(self, number: int, edges: list[AsyncClient], where: str) -> None:
        rng = random.Random(f"{self._seed}/{number}")
        one = _Client(self, rng, self._recorder.client(), edges, f"{self._seed}-{number}", where)
        while not self._stop.is_set():
            await one.step()
            await asyncio.sleep(rng.uniform(0, 2 * self._pause_s))

    @property
    def pace_s(self) -> float:
        """The pause between a client's operations, on average."""
        return self._pause_s

    def register(self, rng: random.Random) -> str:
        """A key that no transaction touches."""
        return f"strong:h{self._seed}-{self.generation}-r{rng.randrange(REGISTERS)}"

    def group(self, rng: random.Random) -> list[str]:
        """Keys that transactions tie together."""
        name = f"strong:h{self._seed}-{self.generation}-t{rng.randrange(GROUPS)}"
        return [f"{name}-{part}" for part in "abc"]

    def version(self, key: str) -> int:
        """The version that somebody saw last, 0: absent or never seen."""
        return self._versions.get(key, 0)

    def saw(self, key: str, version: int | None) -> None:
        """Remember a version."""
        if version is not None:
            self._versions[key] = version


class _Client:
    """One logical process: one operation at a time, as its own random numbers say."""

    def __init__(
        self,
        load: StrongLoad,
        rng: random.Random,
        recording: RecordingClient,
        edges: list[AsyncClient],
        name: str,
        where: str,
    ) -> None:
        self._load, self._rng, self._recording, self._edges = load, rng, recording, edges
        self._name, self._where, self._numbers = name, where, itertools.count()

    async def step(self) -> None:
        """One operation."""
        rng = self._rng
        key = self._load.register(rng) if rng.random() < 0.5 else rng.choice(self._load.group(rng))
        kind = rng.choices(("get", "put", "cas", "delete", "txn"), (9, 4, 5, 2, 5))[0]
        await getattr(self, f"_{kind}")(key)

    def _value(self) -> str:
        return f"{self._name}.{next(self._numbers)}"

    async def _get(self, key: str) -> None:
        operation = self._recording.invoke("get", key)
        for edge in self._edges[: 1 + (self._rng.random() < 0.3)]:
            try:
                row = await edge.get(key)
            except (Unavailable, Timeout):
                await asyncio.sleep(AGAIN_S)
                continue
            operation.ok(None if row is None else {"value": row.value, "version": row.version})
            self._load.saw(key, 0 if row is None else row.version)
            self._count("get")
            return
        operation.fail()
        self._load.tally.refused += 1

    async def _put(self, key: str) -> None:
        value = self._value()
        write = _Write(lambda edge, name: edge.put_strong(key, value, idempotency_key=name), _versioned, key)
        await self._write("put", key, {"value": value}, write)

    async def _cas(self, key: str) -> None:
        value, version = self._value(), self._load.version(key)

        def send(edge: AsyncClient, name: str) -> Awaitable[Any]:
            return edge.put_strong(key, value, if_version=version, idempotency_key=name)

        await self._write("cas", key, {"value": value, "version": version}, _Write(send, _versioned, key))

    async def _delete(self, key: str) -> None:
        version = self._load.version(key)
        wanted = version if version and self._rng.random() < 0.5 else None

        def send(edge: AsyncClient, name: str) -> Awaitable[Any]:
            return edge.delete_strong(key, if_version=wanted, idempotency_key=name)

        asked = None if wanted is None else {"if_version": wanted}
        await self._write("delete", key, asked, _Write(send, lambda _: {"version": 0}, key))

    async def _txn(self, _: str) -> None:
        rng, keys = self._rng, self._load.group(self._rng)
        tested = rng.sample(keys, rng.choice((0, 1, 1, 2)))
        conditions = [{"key": key, "version": self._load.version(key)} for key in tested]
        changed = rng.sample(keys, rng.randint(1, 3))
        then = [{"delete": key} if rng.random() < 0.2 else {"put": key, "value": self._value()} for key in changed]

        def send(edge: AsyncClient, name: str) -> Awaitable[Any]:
            return edge.transact(then, if_=conditions, idempotency_key=name)

        def told(version: int | None) -> dict[str, Any]:
            return {"versions": {each.get("put", each.get("delete")): version if "put" in each else 0 for each in then}}

        await self._write("txn", None, {"if": conditions, "then": then}, _Write(send, told, None))

    async def _write(self, kind: str, key: str | None, asked: Any, write: _Write) -> None:
        name = f"{self._name}.{next(self._numbers)}.id"
        operation = self._recording.invoke(kind, key, asked)
        unknown = False
        for edge in itertools.islice(itertools.cycle(self._edges), self._rng.choice((1, 1, 2, 3))):
            try:
                receipt = await self._send(write.send(edge, name))
            except PreconditionFailed as error:
                self._refused(operation, write, error.extra)
            except (Unavailable, Timeout) as error:
                unknown = unknown or not sent_nothing(error)
                await asyncio.sleep(AGAIN_S)
                continue
            else:
                self._applied(operation, write, receipt.version)
                if self._load.replays and self._rng.random() < 0.1:
                    await self._again(write, name, receipt.version)
            self._count(kind)
            return
        if unknown:
            await self._settle(operation, write, name, kind)
        else:
            operation.fail()
            self._load.tally.refused += 1

    async def _send(self, work: Awaitable[Any]) -> Any:
        """The answer; a few clients do not wait for it."""
        if self._rng.random() > 0.06:
            return await work
        try:
            return await asyncio.wait_for(work, self._rng.uniform(0, 0.02))
        except TimeoutError:
            self._load.tally.left += 1
            raise Timeout("the client did not wait") from None

    async def _settle(self, operation: Recorded, write: _Write, name: str, kind: str) -> None:
        """An outcome that is not known: resolved, or left as it is."""
        tally = self._load.tally
        tally.unknown += 1
        found = None if self._rng.random() < 0.15 else await self._resolved(name)
        if found is None:
            tally.given_up += 1
            operation.info()
            return
        tally.resolved[found.outcome] += 1
        if found.outcome == "cancelled":
            operation.fail()
            if self._load.replays:
                await self._stays_cancelled(write, name)
            return
        if found.outcome == "applied":
            self._applied(operation, write, found.version)
        else:
            self._refused(operation, write, {"version": found.version})
        self._count(kind)

    async def _resolved(self, name: str) -> Outcome | None:
        """What became of it, from whichever gateway knows; None: nobody answers."""
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + RESOLVE_S
        for edge in itertools.cycle(self._edges):
            try:
                return await edge.resolve(name)
            except (Unavailable, Timeout):
                if loop.time() > deadline_s:
                    break
                await asyncio.sleep(AGAIN_S)
        return None

    def _applied(self, operation: Recorded, write: _Write, version: int | None) -> None:
        operation.ok({"applied": True, **write.told(version)})
        if write.key is not None:
            self._load.saw(write.key, write.told(version).get("version"))

    def _refused(self, operation: Recorded, write: _Write, problem: Mapping[str, Any]) -> None:
        """A condition did not hold; the problem tells the version of its key."""
        told: dict[str, Any] = {"applied": False}
        version, key = problem.get("version"), write.key or problem.get("key")
        if write.key is not None:
            told["version"] = version
        elif key is not None:
            told["versions"] = {key: version}
        operation.ok(told)
        if key is not None:
            self._load.saw(str(key), version)

    async def _again(self, write: _Write, name: str, version: int | None) -> None:
        """The same request, anywhere: the first answer."""
        try:
            receipt = await write.send(self._rng.choice(self._edges), name)
        except (Unavailable, Timeout):
            return
        if version is not None and receipt.version != version:
            raise WrongAnswer(f"{name} was answered version {version}, then {receipt.version}")
        self._load.tally.replayed += 1

    async def _stays_cancelled(self, write: _Write, name: str) -> None:
        for edge in self._edges:
            try:
                receipt = await write.send(edge, name)
            except (Unavailable, Timeout, Conflict):
                continue
            except StreamsError as error:
                raise WrongAnswer(f"{name} was cancelled, then answered {error}") from error
            raise WrongAnswer(f"{name} was cancelled, then executed: {receipt}")

    def _count(self, kind: str) -> None:
        tally = self._load.tally
        tally.answered += 1
        tally.by[kind] += 1
        tally.by[self._where] += 1


def _versioned(version: int | None) -> dict[str, Any]:
    return {} if version is None else {"version": version}


def sent_nothing(error: StreamsError) -> bool:
    """Whether the gateway itself says that this attempt wrote nothing: a broken connection never does."""
    return error.__cause__ is None and isinstance(error, Unavailable) and "idempotency_key" not in error.extra


# ---- planted bugs: what stands between these clients and the gateways lies


class StaleReads(AsyncClient):
    """Linearizable reads are answered from the region's copy, as by a gateway that forgot the barrier."""

    async def get(self, key: str, **_: Any) -> Any:
        return await super().get(key, consistency="eventual")


class LostAcks(AsyncClient):
    """Now and then a put is acknowledged and thrown away."""

    _puts = itertools.count(1)

    async def put_strong(self, key: str, value: Any, **options: Any) -> Any:
        if options.get("if_version") is None and next(self._puts) % 5 == 0:
            return Dropped()
        return await super().put_strong(key, value, **options)


class Doubled(AsyncClient):
    """Now and then a put is executed again a little later, as by a retry that nobody recognised."""

    _puts = itertools.count(1)

    async def put_strong(self, key: str, value: Any, **options: Any) -> Any:
        receipt = await super().put_strong(key, value, **options)
        if options.get("if_version") is None and next(self._puts) % 3 == 0:
            self._again = asyncio.create_task(self._later(key, value))
        return receipt

    async def _later(self, key: str, value: Any) -> None:
        await asyncio.sleep(LATER_S)
        with contextlib.suppress(StreamsError):
            await super().put_strong(key, value)


@dataclass(frozen=True)
class Dropped:
    """The receipt of a write that never was."""

    version: int | None = None


Load = TypeVar("Load", bound=contextlib.AbstractAsyncContextManager[Any])


@contextlib.asynccontextmanager
async def recorded(path: Any, load: Callable[[HistoryRecorder], Load]) -> AsyncIterator[Load]:
    """A load whose history goes to `path`, complete when the context ends."""
    with HistoryRecorder(path) as recorder:
        async with load(recorder) as running:
            yield running
