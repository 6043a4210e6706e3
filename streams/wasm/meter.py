"""What a UDF uses: calls, processor time, fuel, memory, traps. One meter a UDF and process, for all instances."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class MeterReading:
    """A meter's numbers at one moment, since the process began. `fuel`: instructions, only of calls that count them;
    `memory_high_bytes`: the most linear memory that one instance held; `traps`: by kind (engine.TrapKind)."""

    calls: int = 0
    cpu_s: float = 0.0
    fuel: int = 0
    memory_high_bytes: int = 0
    instances: int = 0
    traps: dict[str, int] = field(default_factory=dict)

    def __add__(self, other: MeterReading) -> MeterReading:
        """Both together; of memory the greater."""
        kinds = self.traps.keys() | other.traps.keys()
        return MeterReading(
            self.calls + other.calls,
            self.cpu_s + other.cpu_s,
            self.fuel + other.fuel,
            max(self.memory_high_bytes, other.memory_high_bytes),
            self.instances + other.instances,
            {kind: self.traps.get(kind, 0) + other.traps.get(kind, 0) for kind in sorted(kinds)},
        )


class UdfMeter:
    """Adds up what the instances of a UDF use. From any thread.

    Processor time is that of the calling thread inside the module, so neither waiting nor other threads count.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls = self._fuel = self._memory = self._instances = 0
        self._cpu_s = 0.0
        self._traps: dict[str, int] = {}

    def called(self, cpu_s: float, fuel: int = 0) -> None:
        """A call into the module has ended, however it did."""
        with self._lock:
            self._calls += 1
            self._cpu_s += cpu_s
            self._fuel += fuel

    def started(self) -> None:
        """An instance was made."""
        with self._lock:
            self._instances += 1

    def holds(self, memory_bytes: int) -> None:
        """An instance holds so much linear memory now."""
        if memory_bytes > self._memory:
            with self._lock:
                self._memory = max(self._memory, memory_bytes)

    def trapped(self, kind: str) -> None:
        """One event was found to stop the module; attempts on the way to finding it do not count."""
        with self._lock:
            self._traps[kind] = self._traps.get(kind, 0) + 1

    def reading(self) -> MeterReading:
        """The numbers now."""
        with self._lock:
            return MeterReading(
                self._calls, self._cpu_s, self._fuel, self._memory, self._instances, dict(sorted(self._traps.items()))
            )
