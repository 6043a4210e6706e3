"""The part of `streams udf test` behind the vectors: the fuzz, and what the module costs."""

from __future__ import annotations

import json
import random
from pathlib import Path

import typer

from streams.cli.udf_fuzz import Bench, Keyspaces, fuzz, random_events
from streams.model.errors import BadInput
from streams.serde import AvroSchema, parse_schema
from streams.wasm.engine import ModuleCache
from streams.wasm.manifest import Manifest

_SHOWN = 10


def check_udf(
    manifest: Manifest, wasm: bytes, cache: ModuleCache, events: int, rounds: int, seed: int | None, given: list[str]
) -> None:
    """Fuzz a module and print what it costs. Exit 1 with what was found, and the seed that finds it again."""
    if not rounds:
        return
    seed = random.SystemRandom().randrange(2**32) if seed is None else seed
    bench = Bench(wasm, manifest, Keyspaces(schemas_of(given)), cache)
    print(f"fuzz: {rounds} rounds of {events} events, --seed {seed}")
    found = fuzz(bench, events, rounds, seed)
    for line in found[:_SHOWN]:
        print(line)
    if found:
        raise typer.Exit(1)
    rate = bench.events_per_s(random_events(manifest, bench.keyspaces, events, random.Random(seed)))
    print(f"no trap, equal whatever the batches; {rate:,.0f} events/s in batches of {events}, instance start included")


def check_machine_udf(
    directory: Path, manifest: Manifest, cache: ModuleCache, events: int, rounds: int, seed: int | None
) -> None:
    """Run a machine's vectors and fuzz. Exit 1 with what was found, and the seed that finds it again."""
    from streams.sequencer.machine_check import fuzz_machine, run_machine_vectors

    wasm = (directory / f"{manifest.name}.wasm").read_bytes()
    failures = run_machine_vectors(directory, manifest, wasm, cache)
    if not failures:
        count = len(json.loads((directory / "vectors.json").read_text())["cases"])
        print(f"{manifest.name} {manifest.version}: {count} vectors pass")
        if rounds:
            seed = random.SystemRandom().randrange(2**32) if seed is None else seed
            print(f"fuzz: {rounds} rounds of {events} commands, --seed {seed}")
            failures = fuzz_machine(directory, manifest, wasm, cache, events, rounds, seed)
    for line in failures[:_SHOWN]:
        print(line)
    if failures:
        raise typer.Exit(1)
    if rounds:
        print("no trap; the same commands give equal state hashes, however they are cut")
    print("the module may be deployed")


def schemas_of(given: list[str]) -> dict[str, AvroSchema]:
    """The schemas of `--schema KEYSPACE=FILE`. BadInput."""
    found = {}
    for each in given:
        name, _, file = each.partition("=")
        try:
            found[name] = parse_schema(Path(file).read_text())
        except OSError as error:
            raise BadInput(
                f"cannot read {file[:80]!r}: {error.strerror}", field="--schema", fix="KEYSPACE=FILE"
            ) from None
    return found
