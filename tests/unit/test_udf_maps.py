"""Maps, filters and flat_maps on the real host: what comes out, whatever traps and wherever batches are cut."""

from __future__ import annotations

import os
import random
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from streams.cli.udf import app
from streams.cli.udf_fuzz import Bench, Keyspaces, fuzz
from streams.client.udf_template import files_of
from streams.definitions.chains import check_loops, put_rules
from streams.model.errors import BadInput, Conflict
from streams.model.keyspace import Keyspace
from streams.processing.black_box import HEADER, UdfInfo
from streams.processing.catalog import keyspace_rules
from streams.processing.containment import Containment
from streams.processing.dead_letter import dead_letter
from streams.processing.map_ports import MapFold, Puts
from streams.processing.ports import Decoded, Rejected
from streams.processing.replay import DeadLetter, replay
from streams.processing.udf_ports import DecoderPool
from streams.serde import delete_value, encode, load_builtin, parse_schema
from streams.wasm import build as build_room
from streams.wasm.admission import DeployCaps, admit_manifest, admit_module
from streams.wasm.batch import Event, build
from streams.wasm.engine import Limits, ModuleCache, module_hash
from streams.wasm.fold_host import Allowance
from streams.wasm.manifest import Manifest
from streams.wasm.map_host import MapHost
from streams.wasm.packing import packed, unpacked
from streams.wasm.quarantine import OnTrap, TrapPolicy
from streams.wasm.vectors import run_vectors

MAPPER = Path(__file__).parent / "hostile_udfs" / "mapper.c"
LIMITS = Limits(memory_bytes=32 << 20, deadline_s=0.3, fuel=5_000_000, output_bytes=8 << 20)
GOOD = 'name = "m"\nversion = "1"\nabi = 1\nkind = "{}"\ninputs = ["kv"]\noutput = "score"\n'
ADD = load_builtin()["streams.CounterAdd"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> ModuleCache:
    return ModuleCache(tmp_path_factory.mktemp("wasm"))


@pytest.fixture(scope="module")
def mapper() -> bytes:
    return build_room.compile_source(MAPPER, None, {"STREAMS_FLAT_MAP": 1, "STREAMS_PUTS": 1})


def event(key: str, i: int, op: int = 0, ttl_ms: int | None = None) -> Event:
    expires_ms = 2**63 - 1 if ttl_ms is None else 1_000 + i + ttl_ms
    value = encode(load_builtin()["streams.Json"], {"json": '"x"'}) if op == 0 else delete_value()
    return Event(1_000 + i, (1_000 + i) << 16 | 7, expires_ms, 0, op, f"kv:{key}".encode(), value, offset=500 + i)


def fold_of(wasm: bytes, cache: ModuleCache, kind: str = "flat_map", contained: Containment | None = None) -> MapFold:
    known = Keyspaces()
    rules = put_rules(admit_manifest(GOOD.format(kind), DeployCaps()), known.all, known.puts)
    puts = Puts(rules, lambda each: keyspace_rules(each, known.puts(each.name)).config, DecoderPool(cache), "us-east")
    info = UdfInfo("m", "1", "m.g1", module_hash(wasm), 0, 1, LIMITS, kind=kind)
    return MapFold(MapHost(wasm, cache, kind, 1, LIMITS), puts, "events.kv/1", contained, info)


def decoded(events: list[Event]) -> Decoded:
    return Decoded(build(events), len(events), (), frozenset(), events[-1].append_ms)


def test_an_output_depends_on_its_event_alone(mapper: bytes, cache: ModuleCache) -> None:
    fold = fold_of(mapper, cache)
    events = [event("a", 0), event("b", 1, ttl_ms=60_000), event("a", 2, op=1)]
    assert fold.fold(decoded(events), lambda keys: []) == []
    assert fold.take() == ((), ())
    first, second = fold.take_outputs()  # a flat_map passes no deletes on
    assert (first.topic, first.partition, first.key, first.value) == (
        "events.score", None, b"score:a", encode(ADD, {"add": 1})
    )  # fmt: skip
    assert dict(first.headers) == {
        "hlc": b"%d" % (1_000 << 16 | 7), "origin": b"us-east", "source": b"events.kv/1:501",
    }  # fmt: skip
    assert dict(second.headers)["ttl_ms"] == b"60000"
    assert fold.take_outputs() == []
    fold.close()


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("trap", "trap: unreachable"),
        ("spin", "units of fuel"),
        ("output", "output 7 of 1"),
        ("delete", "does not fit"),
        ("many", "over 10000 puts"),
        ("large", "bytes of them"),
        ("nonsense", "output to score: "),
        ("longkey", "output to score: key longer"),
        ("latin", "output to score: key is not UTF-8"),
        ("refuse", "no thanks"),
    ],
)
def test_the_culprit_alone_is_refused_and_leaves_no_put(
    mapper: bytes, cache: ModuleCache, word: str, says: str
) -> None:
    events = [event(f"{i}", i) for i in range(40)]
    events[23] = event(word, 23)
    expected = [f"score:{i}".encode() for i in range(40) if i != 23]
    for size in (40, 7)[: 1 if word == "many" else 2]:
        fold = fold_of(mapper, cache)
        refused = [r for at in range(0, 40, size) for r in fold.fold(decoded(events[at : at + size]), lambda keys: [])]
        assert [(each.offset, each.key) for each in refused] == [(523, f"kv:{word}".encode())]
        assert says in refused[0].reason, refused[0].reason
        assert [each.key for each in fold.take_outputs()] == expected
        fold.close()
        check_box(refused[0], mapper, cache, events[23])


