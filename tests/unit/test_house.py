"""The house rules, executed: style, docstrings and types, import contracts, the size of functions and modules."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FUNCTION_LINES_MAX = 70
MODULE_LINES_MAX = 500
TOP_LEVEL = {
    ".ci",
    ".gitignore",
    "CHANGELOG.md",
    "LICENSE",
    "README.md",
    "compose",
    "pyproject.toml",
    "requirements-test.txt",
    "requirements.txt",
    "schemas",
    "streams",
    "tests",
    "wasm_udfs",
}


def tracked(pattern: str) -> list[Path]:
    """Files under version control that match `pattern`."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", pattern],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return [ROOT / name for name in listing.split("\0") if name and (ROOT / name).exists()]


@pytest.mark.parametrize(
    "command",
    [
        ("ruff", "check", "."),
        ("ruff", "format", "--check", "."),
        ("mypy",),
        ("lint-imports", "--no-cache"),
    ],
    ids=lambda command: command[0] + ("-format" if "format" in command else ""),
)
def test_checkers_are_content(command: tuple[str, ...]) -> None:
    tool = Path(sys.executable).parent / command[0]
    run = subprocess.run([tool, *command[1:]], cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert run.returncode == 0, run.stdout + run.stderr


def test_functions_fit_on_a_screen_and_modules_in_a_sitting() -> None:
    long = []
    for path in tracked("*.py"):
        text = path.read_text()
        lines = text.count("\n") + 1
        if lines > MODULE_LINES_MAX:
            long.append(f"{path.relative_to(ROOT)}: {lines} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                size = (node.end_lineno or 0) - node.lineno + 1
                if size > FUNCTION_LINES_MAX:
                    long.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {size} lines")
    assert not long, "\n".join(long)


def test_every_room_has_a_readme() -> None:
    rooms = [path.parent for path in (ROOT / "streams").glob("*/__init__.py")]
    missing = [room.name for room in rooms if not (room / "README.md").exists()]
    assert rooms and not missing, missing


def test_the_top_level_holds_only_what_it_should() -> None:
    found = {path.relative_to(ROOT).parts[0] for path in tracked("*")}
    assert found <= TOP_LEVEL, found - TOP_LEVEL


def test_no_fixed_sleeps_in_tests() -> None:
    found = []
    for path in tracked("tests/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and getattr(node.func, "attr", getattr(node.func, "id", "")) == "sleep"
                and node.args
                and isinstance(node.args[0], ast.Constant)
                and node.args[0].value != 0
                and path.name != "polling.py"
            ):
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not found, found


def imported(pattern: str) -> set[str]:
    """Top-level names that the files matching `pattern` import."""
    found: set[str] = set()
    for path in tracked(pattern):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found.update(alias.name.partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.partition(".")[0])
    return found - sys.stdlib_module_names - {"streams", "schemas", "wasm_udfs", "tests", "streams_udf"}


def declared(requirements: list[str]) -> set[str]:
    """The distributions that requirements name, as their top-level modules are usually spelt."""
    names = (re.split(r"[=<>\[ ;]", each)[0] for each in requirements)
    return {MODULES.get(name, name.replace("-", "_")) for name in names}


MODULES = {"faust-streaming": "faust", "pyyaml": "yaml", "import-linter": "importlinter", "pytest-xdist": "xdist"}


def test_every_import_is_a_declared_dependency() -> None:
    """`pip install .` must suffice: what another package happens to bring may be gone with its next version."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    runtime = declared(project["dependencies"])
    assert not imported("streams/*.py") - runtime
    assert not imported("tests/*.py") - runtime - declared(project["optional-dependencies"]["test"])


def test_the_hashed_requirements_hold_what_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for name, wanted in (
        ("requirements.txt", project["dependencies"]),
        ("requirements-test.txt", project["dependencies"] + project["optional-dependencies"]["test"]),
    ):
        text = (ROOT / name).read_text()
        assert "://" not in text, f"{name} holds a URL"
        pinned = [re.sub(r"\[.*\]", "", each) for each in wanted if "==" in each]
        missing = [each for each in pinned if f"\n{each} " not in f"\n{text}"]
        assert not missing, f"{name} was not compiled anew: {missing}"
