"""Registers (read, write, cas by value) and the strong key-value store (get, put, delete, cas and txn by version)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from streams.verify.history import Operation, refuse, shorten
from streams.verify.values import Fields, Texts, text_of, whole_of

Question = dict[str, Any]
"""One operation, as the checker's module takes it."""
REGISTER, KV = "register", "kv"
_NOT_TOLD = -1


def register_question(operation: Operation, texts: Texts) -> Question:
    """A register's operation. Its initial value is null."""

    def number(value: Any) -> int:
        return 0 if value is None else texts.number(value)

    def shown(value: Any) -> str:
        return texts.shown[number(value)]

    name, value = operation.key, operation.value
    question: Question = {}
    if operation.f == "write":
        question["value"] = number(value)
        text = f"write {name} {shown(value)}"
    elif operation.f == "cas":
        if not isinstance(value, list) or len(value) != 2:
            refuse(operation.line, "value", "of a cas must be [old, new], or an object with version and value")
        question["old"], question["value"] = number(value[0]), number(value[1])
        text = f"cas {name} {shown(value[0])} {shown(value[1])}"
    else:
        question["value"] = number(operation.result)
        text = f"read {name}"
    answer = (shown(operation.result) if operation.f == "read" else "ok") if operation.known else "?"
    return {**question, "f": operation.f, "text": f"{' '.join(text.split())} → {answer}"}


def drop_unseen(operations: list[tuple[Operation, Question]]) -> list[tuple[Operation, Question]]:
    """Without writes of unknown outcome whose value nobody has seen: as if they never took effect.

    That loses nothing: without such a write, any order that explains the answers still explains them, since a
    register's answers are values seen, and each such write would only add to the search.
    """
    seen = {question["value"] for operation, question in operations if operation.f == "read"}
    seen |= {question["old"] for _, question in operations if "old" in question}
    return [
        (operation, question)
        for operation, question in operations
        if operation.known or (operation.f != "read" and question["value"] in seen)
    ]


