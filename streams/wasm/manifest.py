"""udf.toml: what a UDF is, how its rows merge, and what it may use."""

from __future__ import annotations

import math
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streams.model.errors import BadInput
from streams.model.keys import check_name
from streams.model.row import MergeType
from streams.model.ttl import parse_ttl_ms
from streams.wasm.function_manifest import KIND as FUNCTION
from streams.wasm.function_manifest import FunctionPart, parse_function
from streams.wasm.limits import LIMIT_NAMES, Limits
from streams.wasm.quarantine import OnTrap, TrapPolicy

OUTPUTS_MAX = 16
INPUTS_MAX = 8
_TOPIC = re.compile(r"[a-z][a-z0-9_-]*(\.[a-z0-9_-]+)+\Z")
_CONSTANT = re.compile(r"[A-Z][A-Z0-9_]{0,62}\Z")
MAPS = ("map", "filter", "flat_map")
"""The stateless kinds: events in, puts to other keyspaces out."""
MACHINE = "machine"
KINDS = ("fold", *MAPS, "decoder", "encoder", MACHINE, FUNCTION)
_POLICY = ("on_trap", "trap_limit", "trap_window_s")


@dataclass(frozen=True, slots=True)
class Manifest:
    """A UDF directory's udf.toml. `merges` has one entry per module built; decoder and encoder have none. `outputs`:
    the topics its records go to, by index. `constants`: macros for its C source. Of a fold that is deployed:
    `inputs`, the keyspaces whose events it folds; `table`, what it makes; `ttl_ms`, of rows whose put gives none.
    `policy`: what happens when it traps again and again; `asked`: the limits that it names itself. `function`: what a
    function may do.
    Of a map, filter or flat_map: `puts`, the keyspaces that it writes to (`output` in udf.toml), and `writes`, the
    schema of what it writes to each: a built-in one's name, an Avro schema as JSON, or empty (the keyspace's).
    Of a machine: `group`, whose log `sequenced.GROUP` it executes, and `layout`, a number for what its rows look like:
    another version takes over only where it is the same."""

    name: str
    version: str
    abi: int
    kind: str
    merges: tuple[MergeType, ...]
    limits: Limits
    outputs: tuple[str, ...] = ()
    constants: tuple[tuple[str, int], ...] = ()
    inputs: tuple[str, ...] = ()
    table: str = ""
    ttl_ms: int | None = None
    policy: TrapPolicy = TrapPolicy()  # noqa: RUF009
    asked: frozenset[str] = frozenset()
    function: FunctionPart | None = None
    puts: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    group: str = ""
    layout: int = 1

    @property
    def is_machine(self) -> bool:
        """Whether it executes a sequenced log."""
        return self.kind == MACHINE

    @property
    def at_gateways(self) -> bool:
        """Whether gateways run it, not a worker of its own: a function or a machine."""
        return self.function is not None or self.is_machine

    @property
    def is_map(self) -> bool:
        """Whether it is a map, filter or flat_map."""
        return self.kind in MAPS

    def modules(self) -> dict[str, MergeType | None]:
        """File names of the modules that the directory builds, and the merge type of each."""
        if not self.merges:
            return {f"{self.name}.wasm": None}
        if len(self.merges) == 1:
            return {f"{self.name}.wasm": self.merges[0]}
        return {f"{merge.label}.wasm": merge for merge in self.merges}


