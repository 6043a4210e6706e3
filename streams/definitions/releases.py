"""Which version of a UDF is served: one record a UDF, and what may become of it. Pure: `udfs.py` writes the records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from streams.definitions.deployment import Deployment, follows
from streams.definitions.entries import Entry
from streams.model.errors import Conflict
from streams.wasm.admission import version_key

KIND = "udf"
HISTORY_MAX = 50
MOVES_MAX = 20
CAUGHT_UP, HOLD = "caught-up", "hold"
"""When a candidate takes over: by itself, once it has caught up; or when somebody promotes it (a shadow)."""
AUTO, BESIDE, IN_PLACE, SHADOW = "auto", "beside", "in-place", "shadow"
"""How a version is deployed. `auto`: beside the running one where a table has to be built anew, else in place."""


@dataclass(frozen=True, slots=True)
class Past:
    """A version as it is remembered, also after it was collected. Times in epoch milliseconds."""

    number: int
    generation: int
    version: str
    sha256: str
    deployed_ms: int
    deployed_by: str
    region: str
    how: str


@dataclass(frozen=True, slots=True)
class Move:
    """Something that was decided: `what` (deploy, shadow, promote, rollback, collect, remove) of which version."""

    what: str
    number: int
    at_ms: int
    by: str


@dataclass(frozen=True, slots=True)
class Release:
    """What is served of a UDF: numbers of versions, 0 for none. All gateways follow this one record.

    `active` is served; `candidate` is built beside it and takes over by `swap`; `previous` is kept up to date for a
    rollback until `until_ms`, and so is a removed UDF's table. `last`: the highest number ever given. `at_once`: the
    last move is followed without waiting until the version has what readers have seen. `keep_ms`: how long a version
    that was replaced is kept. `rolled_back`: `previous` is what was rolled back from. `serial` counts the changes.
    """

    name: str
    table: str
    active: int
    last: int
    candidate: int = 0
    swap: str = ""
    previous: int = 0
    until_ms: int = 0
    keep_ms: int = 0
    rolled_back: bool = False
    at_once: bool = False
    removed: bool = False
    serial: int = 0
    history: tuple[Past, ...] = ()
    moves: tuple[Move, ...] = ()

    @property
    def kept(self) -> tuple[int, ...]:
        """The numbers of the versions that are there, the active one first."""
        return tuple(number for number in (self.active, self.candidate, self.previous) if number)

    def entry(self) -> Entry:
        """Its record."""
        return Entry(f"{KIND}/{self.name}", asdict(self))

    @classmethod
    def of(cls, entry: Entry) -> Release:
        """The release that a record holds; TypeError, KeyError when it is none."""
        body: dict[str, Any] = dict(entry.value or {})
        history = tuple(Past(**each) for each in body.pop("history"))
        moves = tuple(Move(**each) for each in body.pop("moves"))
        return cls(**body, history=history, moves=moves)

    def moved(self, what: str, number: int, now_ms: int, by: str, **changes: Any) -> Release:
        """This, changed, with the move noted."""
        moves = (*self.moves, Move(what, number, now_ms, by))[-MOVES_MAX:]
        return replace(self, moves=moves, serial=self.serial + 1, **changes)

    def versions(self) -> list[dict[str, object]]:
        """Every version that is remembered, the newest first, and what it is now."""
        return [{**_shown(each), "state": self._state(each.number)} for each in reversed(self.history)]

    def _state(self, number: int) -> str:
        if number == self.active:
            return "removed" if self.removed else "active"
        if number == self.candidate:
            return "shadow" if self.swap == HOLD else "building"
        if number == self.previous:
            return "rolled back" if self.rolled_back else "previous"
        return "collected"


def _shown(past: Past) -> dict[str, object]:
    body = asdict(past)
    body["deployed_at"] = body.pop("deployed_ms")
    return body


@dataclass(frozen=True, slots=True)
class Wish:
    """What a deploy asks for. `beginning`: the table must hold what was ever put; where the log was cut it is refused.

    `keep_ms`: how long the version that is replaced is kept; `udfs_max`: how many UDFs may be deployed.
    """

    how: str = AUTO
    beginning: bool = True
    keep_ms: int = 0
    udfs_max: int = 1_000


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a UDF and of others when a change is decided. `last`: the highest number that the table saw."""

    release: Release | None
    versions: Mapping[int, Deployment]
    others: tuple[Deployment, ...]
    last: int = 0

    def version(self, number: int) -> Deployment | None:
        """One of its versions."""
        return self.versions.get(number)


@dataclass(frozen=True, slots=True)
class Change:
    """What is to be written: the release, and a version that is new."""

    release: Release
    version: Deployment | None = None


