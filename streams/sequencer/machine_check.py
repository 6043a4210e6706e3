"""Vectors and fuzz of a deployed machine on the real host: WASM, RocksDB and records of a log, without Kafka.

vectors.json: {"cases": [{"name", "steps": [STEP], "rows"?: {KEY: VALUE or null}}]}, a STEP is
{"command", "at_ms"?, "expect"?, "contains"?: [TEXT], "trap"?}.
`command`, `expect` and values of rows are texts, or JSON, which is sent and compared as such. `trap`: the kind of trap
that the command must end in. Each case begins with no rows.
"""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from streams.model.errors import BadInput
from streams.sequencer.machine_log import Code, Installed, MachineResult, command_record
from streams.sequencer.machine_state import DeployedState
from streams.wasm.engine import ModuleCache, module_hash
from streams.wasm.machine_host import LogCommand
from streams.wasm.manifest import Manifest

_AT_MS = 1_700_000_000_000
Record = tuple[int, bytes]
"""When it was appended, epoch milliseconds, and its bytes."""


def first_record(manifest: Manifest, module: bytes) -> bytes:
    """What a log begins with: the module."""
    found = Installed(manifest.name, 1, manifest.version, module_hash(module), manifest.layout, manifest.limits, module)
    return found.encode()


@contextmanager
def _state(cache: ModuleCache, manifest: Manifest) -> Iterator[DeployedState]:
    with tempfile.TemporaryDirectory() as place:
        state = DeployedState(Path(place), f"sequenced.{manifest.group}", cache)
        state.begin("check")
        try:
            yield state
        finally:
            state.close()


def _apply(state: DeployedState, records: Sequence[Record], size: int) -> list[MachineResult]:
    found: list[MachineResult] = []
    at = state.next
    for first in range(0, len(records), size):
        piece = [
            LogCommand(at + index, at_ms, value)
            for index, (at_ms, value) in enumerate(records[first : first + size], first)
        ]
        found += state.apply(piece, piece[-1].offset + 1).results
    return found


def run_machine_vectors(directory: Path, manifest: Manifest, module: bytes, cache: ModuleCache) -> list[str]:
    """Runs a machine directory's vectors; what differs, one line each (empty: all good)."""
    try:
        cases = json.loads((directory / "vectors.json").read_text())["cases"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"cannot read vectors.json: {error}", field="directory") from None
    return [f"{case['name']}: {line}" for case in cases for line in _run_case(case, manifest, module, cache)]


def _run_case(case: Mapping[str, Any], manifest: Manifest, module: bytes, cache: ModuleCache) -> list[str]:
    steps = case["steps"]
    records: list[Record] = [(_AT_MS, first_record(manifest, module))]
    for index, step in enumerate(steps):
        at_ms = step.get("at_ms", _AT_MS + index)
        records.append((at_ms, command_record(index.to_bytes(16, "big"), _bytes(step["command"]))))
    with _state(cache, manifest) as state:
        results = _apply(state, records, len(records))[1:]
        lines = [
            f"{step['command']!r}: {line}"
            for step, result in zip(steps, results, strict=True)
            for line in _differences(step, result)
        ]
        for key, wanted in case.get("rows", {}).items():
            got = state.store.get(b"r" + key.encode())
            if got != (None if wanted is None else _bytes(wanted)):
                lines.append(f"row {key} is {got!r}, not {wanted!r}")
    return lines


def _differences(step: Mapping[str, Any], result: MachineResult) -> list[str]:
    text = result.body.decode(errors="replace")
    if result.code is Code.TRAPPED or "trap" in step:
        kind = text.partition(":")[0] if result.code is Code.TRAPPED else None
        return [] if kind == step.get("trap") else [f"ends in {text!r:.300}, not in trap {step.get('trap')}"]
    lines = [f"{text!r:.300} lacks {each!r}" for each in step.get("contains", []) if each not in text]
    if "expect" in step:
        wanted = step["expect"]
        try:
            same = json.loads(text) == wanted if not isinstance(wanted, str) else text == wanted
        except ValueError:
            same = False
        lines += [] if same else [f"answers {text!r:.300}, not {wanted!r:.300}"]
    return lines


def _bytes(value: Any) -> bytes:
    return value.encode() if isinstance(value, str) else json.dumps(value, separators=(",", ":")).encode()


def fuzz_machine(
    directory: Path, manifest: Manifest, module: bytes, cache: ModuleCache, events: int, rounds: int, seed: int
) -> list[str]:
    """Random commands, made of the vectors' and of noise, applied twice, cut differently: what differed, or trapped."""
    chance, found = random.Random(seed), list[str]()
    cases = json.loads((directory / "vectors.json").read_text())["cases"]
    known = [_bytes(step["command"]) for case in cases for step in case["steps"] if "trap" not in step]
    for _ in range(rounds):
        bodies = [_random_command(chance, known) for _ in range(events)]
        records: list[Record] = [(_AT_MS, first_record(manifest, module))]
        records += [
            (_AT_MS + 7 * index, command_record(chance.randbytes(16), body)) for index, body in enumerate(bodies)
        ]
        chains = []
        for size in (len(records), chance.randint(1, 17)):
            with _state(cache, manifest) as state:
                results = _apply(state, records, size)
                chains.append(state.machine_state)
        if chains[0] != chains[1]:
            found.append(f"equal commands gave unequal states: {chains[0]} and {chains[1]}")
        for body, result in zip(bodies, results[1:], strict=True):
            if result.code is Code.TRAPPED:
                found.append(f"command {body!r:.200} trapped: {result.body.decode(errors='replace')}")
    return found


def _random_command(chance: random.Random, known: Sequence[bytes]) -> bytes:
    pick = chance.random()
    if pick < 0.15 or not known:
        return chance.randbytes(chance.randint(0, 60))
    words = chance.choice(known).split(b" ")
    if pick > 0.5:  # their words, mixed
        words = [chance.choice(chance.choice(known).split(b" ")) for _ in words]
    if pick > 0.8:
        words.insert(chance.randint(0, len(words)), chance.randbytes(chance.randint(0, 6)))
    return b" ".join(words)
