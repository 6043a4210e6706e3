"""The fuzz of `streams udf test`: random events of the input keyspaces' schemas, on the real host, without Kafka.

Checked: no event stops the module; any cut of the events into batches, with commits between and instances lost after
them, gives equal rows, puts and refusals; and every answer is well formed, puts as their keyspace's own decoder
judges them.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from streams.definitions.chains import put_rules
from streams.model.clock import NEVER_MS
from streams.model.errors import BadInput
from streams.model.keyspace import BUILTIN, Keyspace
from streams.model.row import patch_seq
from streams.processing.catalog import keyspace_rules
from streams.processing.map_ports import Puts
from streams.processing.udf_ports import DecoderPool
from streams.serde import AvroSchema, delete_value, encode, load_builtin, purge_value
from streams.serde.json_text import dump_json
from streams.wasm.batch import OP_DELETE, OP_PURGE, OP_PUT, Event, build
from streams.wasm.engine import ModuleCache
from streams.wasm.fold_host import FoldHost, FoldOptions, Reject, RejectKind
from streams.wasm.manifest import Manifest
from streams.wasm.map_host import MapHost

_START_MS = 1_700_000_000_000
_TEXTS = ("", "a", "to be or not", "ünïcödé ☃", '"quoted"', "{}", "x" * 300)
_NUMBERS = (0, 1, -1, 10, 63, 64, 2**31, -(2**31), 2**53, -(2**53))
_DEPTH = 4


@dataclass(slots=True)
class Keyspaces:
    """The keyspaces that a test knows: the built-in ones, and those whose schema was given."""

    schemas: Mapping[str, AvroSchema] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._all = {each.name: each for each in BUILTIN}
        self._all.update({name: Keyspace(name, schema=schema.name) for name, schema in self.schemas.items()})

    @property
    def all(self) -> dict[str, Keyspace]:
        """By name."""
        return self._all

    def puts(self, name: str) -> dict[int, AvroSchema]:
        """The schema of a keyspace's puts, by id. BadInput for one that is not known here."""
        if name not in self._all:
            raise BadInput(
                f"the schema of keyspace {name} is not known without a system",
                field="--schema",
                fix=f"give {name}=FILE",
            )
        schema = self.schemas.get(name) or load_builtin()[self._all[name].schema]
        return {schema.id: schema}

    _all: dict[str, Keyspace] = field(init=False, default_factory=dict)


def random_value(kind: Any, seeded: random.Random, names: dict[str, Any] | None = None, depth: int = 0) -> Any:
    """A value of an Avro schema (as parsed JSON), as fastavro takes it; bounded in depth."""
    names = {} if names is None else names
    if isinstance(kind, list):
        flat = [each for each in kind if not isinstance(each, dict)] if depth > _DEPTH else []
        return random_value(seeded.choice(flat or kind), seeded, names, depth + 1)
    if isinstance(kind, str):
        return random_value(names[kind], seeded, names, depth + 1) if kind in names else _plain(kind, seeded)
    made = kind["type"]
    if made in ("record", "enum", "fixed"):
        names[kind["name"]] = names[f"{kind.get('namespace', '')}.{kind['name']}"] = kind
    if made == "record":
        return {each["name"]: random_value(each["type"], seeded, names, depth + 1) for each in kind["fields"]}
    if made == "enum":
        return seeded.choice(kind["symbols"])
    if made == "fixed":
        return seeded.randbytes(kind["size"])
    count = 0 if depth > _DEPTH else seeded.randint(0, 3)
    if made == "array":
        return [random_value(kind["items"], seeded, names, depth + 1) for _ in range(count)]
    if made == "map":
        return {f"k{i}": random_value(kind["values"], seeded, names, depth + 1) for i in range(count)}
    return random_value(made, seeded, names, depth + 1)