def parse_manifest(text: str) -> Manifest:
    """The manifest in a udf.toml's text. BadInput names the field that is wrong."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise BadInput(f"udf.toml is not TOML: {error}", field="manifest", fix="mend that line") from None
    for field in ("name", "version", "kind"):
        if not isinstance(data.get(field), str) or not data[field]:
            raise BadInput("udf.toml does not give it", field=field)
    if data.get("abi") != 1:
        raise BadInput(f"ABI {data.get('abi')!r:.20} is not 1", field="abi")
    if data["kind"] not in KINDS:
        raise BadInput(f"{data['kind']!r:.40} is not one of {', '.join(KINDS)}", field="kind")
    name = check_name(data["name"], field="name")
    merges = _merges(data.get("merge")) if data["kind"] == "fold" else ()
    if data["kind"] == FUNCTION:
        part, its_limits = parse_function(data)
        constants = _constants(data.get("constants", {}))
        return Manifest(name, data["version"], 1, FUNCTION, (), its_limits, constants=constants, function=part)
    limits, policy = _limits_and_policy(data)
    ttl = data.get("ttl")
    if ttl is not None and not isinstance(ttl, str | int | float):
        raise BadInput("is neither a number of seconds nor a text", field="ttl", fix='as in ttl = "1h"')
    puts, writes = _puts(data)
    is_machine = data["kind"] == MACHINE
    return Manifest(
        name,
        data["version"],
        1,
        data["kind"],
        merges,
        _limits(limits),
        _outputs(data.get("outputs", [])),
        _constants(data.get("constants", {})),
        _inputs(data.get("inputs", [])),
        "" if is_machine else check_name(str(data.get("table", name)), field="table"),
        None if ttl is None else parse_ttl_ms(ttl),
        policy,
        frozenset(limits),
        puts=puts,
        writes=writes,
        group=check_name(str(data.get("group", name)), field="group") if is_machine else "",
        layout=_layout(data.get("layout", 1)),
    )


def read_manifest(directory: Path) -> Manifest:
    """The manifest of a UDF directory. BadInput when there is none or it is wrong."""
    try:
        text = (directory / "udf.toml").read_text()
    except OSError as error:
        raise BadInput(f"cannot read udf.toml: {error.strerror}", field="directory") from None
    return parse_manifest(text)


def _layout(value: Any) -> int:
    if type(value) is not int or not 1 <= value < 1 << 31:
        raise BadInput("is no whole number from 1 on", field="layout", fix="as in layout = 1")
    return value


def _merges(value: Any) -> tuple[MergeType, ...]:
    names = value if isinstance(value, list) else [value]
    known = {m.label: m for m in MergeType}
    if not names or not all(isinstance(n, str) and n in known for n in names):
        raise BadInput(f"{value!r:.60} is not one of {', '.join(known)}", field="merge")
    return tuple(known[n] for n in names)


def _outputs(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) > OUTPUTS_MAX or len(set(map(str, value))) != len(value):
        raise BadInput(f"is not a list of at most {OUTPUTS_MAX} different topics", field="outputs")
    for topic in value:
        if not isinstance(topic, str) or not _TOPIC.match(topic):
            raise BadInput(f"{topic!r:.80} names no topic", field="outputs", fix="as in late.device or alerts.device")
    return tuple(value)


def _inputs(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) > INPUTS_MAX or len(set(map(str, value))) != len(value):
        raise BadInput(
            f"is not a list of at most {INPUTS_MAX} different keyspaces", field="inputs", fix='as in ["score"]'
        )
    return tuple(check_name(str(each), field="inputs") for each in value)


def _puts(data: dict[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The keyspaces of `output`, and for each the schema of `writes`."""
    output, writes = data.get("output", []), data.get("writes", [])
    puts = [output] if isinstance(output, str) else output
    if not isinstance(puts, list) or len(puts) > OUTPUTS_MAX or len(set(map(str, puts))) != len(puts):
        raise BadInput(
            f"is neither a keyspace nor a list of at most {OUTPUTS_MAX} different ones",
            field="output",
            fix='as in "kv"',
        )
    names = tuple(check_name(str(each), field="output") for each in puts)
    schemas = [writes] if isinstance(writes, str) else writes
    if not isinstance(schemas, list) or not all(isinstance(each, str) for each in schemas):
        raise BadInput("is neither a schema nor a list of them", field="writes", fix='as in "streams.CounterAdd"')
    if len(schemas) not in (0, len(names)):
        raise BadInput(f"names {len(schemas)} schemas for {len(names)} outputs", field="writes", fix="one for each")
    return names, tuple(schemas) or ("",) * len(names)


def _constants(table: Any) -> tuple[tuple[str, int], ...]:
    if not isinstance(table, dict):
        raise BadInput("is not a table", field="constants")
    for name, value in table.items():
        if not _CONSTANT.match(name) or name.startswith("STREAMS_") or type(value) is not int:
            raise BadInput(
                "is no macro name, or not an integer", field=f"constants.{name:.80}", fix="as in GRACE_MS = 5"
            )
    return tuple(table.items())


def _limits_and_policy(data: dict[str, Any]) -> tuple[dict[str, Any], TrapPolicy]:
    """`[limits]` without the policy on traps, which may stand in it or before all tables."""
    table = data.get("limits", {})
    if not isinstance(table, dict):
        raise BadInput("is not a table", field="limits")
    limits, given = dict(table), {name: data[name] for name in _POLICY if name in data}
    for name in _POLICY:
        if name in limits:
            if name in given:
                raise BadInput("is given twice", field=name, fix="say it once")
            given[name] = limits.pop(name)
    words = [each.value for each in OnTrap]
    if "on_trap" in given:
        if given["on_trap"] not in words:
            raise BadInput(f"{given['on_trap']!r:.40} is not one of {', '.join(words)}", field="on_trap")
        given["on_trap"] = OnTrap(given["on_trap"])
    if type(given.get("trap_limit", 1)) is not int:
        raise BadInput("is no whole number", field="trap_limit", fix="as in trap_limit = 10")
    window = given.get("trap_window_s", 1)
    if isinstance(window, bool) or not isinstance(window, int | float):
        raise BadInput("is no number of seconds", field="trap_window_s", fix="as in trap_window_s = 60")
    return limits, TrapPolicy(**given)


def _limits(table: dict[str, Any]) -> Limits:
    for name, value in table.items():
        if name not in LIMIT_NAMES or isinstance(value, bool) or not isinstance(value, int | float):
            names = ", ".join(LIMIT_NAMES)
            raise BadInput("is no limit, or not a number", field=f"limits.{name:.80}", fix=f"one of {names}")
        if not math.isfinite(value) or value <= 0:
            raise BadInput("must be positive", field=f"limits.{name}")
    numbers = {n: v if n.endswith("_s") else int(v) for n, v in table.items()}
    try:
        return Limits(**numbers)
    except BadInput as error:
        raise BadInput(error.detail, field=f"limits.{error.field}") from None
