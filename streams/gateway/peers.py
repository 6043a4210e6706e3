"""The gateways of all regions: what is known of them, and how each tells the others of itself.

Every gateway writes an announcement (node, region, URL) to its region's compacted topic `gateways`, again every few
seconds; the mirror carries the topics everywhere. Nothing sequences them: a node is the only writer of its key, and of
a node's announcements the last in the log counts. An announcement that is not renewed expires.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from streams.gateway.ports import EventLog
from streams.kafka.admin import Admin, TopicSpec
from streams.kafka.errors import OffsetOutOfRange
from streams.kafka.raw_fetch import FetchOptions, RawConsumer
from streams.kafka.records import EventRecord, records_of
from streams.model.errors import BadInput, NotFound, StreamsError
from streams.model.peer import GATEWAYS_TOPIC, Announcement
from streams.model.topology import Topology
from streams.serde import dump_json, parse_json

log = logging.getLogger(__name__)

NODES_MAX = 1_000
FORGET_MS = 24 * 3_600_000
"""An announcement that is not renewed for so long is dropped; until then its URL is a last resort."""
CANDIDATES_MAX = 4
TOPIC_SETTINGS = {
    "cleanup.policy": "compact,delete",
    "retention.ms": str(FORGET_MS),
    "segment.ms": str(3_600_000),
    "min.compaction.lag.ms": str(60_000),
}
_FETCH = FetchOptions(max_wait_ms=2_000, client_id="streams-peers", partition_bytes=256 << 10, fetch_bytes=1 << 20)


def wall_ms() -> int:
    """The wall clock, epoch milliseconds."""
    return time.time_ns() // 1_000_000


class Peers:
    """Who there is. Bounded: at most `NODES_MAX` gateways, of which the longest silent are forgotten first."""

    def __init__(self, topology: Topology, now_ms: Callable[[], int] = wall_ms) -> None:
        self._topology, self._now_ms = topology, now_ms
        self._nodes: dict[tuple[str, str], Announcement] = {}
        self._regions: set[str] = set()

    @property
    def regions(self) -> tuple[str, ...]:
        """Every region known, from the topology or because it announced a gateway; those of the topology first."""
        names = self._topology.names
        return (*names, *sorted(self._regions - set(names)))

    @property
    def announcements(self) -> list[Announcement]:
        """All that is remembered, by region and node; some may have expired."""
        return [self._nodes[key] for key in sorted(self._nodes)]

    def is_live(self, announcement: Announcement) -> bool:
        """Whether it counts now."""
        return announcement.is_live(self._now_ms())

    def know(self, region: str) -> None:
        """There is such a region, whether a gateway of it is heard or not."""
        self._regions.add(region)

    def hear(self, announcement: Announcement) -> None:
        """Take an announcement in. Of a node's the last one heard counts, in the order of its log: its clock may have
        been set back.
        """
        self.know(announcement.region)
        self._nodes[announcement.region, announcement.node] = announcement
        oldest_ms = self._now_ms() - FORGET_MS
        for gone in [key for key, each in self._nodes.items() if each.time_ms < oldest_ms]:
            del self._nodes[gone]
        if len(self._nodes) > NODES_MAX:
            del self._nodes[min(self._nodes, key=lambda each: (self._nodes[each].time_ms, each))]

    def forget(self, region: str, node: str) -> None:
        """The gateway said that it leaves."""
        self._nodes.pop((region, node), None)

    def urls(self, region: str) -> list[str]:
        """Where to try the region's gateways, best first: announced ones, then the topology's, then expired ones.

        NotFound, naming the known regions, when there is no such region. Empty when none of its gateways is known.
        """
        if region not in self.regions:
            raise NotFound(f"no region {region[:80]!r}", field="region", fix=f"choose one of {', '.join(self.regions)}")
        latest = sorted(
            (each for each in self._nodes.values() if each.region == region), key=lambda each: -each.time_ms
        )
        known = [each.gateway_url for each in self._topology.regions if each.name == region and each.gateway_url]
        live = [each.url for each in latest if self.is_live(each)]
        expired = [each.url for each in latest if not self.is_live(each)]
        return list(dict.fromkeys([*live, *known, *expired]))[:CANDIDATES_MAX]


@dataclass(frozen=True, slots=True)
class AnnouncerOptions:
    """`refresh_s`: between a gateway's announcements. `discovery_s`: between looks for other regions' topics."""

    refresh_s: float = 10.0
    discovery_s: float = 5.0
    retry_s: float = 1.0
    goodbye_s: float = 1.0


class Announcer:
    """Announces `own` in the region's Kafka and feeds `peers` with what all regions announce, until cancelled."""

    def __init__(
        self,
        bootstrap_servers: str,
        producer: EventLog,
        peers: Peers,
        own: Announcement,
        options: AnnouncerOptions = AnnouncerOptions(),
    ) -> None:
        self._bootstrap, self._producer, self._peers = bootstrap_servers, producer, peers
        self._own, self._options = own, options
        self._positions: dict[tuple[str, int], int] = {}
        self._announced = self._leaving = False

    async def run(self) -> None:
        """Announce and listen; what fails is logged and tried again."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._again("announcing this gateway", self._announce))
            group.create_task(self._again("following other gateways", self._follow))

    async def goodbye(self) -> None:
        """Say that this gateway leaves, so that nobody waits for the announcement to expire."""
        self._leaving = True
        if self._announced:
            with contextlib.suppress(StreamsError, TimeoutError):
                async with asyncio.timeout(self._options.goodbye_s):
                    await self._producer.put(GATEWAYS_TOPIC, self._own.node.encode(), None)

    async def _again(self, what: str, work: Callable[[], Awaitable[None]]) -> None:
        trouble = ""
        while True:
            try:
                await work()
            except StreamsError as error:
                if str(error) != trouble:
                    trouble = str(error)
                    log.warning("%s: %s", what, trouble)
            await asyncio.sleep(self._options.retry_s)

    async def _announce(self) -> None:
        async with Admin(self._bootstrap) as admin:
            if GATEWAYS_TOPIC not in await admin.topics([GATEWAYS_TOPIC]):
                await admin.ensure_topics([TopicSpec(GATEWAYS_TOPIC, 1, TOPIC_SETTINGS)])
        while not self._leaving:
            now = replace(self._own, time_ms=wall_ms())
            self._peers.hear(now)
            await self._producer.put(GATEWAYS_TOPIC, now.node.encode(), dump_json(now.to_json()))
            self._announced = True
            await asyncio.sleep(self._options.refresh_s)

    async def _follow(self) -> None:
        consumer = RawConsumer(self._bootstrap, _FETCH)
        try:
            async with Admin(self._bootstrap) as admin:
                await consumer.start()
                await self._listen(consumer, admin)
        except OffsetOutOfRange:
            self._positions.clear()  # expired records were removed; hearing the rest again changes nothing
            raise
        finally:
            await consumer.stop()

    async def _listen(self, consumer: RawConsumer, admin: Admin) -> None:
        assigned: set[tuple[str, int]] = set()
        discover_s = 0.0
        while True:
            if time.monotonic() >= discover_s:
                await self._discover(admin)
                discover_s = time.monotonic() + self._options.discovery_s
            if assigned != self._positions.keys():
                consumer.assign(self._positions)
                assigned = set(self._positions)
            if not assigned:
                await asyncio.sleep(self._options.retry_s)
                continue
            for run in await consumer.get_runs(self._options.discovery_s):
                for record in records_of(run):
                    self._take(record)
                self._positions[run.topic, run.partition] = run.next

    async def _discover(self, admin: Admin) -> None:
        found = [name for name in await admin.topics() if region_of_topic(name, self._own.region) is not None]
        fresh = [(name, 0) for name in found if (name, 0) not in self._positions]
        if fresh:
            starts = await admin.start_offsets(fresh)
            self._positions.update({(tp.topic, tp.partition): offset for tp, offset in starts.items()})
        for name in found:
            self._peers.know(region_of_topic(name, self._own.region) or "")

    def _take(self, record: EventRecord) -> None:
        region = region_of_topic(record.topic, self._own.region)
        assert region is not None
        node = (record.key or b"").decode("utf-8", "replace")
        if record.value is None:
            self._peers.forget(region, node)
            return
        try:
            body = parse_json(record.value, field="announcement")
            if not isinstance(body, dict):
                raise BadInput("no JSON object")
            heard = Announcement.from_json(body)
        except BadInput as error:
            log.warning("%s at %d is no announcement: %s", record.topic, record.offset, error)
            return
        if (heard.region, heard.node) != (region, node):
            log.warning("%s at %d announces %s of %s", record.topic, record.offset, heard.node, heard.region)
            return
        self._peers.hear(heard)


def region_of_topic(topic: str, own: str) -> str | None:
    """The region whose gateways are announced in `topic` of region `own`, None when it is another topic."""
    if topic == GATEWAYS_TOPIC:
        return own
    region, dot, name = topic.rpartition(".")
    return region if dot and region and name == GATEWAYS_TOPIC and "." not in region else None
