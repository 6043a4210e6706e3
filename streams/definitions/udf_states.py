"""What regions report of the UDFs they run, state and use: each region's own topic `udf-states`, mirrored into all."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

from streams.definitions.entries import Entry
from streams.definitions.kafka_log import TOPIC_SETTINGS, KafkaLogOptions, TopicReader
from streams.definitions.udf_meters import KIND as METER
from streams.definitions.udf_meters import MeterReport, Meters
from streams.kafka.admin import Admin, TopicSpec
from streams.kafka.producer import EventProducer, ProducerOptions
from streams.kafka.raw_fetch import FetchOptions
from streams.model.errors import BadInput, StreamsError
from streams.model.topology import Topology
from streams.serde import dump_json

log = logging.getLogger(__name__)

TOPIC = "udf-states"
_KAFKA = KafkaLogOptions(topic=TOPIC, fetch=FetchOptions(client_id="streams-udf-states", max_wait_ms=2_000))
_RETRY_S = 0.5
HEARD_S = 30.0
"""How long a report that the mirror has not brought counts."""


@dataclass(frozen=True, slots=True)
class UdfState:
    """A region's report: `state` is starting, active, paused, failing, refused or stopped; `reason` says why it is so.

    `sha256`: of the module that it speaks of. `at_ms`: when, epoch milliseconds. `generation`: of the rows.
    `resumes`: how often the UDF had been resumed (`Udfs.resumes`) when this was said: a pause lasts until it is
    resumed after it.
    """

    name: str
    region: str
    version: str
    sha256: str
    state: str
    reason: str
    at_ms: int
    generation: int = 1
    resumes: int = 0


def topic_spec() -> TopicSpec:
    """The topic in a region."""
    return TopicSpec(TOPIC, 1, TOPIC_SETTINGS)


class StateWriter:
    """Reports of one region. A report that cannot be written is logged: the next one says more."""

    def __init__(self, bootstrap_servers: str, producer: EventProducer | None = None) -> None:
        """`producer`: one that is started and stopped elsewhere, so that `start` and `stop` are not needed."""
        self._servers = bootstrap_servers
        self._producer = producer or EventProducer(bootstrap_servers, ProducerOptions(client_id="streams-udf-states"))

    async def start(self) -> None:
        """Connect; makes the topic where it is missing."""
        async with Admin(self._servers) as admin:
            if TOPIC not in await admin.topics([TOPIC]):
                await admin.ensure_topics([topic_spec()])
        await self._producer.start()

    async def stop(self) -> None:
        """Disconnect."""
        await self._producer.stop()

    async def report(self, state: UdfState) -> None:
        """Append a report, at least once."""
        log.info("UDF %s %s: %s %s", state.name, state.version, state.state, state.reason)
        await self._put(f"udf/{state.name}/{state.generation}".encode(), dump_json(asdict(state)))

    async def meter(self, report: MeterReport) -> None:
        """Append what a UDF uses."""
        key, value, _ = report.entry().record()
        await self._put(key, value or b"")

    async def _put(self, key: bytes, value: bytes) -> None:
        try:
            await self._producer.put(TOPIC, key, value)
        except StreamsError as error:
            log.warning("%s cannot be reported: %s", key.decode(), error)


async def last_states(bootstrap_servers: str, name: str, timeout_s: float = 20.0) -> dict[int, UdfState]:
    """What this region's workers reported last of a UDF, by generation of rows. Timeout, StreamsError."""
    reader = TopicReader(bootstrap_servers, TOPIC, _KAFKA)
    found: dict[int, UdfState] = {}
    try:
        for entry in await reader.read_to_end(timeout_s):
            if entry.key.startswith(f"udf/{name}/"):
                with contextlib.suppress(TypeError):
                    state = UdfState(**(entry.value or {}))
                    found[state.generation] = state
    finally:
        await reader.stop()
    return found


class StateReader:
    """The last report of every region and UDF, as they are known in one region. `start`, `stop`."""

    def __init__(self, topology: Topology, region: str) -> None:
        self._topology, self._here = topology, topology.region(region)
        self._states: dict[tuple[str, str, int], UdfState] = {}
        self._heard: dict[tuple[str, str, int], tuple[UdfState, float]] = {}
        self.meters = Meters()
        self._tasks: list[asyncio.Task[None]] = []
        self.on_change: Callable[[], None] = lambda: None

    def get(self, region: str, name: str, generation: int = 1) -> UdfState | None:
        """What a region reported last of a UDF's generation; None: nothing yet."""
        key = (region, name, generation)
        found = self._states.get(key)
        early, until_s = self._heard.get(key, (None, 0.0))
        if early is None or time.monotonic() > until_s or (found is not None and found.at_ms >= early.at_ms):
            self._heard.pop(key, None)
            return found
        return early

    def hear(self, state: UdfState) -> None:
        """A report that came by another way: it counts until the mirror brings it, for `HEARD_S` at most."""
        now_s = time.monotonic()
        self._heard = {key: early for key, early in self._heard.items() if early[1] > now_s}
        self._heard[state.region, state.name, state.generation] = (state, now_s + HEARD_S)
        self.on_change()

    def start(self) -> None:
        """Begin to follow all regions' topics, in the background; those that are not mirrored yet are waited for."""
        for region in self._topology.names:
            topic = TOPIC if region == self._here.name else f"{region}.{TOPIC}"
            self._tasks.append(asyncio.create_task(self._follow(region, topic), name=topic))

    async def stop(self) -> None:
        """Stop following; idempotent."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow(self, region: str, topic: str) -> None:
        reader = TopicReader(self._here.bootstrap_servers, topic, _KAFKA)
        try:
            await self._exists(topic)
            while True:
                try:
                    entries = await reader.read(1.0)
                except StreamsError as error:
                    log.warning("%s cannot be read now: %s", topic, error)
                    await asyncio.sleep(_RETRY_S)
                    continue
                for entry in entries:
                    self._take(region, entry)
                if any(entry.kind != METER for entry in entries):
                    self.on_change()
        finally:
            with contextlib.suppress(StreamsError):
                await reader.stop()

    async def _exists(self, topic: str) -> None:
        while True:
            with contextlib.suppress(StreamsError):
                async with Admin(self._here.bootstrap_servers) as admin:
                    if topic in await admin.topics([topic]):
                        return
            await asyncio.sleep(_RETRY_S)

    def _take(self, region: str, entry: Entry) -> None:
        try:
            if entry.kind == METER:
                self.meters.take(region, MeterReport.of(entry))
                return
            found = UdfState(**(entry.value or {}))
        except (TypeError, BadInput) as error:
            log.error("%s of %s is no report: %s", entry.key, region, error)
            return
        self._states[region, found.name, found.generation] = found
