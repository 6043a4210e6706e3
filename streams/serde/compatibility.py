"""May a schema replace another? The verdict is the `avro` package's; the reasons are told by path."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from avro.compatibility import ReaderWriterCompatibilityChecker, SchemaCompatibilityType

from streams.model.errors import BadInput
from streams.serde.schemas import AvroSchema, avro_object

LEVELS = ("NONE", "BACKWARD", "BACKWARD_TRANSITIVE", "FORWARD", "FORWARD_TRANSITIVE", "FULL", "FULL_TRANSITIVE")
DEFAULT_LEVEL = "BACKWARD"


def check_level(level: object) -> str:
    """`level` in capitals, if it is a compatibility level; BadInput lists them otherwise."""
    if not isinstance(level, str) or level.upper() not in LEVELS:
        raise BadInput(
            f"{str(level)[:40]!r} is no compatibility level",
            field="compatibility",
            fix=f"use one of {', '.join(LEVELS)}",
        )
    return level.upper()


def compatibility(new: AvroSchema, olds: Sequence[AvroSchema], level: str = DEFAULT_LEVEL) -> list[str]:
    """Why `new` must not follow `olds` (oldest first) under `level`; an empty list when it may.

    BACKWARD: `new` reads what the latest of `olds` wrote. FORWARD: the latest of `olds` reads what `new` writes.
    FULL: both. The `_TRANSITIVE` levels look at all of `olds`. NONE allows everything.
    """
    level = check_level(level)
    if level == "NONE" or not olds:
        return []
    against = olds if level.endswith("_TRANSITIVE") else olds[-1:]
    kind = level.removesuffix("_TRANSITIVE")
    reasons: list[str] = []
    for old in against:
        if kind in ("BACKWARD", "FULL"):
            reasons += [f"the new schema cannot read old data: {reason}" for reason in unreadable(new, old)]
        if kind in ("FORWARD", "FULL"):
            reasons += [f"the old schema cannot read new data: {reason}" for reason in unreadable(old, new)]
    return list(dict.fromkeys(reasons))


def unreadable(reader: AvroSchema, writer: AvroSchema) -> list[str]:
    """Why `reader` cannot read what `writer` wrote, each reason with its path; empty when it can."""
    if reader == writer:
        return []
    mine, theirs = avro_object(reader), avro_object(writer)
    verdict = ReaderWriterCompatibilityChecker().get_compatibility(mine, theirs)
    if verdict.compatibility is SchemaCompatibilityType.compatible:
        return []
    reasons: list[str] = []
    _explain(mine, theirs, "", reasons, set())
    return reasons or sorted(verdict.messages)


def _explain(reader: Any, writer: Any, path: str, reasons: list[str], seen: set[tuple[int, int]]) -> None:
    """Descend where both are the same kind of container, so that each reason is said at its own path."""
    pair = (id(reader), id(writer))
    if pair in seen:
        return
    seen.add(pair)
    if reader.type == writer.type == "record" and _checked(_shell(reader), _shell(writer)) is None:
        _explain_fields(reader, writer, path, reasons, seen)
    elif reader.type == writer.type == "array":
        _explain(reader.items, writer.items, f"{path}[]", reasons, seen)
    elif reader.type == writer.type == "map":
        _explain(reader.values, writer.values, f"{path}{{}}", reasons, seen)
    elif writer.type == "union" or reader.type == "union":
        _explain_union(reader, writer, path, reasons, seen)
    elif (wrong := _checked(reader, writer)) is not None:
        reasons.append(f"{path or 'the schema'}: {_told(reader, writer, wrong)}")


def _explain_fields(reader: Any, writer: Any, path: str, reasons: list[str], seen: set[tuple[int, int]]) -> None:
    theirs = {member.name: member for member in writer.fields}
    for member in reader.fields:
        names = [member.name, *(member.props.get("aliases") or ())]
        match = next((theirs[name] for name in names if name in theirs), None)
        where = f"{path}.{member.name}" if path else member.name
        if match is not None:
            _explain(member.type, match.type, where, reasons, seen)
        elif not member.has_default:
            reasons.append(f"{where}: this field is new and has no default")


def _explain_union(reader: Any, writer: Any, path: str, reasons: list[str], seen: set[tuple[int, int]]) -> None:
    mine = reader.schemas if reader.type == "union" else [reader]
    for branch in writer.schemas if writer.type == "union" else [writer]:
        if any(_checked(choice, branch) is None for choice in mine):
            continue
        alike = [choice for choice in mine if _label(choice) == _label(branch)]
        before = len(reasons)
        if len(alike) == 1:
            _explain(alike[0], branch, path, reasons, seen)
        if len(reasons) == before:
            allowed = " or ".join(_label(choice) for choice in mine)
            reasons.append(f"{path or 'the schema'}: {_label(branch)} was allowed and cannot be read as {allowed}")


class _shell:
    """A record without its fields, to ask the checker about the name alone."""

    def __init__(self, record: Any) -> None:
        self.type, self.name, self.fullname, self.props = record.type, record.name, record.fullname, record.props
        self.fields: list[Any] = []
        self.fields_dict: dict[str, Any] = {}


def _checked(reader: Any, writer: Any) -> Any:
    """The checker's result when it says incompatible, else None."""
    verdict = ReaderWriterCompatibilityChecker().get_compatibility(reader, writer)
    return None if verdict.compatibility is SchemaCompatibilityType.compatible else verdict


def _told(reader: Any, writer: Any, wrong: Any) -> str:
    kinds = {kind.value for kind in wrong.incompatibilities}
    if "missing_enum_symbols" in kinds:
        lost = sorted(set(writer.symbols) - set(reader.symbols))
        return f"the enum lost {', '.join(lost)} and has no default"
    if "fixed_size_mismatch" in kinds:
        return f"the size of {reader.fullname} changed from {writer.size} to {reader.size} bytes"
    if "name_mismatch" in kinds:
        return f"the name changed from {writer.fullname} to {reader.fullname}, with no alias"
    return f"{_label(writer)} cannot be read as {_label(reader)}"


def _label(schema: Any) -> str:
    return str(getattr(schema, "fullname", None) or schema.type)
