"""What one instance of a module may use. Imports no wasmtime, so that the command line starts fast."""

from __future__ import annotations

from dataclasses import dataclass, fields

from streams.model.errors import BadInput

STACK_BYTES = 512 * 1024
"""Native stack of a module that asks for no other."""
STACK_BYTES_MIN, STACK_BYTES_MAX = 64 << 10, 2 << 20
"""It is the engine's, so there is an engine for each power of two; a thread has 8 MiB, of which Python needs some."""
ROW_BYTES_MAX = 17 << 20
"""A longer row would not fit a record of its changelog, and no commit could succeed."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one instance may use. A call that needs more is stopped with UdfTrap.

    `deadline_s` counts ticks of this process, so a stopped process uses none of it. `fuel` is the instructions of one
    call when a deadline is judged again; such a call may take `fuel_deadline_s`. `stack_bytes` is rounded down to a
    power of two. `row_bytes`: the longest row that one event may leave. None is no limit: `events_per_s`, how fast a
    worker folds at most; `table_rows`, `table_bytes` (keys included): what a worker's part of the table may hold.
    """

    memory_bytes: int = 256 << 20
    deadline_s: float = 2.0
    fuel: int = 200_000_000
    fuel_deadline_s: float = 30.0
    output_bytes: int = 64 << 20
    stack_bytes: int = STACK_BYTES
    row_bytes: int = ROW_BYTES_MAX
    events_per_s: float | None = None
    table_rows: int | None = None
    table_bytes: int | None = None

    def __post_init__(self) -> None:
        for name, value in self.numbers().items():
            if value <= 0:
                raise BadInput("must be positive", field=name)
        if self.memory_bytes > 4 << 30:
            raise BadInput("a module has at most 4 GiB", field="memory_bytes")
        if not STACK_BYTES_MIN <= self.stack_bytes <= STACK_BYTES_MAX:
            raise BadInput(f"is not from {STACK_BYTES_MIN} to {STACK_BYTES_MAX}", field="stack_bytes")
        if self.row_bytes > ROW_BYTES_MAX:
            raise BadInput(f"a row has at most {ROW_BYTES_MAX} bytes", field="row_bytes")

    def numbers(self) -> dict[str, float]:
        """Those that are set, by name."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: value for name, value in values.items() if value is not None}


LIMIT_NAMES = tuple(each.name for each in fields(Limits))
"""What `[limits]` of a manifest may name."""


def stack_class(stack_bytes: int) -> int:
    """The greatest power of two that is not over `stack_bytes`."""
    return 1 << (stack_bytes.bit_length() - 1)