def _plain(kind: str, seeded: random.Random) -> Any:
    if kind == "null":
        return None
    if kind == "boolean":
        return seeded.random() < 0.5
    if kind == "int":
        return seeded.choice((0, 1, -1, 2**31 - 1, -(2**31), seeded.randint(-1000, 1000)))
    if kind == "long":
        return seeded.choice((*_NUMBERS, seeded.randint(-1000, 1000)))
    if kind == "float":
        return seeded.randint(-1000, 1000) / 4
    if kind == "double":
        return seeded.choice((0.0, -0.0, 1e300, -1e-300, seeded.uniform(-1e3, 1e3)))
    return seeded.choice(_TEXTS) if kind == "string" else seeded.randbytes(seeded.randint(0, 20))


def _json(seeded: random.Random, depth: int = 0) -> Any:
    pick = seeded.randint(0, 6 if depth < _DEPTH else 4)
    if pick == 5:
        return [_json(seeded, depth + 1) for _ in range(seeded.randint(0, 3))]
    if pick == 6:
        return {seeded.choice("abc"): _json(seeded, depth + 1) for _ in range(seeded.randint(0, 3))}
    return (None, True, seeded.choice(_NUMBERS), seeded.uniform(-1e3, 1e3), seeded.choice(_TEXTS))[pick]


def random_events(manifest: Manifest, keyspaces: Keyspaces, count: int, seeded: random.Random) -> list[Event]:
    """`count` events of the manifest's inputs, in the order of a log: puts, deletes, and for folds purges."""
    now_ms, found = _START_MS, []
    schemas = {name: list(keyspaces.puts(name).values()) for name in manifest.inputs}
    for offset in range(count):
        now_ms += seeded.choice((0, 0, 1, 50, 2_000))
        name = seeded.choice(manifest.inputs)
        key = f"{name}:{seeded.choice(('a', 'b', 'ü', 'c:d', str(seeded.randint(0, 20))))}"
        pick = seeded.random()
        op = OP_PUT if pick < 0.88 else OP_DELETE if pick < 0.96 or manifest.is_map else OP_PURGE
        if op == OP_PUT:
            value = _wire(seeded.choice(schemas[name]), seeded)
        elif op == OP_DELETE:
            value = delete_value()
        else:
            mark = now_ms - seeded.randint(0, 4_000)
            value = purge_value(mark << 16, mark, mark << 16, remove=seeded.random() < 0.5)
        hlc = (now_ms + seeded.choice((-5_000, 0, 0, 900)) << 16) + seeded.randint(0, 3)
        expires_ms = seeded.choice((NEVER_MS, NEVER_MS, now_ms + 1_000, now_ms + 60_000))
        generation = seeded.choice((0, 0, 0, now_ms - 1_000 << 16))
        found.append(Event(now_ms, hlc, expires_ms, generation, op, key.encode(), value, offset))
    return found


def _wire(schema: AvroSchema, seeded: random.Random) -> bytes:
    if schema.name == "streams.Json":
        return encode(schema, {"json": dump_json(_json(seeded)).decode()})
    return encode(schema, random_value(schema.document, seeded))


Outcome = tuple[dict[bytes, bytes | None], list[object], list[Reject]]
"""Rows, what was put out, and refusals by offset."""


