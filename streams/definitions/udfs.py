"""`Udfs`: the deployed UDFs, on the compacted topic `udfs`: written at home in one sequence, mirrored, read locally."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType

from streams.definitions.deployment import KIND, Deployment, follows
from streams.definitions.entries import Entry
from streams.definitions.kafka_log import TOPIC_SETTINGS, KafkaDefinitionsLog, KafkaLogOptions
from streams.definitions.log import DefinitionsLog
from streams.definitions.sequenced import DefinitionsOptions, Sequenced
from streams.kafka.raw_fetch import FetchOptions
from streams.model.errors import NotFound, StreamsError
from streams.model.topology import Topology

log = logging.getLogger(__name__)

TOPIC = "udfs"
RECORD_BYTES_MAX = 20 << 20
_KAFKA = KafkaLogOptions(
    topic=TOPIC,
    settings={**TOPIC_SETTINGS, "max.message.bytes": str(RECORD_BYTES_MAX)},
    batch_bytes=RECORD_BYTES_MAX - 1024,
    fetch=FetchOptions(client_id="streams-udfs", partition_bytes=1 << 20, max_wait_ms=2_000),
)
_OPTIONS = DefinitionsOptions(kafka=_KAFKA)


class UdfsView:
    """The last deployment of each name. `keeps`: whose modules' bytes are kept in memory."""

    def __init__(self, keeps: Callable[[Deployment], bool]) -> None:
        self.udfs: dict[str, Deployment] = {}
        self._keeps = keeps

    def apply(self, entries: Iterable[Entry]) -> list[Entry]:
        """Take entries in; returns those that say something. One that cannot be read is logged and passed over."""
        taken = []
        for entry in entries:
            if entry.kind != KIND or entry.value is None:
                continue
            try:
                found = Deployment.of(entry)
            except (StreamsError, KeyError, TypeError, ValueError) as error:
                log.error("%s cannot be used: %s", entry.key, error)
                continue
            self.udfs[found.name] = found if self._keeps(found) else replace(found, module=b"")
            taken.append(entry)
        return taken


class Udfs(Sequenced[UdfsView]):
    """The deployed UDFs as one process sees and changes them; `keep` names the one whose module it wants to run;
    `functions`: it runs all functions."""

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
            return found.name == keep or (functions and found.manifest.function is not None)

        log = log or KafkaDefinitionsLog(topology, region, options.kafka)
        super().__init__(log, UdfsView(keeps), UdfsView(lambda _: False), options)

    @property
    def every(self) -> Mapping[str, Deployment]:
        """All by name, removed ones too."""
        return MappingProxyType(self._view.udfs)

    @property
    def folds(self) -> list[str]:
        """Names of those deployed that a worker runs."""
        return [name for name, each in self.live.items() if each.manifest.function is None]

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

    async def deploy(self, wanted: Deployment, udfs_max: int) -> None:
        """Write a deployment that was admitted; idempotent. Conflict when it must not follow what is there; Timeout.

        Returns when the local region has it.
        """

        def plan(view: UdfsView) -> list[Entry]:
            news = follows(wanted, view.udfs.get(wanted.name), view.udfs.values(), udfs_max)
            return [wanted.entry()] if news else []

        await self._write(plan)
        await self._visible(lambda: self._is_here(wanted, removed=False))

    async def remove(self, name: str) -> Deployment:
        """Retire one: its table is not fed or served any more, its rows stay in the changelog. NotFound; Timeout."""
        gone: list[Deployment] = []

        def plan(view: UdfsView) -> list[Entry]:
            found = view.udfs.get(name)
            if found is None or (found.removed and not gone):
                raise NotFound(f"no UDF {name[:80]!r} is deployed", field="name", fix="see `streams udf list`")
            gone[:] = [replace(found, module=b"", removed=True)]
            return [] if found.removed else [gone[0].entry()]

        await self._write(plan)
        await self._visible(lambda: self._is_here(gone[0], removed=True))
        return gone[0]

    def _is_here(self, wanted: Deployment, *, removed: bool) -> bool:
        found = self._view.udfs.get(wanted.name)
        if found is None or found.removed != removed:
            return False
        return (found.sha256, found.manifest_text) == (wanted.sha256, wanted.manifest_text)
