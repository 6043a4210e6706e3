"""`streams bench [NAME] [--json]`."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from streams.bench.counters import EVENTS, ROUNDS, CountersOptions, Say, bench_counters
from streams.bench.hostile import bench_hostile
from streams.bench.ingest import PARTS, IngestOptions, bench_ingest
from streams.bench.languages import bench_languages
from streams.bench.latency import LatencyOptions, bench_put, bench_read, bench_visible
from streams.bench.machine import machine
from streams.bench.memory import MemoryOptions, bench_memory
from streams.bench.mirror import MirrorOptions, bench_mirror
from streams.bench.orders import OrdersBench, bench_orders
from streams.bench.report import Report, Result
from streams.bench.restore import RestoreBench, bench_restore
from streams.bench.strong import StrongOptions, bench_strong
from streams.bench.udf import UdfOptions, bench_udf
from streams.model.errors import BadInput, StreamsError
from streams.model.memory import bound_malloc, calm_collector

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

ALL = "all"


@dataclass(frozen=True, slots=True)
class Request:
    """The command's options, as given: `only` and `parts` may be empty, for all; no `events`: each bench's own."""

    events: int | None = None
    rounds: int = ROUNDS
    only: Sequence[str] = ()
    seconds: float = IngestOptions().seconds
    parts: Sequence[str] = ()
    plot: Path | None = None

    def counters(self) -> CountersOptions:
        """As `counters` takes them; BadInput."""
        events, contenders = EVENTS if self.events is None else self.events, self.only or CountersOptions().contenders
        return CountersOptions(events, rounds=self.rounds, contenders=contenders)

    def ingest(self) -> IngestOptions:
        """As `ingest` takes them; BadInput."""
        events = IngestOptions().events if self.events is None else self.events
        found = IngestOptions(self.seconds, events, self.rounds, plot=self.plot, parts=self.parts or PARTS)
        return replace(found, contenders=self.only) if self.only else found

    def strong(self) -> StrongOptions:
        """As `strong` takes them; BadInput."""
        return StrongOptions(parts=self.parts) if self.parts else StrongOptions()


def _ingest(request: Request, say: Say) -> Sequence[Result]:
    # The producer is this process. Left alone, malloc gives the memory of every slice back and takes it again, a page
    # fault for each 4 KiB: up to a quarter of the producer's CPU time.
    bound_malloc()
    calm_collector()
    return bench_ingest(request.ingest(), say)


Bench = Callable[[Request, Say], Sequence[Result]]
BENCHES: dict[str, Bench] = {
    "counters": lambda request, say: bench_counters(request.counters(), say),
    "ingest": _ingest,
    "put": lambda _, say: bench_put(LatencyOptions(), say),
    "visible": lambda _, say: bench_visible(LatencyOptions(), say),
    "read": lambda _, say: bench_read(LatencyOptions(), say),
    "restore": lambda _, say: bench_restore(RestoreBench(), say),
    "languages": lambda _, say: bench_languages(say),
    "memory": lambda _, say: bench_memory(MemoryOptions(), say),
    "hostile": lambda _, say: bench_hostile(say),
    "strong": lambda request, say: bench_strong(request.strong(), say),
    "orders": lambda _, say: bench_orders(OrdersBench(), say),
    "udf": lambda _, say: bench_udf(UdfOptions(), say),
    "mirror": lambda _, say: bench_mirror(MirrorOptions(), say),
}


def run_benches(name: str, request: Request, say: Say) -> Report:
    """Run one bench, or all, and return what they measured; BadInput for an unknown name."""
    if name != ALL and name not in BENCHES:
        raise BadInput(f"there is no bench {name}", field="NAME", fix=f"choose of {ALL}, {', '.join(BENCHES)}")
    before = machine()
    chosen = BENCHES if name == ALL else {name: BENCHES[name]}
    results = [result for bench in chosen.values() for result in bench(request, say)]
    return Report(name, results, before)


@app.command()
def bench(
    name: Annotated[str, typer.Argument(help=f"{', '.join(BENCHES)}; all of them by default")] = ALL,
    as_json: Annotated[bool, typer.Option("--json", help="JSON and nothing else on standard output")] = False,
    events: Annotated[
        int | None,
        typer.Option(help="counters: events of a round, ingest: peers'; the warm-up not counted", show_default="own"),
    ] = None,
    rounds: Annotated[int, typer.Option(help="rounds, of which the median counts")] = ROUNDS,
    only: Annotated[str, typer.Option(help="contenders, separated by commas")] = "",
    seconds: Annotated[float, typer.Option(help="ingest: of sustained load")] = IngestOptions().seconds,
    parts: Annotated[str, typer.Option(help="ingest and strong: which of their parts, separated by commas")] = "",
    plot: Annotated[Path | None, typer.Option(help="ingest: where the charts of its growth go, as SVG")] = None,
) -> None:
    """Run benchmarks, each beside its peers in one run; they start their own system and stop it."""
    signal.signal(signal.SIGTERM, _end)
    errors = Console(stderr=True)
    try:
        request = Request(events, rounds, _listed(only), seconds, _listed(parts), plot)
        report = run_benches(name, request, lambda text: errors.print(text, style="dim", highlight=False))
    except StreamsError as error:
        errors.print(f"streams bench: {error}", style="red", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None
    if as_json:
        print(json.dumps(report.to_dict(), ensure_ascii=False))
    else:
        report.show(Console())


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part for part in text.split(",") if part)


def _end(number: int, _frame: object) -> NoReturn:
    """Leave by an exception, so that everything that was started is stopped."""
    raise SystemExit(128 + number)


if __name__ == "__main__":
    app()
