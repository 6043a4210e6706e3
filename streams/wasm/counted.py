"""`CountedCalls`: calls into one store under limits, each counted on a meter."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import wasmtime

from streams.wasm import native
from streams.wasm.engine import TICK_S, CompiledModule, EngineHost, Limits
from streams.wasm.meter import UdfMeter


class CountedCalls:
    """Arms the limits of a store for each call, lets epochs advance during it, and tells the meter what it used."""

    def __init__(
        self, compiled: CompiledModule, limits: Limits, host: EngineHost, meter: UdfMeter, store: wasmtime.Store
    ) -> None:
        self._host, self._store, self._meter = host, store, meter
        self._context = store._context()
        self._fuel = limits.fuel if compiled.metered else None
        deadline_s = limits.fuel_deadline_s if compiled.metered else limits.deadline_s
        self._ticks = max(2, round(deadline_s / TICK_S) + 1)

    @contextmanager
    def one(self) -> Iterator[None]:
        """Around one call."""
        native.set_epoch_deadline(self._context, self._ticks)
        if self._fuel is not None:
            self._store.set_fuel(self._fuel)
        began_s = time.thread_time()
        try:
            with self._host.ticking():
                yield
        finally:
            used = 0 if self._fuel is None else self._fuel - self._store.get_fuel()
            self._meter.called(time.thread_time() - began_s, used)
