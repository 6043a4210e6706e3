"""Functions at the edge: compiled when they are deployed, run for each request, their puts durable before it answers.

A request runs on the event loop, for at most two epochs (2 to 4 ms): handing it to a thread costs more than most
functions take, and lets them wait for the interpreter's lock. Nothing of it has left the instance until it ends, so one
that is not done by then runs again in a thread, up to its own deadline; where that happens often, the function's next
requests go there at once for a while.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from streams.definitions.deployment import Deployment
from streams.edge.edge_table import EdgeTable, Ranked
from streams.gateway.json_text import dump
from streams.model.clock import wall_ms
from streams.model.errors import (
    BadInput,
    Conflict,
    NotFound,
    StreamsError,
    Timeout,
    TooLarge,
    TooManyRequests,
    UdfFailed,
    Unavailable,
)
from streams.model.keys import keyspace_of, validate_key
from streams.model.keyspace import Keyspace
from streams.model.merge import Merged
from streams.model.ttl import parse_ttl_ms
from streams.serde import parse_json
from streams.wasm.engine import TrapKind, UdfTrap
from streams.wasm.function_engine import FunctionModules
from streams.wasm.function_host import FunctionHost, FunctionResult, FunctionServices, NotNow
from streams.wasm.function_manifest import FunctionCaps, FunctionPart, check_function_caps

if TYPE_CHECKING:
    from streams.gateway.context import Gateway

log = logging.getLogger(__name__)
T = TypeVar("T")

INLINE_S = 0.002
"""How long a request may take on the event loop; an epoch more at most."""
INLINE_TRIES = 2
THREADED_S = 5.0
"""How long a function's requests go to threads, once one in ten or more take longer than that."""
OVERRUN, ENOUGH = 10, 30
"""What a request that took too long adds to the function's score, each that did not taking one away; and when it is
enough. A single one says little: the machine may have been busy."""
THREADS = 4
THREADS_OF_ONE = 2
"""Threads that one function may keep busy: the others are there for other functions."""
LOAD_WAIT_S = 3.0
"""How long a request waits for a function that is being compiled."""
LOG_LINES_PER_S = 100
Report = Callable[[Deployment, str, str], Awaitable[None]]


async def _no_report(_of: Deployment, _state: str, _reason: str) -> None:
    return


@dataclass(frozen=True, slots=True)
class ReadyPut:
    """A put that was checked: what goes on the log once the function has ended."""

    keyspace: Keyspace
    key: bytes
    value: bytes
    ttl_ms: int | None


@dataclass(slots=True)
class Function:
    """A function that is loaded. `busy`: requests under way; `counts`: how many ended in which way."""

    deployment: Deployment
    host: FunctionHost
    busy: int = 0
    threaded_until_s: float = 0.0
    score: int = 0
    threads: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(THREADS_OF_ONE))
    counts: dict[str, int] = field(default_factory=dict)
    _lines: int = 0
    _lines_from_s: float = 0.0

    @property
    def part(self) -> FunctionPart:
        """What it may do."""
        return self.host.part

    def overran(self) -> None:
        """A request was not done in time on the event loop."""
        self.score += OVERRUN
        if self.score >= ENOUGH:
            self.threaded_until_s, self.score = time.monotonic() + THREADED_S, 0

    def count(self, how: str) -> None:
        """One more that ended so."""
        self.counts[how] = self.counts.get(how, 0) + 1

    def say(self, lines: Sequence[str]) -> None:
        """Its log lines, into the gateway's log, as many as a second may have."""
        now_s = time.monotonic()
        if now_s - self._lines_from_s >= 1.0:
            self._lines_from_s, self._lines = now_s, 0
        for line in lines:
            self._lines += 1
            if self._lines <= LOG_LINES_PER_S:
                log.info("function %s: %s", self.deployment.name, line)
            elif self._lines == LOG_LINES_PER_S + 1:
                log.warning("function %s says more than %s lines a second", self.deployment.name, LOG_LINES_PER_S)


