"""A version of a UDF: what its record on the `udfs` topic holds, and when one may follow another."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from streams.definitions.chains import check_loops
from streams.definitions.entries import Entry
from streams.model.errors import BadInput, Conflict
from streams.model.fold_table import DERIVED, FoldTable
from streams.model.keyspace import Keyspace
from streams.model.row import MergeType
from streams.wasm.admission import version_key
from streams.wasm.engine import module_hash
from streams.wasm.manifest import Manifest, parse_manifest
from streams.wasm.packing import packed, unpacked

KIND = "version"


@dataclass(frozen=True, slots=True)
class Deployment:
    """One version of a UDF. `releases.py` says which of them is served, and for how long others are kept.

    `deployed_ms`: epoch milliseconds; `deployed_by`: the token's name, empty without tokens; `region`: whose gateway
    took it. `module` is empty where nobody needs its bytes. `number`: counts the UDF's versions, never used twice.
    `generation`: of the rows: the number of the version that began the table; versions that replaced each other in
    place share it. `from_ms`: the log is folded from what was accepted then on; 0: from its start. `began`: by region,
    how far back the log reached at the deploy (`gateway/udf_logs.py`).
    """

    manifest_text: str
    sha256: str
    module: bytes = field(repr=False)
    deployed_ms: int
    deployed_by: str
    region: str
    removed: bool
    manifest: Manifest
    number: int = 1
    generation: int = 1
    from_ms: int = 0
    began: Mapping[str, Any] = field(default_factory=dict, compare=False)

    @classmethod
    def make(cls, text: str, module: bytes, deployed_ms: int, deployed_by: str, region: str) -> Deployment:
        """A new one. BadInput for a manifest that cannot be read."""
        return cls(text, module_hash(module), module, deployed_ms, deployed_by, region, False, parse_manifest(text))

    @property
    def name(self) -> str:
        """The UDF's name."""
        return self.manifest.name

    @property
    def table(self) -> str:
        """The rows' own name: of the changelog, the directories, the edge's table. Readers know `manifest.table`."""
        return generation_table(self.manifest.table, self.generation)

    @property
    def label(self) -> str:
        """What its worker is called: NAME for the first generation, NAME.gN for others."""
        return self.name if self.generation == 1 else generation_table(self.name, self.generation)

    def entry(self) -> Entry:
        """Its record."""
        body: dict[str, object] = {
            "name": self.name,
            "version": self.manifest.version,
            "manifest": self.manifest_text,
            "sha256": self.sha256,
            "module": base64.b64encode(packed(self.module)).decode(),
            "deployed_ms": self.deployed_ms,
            "deployed_by": self.deployed_by,
            "region": self.region,
            "removed": self.removed,
            "number": self.number,
            "generation": self.generation,
            "from_ms": self.from_ms,
            "began": dict(self.began),
        }
        return Entry(f"{KIND}/{self.name}/{self.number}", body)

    @classmethod
    def of(cls, entry: Entry) -> Deployment:
        """The deployment that a record holds; BadInput or ValueError when it is none or its module is not whole."""
        body: Mapping[str, Any] = entry.value or {}
        text, removed = str(body["manifest"]), bool(body["removed"])
        try:
            module = unpacked(base64.b64decode(str(body["module"]), validate=True))
        except binascii.Error as error:
            raise ValueError(f"the module is not base64: {error}") from None
        sha256 = str(body["sha256"])
        if not removed and module_hash(module) != sha256:
            raise ValueError("the module is not that of its hash")
        made_ms, who, region = int(str(body["deployed_ms"])), str(body["deployed_by"]), str(body["region"])
        number, generation = int(str(body.get("number", 1))), int(str(body.get("generation", 1)))
        from_ms, began = int(str(body.get("from_ms", 0))), dict(body.get("began", {}))
        manifest = parse_manifest(text)
        found = cls(text, sha256, module, made_ms, who, region, removed, manifest, number, generation, from_ms, began)
        if entry.name != f"{found.name}/{number}":
            raise ValueError("key and manifest name different UDFs")
        return found

    def to_json(self) -> dict[str, object]:
        """As listed over HTTP."""
        manifest, function = self.manifest, self.manifest.function
        made: dict[str, object] = {
            "inputs": list(manifest.inputs),
            "table": None if manifest.is_map else manifest.table,
            "merge": manifest.merges[0].label if manifest.merges else None,
            "output": list(manifest.puts),
            "ttl_ms": manifest.ttl_ms,
        }
        if function is not None:
            made = {
                "capabilities": list(function.capabilities),
                "tables": list(function.tables),
                "puts": list(function.puts),
                "idempotent": function.idempotent,
            }
        if manifest.is_machine:
            made = {"group": manifest.group, "layout": manifest.layout, "topic": f"sequenced.{manifest.group}"}
        return {
            "name": manifest.name,
            "version": manifest.version,
            "kind": manifest.kind,
            "sha256": self.sha256,
            **made,
            "deployed_at": self.deployed_ms,
            "deployed_by": self.deployed_by,
            "region": self.region,
            "number": self.number,
            "generation": self.generation,
            "from": self.from_ms or None,
            "began": dict(self.began),
        }


def generation_table(name: str, generation: int) -> str:
    """What a generation of NAME is called, of a table or a UDF. No keyspace, table or UDF of a user has a dot."""
    return f"{name}.g{generation}"


