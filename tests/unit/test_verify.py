"""`streams verify`: planted bugs beside their correct twins, refusals, limits, the recorder, and the module's build."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import pytest

from streams.model.errors import BadInput, TooLarge
from streams.verify import HistoryRecorder, Outcome, check_history, read_history
from streams.wasm.engine import HOST, Limits, ModuleCache, TrapKind, UdfTrap
from streams.wasm.wasi import run_wasi
from tests.support.histories import FAIL, INFO, OPEN, Line, Step, judge, line, sequence

CHECKER = Path(str(files("streams.verify").joinpath("checker")))
ORDER = {"id": "s", "side": "sell", "type": "limit", "price": "10.00", "quantity": "5"}
BUY = {"id": "b", "side": "buy", "type": "market", "quantity": "2"}
SOLD = {"status": "filled", "filled": "2", "trades": [{"price": "10", "quantity": "2", "maker": "s"}]}


def get(value: object, version: int | None = None) -> Step:
    found = None if value is None else {"value": value, **({} if version is None else {"version": version})}
    return ("r", "get", "x", None, found)


def put(value: object, version: int, wanted: int | None = None, answer: object = None) -> Step:
    asked = {"value": value} if wanted is None else {"value": value, "if_version": wanted}
    return ("w", "put", "x", asked, answer or {"version": version})


BUGS: dict[str, tuple[list[Step], list[Step]]] = {
    "stale read": (
        [put(1, 4), put(2, 7), get(1, 4)],
        [put(1, 4), put(2, 7), get(2, 7)],
    ),
    "stale read of a register": (
        [("w", "write", "x", 1, None), ("w", "write", "x", 2, None), ("r", "read", "x", None, 1)],
        [("w", "write", "x", 1, None), ("w", "write", "x", 2, None), ("r", "read", "x", None, 2)],
    ),
    "lost ack": (
        [put(1, 4), put(2, 7), get(1, 4), put(3, 9, 4)],
        [put(1, 4), put(2, 7, answer=INFO), get(1, 4), put(3, 9, 4)],
    ),
    "lost ack of a first write": ([put(1, 4), get(None)], [("w", "put", "x", {"value": 1}, INFO), get(None)]),
    "failed but applied": (
        [("w", "put", "x", {"value": 1}, FAIL), get(1)],
        [("w", "put", "x", {"value": 1}, OPEN), get(1)],
    ),
    "double execution of a compare-and-set": (
        [put(1, 4), put(2, 7, 4), ("v", "put", "x", {"value": 3, "if_version": 4}, {"version": 9})],
        [put(1, 4), put(2, 7, 4), ("v", "put", "x", {"value": 3, "if_version": 4}, {"applied": False, "version": 7})],
    ),
    "refused although it held": (
        [put(1, 4), put(2, 7, 4, {"applied": False})],
        [put(1, 4), put(2, 7, 3, {"applied": False})],
    ),
    "compare-and-set of a register": (
        [("w", "write", "x", 1, None), ("w", "cas", "x", [1, 2], None), ("w", "cas", "x", [1, 3], None)],
        [("w", "write", "x", 1, None), ("w", "cas", "x", [1, 2], None), ("w", "cas", "x", [1, 3], FAIL)],
    ),
    "double execution of an order": (
        [
            ("a", "place", "A", ORDER, {"status": "open"}),
            ("a", "place", "A", BUY, SOLD),
            ("r", "book", "A", None, {"bids": [], "asks": [["10", "1"]]}),
        ],
        [
            ("a", "place", "A", ORDER, {"status": "open"}),
            ("a", "place", "A", BUY, SOLD),
            ("r", "book", "A", None, {"bids": [], "asks": [["10", "3"]]}),
        ],
    ),
    "half a transaction": (
        [
            ("w", "txn", "", {"then": [{"put": "x", "value": 1}, {"put": "y", "value": 1}]}, {"version": 3}),
            get(1),
            ("r", "get", "y", None, None),
        ],
        [
            ("w", "txn", "", {"then": [{"put": "x", "value": 1}, {"put": "y", "value": 1}]}, {"version": 3}),
            get(1, 3),
            ("r", "get", "y", None, {"value": 1.0, "version": 3}),
        ],
    ),
    "a delete that told version 0, absent, was not one": (
        [put(1, 4), ("w", "delete", "x", None, {"version": 0}), get(1, 4)],
        [
            put(1, 4),
            ("w", "delete", "x", None, {"version": 0}),
            get(None),
            put(2, 7, 0),
            ("w", "txn", "", {"then": [{"delete": "x"}, {"put": "y", "value": 1}]}, {"versions": {"x": 0, "y": 9}}),
            get(None),
        ],
    ),
    "a version that went back": ([put(1, 4), put(2, 4)], [put(1, 4), put(2, 5)]),
}


@pytest.mark.parametrize("name", BUGS)
def test_planted_bugs_are_caught_and_their_correct_twins_pass(name: str) -> None:
    bug, twin = BUGS[name]
    others = [("o", "put", "other", {"value": i}, {"version": i + 1}) for i in range(20)]
    for before in ([], others):
        found = judge(sequence(*before, *bug))
        assert found.outcome is Outcome.ILLEGAL and found.counterexample is not None
        assert found.key != "other" and all(each.key != "other" for each in found.counterexample.history)
        assert found.counterexample.culprit in [operation for operation, _ in found.counterexample.blocked]
        assert judge(sequence(*before, *twin)).outcome is Outcome.OK


def test_the_counterexample_leaves_out_what_does_not_matter() -> None:
    many = [step for i in range(50) for step in (put(i, i + 1), get(i, i + 1), get(i))]
    later = [step for i in range(50) for step in (put(i, i + 100), get(i))]
    found = judge(sequence(*many, get(7), *later)).counterexample
    assert found is not None and found.culprit.result == {"value": 7}
    assert found.culprit.line == 301  # nothing after it is needed, and no other read
    assert [each.f for each in found.history] == ["put"] * 50 + ["get"]


def hard_history() -> list[Line]:
    """Writes and reads of one register, all at the same time, in an order that takes too long to find."""
    lines = [line(i, "invoke", "write", "x", i % 7, 1) for i in range(40)]
    lines += [line(100 + i, "invoke", "cas", "x", [i % 7, 90 + i % 3], 1) for i in range(40)]
    lines += [line(i, "ok", "write", "x", None, 2) for i in range(40)]
    lines += [line(100 + i, "ok", "cas", "x", None, 2) for i in range(40)]
    lines += [line(200, "invoke", "read", "x", None, 3), line(200, "ok", "read", "x", 12345, 4)]
    return lines


def test_a_search_that_takes_too_long_is_unknown() -> None:
    found = judge(hard_history(), timeout_s=0.3)
    assert found.outcome is Outcome.UNKNOWN and "time" in found.reason


def test_a_search_that_needs_too_much_memory_is_unknown() -> None:
    found = judge(hard_history(), timeout_s=120, memory_bytes=24 << 20)
    assert found.outcome is Outcome.UNKNOWN and "memory" in found.reason


GOOD = line(0, "invoke", "put", "x", {"value": 1}, 5)


@pytest.mark.parametrize(
    ("lines", "named"),
    [
        (["{"], "line 1: line"),
        (["[]"], "line 1: line"),
        ([GOOD | {"process": None}], "line 1: process"),
        ([GOOD | {"type": "done"}], "line 1: type"),
        ([GOOD | {"f": "frob"}], "line 1: f"),
        ([GOOD | {"key": {}}], "line 1: key"),
        ([GOOD | {"time": -1}], "line 1: time"),
        ([GOOD | {"time": 1.5}], "line 1: time"),
        ([GOOD, GOOD], "line 2: process"),
        ([GOOD | {"type": "ok"}], "line 1: process"),
        ([GOOD, GOOD | {"type": "ok", "time": 4}], "line 2: time"),
        ([GOOD, GOOD | {"type": "ok", "f": "get"}], "line 2: f"),
        ([GOOD, GOOD | {"type": "ok", "key": "y"}], "line 2: key"),
        ([GOOD | {"value": 3}], "line 1: value"),
        ([GOOD | {"value": {}}], "line 1: value.value"),
        ([GOOD, GOOD | {"type": "ok", "value": {"version": "7"}}], "line 2: value.version"),
        ([GOOD, GOOD | {"type": "ok", "value": {"applied": False}}], "line 2: value.applied"),
        ([GOOD, GOOD | {"process": 1, "f": "write"}], "line 2: f"),
        ([GOOD | {"f": "txn", "value": {"then": []}}], "line 1: value.then"),
        ([GOOD | {"f": "place", "value": {**ORDER, "price": 10.5}}], "line 1: value.price"),
        ([GOOD | {"f": "place", "value": {**ORDER, "type": "stop"}}], "line 1: value.type"),
        ([GOOD | {"f": "book"}, GOOD | {"f": "book", "type": "ok", "value": {"bids": []}}], "line 2: value.asks"),
    ],
)
def test_malformed_lines_are_named(lines: list[object], named: str) -> None:
    text = "\n".join(each if isinstance(each, str) else json.dumps(each) for each in lines) + "\n"
    with pytest.raises(BadInput) as caught:
        check_history(read_history(io.BytesIO(text.encode())))
    assert caught.value.field == named


def test_a_history_is_bounded() -> None:
    text = "".join(json.dumps(GOOD | {"process": i}) + "\n" for i in range(100)).encode()
    assert len(read_history(io.BytesIO(text), len(text))) == 100
    with pytest.raises(TooLarge, match="HISTORY"):
        read_history(io.BytesIO(text), len(text) - 1)


def run_cli(*args: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "streams.cli.main", "verify", *args]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=120, check=False)


def test_the_command(tmp_path: Path) -> None:
    bug, twin = ("".join(json.dumps(each) + "\n" for each in sequence(*steps)) for steps in BUGS["stale read"])
    page, history = tmp_path / "page.html", tmp_path / "history.ndjson"
    history.write_text(twin)
    good = run_cli(str(history), "--html", str(page))
    assert good.returncode == 0 and good.stdout.startswith("Ok: ") and good.stdout.count("\n") == 1
    assert "put x 2" in page.read_text()
    page.unlink()
    bad = run_cli("-", "--html", str(page), stdin=bug)
    assert bad.returncode == 1 and "x is not linearizable" in bad.stdout
    assert "line 5-6, process r: get x → 1 at version 4: it read another value" in bad.stdout
    assert page.read_text().startswith("<!DOCTYPE html>") or "<html" in page.read_text()
    asked = json.loads(run_cli("-", "--json", stdin=bug).stdout)
    assert (asked["verdict"], asked["key"]) == ("illegal", "x")
    hard = "".join(json.dumps(each) + "\n" for each in hard_history())
    late = run_cli("-", "--timeout", "300ms", stdin=hard)
    assert late.returncode == 3 and late.stdout.startswith("Unknown: ") and "not a success" in late.stdout
    for args, text in ((("-",), "{}\n"), (("-", "--timeout", "soon"), ""), (("-", "--max-size", "10"), bug)):
        refused = run_cli(*args, stdin=text)
        assert refused.returncode == 2 and refused.stderr.count("\n") == 1 and not refused.stdout
        assert "Traceback" not in refused.stderr
    assert run_cli(str(tmp_path / "none")).returncode == 2


WRITER = """
import os, sys
from streams.verify import HistoryRecorder
recorder = HistoryRecorder(sys.argv[1])
client = recorder.client()
print("ready", flush=True)
sys.stdin.readline()
for i in range(200):
    with client.invoke("put", f"k{i % 3}", {"value": "v" * (i % 50)}) as operation:
        if i % 10:
            operation.ok({})
