"""`KafkaDefinitionsLog`: definitions on the compacted topic `definitions`, written in transactions of one id."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from streams.definitions.entries import Entry, decode_entry
from streams.kafka.admin import Admin, TopicSpec
from streams.kafka.changelog_writer import TransactionalWriter, WriterOptions
from streams.kafka.link import Deadline, Link
from streams.kafka.raw_fetch import FetchOptions, RawConsumer
from streams.kafka.records import records_of
from streams.kafka.run import Run
from streams.model.errors import BadInput, StreamsError, Timeout
from streams.model.topology import Topology

log = logging.getLogger(__name__)

TOPIC = "definitions"
TOPIC_SETTINGS = {
    "cleanup.policy": "compact",
    "min.compaction.lag.ms": str(5 * 60_000),
    "delete.retention.ms": str(24 * 3_600_000),
}


@dataclass(frozen=True, slots=True)
class KafkaLogOptions:
    """`topic`: the name at home, also the transactional id of writers; `settings`: what it is created with.
    `batch_bytes`: the largest record that may be written. Waits in seconds, sizes in bytes."""

    topic: str = TOPIC
    settings: Mapping[str, str] = field(default_factory=lambda: TOPIC_SETTINGS)
    request_timeout_s: float = 20.0
    batch_bytes: int = 900_000
    fetch: FetchOptions = FetchOptions(  # noqa: RUF009
        client_id="streams-definitions", partition_bytes=1 << 20, max_wait_ms=2_000
    )


class TopicReader:
    """Reads a one-partition topic of one cluster from its start, committed records only."""

    def __init__(self, bootstrap_servers: str, topic: str, options: KafkaLogOptions) -> None:
        self._bootstrap, self._tp, self._options = bootstrap_servers, (topic, 0), options
        self._admin = Admin(bootstrap_servers, options.request_timeout_s)
        self._consumer: RawConsumer | None = None
        self._position = -1

    async def start(self) -> None:
        """Connect; continues where it was when it had been started before."""
        await self._admin.start()
        if self._position < 0:
            self._position = (await self._admin.start_offsets([self._tp]))[self._tp]  # type: ignore[index]
        consumer = RawConsumer(self._bootstrap, self._options.fetch)
        await consumer.start()
        consumer.assign({self._tp: self._position})
        self._consumer = consumer

    async def stop(self) -> None:
        """Disconnect; the position is kept."""
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await consumer.stop()
        await self._admin.stop()

    async def read(self, timeout_s: float) -> list[Entry]:
        """The next entries, waiting up to `timeout_s` for some. After an error the next call connects again."""
        try:
            if self._consumer is None:
                await self.start()
            assert self._consumer is not None
            runs = await self._consumer.get_runs(timeout_s)
        except StreamsError:
            await self.stop()
            raise
        entries: list[Entry] = []
        for run in runs:
            entries.extend(_entries(run))
            self._position = run.next
        return entries

    async def at_end(self) -> bool:
        """Whether everything committed by now has been read."""
        return self._position >= await self.end()

    async def end(self) -> int:
        """The offset after the last committed record, as of now."""
        await self._admin.start()
        return (await self._admin.end_offsets([self._tp]))[self._tp]  # type: ignore[index]

    async def read_to_end(self, timeout_s: float) -> list[Entry]:
        """Everything committed by now that was not read before; Timeout when it takes longer."""
        if self._consumer is None:
            await self.start()
        deadline, end, began = Deadline(timeout_s), await self.end(), self._position
        entries: list[Entry] = []
        try:
            while self._position < end:
                if deadline.remaining_s <= 0:
                    raise Timeout(f"{self._tp[0]} was not read to its end within {timeout_s:g} s")
                entries += await self.read(min(1.0, deadline.remaining_s))
        except BaseException:
            self._position = began  # what was read is lost with this call: read it again
            await self.stop()
            raise
        return entries


class KafkaDefinitionsLog:
    """A `DefinitionsLog` on Kafka: reads `definitions` at home, else `<home>.definitions`; writes at home."""

    def __init__(self, topology: Topology, region: str, options: KafkaLogOptions = KafkaLogOptions()) -> None:
        home, here = topology.home, topology.region(region)
        self._at_home = here.name == home.name
        self._home_servers, self._options = home.bootstrap_servers, options
        self._local_servers = here.bootstrap_servers
        self._local_topic = options.topic if self._at_home else f"{home.name}.{options.topic}"
        self._local = TopicReader(self._local_servers, self._local_topic, options)
        self._home = TopicReader(home.bootstrap_servers, options.topic, options)
        self._link = Link(home.bootstrap_servers, "streams-definitions", options.request_timeout_s)
        self._writer: TransactionalWriter | None = None

    async def start(self, timeout_s: float) -> None:
        """Create the topic at home, or wait until it is mirrored; then connect."""
        deadline = Deadline(timeout_s, 0.05, 0.5)
        async with Admin(self._local_servers, min(timeout_s, self._options.request_timeout_s)) as admin:
            if self._at_home and self._options.topic not in await admin.topics([self._options.topic]):
                await admin.ensure_topics([TopicSpec(self._options.topic, 1, self._options.settings)])
            while self._local_topic not in await admin.topics([self._local_topic]):
                await deadline.pause(f"{self._local_topic} is not mirrored yet; is MirrorMaker running?")
        await self._local.start()

    async def stop(self) -> None:
        """Disconnect from both clusters."""
        await self._local.stop()
        await self._home.stop()
        await self._link.stop()
        self._writer = None

    async def read(self, timeout_s: float) -> Sequence[Entry]:
        """The next entries of the local topic."""
        return await self._local.read(timeout_s)

    async def at_end(self) -> bool:
        """Whether the local topic has been read to its present end."""
        return await self._local.at_end()

    async def claim(self, timeout_s: float) -> Sequence[Entry]:
        """Initialise the topic's one producer id, which fences other writers and ends what they began; then read."""
        if self._writer is None:
            options = WriterOptions(timeout_s, 30.0, self._options.batch_bytes)
            self._writer = TransactionalWriter(self._link, self._options.topic, options)
        try:
            await self._writer.start()
        except StreamsError:
            self._writer = None
            with contextlib.suppress(StreamsError):
                await self._link.stop()
            raise
        return await self._home.read_to_end(timeout_s)

    async def append(self, entries: Sequence[Entry]) -> None:
        """One transaction, under the claim."""
        if self._writer is None:
            raise BadInput("append without a claim")
        await self._writer.commit(self._options.topic, 0, [entry.record() for entry in entries])


def _entries(run: Run) -> Iterator[Entry]:
    for record in records_of(run):
        try:
            yield decode_entry(record.key, record.value)
        except BadInput as error:
            log.error("%s offset %d is no definition: %s", run.topic, record.offset, error)