class EdgeServices:
    """The host functions of a request, on the event loop. What would have to wait raises NotNow."""

    def __init__(self, gateway: Gateway, part: FunctionPart) -> None:
        self._gateway, self._part = gateway, part

    def table(self, name: str) -> EdgeTable:
        """A table as this gateway serves it; NotFound."""
        return self._gateway.tables.table(name)

    def read(self, table: str, key: bytes) -> bytes | None:
        """A row's merged value."""
        merged = self.table(table).get(key)
        return None if merged is None else self._value(merged)

    def scan(self, table: str, prefix: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        """Rows in key order."""
        return [(key, self._value(merged)) for key, merged in self.table(table).scan(prefix, limit).rows]

    def top(self, table: str, n: int, by: str | None) -> list[tuple[bytes, bytes]]:
        """The highest rows, if the order is there."""
        found = self.table(table).top_now(n, by)
        if found is None:
            raise NotNow
        return self.ranked(found, by)

    async def wait_top(self, table: str, n: int, by: str | None) -> list[tuple[bytes, bytes]]:
        """The highest rows, once the order is there."""
        return self.ranked(await self.table(table).top(n, by), by)

    def ranked(self, found: Sequence[Ranked], by: str | None) -> list[tuple[bytes, bytes]]:
        """Keys and values; without `by` the value is the number itself."""
        if by is None:
            return [(each.key, dump(each.number)) for each in found]
        return [(each.key, self._value(each.merged)) for each in found if each.merged is not None]

    def _value(self, merged: Merged) -> bytes:
        return dump(self._gateway.value_of(merged))

    def check_put(self, key: bytes, value: bytes, ttl_ms: int | None) -> ReadyPut:
        """A put that will be accepted; BadInput."""
        name = keyspace_of(validate_key(key))
        if name not in self._part.puts:
            raise BadInput(f"keyspace {name} is not in puts of udf.toml", field="puts", fix="name it there")
        keyspace = self._gateway.definitions.keyspace(name)
        if ttl_ms is not None:
            ttl_ms = parse_ttl_ms(ttl_ms / 1000)
        return ReadyPut(
            keyspace, key, self._gateway.definitions.to_avro(keyspace, parse_json(value, field="value")), ttl_ms
        )

    def now_ms(self) -> int:
        """Epoch milliseconds."""
        return wall_ms()

    def random(self, size: int) -> bytes:
        """Of the system."""
        return os.urandom(size)


class ThreadServices:
    """The same from a thread: whatever looks at tables or definitions is done by the event loop, and waited for."""

    def __init__(self, inner: EdgeServices, loop: asyncio.AbstractEventLoop, wait_s: float) -> None:
        self._inner, self._loop, self._until_s = inner, loop, time.monotonic() + wait_s

    def _on_loop(self, work: Coroutine[Any, Any, T]) -> T:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(max(0.01, self._until_s - time.monotonic()))
        except FutureTimeout:
            future.cancel()
            raise UdfTrap("it waited for a table longer than its deadline", TrapKind.DEADLINE) from None

    def _call(self, work: Callable[..., T], *args: Any) -> T:
        async def done() -> T:
            return work(*args)

        return self._on_loop(done())

    def read(self, table: str, key: bytes) -> bytes | None:
        """See EdgeServices."""
        return self._call(self._inner.read, table, key)

    def scan(self, table: str, prefix: bytes, limit: int) -> Sequence[tuple[bytes, bytes]]:
        """See EdgeServices."""
        return self._call(self._inner.scan, table, prefix, limit)

    def top(self, table: str, n: int, by: str | None) -> Sequence[tuple[bytes, bytes]]:
        """See EdgeServices."""
        return self._on_loop(self._inner.wait_top(table, n, by))

    def check_put(self, key: bytes, value: bytes, ttl_ms: int | None) -> object:
        """See EdgeServices."""
        return self._call(self._inner.check_put, key, value, ttl_ms)

    def now_ms(self) -> int:
        """Epoch milliseconds."""
        return wall_ms()

    def random(self, size: int) -> bytes:
        """Of the system."""
        return os.urandom(size)


class FunctionService:
    """The functions of one gateway: loaded as they are deployed, run request by request."""

    def __init__(
        self,
        gateway: Gateway,
        modules: FunctionModules | None = None,
        report: Report = _no_report,
        caps: FunctionCaps | None = None,
    ) -> None:
        """`caps`: what this gateway's operator lets a function use at most."""
        self._gateway, self._report, self._caps = gateway, report, caps or FunctionCaps()
        self._modules = modules or FunctionModules()
        self._loaded: dict[str, Function] = {}
        self._wanted: dict[str, Deployment] = {}
        self._refused: dict[str, str] = {}
        self._changed = asyncio.Event()
        self._loading: set[asyncio.Task[None]] = set()
        self._threads = ThreadPoolExecutor(THREADS, "function")

    @property
    def loaded(self) -> Mapping[str, Function]:
        """By name."""
        return self._loaded

    def follow(self, live: Mapping[str, Deployment]) -> None:
        """Load what is new among these, let go of what is gone. The last version goes on until the next is ready."""
        wanted = {name: each for name, each in live.items() if each.manifest.function is not None}
        for name in self._wanted.keys() - wanted.keys():
            self._loaded.pop(name, None)
            self._refused.pop(name, None)
        for name, each in wanted.items():
            before = self._wanted.get(name)
            if before is None or (before.sha256, before.manifest_text) != (each.sha256, each.manifest_text):
                task = asyncio.ensure_future(self._load(each))
                self._loading.add(task)
                task.add_done_callback(self._loading.discard)
        self._wanted = wanted

    async def _load(self, wanted: Deployment) -> None:
        function = wanted.manifest.function
        assert function is not None

        def work() -> FunctionHost:
            # The gateway that took the deploy may allow more than this one.
            check_function_caps(function, wanted.manifest.limits, self._caps)
            host = FunctionHost(wanted.module, self._modules, function, wanted.manifest.limits)
            host.check()
            return host

        reason = ""
        try:
            host = await asyncio.to_thread(work)
        except StreamsError as error:
            reason = str(error)
        except Exception as error:  # a defect must not leave the region silent about it
            log.exception("function %s cannot be loaded", wanted.name)
            reason = repr(error)
        now = self._wanted.get(wanted.name)
        if now is None or (now.sha256, now.manifest_text) != (wanted.sha256, wanted.manifest_text):
            return  # removed, or replaced, while it was being compiled
        if reason:
            self._refused[wanted.name] = reason
        else:
            self._refused.pop(wanted.name, None)
            self._loaded[wanted.name] = Function(wanted, host)
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
        await self._report(wanted, "refused" if reason else "active", reason)

    async def find(self, name: str) -> Function:
        """A function that is loaded, waiting a little for one that is being compiled. NotFound; Conflict for other
        kinds; Unavailable."""
        deadline = time.monotonic() + LOAD_WAIT_S
        while True:
            found = self._loaded.get(name)
            if found is not None:
                return found
            if name not in self._wanted:
                udfs = self._gateway.udfs
                other = None if udfs is None else udfs.udfs.live.get(name)
                if other is not None and other.manifest.is_machine:
                    raise Conflict(f"UDF {name} is a machine", field="name", fix=f"see /v1/machines/{name}")
                if other is not None and other.manifest.function is None:
                    raise Conflict(
                        f"UDF {name} is a {other.manifest.kind}, not a function",
                        field="name",
                        fix=f"read its table: /v1/tables/{other.manifest.table}",
                    )
                raise NotFound(f"no function {name[:80]!r} is deployed", field="name", fix="see `streams udf list`")
            if name in self._refused:
                raise Unavailable(
                    f"this region does not run {name}: {self._refused[name]}", fix="deploy another version"
                )
            left_s = deadline - time.monotonic()
            try:
                await asyncio.wait_for(self._changed.wait(), max(0.0, left_s))
            except TimeoutError:
                raise Unavailable(f"function {name} is being compiled", fix="try again") from None

    async def run(self, function: Function, request: bytes) -> FunctionResult:
        """One request. UdfFailed, Timeout (its deadline), TooLarge, TooManyRequests."""
        limits = function.host.limits
        if len(request) > limits.memory_bytes // 2:
            raise TooLarge(
                f"the request has {len(request)} bytes, over half of the function's memory",
                field="body",
                fix="send less, or raise limits.memory_bytes in udf.toml",
            )
        services = EdgeServices(self._gateway, function.part)
        try:
            found = self._inline(function, request, services)
            how = "thread" if found is None else "inline"
            if found is None:
                found = await self._in_thread(function, request, services)
        except UdfTrap as trap:
            function.count(trap.kind.value)
            raise failure(function.deployment, trap) from None
        function.count(how)
        return found

    def _inline(self, function: Function, request: bytes, services: EdgeServices) -> FunctionResult | None:
        """The request on the event loop; None when it has to go to a thread."""
        if time.monotonic() < function.threaded_until_s:
            return None
        for _ in range(INLINE_TRIES):
            began_s = time.thread_time()
            try:
                found = function.host.run(request, services, min(INLINE_S, function.host.limits.deadline_s))
            except NotNow:
                return None
            except UdfTrap as trap:
                if trap.kind is not TrapKind.DEADLINE:
                    raise
                if time.thread_time() - began_s > INLINE_S / 2:
                    function.overran()
                    return None
                continue  # the machine ran something else meanwhile: that is not the function's time
            function.score -= function.score > 0
            return found
        return None

    async def _in_thread(self, function: Function, request: bytes, services: EdgeServices) -> FunctionResult:
        deadline_s = function.host.limits.deadline_s
        try:
            async with asyncio.timeout(deadline_s):
                await function.threads.acquire()
        except TimeoutError:
            raise _full(function, f"waited {deadline_s:g} s for a thread") from None
        loop = asyncio.get_running_loop()
        inner: FunctionServices = ThreadServices(services, loop, deadline_s)
        running = loop.run_in_executor(self._threads, function.host.run, request, inner)
        running.add_done_callback(lambda _: function.threads.release())  # also when the client has gone
        return await asyncio.shield(running)

    def admit(self, function: Function) -> None:
        """Count a request in; TooManyRequests when as many as the manifest allows are under way."""
        if function.busy >= function.part.concurrency:
            function.count("full")
            raise _full(function, f"{function.busy} requests are under way")
        function.busy += 1

    async def close(self) -> None:
        """Stop loading; requests in threads end by their deadlines."""
        for task in list(self._loading):
            task.cancel()
        await asyncio.gather(*self._loading, return_exceptions=True)
        self._threads.shutdown(wait=False, cancel_futures=True)


def _full(function: Function, why: str) -> TooManyRequests:
    return TooManyRequests(
        f"function {function.deployment.name} is busy: {why}", field="concurrency", fix="try again in a moment"
    )


def failure(of: Deployment, trap: UdfTrap) -> StreamsError:
    """What the client of a function that failed is told: whose fault it is, and of what kind."""
    error: StreamsError
    what = f"function {of.name} {of.manifest.version} failed: {trap.detail}"
    if trap.kind is TrapKind.DEADLINE:
        error = Timeout(what, fix="ask it for less, or raise limits.deadline_s in udf.toml")
        error.title = "UDF deadline"
    else:
        error = UdfFailed(what, fix="it is the function's own fault: see its author, and the gateway's log")
    error.extra = {"udf": of.name, "version": of.manifest.version, "sha256": of.sha256, "trap": trap.kind.value}
    return error