def check_box(refused: Rejected, wasm: bytes, cache: ModuleCache, event: Event) -> None:
    """An event that stopped the module left what shows it again; one that was refused, or made no put, left nothing."""
    output = dead_letter("dead-letter.kv", ("events.kv", 1), refused, module_hash(wasm), 5)
    letter = DeadLetter(output.topic, 0, 9, output.key, output.value, dict(output.headers))
    if not refused.reason.startswith("trap: "):
        assert HEADER not in letter.headers
        return
    box = DeadLetter.of_json(letter.to_json().encode()).box()
    assert (box.info.kind, box.info.limits, box.event, box.rows) == ("flat_map", LIMITS, event, ())
    assert letter.headers["dead_letter_outcome"] == b"skipped"
    done = replay(box, wasm, cache)
    assert done.same_as(box) and done.rows == 0, (box, done)
    fine = replay(replace(box, event=replace(event, key=b"kv:fine")), wasm, cache)
    assert fine.trap is None and fine.rows == 1


@pytest.mark.parametrize("policy", list(OnTrap))
def test_a_search_for_many_culprits_stops_and_goes_on_where_it_was(
    mapper: bytes, cache: ModuleCache, policy: OnTrap
) -> None:
    bad = set(range(3, 40, 4))
    events = [event("trap" if i in bad else f"{i}", i) for i in range(40)]
    now_s, at, traps, found = 0.0, 0, [], []
    contained = Containment(LIMITS, TrapPolicy(policy, 3, 10.0), lambda: now_s)
    fold = fold_of(mapper, cache, contained=contained)
    for _ in range(40):
        if at == len(events):
            break
        refused = fold.fold(decoded(events[at:]), lambda keys: [])
        assert len(refused) <= 3
        traps += [each.offset for each in refused]
        found += [each.key for each in fold.take_outputs()]
        stopped = fold.stopped
        if stopped is not None:
            assert stopped.events > 0 and stopped.next == 500 + at + stopped.events
        at = len(events) if stopped is None else stopped.next - 500
        now_s += 20.0
        if contained.paused:
            contained.resume()
    assert traps == [500 + i for i in sorted(bad)]
    assert found == [f"score:{i}".encode() for i in range(40) if i not in bad]
    fold.close()


def test_a_search_ends_after_its_seconds(mapper: bytes, cache: ModuleCache) -> None:
    host = MapHost(mapper, cache, "flat_map", 1, LIMITS)
    batch = build([event("trap" if i > 5 else f"{i}", i) for i in range(20)])
    emitted, rejects = host.map(batch.raw, Allowance(seconds=0.0))
    assert host.stopped is not None and 0 < host.stopped < 20 and len(rejects) <= 1
    assert all(each.event < host.stopped for each in emitted)
    assert len(host.map(batch.raw)[1]) == 14 and host.stopped is None
    host.close()