class KvKeys:
    """Numbers for keys, and which keys transactions tie together: those are checked as one."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}

    def root(self, key: str) -> str:
        """The key that stands for all that are tied to this one."""
        self._parent.setdefault(key, key)
        while self._parent[key] != key:
            self._parent[key] = self._parent[self._parent[key]]
            key = self._parent[key]
        return key

    def tie(self, keys: Iterable[str]) -> None:
        """These belong together."""
        first, *others = (self.root(key) for key in keys)
        for other in others:
            self._parent[self.root(other)] = self.root(first)

    def groups(self) -> dict[str, list[str]]:
        """All keys, by the one that stands for them."""
        found: dict[str, list[str]] = defaultdict(list)
        for key in self._parent:
            found[self.root(key)].append(key)
        return found


class KvQuestion:
    """An operation on the strong store: reads, or writes under conditions. Keys are names until they are numbered."""

    def __init__(self, operation: Operation, texts: Texts) -> None:
        self.conditions: list[tuple[str, int]] = []
        self.writes: list[tuple[str, int]] = []
        self.reads: list[tuple[str, int, int]] = []
        self.told: list[tuple[str, int]] = []
        self.existed: list[tuple[str, int]] = []
        self.applied = True
        self.text = ""
        self._operation, self._texts = operation, texts
        self._asked = Fields(operation, result=False)
        self._answer = Fields(operation, result=True)
        getattr(self, f"_{operation.f}")()
        if operation.f != "get":
            self._outcome()

    @property
    def keys(self) -> list[str]:
        """Every key it touches, each once; a transaction's are all named in its value."""
        named = [key for key, _ in (*self.conditions, *self.writes, *self.told)]
        return list(dict.fromkeys(named + [key for key, _, _ in self.reads]))

    def _get(self) -> None:
        key, told = self._operation.key, "?"
        if self._operation.known:
            value, version = 0, _NOT_TOLD
            told = "absent"
            if self._operation.result is not None:
                value = self._texts.number(self._answer.required("value"))
                found = self._answer.whole("version")
                version = _NOT_TOLD if found is None else found
                told = self._texts.shown[value] + ("" if found is None else f" at version {found}")
            self.reads.append((key, value, version))
        self.text = f"get {key} → {told}"

    def _put(self, condition: str = "if_version") -> None:
        value = self._texts.number(self._asked.required("value"))
        self.writes.append((self._operation.key, value))
        self.text = f"put {self._operation.key} {self._texts.shown[value]}" + self._condition(condition)

    def _cas(self) -> None:
        self._asked.required("version")
        self._put("version")

    def _delete(self) -> None:
        self.writes.append((self._operation.key, 0))
        self.text = f"delete {self._operation.key}" + self._condition("if_version")
        if "existed" in self._answer:
            self.existed.append((self._operation.key, int(self._answer.flag("existed", True))))

    def _condition(self, name: str) -> str:
        version = self._asked.whole(name)
        if version is None:
            return ""
        self.conditions.append((self._operation.key, version))
        return f" if version {version}" if version else " if absent"

    def _txn(self) -> None:
        line, shown = self._operation.line, []
        for i, each in enumerate(self._asked.array("if")):
            if not isinstance(each, dict):
                refuse(line, f"value.if[{i}]", "must be an object with key and version")
            version = each.get("version")
            key = text_of(each.get("key"), line, f"value.if[{i}].key")
            self.conditions.append((key, 0 if version is None else whole_of(version, line, f"value.if[{i}].version")))
            shown.append(f"if {key} is at {self.conditions[-1][1] or 'absent'}")
        for i, each in enumerate(self._asked.array("then")):
            if not isinstance(each, dict) or ("put" in each) == ("delete" in each):
                refuse(line, f"value.then[{i}]", 'must be {"put": key, "value": v} or {"delete": key}')
            put = "put" in each
            key = text_of(each["put" if put else "delete"], line, f"value.then[{i}]")
            if put and "value" not in each:
                refuse(line, f"value.then[{i}].value", "is missing")
            self.writes.append((key, self._texts.number(each["value"]) if put else 0))
            shown.append(f"put {key} {self._texts.shown[self.writes[-1][1]]}" if put else f"delete {key}")
        if not self.writes:
            refuse(line, "value.then", "must have at least one put or delete")
        self.text = "txn " + ", ".join(shown)

    def _outcome(self) -> None:
        """What a write was answered: whether it was applied, and versions afterwards."""
        if not self._operation.known:
            self.text += " → ?"
            return
        answer = self._answer
        self.applied = answer.flag("applied", True)
        if not self.applied and not self.conditions:
            answer.refuse("applied", "is false though nothing was a condition")
        version, written = answer.whole("version"), [key for key, _ in self.writes]
        if version is not None and (self.applied or self._operation.f != "txn"):
            self.told += [(key, version) for key in dict.fromkeys(written)]
        versions = answer.raw("versions")
        if versions is not None and not isinstance(versions, dict):
            answer.refuse("versions", "must be an object of keys and versions")
        named = {*written, *(key for key, _ in self.conditions)}
        for key, found in (versions or {}).items():
            if key not in named:
                answer.refuse("versions", f"names {shorten(key)}, which the transaction does not")
            self.told.append((key, whole_of(found, answer.line, "value.versions")))
        if self.applied:
            # Our gateway answers a delete with version 0, "it is absent now": nothing that the delete does not say.
            deleted = {key for key, value in self.writes if not value}
            self.told = [(key, told) for key, told in self.told if told or key not in deleted]
        told = f" at version {version}" if version is not None else ""
        self.text += f" → {'ok' if self.applied else 'refused'}{told}"

    def question(self, numbers: dict[str, int]) -> Question:
        """As the checker's module takes it."""
        return {
            "f": "kv",
            "text": self.text,
            "kv": {
                "if": [(numbers[key], version) for key, version in self.conditions],
                "then": [(numbers[key], value) for key, value in self.writes],
                "read": [(numbers[key], value, version) for key, value, version in self.reads],
                "told": [(numbers[key], version) for key, version in self.told],
                "existed": [(numbers[key], there) for key, there in self.existed],
                "applied": self.applied,
            },
        }


Asked = tuple[Operation, KvQuestion]


class _Witnesses:
    """What answers say of keys: values seen, versions told, and keys where an unseen write could have mattered."""

    def __init__(self, pairs: Iterable[Asked]) -> None:
        self.values: set[tuple[str, int]] = set()
        versions: set[tuple[str, int]] = set()
        self.touchy: set[str] = set()
        known = [asked for operation, asked in pairs if operation.known]
        for asked in known:
            self.values |= {(key, value) for key, value, _ in asked.reads}
            versions |= {(key, version) for key, _, version in asked.reads}
            self.touchy |= {key for key, _ in asked.existed}
            if asked.applied:
                written = {key for key, _ in asked.writes}
                versions |= {(key, version) for key, version in asked.told if key in written}
        for operation, asked in pairs:
            refused = operation.known and not asked.applied
            told = dict(asked.told)
            for key, version in asked.conditions:
                if refused:
                    fixed = key in told and (key, told[key]) in versions
                else:
                    fixed = version == 0 or (key, version) in versions
                if not fixed:
                    self.touchy.add(key)

    def need(self, asked: KvQuestion) -> bool:
        """Whether some answer may need this write to have happened."""
        return any(not value or key in self.touchy or (key, value) in self.values for key, value in asked.writes)


def drop_unseen_writes(pairs: list[Asked]) -> list[Asked]:
    """Without puts of unknown outcome that no answer can need: as if they never took effect.

    Take an order that explains every answer, and such a put in it. Until the next write of its key nobody reads its
    value, and nobody names its version either: each version that is named there was told of another write, and versions
    of a key differ. So the order without it explains every answer too (what was unknown there as well never happens).
    Where a condition could be about it (`touchy`), or it deletes, it stays.
    """
    witnesses = _Witnesses(pairs)
    return [(each, asked) for each, asked in pairs if each.known or witnesses.need(asked)]
