"""`Udfs`: the deployed UDFs, on the compacted topic `udfs`: written at home in one sequence, mirrored, read locally."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType

from streams.definitions import releases
from streams.definitions.chains import check_loops
from streams.definitions.deployment import KIND, Deployment, parse_label
from streams.definitions.entries import Entry
from streams.definitions.kafka_log import TOPIC_SETTINGS, KafkaDefinitionsLog, KafkaLogOptions
from streams.definitions.log import DefinitionsLog
from streams.definitions.releases import Change, Known, Release, Wish
from streams.definitions.sequenced import DefinitionsOptions, Sequenced
from streams.kafka.raw_fetch import FetchOptions
from streams.model.errors import Conflict, NotFound, StreamsError
from streams.model.topology import Topology

log = logging.getLogger(__name__)

TOPIC = "udfs"
RESUME = "resume"
RECORD_BYTES_MAX = 20 << 20
KAFKA = KafkaLogOptions(
    topic=TOPIC,
    settings={**TOPIC_SETTINGS, "max.message.bytes": str(RECORD_BYTES_MAX)},
    batch_bytes=RECORD_BYTES_MAX - 1024,
    fetch=FetchOptions(client_id="streams-udfs", partition_bytes=1 << 20, max_wait_ms=2_000),
)
_OPTIONS = DefinitionsOptions(kafka=KAFKA)


class UdfsView:
    """The UDFs by name, as their active versions, and all versions that are there. A removed UDF is there until it is
    collected. `keeps`: whose modules' bytes are kept in memory."""

    def __init__(self, keeps: Callable[[Deployment], bool]) -> None:
        self.udfs: dict[str, Deployment] = {}
        self.releases: dict[str, Release] = {}
        self.versions: dict[str, dict[int, Deployment]] = {}
        self.resumes: dict[str, int] = {}
        self._keeps = keeps

    def apply(self, entries: Iterable[Entry]) -> list[Entry]:
        """Take entries in; returns those that say something. One that cannot be read is logged and passed over."""
        taken = []
        for entry in entries:
            try:
                for each in _as_now(entry):
                    self._take(each)
            except (StreamsError, KeyError, TypeError, ValueError) as error:
                log.error("%s cannot be used: %s", entry.key, error)
                continue
            if entry.kind in (KIND, releases.KIND, RESUME):
                taken.append(entry)
        return taken

    def _take(self, entry: Entry) -> None:
        if entry.kind == KIND:
            name, _, number = entry.name.rpartition("/")
            if entry.value is None:
                self.versions.get(name, {}).pop(int(number), None)
                return
            found = Deployment.of(entry)
            kept = found if self._keeps(found) else replace(found, module=b"")
            self.versions.setdefault(name, {})[found.number] = kept
        elif entry.kind == releases.KIND and entry.value is not None:
            release = Release.of(entry)
            self.releases[release.name] = release
            active = self.versions.get(release.name, {}).get(release.active)
            self.udfs.pop(release.name, None)
            if active is not None:
                self.udfs[release.name] = replace(active, removed=True) if release.removed else active
        elif entry.kind == RESUME and entry.value is not None:
            self.resumes[entry.name] = int(entry.value["count"])

    def known(self, name: str, table: str = "") -> Known:
        """What decisions about a UDF go by."""
        others = tuple(each for each in self.udfs.values() if each.name != name)
        last = max((each.last for each in self.releases.values() if each.table == table), default=0)
        return Known(self.releases.get(name), self.versions.get(name, {}), others, last)


def _as_now(entry: Entry) -> list[Entry]:
    """The entry in today's form: what was one record of one version is a version and its release."""
    body = entry.value
    if entry.kind != releases.KIND or body is None or "manifest" not in body:
        return [entry]
    version = Deployment.of(Entry(f"{KIND}/{entry.name}/1", body))
    release = Release(version.name, version.manifest.table, 0 if version.removed else 1, 1)
    return [release.entry()] if version.removed else [version.entry(), release.entry()]