@dataclass(slots=True)
class Bench:
    """A UDF's module on the real host, run anew for each way to cut the events."""

    wasm: bytes
    manifest: Manifest
    keyspaces: Keyspaces
    cache: ModuleCache

    def run(self, pieces: Sequence[Sequence[Event]], commits: frozenset[int] = frozenset()) -> Outcome:
        """What the pieces come to, with a commit after each of `commits`, whereupon the instance is lost."""
        return self._map(pieces, commits) if self.manifest.is_map else self._fold(pieces, commits)

    def _fold(self, pieces: Sequence[Sequence[Event]], commits: frozenset[int]) -> Outcome:
        manifest = self.manifest
        options = FoldOptions(manifest.limits, merge=int(manifest.merges[0]), outputs=len(manifest.outputs))
        host, stored = FoldHost(self.wasm, self.cache, options), dict[bytes, bytes | None]()
        rejects: list[Reject] = []
        outputs: list[object] = []

        def commit(seq: int) -> None:
            for key, row in host.take():
                stored[key] = row if row is None else patch_seq(row, seq)
            outputs.extend(host.take_outputs())
            rejects.extend(late.reject for late in host.late_rejects)
            host.committed()

        for at, piece in enumerate(pieces):
            rejects += host.fold(build(piece).raw, lambda keys: [stored.get(key) for key in keys])
            if at in commits:
                commit(at + 1)
                host.discard()
        commit(len(pieces) + 1)
        host.close()
        rows: dict[bytes, bytes | None] = {key: patch_seq(row, 0) for key, row in stored.items() if row is not None}
        return rows, outputs, _by_offset(rejects)

    def _map(self, pieces: Sequence[Sequence[Event]], commits: frozenset[int]) -> Outcome:
        manifest, known = self.manifest, self.keyspaces
        rules = put_rules(manifest, known.all, known.puts)
        decoders = DecoderPool(self.cache)
        puts = Puts(rules, lambda each: keyspace_rules(each, known.puts(each.name)).config, decoders, "test")
        host = MapHost(self.wasm, self.cache, manifest.kind, len(manifest.puts), manifest.limits)
        rejects: list[Reject] = []
        outputs: list[object] = []
        for at, piece in enumerate(pieces):
            batch = build(piece)
            emitted, refused = host.map(batch.raw)
            records, bad = puts.records(batch, emitted, "events/0")
            outputs += records
            for each in (*refused, *bad):
                kind = RejectKind.TRAP if each in bad else each.kind
                rejects.append(Reject(each.index, each.reason, kind, piece[each.index].offset))
            if at in commits:
                host.close()
        host.close()
        decoders.close()
        return {}, outputs, _by_offset(rejects)

    def events_per_s(self, events: Sequence[Event], least_s: float = 0.3) -> float:
        """How many events a second the module takes, host included, in batches of all of them."""
        batch, done, began_s = [events], 0, time.perf_counter()
        self.run(batch)  # the first one starts the instance
        began_s = time.perf_counter()
        while (took_s := time.perf_counter() - began_s) < least_s or not done:
            self.run(batch)
            done += len(events)
        return done / took_s


def _by_offset(rejects: Sequence[Reject]) -> list[Reject]:
    return sorted((Reject(0, each.reason, each.kind, each.offset) for each in rejects), key=lambda each: each.offset)


def cuts(count: int, seeded: random.Random) -> list[int]:
    """Random places to cut `count` events at."""
    return sorted(seeded.sample(range(1, count), min(count - 1, seeded.randint(1, 12)))) if count > 1 else []


def fuzz(bench: Bench, count: int, rounds: int, seed: int) -> list[str]:
    """What is wrong, one line each; empty when nothing was found."""
    seeded = random.Random(seed)
    found = []
    for each in range(rounds):
        events = random_events(bench.manifest, bench.keyspaces, count, seeded)
        whole = bench.run([events])
        for reject in whole[2]:
            if reject.kind is RejectKind.TRAP:
                found.append(f"round {each}: event {reject.offset} ({_shown(events[reject.offset])}): {reject.reason}")
        places = [0, *cuts(count, seeded), count]
        pieces = [events[a:b] for a, b in pairwise(places)]
        commits = frozenset(at for at in range(len(pieces)) if seeded.random() < 0.5)
        for what, cut, committed in (
            ("one by one", [[event] for event in events], frozenset()),
            ("cut", pieces, commits),
        ):
            if (difference := _difference(whole, bench.run(cut, committed))) is not None:
                found.append(f"round {each}: {what} at {places}: {difference}")
    return found


def _shown(event: Event) -> str:
    return f"{event.key.decode()} op {event.op} value {event.value.hex()[:80]}"


def _difference(whole: Outcome, other: Outcome) -> str | None:
    pairs: list[tuple[str, Sized, Sized]] = [
        ("rows", whole[0], other[0]),
        ("puts", whole[1], other[1]),
        ("refusals", whole[2], other[2]),
    ]
    for name, one, two in pairs:
        if one != two:
            if isinstance(one, dict) and isinstance(two, dict):
                keys = sorted(key for key in one | two if one.get(key) != two.get(key))
                return f"{name} of {[key.decode() for key in keys[:3]]} differ from those of the whole batch"
            return f"{len(two)} {name} differ from the {len(one)} of the whole batch"
    return None
