"""The black box of a trap: what it holds, that its schema may grow, and that replaying it shows the same trap."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import typer

from streams.cli import udf_safety
from streams.model.errors import BadInput, NotFound
from streams.model.row import MergeType
from streams.processing.black_box import HEADER, SCHEMA, UdfInfo, decode_box
from streams.processing.containment import Containment
from streams.processing.dead_letter import dead_letter
from streams.processing.ports import Decoded, Output
from streams.processing.replay import DeadLetter, replay
from streams.processing.udf_ports import UdfFold
from streams.serde import SchemaSet, compatibility, decode_body, encode, load_builtin, parse_schema
from streams.wasm.batch import Event, build
from streams.wasm.build import compile_source
from streams.wasm.engine import Limits, ModuleCache, module_hash
from streams.wasm.fold_host import REPORT_ROWS_BYTES_MAX, FoldHost, FoldOptions
from streams.wasm.quarantine import TrapPolicy

HOSTILE = Path(__file__).parent / "hostile_udfs" / "hostile.c"
LIMITS = Limits(memory_bytes=16 << 20, deadline_s=0.2, fuel=3_000_000, fuel_deadline_s=0.6, output_bytes=2 << 20)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> ModuleCache:
    return ModuleCache(tmp_path_factory.mktemp("wasm"))


@pytest.fixture(scope="module")
def named() -> bytes:
    return compile_source(HOSTILE, MergeType.COUNTER, names=True)


def letters_of(
    wasm: bytes, cache: ModuleCache, keys: list[str], rows: dict[bytes, bytes] | None = None
) -> tuple[list[DeadLetter], dict[bytes, bytes | None]]:
    """What a fold of these keys leaves: dead letters as a consumer sees them, and the rows."""
    info = UdfInfo("hostile", "1.2", "t", module_hash(wasm), 2, 0, LIMITS)
    fold = UdfFold(FoldHost(wasm, cache, FoldOptions(limits=LIMITS, merge=2)), Containment(LIMITS, TrapPolicy()), info)
    value = b"\0\0\0\0\1\2"
    events = [Event(1_000, 1_000 << 16, 2**63 - 1, 0, 0, key.encode(), value, 70 + at) for at, key in enumerate(keys)]
    decoded = Decoded(build(events), len(events), [], frozenset(), 1_000)
    refused = list(fold.fold(decoded, lambda asked: [(rows or {}).get(key) for key in asked]))
    changed, late = fold.take()
    fold.close()
    outputs = [dead_letter("dead-letter.k", ("events.k", 0), each, info.sha256, 5) for each in (*refused, *late)]
    return [letter_of(each) for each in outputs], dict(changed)


def letter_of(output: Output) -> DeadLetter:
    return DeadLetter(output.topic, 0, 9, output.key, output.value, dict(output.headers))


def test_each_trap_is_shown_again_from_its_file(named: bytes, cache: ModuleCache) -> None:
    words = ["trap", "divide", "wild", "loop", "bomb", "deep", "giant"]
    letters, _ = letters_of(named, cache, ["k:a", *(f"k:{word}" for word in words), "k:b"])
    assert [(each.key or b"").decode()[2:] for each in letters] == words
    for letter in letters:
        box = DeadLetter.of_json(letter.to_json().encode()).box()
        done = replay(box, named, cache)
        assert done.same_as(box), (letter.key, box, done)
        assert box.info.limits == LIMITS and box.event.offset == 70 + 1 + words.index((letter.key or b"").decode()[2:])
        outside = (letter.key or b"").endswith(b"giant")  # found by the host in the answer, not within a function
        assert outside or box.backtrace[0].startswith(("streams_", "recurse")), box.backtrace
        assert (letter.value, box.held) == (b"\0\0\0\0\1\2", False)
        assert letter.headers["dead_letter_outcome"] == b"skipped"


def test_the_state_that_it_was_given_is_in_the_box(named: bytes, cache: ModuleCache, tmp_path: Path) -> None:
    """A module that traps on the second event of a key: without the row, running the event again shows nothing."""
    source = tmp_path / "second.c"
    source.write_text(
        '#include "streams.h"\nint streams_fold_event(const streams_event *e, streams_row *r) {\n'
        "  if (streams_peek(e, r)) __builtin_trap();\n"
        "  streams_put64(streams_payload(streams_touch(e, r, 16)), 7);\n  return 0;\n}\n"
    )
    wasm = compile_source(source, MergeType.COUNTER)
    _, rows = letters_of(wasm, cache, ["k:a"])
    row = rows[b"k:a"]
    assert row is not None
    letters, changed = letters_of(wasm, cache, ["k:a", "k:b"], {b"k:a": row})
    (letter,) = letters
    box = letter.box()
    assert box.rows == ((b"k:a", row),) and box.rows_whole and set(changed) == {b"k:b"}
    assert box.backtrace and all(frame.startswith("?") for frame in box.backtrace), "built without names"
    assert replay(box, wasm, cache).same_as(box)
    without = replay(replace(box, rows=()), wasm, cache)
    assert without.trap is None and without.rows == 1
    with pytest.raises(BadInput) as refused:
        replay(box, named, cache)
    assert refused.value.field == "--module"


def test_a_box_is_bounded(cache: ModuleCache, tmp_path: Path) -> None:
    source = tmp_path / "reads.c"
    source.write_text(
        '#include "streams.h"\nint streams_fold_event(const streams_event *e, streams_row *r) {\n'
        "  (void)e; (void)r; __builtin_trap();\n}\n"
    )
    big = bytes([1, 2, 1, 0]) + bytes(28) + bytes(24) + (1 << 20).to_bytes(4, "little") + bytes(1 << 20)
    (letter,), _ = letters_of(compile_source(source, MergeType.COUNTER), cache, ["k:a"], {b"k:a": big})
    assert not letter.box().rows_whole and len(letter.headers[HEADER]) < REPORT_ROWS_BYTES_MAX
    assert len(letter.headers["dead_letter_reason"]) <= 500


def test_boxes_of_older_and_newer_schemas_are_read(named: bytes, cache: ModuleCache) -> None:
    (letter,), _ = letters_of(named, cache, ["k:trap"])
    ours = load_builtin()[SCHEMA]
    body = decode_body(ours, letter.headers[HEADER])
    newer = json.loads(ours.text)
    newer["fields"].append({"name": "zone", "type": "string", "default": ""})
    older = json.loads(ours.text)
    older["fields"] = [each for each in older["fields"] if each["name"] not in ("held", "udf_kind")]
    for document in (newer, older):
        schema = parse_schema(json.dumps(document).encode())
        assert schema.id != ours.id
        raw = encode(schema, {**body, "zone": "b"})
        read = decode_box(raw, letter.key, letter.value, SchemaSet([ours, schema]))
        assert read == letter.box()
    assert not compatibility(parse_schema(json.dumps(newer).encode()), [ours], "FULL"), "the schema may grow both ways"
    with pytest.raises(BadInput):
        decode_box(b"\0\0\0\0\7rubbish", b"k", b"v")


def test_the_command(named: bytes, cache: ModuleCache, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (letter,), _ = letters_of(named, cache, ["k:trap"])
    file, module = tmp_path / "letter.json", tmp_path / "hostile.wasm"
    file.write_text(letter.to_json())
    module.write_bytes(named)
    saved = tmp_path / "whole.json"
    udf_safety.replay(str(file), module=tmp_path, save=saved)
    said = capsys.readouterr().out
    assert "same trap" in said and "streams_fold" in said and "put k:trap" in said
    udf_safety.replay(str(saved), as_json=True)
    assert json.loads(capsys.readouterr().out)["same"] is True
    other = DeadLetter.of_json(saved.read_bytes())
    saved.write_text(replace(other, key=b"k:fine").to_json())
    with pytest.raises(typer.Exit):
        udf_safety.replay(str(saved))
    assert "no trap: 1 rows changed" in capsys.readouterr().out
    for text, error in (("{}", BadInput), ("[1]", BadInput), ("no JSON", BadInput)):
        file.write_text(text)
        with pytest.raises(error):
            udf_safety.replay(str(file))
    file.write_text(replace(letter, headers={"dead_letter_reason": b"null key"}).to_json())
    with pytest.raises(BadInput, match="null key"):
        udf_safety.replay(str(file))
    with pytest.raises(NotFound):
        udf_safety.replay("nowhere")