def deploy(known: Known, wanted: Deployment, wish: Wish) -> Change | None:
    """What deploying `wanted` changes; None: nothing. Conflict when it must not be deployed like that."""
    release = known.release
    active = known.version(release.active) if release is not None else None
    if release is None or active is None:
        _first_may_shadow(wish)
        follows(wanted, None, known.others, wish.udfs_max)
        return _begin(release, known.last, wanted, wish)
    if release.removed:
        _first_may_shadow(wish)
        if same(active, wanted):
            follows(wanted, None, known.others, wish.udfs_max)
            revived = {"removed": False, "until_ms": 0, "at_once": True}
            return Change(release.moved("deploy", active.number, wanted.deployed_ms, wanted.deployed_by, **revived))
        follows(wanted, replace(active, removed=True), known.others, wish.udfs_max, _KEPT)
        return _begin(release, known.last, wanted, wish)
    return _next(release, active, known, wanted, wish)


def same(one: Deployment, other: Deployment) -> bool:
    """Whether module and manifest are equal."""
    return (one.sha256, one.manifest_text) == (other.sha256, other.manifest_text)


_KEPT = ("kind", "table", "group", "layout")
"""What of a removed UDF must be as it was, where its rows or its log are there."""


def _first_may_shadow(wish: Wish) -> None:
    if wish.how == SHADOW:
        raise Conflict("nothing is deployed under this name", field="name", fix="deploy a first version")


def _next(release: Release, active: Deployment, known: Known, wanted: Deployment, wish: Wish) -> Change | None:
    now_ms, by = wanted.deployed_ms, wanted.deployed_by
    candidate, previous = known.version(release.candidate), known.version(release.previous)
    if same(active, wanted):
        if wish.how == SHADOW:
            raise Conflict(
                f"version {active.manifest.version} is what is served", field="version", fix="shadow another version"
            )
        return None
    if candidate is not None and same(candidate, wanted):
        swap = HOLD if wish.how == SHADOW else CAUGHT_UP
        if swap == release.swap:
            return None
        return Change(release.moved("shadow" if swap == HOLD else "deploy", candidate.number, now_ms, by, swap=swap))
    if previous is not None and same(previous, wanted):
        if wish.how == SHADOW:
            raise Conflict(f"version {wanted.manifest.version} is kept up to date already", fix="promote it")
        return Change(_swapped(release, now_ms, by, "deploy"))
    for other in (candidate, previous):
        if other is not None and version_key(other.manifest.version) == version_key(wanted.manifest.version):
            raise Conflict(
                f"version {other.manifest.version} is deployed with another module or manifest",
                field="version",
                fix=f"raise version in udf.toml over {other.manifest.version}",
            )
    how = _how(active, wanted, wish)
    if how != IN_PLACE:
        return _beside(release, active, known, wanted, replace(wish, how=how))
    follows(wanted, active, known.others, wish.udfs_max)
    if candidate is not None:
        raise Conflict(
            f"version {candidate.manifest.version} is being built beside it", fix="promote it, or roll back, first"
        )
    number = release.last + 1
    version = replace(wanted, number=number, generation=active.generation, from_ms=active.from_ms, began=active.began)
    changes = {"active": number, "last": number, "previous": active.number, "rolled_back": False, "at_once": True}
    return Change(_with(release, version, IN_PLACE, wish, until_ms=now_ms + wish.keep_ms, **changes), version)


def _beside(release: Release, active: Deployment, known: Known, wanted: Deployment, wish: Wish) -> Change:
    if not built(wanted) or not built(active):
        raise Conflict(
            "a table is built anew beside the running one only for folds that put out to no topic: a replay would put "
            "everything out again",
            field="outputs",
            fix="deploy it in place",
        )
    follows(wanted, active, known.others, wish.udfs_max, ("table",))
    _reaches_back(wanted, wish)
    number = release.last + 1
    version = replace(wanted, number=number, generation=number)
    swap = HOLD if wish.how == SHADOW else CAUGHT_UP
    return Change(_with(release, version, wish.how, wish, candidate=number, last=number, swap=swap), version)


def _reaches_back(wanted: Deployment, wish: Wish) -> None:
    if wish.beginning and (cut := cut_regions(wanted)):
        raise Conflict(
            f"the log of {', '.join(cut)} does not reach back to its beginning any more; a table built from it would "
            "miss what was put before",
            field="from",
            fix="from=earliest takes what there is, in_place keeps the rows",
        )


def _how(active: Deployment, wanted: Deployment, wish: Wish) -> str:
    if wish.how != AUTO:
        return wish.how
    if not built(wanted) or not built(active):
        return IN_PLACE
    old, new = active.manifest, wanted.manifest
    logic = (active.sha256, old.inputs, old.merges, old.ttl_ms) != (wanted.sha256, new.inputs, new.merges, new.ttl_ms)
    return BESIDE if logic else IN_PLACE