class Udfs(Sequenced[UdfsView]):
    """The deployed UDFs as one process sees and changes them; `keep` names the one whose module it wants to run;
    `functions`: it runs all functions and machines."""

    def __init__(
        self,
        topology: Topology,
        region: str,
        *,
        keep: str = "",
        functions: bool = False,
        log: DefinitionsLog | None = None,
        options: DefinitionsOptions = _OPTIONS,
    ) -> None:
        def keeps(found: Deployment) -> bool:
            return found.name == keep or (functions and found.manifest.at_gateways)

        log = log or KafkaDefinitionsLog(topology, region, options.kafka)
        super().__init__(log, UdfsView(keeps), UdfsView(lambda _: False), options)

    @property
    def every(self) -> Mapping[str, Deployment]:
        """All by name, removed ones too."""
        return MappingProxyType(self._view.udfs)

    @property
    def folds(self) -> list[str]:
        """Names of those deployed that a worker runs."""
        return [name for name, each in self.live.items() if not each.manifest.at_gateways]

    @property
    def live(self) -> dict[str, Deployment]:
        """Those that are deployed now."""
        return {name: each for name, each in self._view.udfs.items() if not each.removed}

    def get(self, name: str) -> Deployment:
        """One that is deployed; NotFound."""
        found = self.live.get(name)
        if found is None:
            raise NotFound(f"no UDF {name[:80]!r} is deployed", field="name", fix="see `streams udf list`")
        return found

    @property
    def releases(self) -> Mapping[str, Release]:
        """What is served of each UDF, removed ones too."""
        return MappingProxyType(self._view.releases)

    def release(self, name: str) -> Release:
        """What is served of one that is deployed; NotFound."""
        self.get(name)
        return self._view.releases[name]

    def version(self, name: str, number: int) -> Deployment | None:
        """One version, while it is there."""
        return self._view.versions.get(name, {}).get(number)

    def generations(self, name: str) -> dict[int, Deployment]:
        """The generations of rows of a UDF that is deployed, each with the version that folds them."""
        release = self._view.releases.get(name)
        if release is None or release.removed:
            return {}
        return releases.generations(release, self._view.versions.get(name, {}).values())

    def running(self, label: str) -> Deployment | None:
        """The version that the worker of this label folds with; None when that is retired.

        A label without a generation is of the first one while it is there, else of the active one's.
        """
        name, generation = parse_label(label)
        found = self.generations(name)
        return found.get(generation or 1) or (None if generation else next(iter(found.values()), None))

    async def deploy(self, wanted: Deployment, udfs_max: int, wish: Wish | None = None) -> Deployment:
        """Write a version that was admitted, as it is numbered then; idempotent. Conflict when it must not follow what
        is there, or not like that; Timeout. Returns when the local region has it."""
        wish = replace(wish or Wish(), udfs_max=udfs_max)

        def step(view: UdfsView) -> Change | None:
            return releases.deploy(view.known(wanted.name, wanted.manifest.table), wanted, wish)

        release = await self._change(wanted.name, step)
        for number in release.kept:
            found = self.version(wanted.name, number)
            if found is not None and releases.same(found, wanted):
                return found
        raise Conflict("another version was deployed in the same moment", field="version", fix="see `streams udf list`")

    async def promote(self, name: str, number: int, now_ms: int, by: str, *, at_once: bool) -> Release:
        """A candidate becomes what is served; see `releases.promote`. NotFound, Conflict, Timeout."""

        def step(view: UdfsView) -> Change | None:
            release = _live(view, name)
            if number and number == release.active:
                return None  # somebody else was quicker
            return Change(releases.promote(release, number, now_ms, by, at_once=at_once))

        return await self._change(name, step)

    async def hold(self, name: str, now_ms: int, by: str) -> Release:
        """A candidate is built on, as a shadow; see `releases.hold`. NotFound, Conflict, Timeout."""
        return await self._change(name, lambda view: Change(releases.hold(_live(view, name), now_ms, by)))

    async def rollback(self, name: str, now_ms: int, by: str) -> Release:
        """The last deploy is undone; see `releases.rollback`. NotFound, Conflict, Timeout."""
        return await self._change(name, lambda view: Change(releases.rollback(_live(view, name), now_ms, by)))

    async def collect(self, name: str, now_ms: int) -> None:
        """What is kept no longer goes, if it is due. Timeout."""

        def step(view: UdfsView) -> Change | None:
            release = view.releases.get(name)
            left = releases.collect(release, now_ms) if release is not None else None
            return None if left is None else Change(left)

        await self._change(name, step)

    @property
    def resumes(self) -> Mapping[str, int]:
        """How often each UDF was resumed, by name; one that never was is missing."""
        return MappingProxyType(self._view.resumes)

    async def resume(self, name: str, who: str, at_ms: int) -> None:
        """Tell all regions to go on with a UDF where it is paused. Returns when the local region has it. NotFound."""
        count = 0

        def plan(view: UdfsView) -> list[Entry]:
            nonlocal count
            _live(view, name)
            count = count or view.resumes.get(name, 0) + 1
            return [Entry(f"{RESUME}/{name}", {"name": name, "count": count, "by": who, "at_ms": at_ms})]

        await self._write(plan)
        await self._visible(lambda: self._view.resumes.get(name, 0) >= count)

    async def remove(self, name: str, by: str = "", keep_ms: int = 0, now_ms: int = 0) -> Deployment:
        """Retire one: its table is not fed or served any more; its rows are kept for `keep_ms`. NotFound; Timeout."""
        gone: list[Deployment] = []

        def step(view: UdfsView) -> Change:
            left = releases.remove(_live(view, name), now_ms, by, keep_ms)
            gone[:] = [replace(view.udfs[name], removed=True)]
            return Change(left)

        await self._change(name, step)
        return gone[0]

    async def _change(self, name: str, step: Callable[[UdfsView], Change | None]) -> Release:
        """Write what `step` decides on the newest state, in one transaction; returns the release, once it is here."""
        made: list[Release] = []

        def plan(view: UdfsView) -> list[Entry]:
            now = view.releases.get(name)
            if made and now == made[0]:
                return []  # an answer was lost, but it is written
            change = step(view)
            if change is not None:
                _check_chain(view, change)
            made[:] = [change.release] if change is not None else [now] if now is not None else []
            return [] if change is None else _entries(view, change)

        await self._write(plan)
        await self._visible(lambda: not made or self._is_here(made[0]))
        return made[0]

    def _is_here(self, wanted: Release) -> bool:
        found = self._view.releases.get(wanted.name)
        return found is not None and found.serial >= wanted.serial


def _check_chain(view: UdfsView, change: Change) -> None:
    """Conflict when what is active then, also an older version, closes a loop with what others write by now."""
    release, version = change.release, change.version
    if version is None or version.number != release.active:
        version = view.versions.get(release.name, {}).get(release.active)
    if version is not None and not release.removed:
        others = [each for each in view.udfs.values() if each.name != release.name and not each.removed]
        check_loops(version.manifest, [each.manifest for each in others])


def _live(view: UdfsView, name: str) -> Release:
    found = view.releases.get(name)
    if found is None or found.removed or not found.active:
        raise NotFound(f"no UDF {name[:80]!r} is deployed", field="name", fix="see `streams udf list`")
    return found


def _entries(view: UdfsView, change: Change) -> list[Entry]:
    """A new version before the release that names it, then what is not kept any more."""
    release, version = change.release, change.version
    gone = [number for number in view.versions.get(release.name, {}) if number not in release.kept]
    tombstones = [Entry(f"{KIND}/{release.name}/{number}", None) for number in gone]
    return [*([] if version is None else [version.entry()]), release.entry(), *tombstones]