def parse_label(label: str) -> tuple[str, int]:
    """Name and generation of a worker's label; (label, 0) for one that names no generation."""
    name, _, generation = label.rpartition(".g")
    return (name, int(generation)) if name and generation.isdecimal() and len(generation) < 10 else (label, 0)


def deployed_tables(deployment: Deployment, keyspaces: Mapping[str, Keyspace]) -> list[FoldTable]:
    """The table of a deployed fold, once for each input: their partitions stand one after the other in its changelog.

    Empty while an input keyspace is not known here yet.
    """
    manifest = deployment.manifest
    if manifest.at_gateways or not all(name in keyspaces for name in manifest.inputs):
        return []
    inputs = [keyspaces[name] for name in manifest.inputs]
    total, first, found = sum(each.partitions for each in inputs), 0, []
    for keyspace in inputs:
        found.append(
            FoldTable(
                deployment.table,
                keyspace,
                MergeType.LWW if manifest.is_map else manifest.merges[0],  # a map's table has markers only
                outputs=manifest.outputs,
                first=first,
                total=total,
                ttl_ms=(manifest.ttl_ms or 0) if manifest.is_map else manifest.ttl_ms,
            )
        )
        first += keyspace.partitions
    return found


def check_inputs(manifest: Manifest, keyspaces: Mapping[str, Keyspace]) -> None:
    """BadInput for an input that is no keyspace; Conflict for a strong one, and when the table's name is taken."""
    for name in manifest.inputs:
        if name not in keyspaces:
            raise BadInput(
                f"there is no keyspace {name}", field="inputs", fix=f"use some of {', '.join(sorted(keyspaces))}"
            )
        if keyspaces[name].consistency == "strong":
            raise Conflict(f"keyspace {name} is strong", field="inputs", fix="fold an eventual or causal keyspace")
    if manifest.table in keyspaces or any(each.name == manifest.table for each in DERIVED):
        raise Conflict(
            f"{manifest.table} is a keyspace's or a built-in table",
            field="name" if manifest.is_map else "table",
            fix="choose another name" if manifest.is_map else "name another with table = in udf.toml",
        )


def check_function(manifest: Manifest, keyspaces: Mapping[str, Keyspace], tables: Collection[str]) -> None:
    """BadInput for a table or keyspace that the function names and that there is not; Conflict for a strong one that it
    would put to."""
    function = manifest.function
    assert function is not None
    for name in function.tables:
        if name not in tables:
            raise BadInput(f"there is no table {name}", field="tables", fix=f"use some of {', '.join(sorted(tables))}")
    for name in function.puts:
        if name not in keyspaces:
            raise BadInput(
                f"there is no keyspace {name}", field="puts", fix=f"use some of {', '.join(sorted(keyspaces))}"
            )
        if keyspaces[name].is_strong:
            raise Conflict(
                f"keyspace {name} is strong", field="puts", fix="put to eventual or causal keyspaces; read strong ones"
            )


def check_group(name: str, group: str, keyspaces: Mapping[str, object]) -> None:
    """Conflict for a group named as a keyspace: who may write that could command the machine."""
    if group in keyspaces:
        raise Conflict(f"{group} is a keyspace", field="group", fix=f'name another: group = "{name}-log"')


def follows(
    wanted: Deployment,
    before: Deployment | None,
    others: Iterable[Deployment],
    udfs_max: int,
    shape: tuple[str, ...] = ("kind", "table", "merges", "inputs", "outputs", "group", "layout"),
) -> bool:
    """Whether `wanted` is news after `before`, the last of its name. Conflict when it must not follow.

    Equal manifest and module: no news. Another module under the same version, or a lower version, is refused, and so
    is another table, merge type, list of inputs or outputs where the rows that are there are kept (`shape`: what must
    be as it was): they would not fit.
    """
    new = wanted.manifest
    others = [each for each in others if each.name != wanted.name]
    if before is not None:
        old = before.manifest
        same = (before.sha256, before.manifest_text) == (wanted.sha256, wanted.manifest_text)
        if same and not before.removed:
            return False
        asked, has = version_key(new.version), version_key(old.version)
        if (asked == has and not same) or asked < has:
            what = f"version {new.version} is deployed with another module or manifest"
            raise Conflict(
                what if asked == has else f"version {old.version} is deployed, which is higher",
                field="version",
                fix=f"raise version in udf.toml over {old.version}",
            )
        for name in shape:
            if getattr(new, name) != getattr(old, name):
                raise Conflict(
                    f"version {old.version} has {name} {_text(getattr(old, name))}, not {_text(getattr(new, name))}; "
                    "its rows would not fit",
                    field="merge" if name == "merges" else name,
                    fix="keep it, or deploy under another name and table",
                )
    for each in others:
        if new.table and each.manifest.table == new.table:
            kept = " (removed; its rows are kept)" if each.removed else ""
            raise Conflict(f"{new.table} is the table of UDF {each.name}{kept}", field="table", fix="name another")
        if new.group and each.manifest.group == new.group:
            raise Conflict(f"machine {each.name} has the group {new.group}", field="group", fix="name another")
        if not each.removed and set(each.manifest.outputs) & set(new.outputs):
            raise Conflict(f"UDF {each.name} puts out to the same topic", field="outputs", fix="name another")
    check_loops(new, [each.manifest for each in others if not each.removed])
    if (before is None or before.removed) and sum(not each.removed for each in others) >= udfs_max:
        raise Conflict(f"{udfs_max} UDFs are deployed already", field="name", fix="remove one first")
    return True


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(str(getattr(each, "label", each)) for each in value) or "none"
    return str(value)
