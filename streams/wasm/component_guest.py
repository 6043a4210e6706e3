"""A component (a UDF in Python, built by componentize-py) behind the calls of the ABI: one export, `call(name, input)`.

Nothing is linked: a component that imports anything does not start, so it has no clock, no randomness and no I/O.
Bytes travel as strings of code points 0 to 255 (wasm_udfs/sdk/python/udf.wit says why).
"""

from __future__ import annotations

import wasmtime
from wasmtime.component import Func, Linker

from streams.wasm.batch import Buffer
from streams.wasm.counted import CountedCalls
from streams.wasm.engine import CompiledModule, EngineHost, Limits, TrapKind, UdfTrap, first_line
from streams.wasm.meter import UdfMeter

EXPORT = "call"
_INSTANCES_MAX = 64
"""Core instances of one component: the interpreter's modules and the stubs of what it would import."""
_OBJECT_FACTOR = 12
"""Interpreted objects take about so many times the bytes that they were made of."""


class ComponentGuest:
    """An instance of a component (an AnyGuest). Not thread-safe. After a UdfTrap only `close` may be called."""

    def __init__(
        self, compiled: CompiledModule, limits: Limits, host: EngineHost, meter: UdfMeter | None = None
    ) -> None:
        self._limits = limits
        self._meter, self.last_call = meter or UdfMeter(), "instantiation"
        engine = host.engine(compiled.metered, compiled.stack_bytes)
        self._store = wasmtime.Store(engine)
        self._store.set_limits(
            memory_size=limits.memory_bytes,
            table_elements=100_000,
            instances=_INSTANCES_MAX,
            tables=_INSTANCES_MAX,
            memories=_INSTANCES_MAX,
        )
        self._calls = CountedCalls(compiled, limits, host, self._meter, self._store)
        self._inputs: dict[int, str] = {}
        self._next = 0
        self._given = 0
        self._answer = b""
        self._status = 0
        self._meter.started()
        with self._calls.one():
            try:
                instance = Linker(engine).instantiate(self._store, compiled.module)
            except (wasmtime.Trap, wasmtime.WasmtimeError) as error:
                raise self._trap(error, "the component cannot be instantiated: ") from None
        function = instance.get_func(self._store, EXPORT)
        if function is None:
            raise UdfTrap(f"the component exports no {EXPORT}", TrapKind.MALFORMED)
        self._function: Func = function

    def _trap(self, error: Exception, before: str = "") -> UdfTrap:
        text = str(error)
        if "interrupt" in text:
            return UdfTrap("ran longer than its deadline", TrapKind.DEADLINE)
        if "all fuel consumed" in text:
            return UdfTrap(f"used more than {self._limits.fuel} units of fuel", TrapKind.FUEL)
        reason = next((line.strip() for line in reversed(text.splitlines()) if "wasm trap" in line), first_line(text))
        return UdfTrap(f"{before}{reason[:200]}", TrapKind.TRAP)

    @property
    def memory_bytes(self) -> int:
        """About what the rows and batches given since the last take hold: a component does not show its memory."""
        return self._given * _OBJECT_FACTOR

    def put(self, *parts: Buffer) -> tuple[int, int]:
        """Keeps an input for the next call."""
        data = b"".join(part if isinstance(part, bytes) else part.tobytes() for part in parts)
        self._next += 1
        self._inputs[self._next] = data.decode("latin-1")
        self._given += len(data)
        return self._next, len(data)

    def call(self, name: str, *params: int) -> int:
        """Calls what the ABI names; the status that it answered (unsigned). UdfTrap when it is stopped."""
        given = self._inputs.pop(params[0], "") if params else ""
        self.last_call = name
        with self._calls.one():
            try:
                text = self._function(self._store, name, given)
                self._function.post_return(self._store)
            except (wasmtime.Trap, wasmtime.WasmtimeError) as error:
                raise self._trap(error) from None
            except (TypeError, UnicodeError) as error:
                raise UdfTrap(f"malformed output: {first_line(str(error))}", TrapKind.MALFORMED) from None
        try:
            answer = text.encode("latin-1")
        except (AttributeError, UnicodeEncodeError):
            raise UdfTrap("malformed output: no bytes", TrapKind.MALFORMED) from None
        if len(answer) > self._limits.output_bytes:
            raise UdfTrap(
                f"output of {len(answer)} bytes is over the limit of {self._limits.output_bytes}", TrapKind.OUTPUT
            )
        self._status, self._answer = int.from_bytes(answer[:4], "little", signed=True), answer[4:]
        self._meter.holds(self.memory_bytes)
        if name == "streams_take":
            self._given = 0
        return self._status & 0xFFFFFFFF

    def describe(self, desc: int) -> tuple[bytes, int]:
        """The answer of the last call and its status; UdfTrap with the UDF's exception when it raised one."""
        if self._status < 0:
            raise UdfTrap(first_line(self._answer.decode("utf-8", "replace")) or "it failed", TrapKind.TRAP)
        return self._answer, self._status

    def exports(self, name: str) -> bool:
        """Whether it has an optional export: folds in Python have none."""
        return False

    def close(self) -> None:
        """Frees the instance and its memory."""
        self._inputs = {}
        self._store.close()
