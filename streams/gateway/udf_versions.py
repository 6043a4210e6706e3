"""Keeps a gateway at what is decided of UDFs' versions: which generation it serves, who is promoted, what goes."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from streams.definitions import releases
from streams.definitions.deployment import generation_table
from streams.edge.edge_store import EdgeTables
from streams.gateway.udfs import UdfService
from streams.kafka.admin import Admin
from streams.model.clock import wall_ms
from streams.model.errors import StreamsError
from streams.model.token import Token

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class KeeperOptions:
    """Seconds. `step_s`: how often is looked. `sweep_s`: how often for topics and directories of generations that are
    gone, for `watch_s` after the last one went (a mirror may make a topic again), then every `rest_s`; `let_go_s`:
    how long its readers and writers have to notice."""

    step_s: float = 0.1
    sweep_s: float = 5.0
    watch_s: float = 180.0
    rest_s: float = 600.0
    let_go_s: float = 5.0
    retry_s: float = 1.0


class VersionKeeper:
    """One gateway's. `follow` when definitions have changed; `run` as a task. `moved` is called when readers are
    served from other rows than before.

    The decision is one record, the same for all gateways. Each goes over to the new rows in one step of its event loop,
    once they hold everything that its readers may have seen in the old ones; a rollback, and what was forced, at once.
    """

    def __init__(
        self,
        service: UdfService,
        tables: EdgeTables,
        admin: Admin,
        options: KeeperOptions | None = None,
        clock: Callable[[], int] = wall_ms,
    ) -> None:
        self._service, self._tables, self._admin, self._clock = service, tables, admin, clock
        self._options = options or KeeperOptions()
        self.moved: Callable[[], None] = lambda: None
        self._pointed: set[str] = set()
        self._moving: dict[str, tuple[str, Token]] = {}
        self._dead: dict[str, float] = {}
        self._swept_s = 0.0
        self._retry_s = 0.0

    def follow(self) -> None:
        """Serve the generations that are decided; those that have yet to catch up are moved to by `run`."""
        udfs = self._service.udfs
        wanted = {each.manifest.table: (each.table, udfs.releases[name].at_once) for name, each in udfs.live.items()}
        wanted = {public: to for public, to in wanted.items() if to[0] in self._tables.tables}
        for public in self._pointed - wanted.keys():
            self._tables.point(public, None)
        for public, (table, at_once) in wanted.items():
            now = self._tables.pointed(public)
            moving = self._moving.pop(public, None)
            if now == table:
                continue
            if at_once or now is None or now not in self._tables.tables:
                self._tables.point(public, table)
            elif moving is not None and moving[0] == table:
                self._moving[public] = moving
            else:
                self._moving[public] = (table, self._tables.applied_by(now))
        self._pointed = set(wanted)
        self._move()

    @property
    def held(self) -> set[str]:
        """Tables that readers are still served from, though another is decided: not to be retired yet."""
        return {name for public in self._moving if (name := self._tables.pointed(public)) is not None}

    def _move(self) -> bool:
        before = len(self._moving)
        for public, (table, seen) in list(self._moving.items()):
            if table not in self._tables.tables:
                del self._moving[public]
                continue
            inputs = self._tables.tables[table].spec.inputs
            if not seen.restrict(inputs).missing(self._tables.applied_by(table)):
                del self._moving[public]
                self._tables.point(public, table)
                log.info("table %s is %s now", public, table)
        return len(self._moving) < before

    async def run(self) -> None:
        """Follow until cancelled. What cannot be written or deleted now is tried again."""
        while True:
            await asyncio.sleep(self._options.step_s)
            if self._move():
                self.moved()
            if time.monotonic() < self._retry_s:
                continue
            try:
                if self._service.at_home:
                    await self._decide()
                await self._sweep()
            except StreamsError as error:
                self._retry_s = time.monotonic() + self._options.retry_s
                log.warning("versions of UDFs wait: %s", error)

    async def _decide(self) -> None:
        """At home: candidates that have caught up in every region take over; what is due goes."""
        service, now_ms = self._service, self._clock()
        for name, release in list(service.udfs.releases.items()):
            if releases.collect(release, now_ms) is not None:
                await service.udfs.collect(name, now_ms)
            elif release.swap == releases.CAUGHT_UP and all(service.caught_up(name, release.candidate).values()):
                log.info("UDF %s: version number %d has caught up, it takes over", name, release.candidate)
                await service.udfs.promote(name, release.candidate, now_ms, "caught up", at_once=False)

    async def _sweep(self) -> None:
        """Delete changelogs and replicas of generations that are gone, here and as mirrored here."""
        now_s, options = time.monotonic(), self._options
        gone = {name for name in self._gone() if name not in self._tables.tables}
        self._dead = {name: self._dead.get(name, now_s) for name in gone}
        fresh = any(now_s - since_s < options.watch_s for since_s in self._dead.values())
        if not gone or now_s - self._swept_s < (options.sweep_s if fresh else options.rest_s):
            return
        self._swept_s = now_s
        due = {name for name, since_s in self._dead.items() if now_s - since_s >= options.let_go_s}
        region, regions = self._tables.options.region, self._tables.options.regions
        topics = {
            f"table.{name}" if origin == region else f"{origin}.table.{name}" for name in due for origin in regions
        }
        there = sorted(topics & (await self._admin.topics()).keys()) if topics else []
        if there:
            log.info("deleting %s: no version of a UDF has these rows any more", ", ".join(there))
            await self._admin.delete_topics(there)
        for name in sorted(due):
            await self._tables.drop(name)

    def _gone(self) -> set[str]:
        """The tables of all generations that there were and are not any more.

        None of a table of which some version cannot be read here: its generation is not known, so nothing is deleted.
        """
        udfs = self._service.udfs
        kept, ever, unknown = set[str](), dict[str, int](), set[str]()
        for name, release in udfs.releases.items():
            ever[release.table] = max(release.last, ever.get(release.table, 0))
            for number in release.kept:
                version = udfs.version(name, number)
                if version is None:
                    unknown.add(release.table)
                else:
                    kept.add(version.table)
        for table in unknown:
            del ever[table]
        tables = {generation_table(table, number) for table, last in ever.items() for number in range(1, last + 1)}
        return tables - kept