os.write(recorder._fd, b'{"process": "torn", "type": "inv')
os.kill(os.getpid(), 9)
"""


def test_processes_record_one_history_and_a_torn_line_is_mended(tmp_path: Path) -> None:
    path = tmp_path / "history.ndjson"
    command = [sys.executable, "-c", WRITER, str(path)]
    writers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    for each in writers:
        assert each.stdout is not None and each.stdout.readline() == "ready\n"
    for each in writers:
        each.communicate("go\n", timeout=60)
    with HistoryRecorder(path) as recorder:
        with recorder.client().invoke("get", "k0") as operation:
            operation.fail()
        if not os.fork():
            with recorder.client().invoke("get", "k0"):
                os._exit(0)
        os.wait()
    assert "torn" not in path.read_text()
    with path.open("rb") as file:
        found = read_history(file)
    assert len(found) == 601 and sum(not each.known for each in found) == 61
    assert len({each.process for each in found}) == 64  # a process is retired when it does not know its outcome
    assert all(a.call_ns <= b.call_ns for a, b in itertools.pairwise(found) if a.process == b.process)


def test_the_recorder_refuses_misuse(tmp_path: Path) -> None:
    recorder = HistoryRecorder(tmp_path / "history.ndjson", clock_ns=iter(range(100)).__next__)
    client = recorder.client()
    operation = client.invoke("get", "x")
    with pytest.raises(BadInput, match="still open"):
        client.invoke("get", "x")
    operation.ok()
    with pytest.raises(BadInput, match="complete"):
        operation.fail()
    for f, value in (("frob", None), ("put", object())):
        with pytest.raises(BadInput):
            client.invoke(f, "x", value)
    recorder.close()
    recorder.close()
    with pytest.raises(BadInput, match="closed"):
        client.invoke("get", "x")
    times = [json.loads(text)["time"] for text in (tmp_path / "history.ndjson").read_text().splitlines()]
    assert times == [0, 1]


def test_the_module_is_the_one_that_its_sources_make() -> None:
    """Without Go too: a change of a source without a build, or of the module without one, is found."""
    lines = [text.split() for text in (CHECKER / "SHA256SUMS").read_text().splitlines()[1:]]
    sums = {name: digest for digest, name in lines}
    sources = {path.name for path in CHECKER.iterdir() if path.suffix in (".go", ".mod", ".sum", ".wasm")}
    assert set(sums) == sources
    for name, digest in sums.items():
        assert hashlib.sha256((CHECKER / name).read_bytes()).hexdigest() == digest, name


def test_building_again_gives_the_bytes_checked_in(tmp_path: Path) -> None:
    wanted = (CHECKER / "SHA256SUMS").read_text().splitlines()[0].removeprefix("# ")
    if shutil.which("go") is None:
        pytest.skip("there is no Go here")
    quiet = {"cwd": tmp_path, "capture_output": True, "text": True, "timeout": 240}
    here = subprocess.run(["go", "env", "GOVERSION"], env={**os.environ, "GOTOOLCHAIN": "local"}, **quiet)  # type: ignore[call-overload]
    if here.stdout.strip() != wanted:
        pytest.skip(f"the module was built with {wanted}, and here is {here.stdout.strip()}")
    elsewhere = tmp_path / "else where"
    shutil.copytree(CHECKER, elsewhere)
    (tmp_path / "out").mkdir()
    built = subprocess.run(["sh", str(elsewhere / "build.sh"), str(tmp_path / "out")], **quiet)  # type: ignore[call-overload]
    if "dial tcp" in built.stderr:
        pytest.skip("porcupine's source cannot be fetched here")
    assert built.returncode == 0, built.stderr
    assert (tmp_path / "out" / "checker.wasm").read_bytes() == (CHECKER / "checker.wasm").read_bytes()


def wat(body: str) -> bytes:
    import wasmtime

    return bytes(wasmtime.wat2wasm(f'(module (memory (export "memory") 1) {body})'))


def test_wasi_programs_run_under_limits(tmp_path: Path) -> None:
    cache = ModuleCache(tmp_path)

    def run(wasm: bytes, **limits: float) -> int:
        return run_wasi(cache.load(wasm), b"", Limits(**limits), HOST).status  # type: ignore[arg-type]

    assert run(wat('(func (export "_start"))')) == 0
    leave = '(import "wasi_snapshot_preview1" "proc_exit" (func $x (param i32)))'
    program = f'(module {leave} (memory (export "memory") 1) (func (export "_start") (call $x (i32.const 7))))'
    import wasmtime

    assert run(bytes(wasmtime.wat2wasm(program))) == 7
    for body, kind in (
        ('(func (export "_start") (loop br 0))', TrapKind.DEADLINE),
        ('(func (export "_start") unreachable)', TrapKind.TRAP),
        ("", TrapKind.MALFORMED),
    ):
        with pytest.raises(UdfTrap) as caught:
            run(wat(body), deadline_s=0.1)
        assert caught.value.kind is kind


def test_a_program_leaves_nothing_that_a_thread_of_wasmtime_would_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its call came after the run, from another thread: a process that was ending by then was aborted."""
    from wasmtime import _ffi as ffi

    finalizers, compiled = [], ModuleCache(tmp_path).load(wat('(func (export "_start"))'))
    for name in ("wasi_config_set_stdout_custom", "wasi_config_set_stderr_custom"):
        original = getattr(ffi, name)

        def recorded(*given: object, original: Callable[..., None] = original) -> None:
            finalizers.append(given[-1])
            original(*given)

        monkeypatch.setattr(ffi, name, recorded)
    assert run_wasi(compiled, b"", Limits(), HOST).status == 0
    assert len(finalizers) == 2 and not any(finalizers), "a null pointer is false"