@pytest.mark.parametrize("kind", ["map", "filter"])
def test_a_module_of_another_kind_than_it_says_is_stopped(mapper: bytes, cache: ModuleCache, kind: str) -> None:
    host = MapHost(mapper, cache, kind, 1, LIMITS)
    emitted, rejects = host.map(build([event("many", 0), event("fine", 1)]).raw)
    assert [each.index for each in rejects] == ([0] if kind == "map" else [0, 1])
    assert len(emitted) == (1 if kind == "map" else 0)
    host.close()


@pytest.mark.parametrize("lang", ["c", "zig"])
@pytest.mark.parametrize("kind", ["fold", "map", "filter", "flat_map"])
def test_what_udf_new_writes_holds_in_any_cut(lang: str, kind: str, tmp_path: Path, cache: ModuleCache) -> None:
    seed = int(os.environ.get("STREAMS_TEST_SEED") or random.SystemRandom().randrange(2**32))
    print(f"seed {seed}")
    built = []
    for place in (tmp_path / "one", tmp_path / "another place")[0 if kind in ("fold", "map") else 1 :]:
        place.mkdir()
        for file, text in files_of("fresh", lang, kind).items():
            (place / file).write_text(text)
        build_room.write_modules(place)
        built.append((place / "fresh.wasm").read_bytes())
    assert built[0] == built[-1], "the same source gives the same bytes, wherever it is"
    manifest = admit_manifest((place / "udf.toml").read_text(), DeployCaps())
    assert admit_module(built[0], manifest, DeployCaps(), cache)
    assert run_vectors(place, cache) == []
    assert fuzz(Bench(built[0], manifest, Keyspaces(), cache), 100, 2, seed) == []


def test_the_fuzz_finds_what_depends_on_the_cut(tmp_path: Path, cache: ModuleCache) -> None:
    source = tmp_path / "x.c"
    source.write_text(
        '#include "streams_map.h"\nstatic uint8_t seen;\nint streams_flat_map_event(const streams_event *e) {\n'
        "  (void)e;\n  seen += 2;\n  if (seen & 2) streams_emit(0, 0, 0, &(uint8_t){2}, 1);\n  return 0;\n}\n"
    )
    wasm = build_room.compile_source(source, None, {"STREAMS_FLAT_MAP": 1})
    manifest = admit_manifest(GOOD.format("flat_map"), DeployCaps())
    found = fuzz(Bench(wasm, manifest, Keyspaces(), cache), 31, 3, 5)
    assert found and all("differ from the" in line for line in found), found
    trapping = build_room.compile_source(MAPPER, None, {"STREAMS_FLAT_MAP": 1})
    assert fuzz(Bench(trapping, manifest, Keyspaces(), cache), 31, 1, 5) == []


def test_the_commands_make_and_test_a_udf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    runner = CliRunner()
    for wrong in (["--lang", "cobol"], ["--kind", "wish"]):
        assert runner.invoke(app, ["new", "mine", *wrong]).exit_code == 1
    assert runner.invoke(app, ["new", "mine", "--kind", "map"]).exit_code == 0
    tested = runner.invoke(app, ["test", "mine", "--events", "50", "--seed", "7"])
    assert tested.exit_code == 0 and "--seed 7" in tested.stdout and "events/s" in tested.stdout, tested.output
    manifest = tmp_path / "mine" / "udf.toml"
    manifest.write_text(manifest.read_text().replace('"score"', '"own"'))
    unknown = runner.invoke(app, ["test", "mine"])
    assert unknown.exit_code == 1
    (tmp_path / "own.avsc").write_text(load_builtin()["streams.CounterAdd"].text)
    tested = runner.invoke(app, ["test", "mine", "--events", "50", "--schema", "own=own.avsc"])
    assert tested.exit_code == 0, tested.output
    source = tmp_path / "mine" / "mine.c"
    source.write_text(source.read_text().replace("streams_emit(0, 0, 0", "if (add > 50) streams_emit(0, 0, 0"))
    tested = runner.invoke(app, ["test", "mine", "--events", "50", "--schema", "own=own.avsc"])
    assert tested.exit_code == 1 and "exactly one put" in tested.stdout, tested.output