def built(version: Deployment) -> bool:
    """Whether its work is a table alone, which can be built anew beside another."""
    return version.manifest.kind == "fold" and not version.manifest.outputs


def cut_regions(version: Deployment) -> list[str]:
    """The regions whose log had lost its beginning when it was deployed."""
    return sorted(region for region, log in version.began.items() if log.get("cut"))


def _begin(release: Release | None, last: int, wanted: Deployment, wish: Wish) -> Change:
    if wish.how == BESIDE:  # asked for; by default a first version takes what there is
        _reaches_back(wanted, wish)
    number = max(last, release.last if release is not None else 0) + 1
    version = replace(wanted, number=number, generation=number)
    old = release or Release(wanted.name, wanted.manifest.table, 0, 0)
    begun = Release(
        wanted.name, wanted.manifest.table, number, number,
        at_once=True, serial=old.serial, history=old.history, moves=old.moves,
    )  # fmt: skip
    return Change(_with(begun, version, BESIDE, wish), version)


def _with(release: Release, version: Deployment, how: str, wish: Wish, **changes: Any) -> Release:
    manifest = version.manifest
    past = Past(
        version.number, version.generation, manifest.version, version.sha256,
        version.deployed_ms, version.deployed_by, version.region, how,
    )  # fmt: skip
    what = "shadow" if how == SHADOW else "deploy"
    history = (*release.history, past)[-HISTORY_MAX:]
    return release.moved(
        what, version.number, version.deployed_ms, version.deployed_by,
        history=history, keep_ms=wish.keep_ms, **changes,
    )  # fmt: skip


def hold(release: Release, now_ms: int, by: str) -> Release:
    """The candidate becomes a shadow: it does not take over by itself. Conflict when there is none."""
    if not release.candidate:
        raise Conflict("no version is built beside it", field="name", fix="send manifest and module of one")
    return release.moved("shadow", release.candidate, now_ms, by, swap=HOLD)


def promote(release: Release, number: int, now_ms: int, by: str, *, at_once: bool) -> Release:
    """The candidate `number` (0: whichever there is) becomes active; without one, what was rolled back from does.

    Conflict when there is nothing to promote, or another candidate.
    """
    if release.candidate and number in (0, release.candidate):
        return release.moved(
            "promote",
            release.candidate,
            now_ms,
            by,
            active=release.candidate,
            previous=release.active,
            candidate=0,
            swap="",
            until_ms=now_ms + release.keep_ms,
            rolled_back=False,
            at_once=at_once,
        )
    if not number and release.rolled_back and release.previous:
        return _swapped(release, now_ms, by, "promote")
    raise Conflict("no version waits to be promoted", field="name", fix="deploy or shadow one; see `streams udf list`")


def rollback(release: Release, now_ms: int, by: str) -> Release:
    """The last deploy is undone: a candidate is dropped, else the previous version is active again. Conflict."""
    if release.candidate:
        return release.moved("rollback", release.candidate, now_ms, by, candidate=0, swap="")
    if not release.previous or release.rolled_back:
        raise Conflict(
            "no earlier version is kept", field="name", fix="deploy it again; --keep says how long one is kept"
        )
    return replace(_swapped(release, now_ms, by, "rollback"), rolled_back=True)


def _swapped(release: Release, now_ms: int, by: str, what: str) -> Release:
    changes = {"active": release.previous, "previous": release.active, "rolled_back": False, "at_once": True}
    return release.moved(what, release.previous, now_ms, by, until_ms=now_ms + release.keep_ms, **changes)


def remove(release: Release, now_ms: int, by: str, keep_ms: int) -> Release:
    """It is served no more; its active version's rows are kept for a while, the others' are not."""
    gone = {"candidate": 0, "swap": "", "previous": 0, "rolled_back": False, "removed": True}
    return release.moved("remove", release.active, now_ms, by, until_ms=now_ms + keep_ms, **gone)


def collect(release: Release, now_ms: int) -> Release | None:
    """What is kept no longer goes: the previous version, or all of a removed UDF. None: nothing is due."""
    if now_ms < release.until_ms:
        return None
    if release.removed and release.active:
        return release.moved("collect", release.active, now_ms, "", active=0)
    if release.previous and not release.removed:
        return release.moved("collect", release.previous, now_ms, "", previous=0, rolled_back=False)
    return None


def generations(release: Release, versions: Iterable[Deployment]) -> dict[int, Deployment]:
    """The generations of rows that are there, each with the version that folds them: the active one rules."""
    by_number = {each.number: each for each in versions}
    found: dict[int, Deployment] = {}
    for number in release.kept:
        version = by_number.get(number)
        if version is not None:
            found.setdefault(version.generation, version)
    return found
