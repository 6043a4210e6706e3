"""Where a load goes: straight to Kafka, where an interrupted one resumes, or through a gateway."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from streams.cli.resume import LoadState, load_id
from streams.client.direct import KafkaSender, Prepared, sender_for
from streams.kafka.loads import Place, durable_places, ends_of, header_of, parse_place, place_text
from streams.model.keyspace import Keyspace
from streams.model.topology import Topology
from streams.region.paths import data_dir
from streams.region.status import supervisor_of
from streams.tabular.files import lines_of
from streams.tabular.judge import Rejection

if TYPE_CHECKING:
    from streams.cli.load import LoadOptions
    from streams.client import AsyncClient
    from streams.tabular.rows import Rows


@dataclass(frozen=True, slots=True)
class Sent:
    """What became of a chunk. `skipped`: puts that were in the log from before; `rejections`: the first ones."""

    accepted: int
    skipped: int
    rejections: list[Rejection]
    rejected_count: int


class Target(Protocol):
    """Takes chunks in order."""

    def prepare(self, rows: Rows, chunk: int) -> Any:
        """For a thread: what `send` takes."""
        ...

    async def send(self, ready: Any) -> Sent:
        """Returns when it is durable."""
        ...

    def done(self) -> None:
        """All of it was sent."""
        ...

    async def close(self) -> None:
        """Disconnect."""
        ...


class KafkaTarget:
    """Frames to the events topic, each named by load and chunk; those that are there are not sent again."""

    def __init__(self, sender: KafkaSender, state: LoadState | None, ttl_ms: int | None) -> None:
        self._sender, self._state, self._ttl_ms = sender, state, ttl_ms

    def prepare(self, rows: Rows, chunk: int) -> tuple[Prepared, int]:
        """Judge and encode."""
        now_ms = self._state.started_ms if self._state is not None else None
        return self._sender.prepare(rows, self._ttl_ms, now_ms), chunk

    async def send(self, ready: tuple[Prepared, int]) -> Sent:
        """Append the frames that are not there."""
        prepared, chunk = ready
        frames, loads, skipped = [], [], 0
        seen: dict[int, int] = {}
        for frame in prepared.frames:
            place = (chunk, seen.get(frame.partition, 0))
            seen[frame.partition] = place[1] + 1
            if self._state is not None and self._state.holds(frame.partition, place):
                skipped += len(frame.rows)
            else:
                frames.append(frame)
                loads.append(header_of(self._state.ident, place) if self._state is not None else "")
        await self._sender.send(frames, loads if self._state is not None else None)
        refused = prepared.rejections
        return Sent(prepared.accepted - skipped, skipped, refused, len(refused))

    def done(self) -> None:
        """The load is complete."""
        if self._state is not None:
            self._state.done()

    async def close(self) -> None:
        """Disconnect."""
        await self._sender.stop()


class GatewayTarget:
    """NDJSON to a gateway, each chunk one batch."""

    def __init__(self, edge: AsyncClient, state: LoadState | None, ttl_ms: int | None) -> None:
        self._edge, self._state, self._ttl_ms = edge, state, ttl_ms

    def prepare(self, rows: Rows, chunk: int) -> tuple[bytes, list[int], int]:
        """The lines, each one's place in the file, and the chunk."""
        return lines_of(rows, self._ttl_ms), rows.numbers.tolist(), chunk

    async def send(self, ready: tuple[bytes, list[int], int]) -> Sent:
        """One batch."""
        body, numbers, chunk = ready
        headers = {}
        if self._state is not None:
            done = {str(number): place_text(place) for number, place in self._state.durable.items()}
            headers = {"Load-Id": self._state.ident, "Load-Chunk": str(chunk), "Load-Done": json.dumps(done)}
        receipt = await self._edge.put_raw(body, "application/x-ndjson", headers)
        refused = [Rejection(numbers[each.line - 1], each.reason) for each in receipt.rejected]
        return Sent(receipt.accepted, receipt.skipped, refused, receipt.rejected_count)

    def done(self) -> None:
        """The load is complete."""
        if self._state is not None:
            self._state.done()

    async def close(self) -> None:
        """The session is the caller's."""


class KafkaView:
    """The log, seen directly."""

    def __init__(self, bootstrap_servers: str, keyspace: Keyspace) -> None:
        self._servers, self._keyspace = bootstrap_servers, keyspace

    async def start(self) -> dict[int, int]:
        """Where the partitions end."""
        return await ends_of(self._servers, self._keyspace.events_topic, self._keyspace.partitions)

    async def durable(self, start: Any, ident: str) -> dict[int, Place]:
        """By partition, the last frame."""
        positions = {int(number): int(offset) for number, offset in start.items()}
        return await durable_places(self._servers, self._keyspace.events_topic, positions, ident)


class GatewayView:
    """The log, seen by a gateway."""

    def __init__(self, edge: AsyncClient, keyspace: str) -> None:
        self._edge, self._keyspace = edge, keyspace

    async def start(self) -> str:
        """A token."""
        answer = await self._edge.get_json("/v1/loads/new", {"keyspace": self._keyspace})
        return str(answer["start"])

    async def durable(self, start: Any, ident: str) -> dict[int, Place]:
        """By partition, the last frame."""
        query = {"keyspace": self._keyspace, "from": str(start)}
        found = (await self._edge.get_json(f"/v1/loads/{ident}", query))["durable"]
        return {int(number): parse_place(place) for number, place in found.items()}


async def open_target(
    edge: AsyncClient,
    keyspace: str,
    file: Path,
    options: LoadOptions,
    bootstrap_servers: str | None,
    region: str | None,
    url: str | None,
    data: Path | None,
) -> Target:
    """Straight to Kafka when its address is given, or the system runs on this machine; else through the gateway."""
    if bootstrap_servers is None and url is None:
        found = data_dir(data)
        if supervisor_of(found) is not None:
            topology = Topology.load(found)
            bootstrap_servers = (topology.region(region) if region else topology.home).bootstrap_servers
    shaped: list[object] = [options.kind, options.key, options.renames, options.ttl_ms, keyspace]
    named = str(file) != "-"
    if bootstrap_servers is None:
        gateway_state = LoadState(load_id(file, [*shaped, edge.url])) if named else None
        if gateway_state is not None:
            await gateway_state.begin(GatewayView(edge, keyspace))
        return GatewayTarget(edge, gateway_state, options.ttl_ms)
    sender = await sender_for(edge.get_json, bootstrap_servers, keyspace)
    state = LoadState(load_id(file, [*shaped, sender.region, str(data_dir(data))])) if named else None
    if state is not None:
        await state.begin(KafkaView(bootstrap_servers, sender.keyspace))
    await sender.start()
    return KafkaTarget(sender, state, options.ttl_ms)