BASE = GOOD.format("map")


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ('output = "score"\n', "", "output"),
        ('output = "score"', 'output = ["score", "score"]', "output"),
        ('output = "score"', "output = 7", "output"),
        ('output = "score"', 'output = "No Name"', "output"),
        ('output = "score"', 'output = "score"\nwrites = 1', "writes"),
        ('output = "score"', 'output = "score"\nwrites = ["a", "b"]', "writes"),
        ('output = "score"', 'output = "score"\ntable = "t"', "table"),
        ('output = "score"', 'output = "score"\nmerge = "lww"', "merge"),
        ('output = "score"', 'output = "score"\noutputs = ["late.m"]', "outputs"),
        ('inputs = ["kv"]', "", "inputs"),
        ('kind = "map"', 'kind = "filter"\nwrites = "streams.Json"', "writes"),
        ('kind = "map"', 'kind = "fold"\nmerge = "lww"', "output"),
    ],
)
def test_a_bad_manifest_is_refused_by_its_field(old: str, new: str, field: str) -> None:
    assert old in BASE and admit_manifest(BASE, DeployCaps()).puts == ("score",)
    with pytest.raises(BadInput) as refused:
        admit_manifest(BASE.replace(old, new), DeployCaps())
    assert refused.value.field == field, refused.value


def of(kind: str, inputs: list[str], output: list[str], writes: str = "") -> Manifest:
    said = f"writes = {[writes]}\n" if writes else ""
    text = f'name = "m"\nversion = "1"\nabi = 1\nkind = "{kind}"\ninputs = {inputs}\noutput = {output}\n{said}'
    return admit_manifest(text.replace("'", "'" if "{" in writes else '"'), DeployCaps())


def test_outputs_must_take_what_is_written() -> None:
    own = parse_schema('{"type":"record","name":"x.Own","fields":[{"name":"a","type":"long"}]}')
    known = Keyspaces({"own": own})
    known.all["strict"] = Keyspace("strict", consistency="strong")
    assert [rule.schema_id for rule in put_rules(of("map", ["kv"], ["score"]), known.all, known.puts)] == [ADD.id]
    assert put_rules(of("map", ["kv"], ["own"], own.text), known.all, known.puts)[0].schema_id == own.id
    assert put_rules(of("filter", ["kv", "prefs"], ["content"]), known.all, known.puts)[0].schema_id == 0
    for manifest, field in [
        (of("map", ["kv"], ["nowhere"]), "output"),
        (of("map", ["kv"], ["strict"]), "output"),
        (of("map", ["kv"], ["own"]), "writes"),
        (of("map", ["kv"], ["score"], "streams.Json"), "writes"),
        (of("map", ["kv"], ["score"], "{no Avro}"), "writes"),
        (of("filter", ["kv", "score"], ["content"]), "output"),
    ]:
        with pytest.raises((BadInput, Conflict)) as refused:
            put_rules(manifest, known.all, known.puts)
        assert refused.value.field == field, refused.value


def test_a_chain_that_feeds_itself_is_refused() -> None:
    chain = [of("map", ["a"], ["b"]), of("flat_map", ["b"], ["c", "d"]), of("filter", ["x"], ["y"])]
    for wanted in (of("map", ["a"], ["a"]), of("map", ["c"], ["a"]), of("map", ["d", "z"], ["q", "b"])):
        with pytest.raises(Conflict) as refused:
            check_loops(wanted, chain)
        assert refused.value.field == "output" and "→" in refused.value.detail
    for fine in (of("map", ["a"], ["c"]), of("map", ["c"], ["e"]), of("map", ["y"], ["a"])):
        check_loops(fine, chain)


def test_a_packed_module_is_the_module_and_no_bomb() -> None:
    module = bytes(range(256)) * 8_000
    assert unpacked(packed(module)) == module and len(packed(module)) < len(module) // 10
    assert packed(b"small") == b"small" == unpacked(b"small")
    for bad in (packed(bytes(33 << 20)), packed(module)[:-9], b"\x1f\x8bnonsense"):
        with pytest.raises(BadInput) as refused:
            unpacked(bad)
        assert refused.value.field == "module"
